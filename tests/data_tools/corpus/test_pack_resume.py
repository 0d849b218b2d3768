"""A pack that is killed and run again ends with the bytes of one that never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_tools import build_pretrain
from data_tools.base.errors import UserError
from data_tools.corpus.shards import PackedBlocks
from data_tools.corpus.text_source import FileSource, shuffled_documents
from data_tools.corpus.tokenizer import TextTokenizer
from tests.support import packing
from tests.support.paths import REPOSITORY

# Runs the command and kills it right before or after the n-th rename or read of tokens.
KILLED_PACK = """
import os, signal, sys
from pathlib import Path
from data_tools import build_pretrain
from data_tools.corpus import token_stream

what, when, countdown, *arguments = sys.argv[1:]
owner, name = {"rename": (Path, "replace"), "read": (token_stream.TokenStream, "read")}[what]
original, left = getattr(owner, name), int(countdown)

def deadly(*args):
    global left
    left -= 1
    if left == 0 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*args)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, deadly)
build_pretrain.main(arguments)
"""

# Renames in order: progress, validation, progress, then four times (shard, progress), and meta.json.
RENAMES = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a corpus, a tokenizer and the pack made of them. Not to be changed."""
    root = tmp_path_factory.mktemp("resume")
    packing.write_corpus(root / "corpus", packing.make_documents(200))
    packing.save_small_tokenizer(root / "tokenizer")
    packing.pack(root)
    return root


