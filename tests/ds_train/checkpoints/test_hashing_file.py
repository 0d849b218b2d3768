"""What is written past the page cache is what was given, and its hash that of the file."""

import errno
import fcntl
import mmap
import os
from pathlib import Path

import pytest
import torch

from ds_train.checkpoints import hashing_file
from ds_train.checkpoints.hashing_file import write_file
from ds_train.checkpoints.manifest import file_entry


@pytest.mark.parametrize("refused", ["nowhere", "open", "write"])
def test_written_file_is_the_one_described(refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes around a chunk's, on file systems that take direct writes, and that refuse them early or late."""
    monkeypatch.setattr(hashing_file, "_CHUNK_BYTES", 1 << 14)
    monkeypatch.setattr(hashing_file, "BULK_BYTES", 1 << 13)
    refusals = []

    def refuse(call, flags_of):
        def refusing(target, *arguments):
            if flags_of(target, *arguments) & os.O_DIRECT:
                refusals.append(target)
                raise OSError(errno.EINVAL, "Invalid argument")
            return call(target, *arguments)

        return refusing

    if refused == "open":
        monkeypatch.setattr(os, "open", refuse(os.open, lambda path, flags, mode=0: flags))
    if refused == "write":
        monkeypatch.setattr(os, "write", refuse(os.write, lambda file, data: fcntl.fcntl(file, fcntl.F_GETFL)))
    for number, size in enumerate([0, 1, 4000, 4096, 16384 - 500, 16384, 16385, 70_000]):
        value = {"a": torch.arange(size, dtype=torch.uint8), "b": ["text", torch.ones(3)]}
        if number % 2:  # from the beginning of a page
            value["a"] = torch.frombuffer(mmap.mmap(-1, max(size, 1)), dtype=torch.uint8)[:size]
        path = tmp_path / f"{size}.pt"
        entry = write_file(path, value)
        assert entry == file_entry(path)
        loaded = torch.load(path)
        assert torch.equal(loaded["a"], value["a"]) and torch.equal(loaded["b"][1], value["b"][1])
    assert bool(refusals) == (refused != "nowhere")
    assert torch.serialization.get_crc32_options()
