"""Every file of a checkpoint is read by one rank, and all ranks learn what rank 0 decides."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_tools.base.errors import UserError
from ds_train.checkpoints import manifest, verification
from ds_train.checkpoints.manifest import FileEntry, choose_checkpoint
from ds_train.checkpoints.verification import share_of, with_all_ranks
from ds_train.ranks.world import World
from tests.support.checkpoints import write_checkpoint


class ThreadsAsRanks:
    """Ranks that are threads of this process, with the collectives that verification uses."""

    def __init__(self, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.size, self._barrier, self._values = size, threading.Barrier(size, timeout=10), [None] * size
        self._own = threading.local()
        self.read: list[str] = []
        monkeypatch.setattr(verification.dist, "is_initialized", lambda: True)
        monkeypatch.setattr(verification, "gather_objects", self.gather)
        monkeypatch.setattr(verification, "broadcast_object", lambda value: self.gather(value)[0])
        monkeypatch.setattr(verification, "on_main", self.on_main)
        file_entry = manifest.file_entry

        def read(path: Path) -> FileEntry:
            self.read.append(path.name)
            return file_entry(path)

        monkeypatch.setattr(manifest, "file_entry", read)

    def gather(self, value: Any) -> list[Any]:
        self._values[self._own.rank] = value
        self._barrier.wait()
        values = list(self._values)
        self._barrier.wait()
        return values

    def on_main(self, world: World, work: Callable[[], Any]) -> Any:
        try:
            outcome = work() if world.is_main else None
        except UserError as error:
            outcome = error
        outcome = self.gather(outcome)[0]
        if isinstance(outcome, UserError):
            raise outcome
        return outcome

    def run(self, work: Callable[[World], Any]) -> list[Any]:
        """The outcome of the work on each rank; of an expected error its message."""

        def on_rank(rank: int) -> Any:
            self._own.rank = rank
            try:
                return work(World(rank, rank, self.size))
            except UserError as error:
                return str(error)

        with ThreadPoolExecutor(self.size) as ranks:
            return list(ranks.map(on_rank, range(self.size)))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for step in (100, 200):
        write_checkpoint(tmp_path, step)
    return tmp_path


def choose(directory: Path, world: World) -> Path | None:
    return with_all_ranks(world, partial(choose_checkpoint, directory, "auto", None))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_each_file_is_read_once_by_all_ranks_together(
    size: int, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = ThreadsAsRanks(size, monkeypatch)
    assert ranks.run(partial(choose, directory)) == [directory / "step_00000200"] * size
    assert sorted(ranks.read) == ["config.json", "mp_rank_00_model_states.pt", "zero_pp_rank_0_optim_states.pt"]


@pytest.mark.parametrize("name", ["huggingface/config.json", "mp_rank_00_model_states.pt"])
def test_damage_that_one_rank_finds_counts_for_all(
    name: str, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = directory / "step_00000200" / name
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert ThreadsAsRanks(3, monkeypatch).run(partial(choose, directory)) == [directory / "step_00000100"] * 3
    assert caplog.text.count(f"{name} is damaged") == 1


def test_all_ranks_end_with_the_same_error(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in directory.glob("step_*/*optim_states.pt"):
        os.truncate(path, 3)
    first, *others = ThreadsAsRanks(3, monkeypatch).run(partial(choose, directory))
    assert "none is usable" in first and others == [first] * 2


@pytest.mark.parametrize(("size", "num_saved"), [(1, 4), (3, 2), (8, 8), (64, 8), (8, 64)])
def test_ranks_read_what_they_will_load(size: int, num_saved: int) -> None:
    names = [f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(num_saved)]
    names += ["state.json", "huggingface/config.json", "mp_rank_00_model_states.pt"]
    files = {name: FileEntry(number, "") for number, name in enumerate(names)}
    shares = [share_of(files, World(rank, rank, size)) for rank in range(size)]
    assert sorted(name for share in shares for name in share) == sorted(names)
    num_files = [sum("optim" in name for name in share) for share in shares]
    assert max(num_files) - min(num_files) <= 1
    if size == num_saved:
        assert all(names[rank] in share for rank, share in enumerate(shares))