def kill_at(root: Path, pack_dir: Path, what: str, when: str, countdown: int) -> None:
    """Pack into ``pack_dir`` and die at the given point."""
    command = [sys.executable, "-c", KILLED_PACK, what, when, str(countdown)]
    arguments = packing.pack_arguments(root, pack_dir=pack_dir)
    result = subprocess.run([*command, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert result.returncode == -signal.SIGKILL, result.stderr


@pytest.mark.parametrize(
    ("what", "when", "countdown"),
    [("rename", when, countdown) for countdown in range(1, RENAMES + 1) for when in ("before", "after")]
    + [("read", "after", countdown) for countdown in (1, 2, 3)],
)
def test_killed_pack_is_not_opened_and_continues_to_the_same_bytes(
    root: Path, tmp_path: Path, what: str, when: str, countdown: int
) -> None:
    pack = tmp_path / "pack"
    kill_at(root, pack, what, when, countdown)
    if (pack / "meta.json").exists():
        assert (when, countdown) == ("after", RENAMES)
        PackedBlocks(pack).verify()
    else:
        with pytest.raises(UserError, match=r"unfinished pack|no packed blocks"):
            PackedBlocks(pack)
    packing.pack(root, pack_dir=pack)
    assert packing.bytes_of(pack) == packing.bytes_of(root / "pack")


def test_there_are_no_more_renames_to_die_at(root: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        kill_at(root, tmp_path / "pack", "rename", "before", RENAMES + 1)


def test_repeated_kills_end_at_the_same_bytes(root: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    for _ in range(4):
        kill_at(root, pack, "rename", "before", 4)  # each time one file further
    packing.pack(root, pack_dir=pack)
    assert packing.bytes_of(pack) == packing.bytes_of(root / "pack")


def test_documents_of_finished_shards_are_not_tokenized_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = tmp_path / "pack"
    kill_at(root, pack, "rename", "after", 7)  # validation and two shards are finished and recorded
    end = json.loads((pack / "meta.in_progress.json").read_text())["finished"][2]["end"]
    documents = list(shuffled_documents(FileSource([str(root / "corpus")]), packing.SEED, packing.BUFFER))
    tokenized: list[str] = []
    encode_batch = TextTokenizer.encode_batch

    def watched(self: TextTokenizer, texts: list[str]) -> list[list[int]]:
        tokenized.extend(texts)
        return encode_batch(self, texts)

    monkeypatch.setattr(TextTokenizer, "encode_batch", watched)
    packing.pack(root, pack_dir=pack)
    assert end["document"] > 30 and end["token"] > 0  # the shard ends inside a document: it alone comes twice
    assert tokenized == documents[end["document"] :]


def test_other_parameters_over_an_unfinished_pack_are_refused(root: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    kill_at(root, pack, "rename", "after", 7)
    before = packing.bytes_of(pack)
    for changes in ({"seed": 4}, {"num_blocks": 71}, {"seq_len": 31}, {"shuffle_buffer": 24}, {"val_blocks": 6}):
        name, value = next(iter(changes.items()))
        with pytest.raises(UserError, match=rf"an unfinished pack .*{name} \d+, not {value}.*--overwrite"):
            packing.pack(root, pack_dir=pack, **changes)
    assert packing.bytes_of(pack) == before
    packing.pack(root, pack_dir=pack, seed=4, overwrite=True)
    assert PackedBlocks(pack).meta.seed == 4


def test_damaged_finished_shard_is_written_again(root: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    kill_at(root, pack, "rename", "after", 9)  # three shards are finished and recorded
    content = bytearray((pack / "shard_00001.bin").read_bytes())
    content[50] ^= 1
    (pack / "shard_00001.bin").write_bytes(content)
    packing.pack(root, pack_dir=pack)
    assert packing.bytes_of(pack) == packing.bytes_of(root / "pack")


def test_interrupted_overwrite_of_a_pack_continues(root: Path, tmp_path: Path) -> None:
    pack = packing.pack(root, pack_dir=tmp_path / "pack", seed=9)
    command = [sys.executable, "-c", KILLED_PACK, "rename", "after", "6", *packing.pack_arguments(root, pack_dir=pack)]
    result = subprocess.run([*command, "--overwrite"], cwd=REPOSITORY, capture_output=True, timeout=120)
    assert result.returncode == -signal.SIGKILL
    with pytest.raises(UserError, match="unfinished pack"):
        PackedBlocks(pack)
    packing.pack(root, pack_dir=pack, overwrite=True)
    assert packing.bytes_of(pack) == packing.bytes_of(root / "pack")


def test_source_that_fails_midway_keeps_the_finished_shards(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = tmp_path / "pack"
    documents = list(shuffled_documents(FileSource([str(root / "corpus")]), packing.SEED, packing.BUFFER))

    def breaking(*_: object) -> object:
        yield from documents[:100]
        raise UserError("the network is gone")

    monkeypatch.setattr(build_pretrain, "shuffled_documents", breaking)
    monkeypatch.setattr("data_tools.corpus.token_stream._BATCH_CHARACTERS", 400)
    with pytest.raises(UserError, match="the network is gone"):
        packing.pack(root, pack_dir=pack)
    assert (pack / "shard_00000.bin").exists() and not list(pack.glob("*.partial"))
    monkeypatch.undo()
    packing.pack(root, pack_dir=pack)
    assert packing.bytes_of(pack) == packing.bytes_of(root / "pack")


# Packs with batches so small that there are many, and tells once of the processes that tokenize them.
TELLING_PACK = """
import multiprocessing, sys
from data_tools import build_pretrain
from data_tools.corpus import token_stream

token_stream._BATCH_CHARACTERS = 100
read = token_stream.TokenStream.read

def telling(stream, count):
    tokens = read(stream, count)
    if "--told" in sys.argv:
        sys.argv.remove("--told")
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        sys.stdin.readline()
    return tokens

token_stream.TokenStream.read = telling
build_pretrain.main(sys.argv[2:])
"""


def begin_telling_pack(root: Path, pack_dir: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A pack in another process, which waits for a line after its first read, and its two workers."""
    arguments = packing.pack_arguments(root, pack_dir=pack_dir, workers=2)
    command = [sys.executable, "-c", TELLING_PACK, "--told", *arguments]
    packer = subprocess.Popen(
        command, cwd=REPOSITORY, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert packer.stdout is not None
    workers = [int(pid) for pid in packer.stdout.readline().split()]
    assert len(workers) == 2
    return packer, workers


def wait_until_gone(pids: list[int]) -> None:
    for _ in range(100):
        running = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        if not running:
            return
        time.sleep(0.1)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    pytest.fail(f"still running: {running}")


def test_dead_worker_is_an_error_that_another_call_fixes(root: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    packer, workers = begin_telling_pack(root, pack)
    os.kill(workers[0], signal.SIGKILL)
    _, errors = packer.communicate("go on\n", timeout=60)
    assert packer.returncode == 1 and "a worker process died: killed, out of memory" in errors
    assert not (pack / "meta.json").exists() and not list(pack.glob("*.partial"))
    wait_until_gone(workers)
    packing.pack(root, pack_dir=pack)
    assert packing.bytes_of(pack) == packing.bytes_of(root / "pack")


def test_no_worker_outlives_a_killed_pack(root: Path, tmp_path: Path) -> None:
    packer, workers = begin_telling_pack(root, tmp_path / "pack")
    with packer:
        packer.kill()
    wait_until_gone(workers)
