"""Make the archive of what version 0.1.0 writes, and what it gives when it is continued.

Made once, by the code of commit cec95d4 and no other: later versions must read these files as they are. To see how:

    git worktree add DIR cec95d4
    cp -r tests/former_files DIR/tests
    cd DIR
    DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 python -m tests.former_files.make

writes ``version_0_1_0.tar.xz`` and the entry 0.1.0 of ``expected.json`` beside this file. Two makings differ in times
only. A later version whose files are to be kept has its own entry and archive, and a copy of this script.
"""

import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from data_tools.errors import UserError
from data_tools.files import sha256_of_file
from tests.ds_train.launching import REPOSITORY, launch, read_log, run_all

from data_tools import build_pretrain
from tests.ds_train import tiny
from tests.former_files.former import (
    EXPECTED,
    PLACEHOLDER,
    archive_of,
    comparable,
    continuations,
    files_of,
    placed,
    replace_in_texts,
    unpack,
)

VERSION, COMMIT = "0.1.0", "cec95d4"
PROGRAMS = ("data_tools", "ds_train", "ds_configs", "tests/ds_train")
STOPPED = 86  # exit code of --stop_step
RENAME_OF_THIRD_SHARD = 8  # after progress, validation, progress, and twice shard and progress
HIDDEN_SIZE = 24
SCRATCH = Path(PLACEHOLDER)
TINY = tiny.flags(SCRATCH)
MODEL = TINY.index("--model_name")
WITHOUT_MODEL = [*TINY[:MODEL], *TINY[MODEL + 2 :]]  # pretrain takes it from the weights
FLAGS = "--global_batch 8 --lr 2e-3 --zero_stage 1 --keep_last 1 --num_workers 0".split()
# The window of the check at step 12 begins before step 10, at which the runs are stopped.
CURRICULUM = "--max_steps 20 --curr_window 24 --curr_threshold 0.4 --curr_check_every 4".split()
MIXTURE = "--total_steps 14 --mixin_percent 0.3 --eval_every 5 --pptrain_checkpoint latest".split()
FULL = "--mixed_precision no --micro_batch 4".split()
HALF = "--mixed_precision bf16 --micro_batch 2".split()
RUNS: dict[str, dict[str, Any]] = {
    "pptrain": {"phase": "pptrain", "ranks": 1, "stop": 10, "argv": [*TINY, *FLAGS, *CURRICULUM, *FULL]},
    "pptrain_bf16": {
        "phase": "pptrain", "ranks": 2, "stop": 10,
        "argv": [*TINY, *FLAGS, *CURRICULUM, *HALF, "--run_name", "pptrain_bf16"],
    },
    "pretrain": {"phase": "pretrain", "ranks": 1, "stop": 6, "argv": [*WITHOUT_MODEL, *FLAGS, *MIXTURE, *FULL]},
}  # fmt: skip
PACK = [
    *f"--source {PLACEHOLDER}/documents.jsonl --tokenizer {PLACEHOLDER}/tokenizer --seq_len 64".split(),
    *"--num_blocks 100 --blocks_per_shard 30 --val_blocks 5 --shuffle_buffer 50 --workers 1 --pack_dir".split(),
]
UNFINISHED = f"{PLACEHOLDER}/data/unfinished_pack"
FINISHED = [
    *f"--scratch_dir {PLACEHOLDER} --source {PLACEHOLDER}/documents.jsonl --tokenizer {PLACEHOLDER}/tokenizer".split(),
    *f"--seq_len {tiny.SEQ_LEN} --num_blocks 200 --val_blocks 6 --workers 1".split(),  # as tiny.py has it
]


def main() -> None:
    """Write the archive and the expectations."""
    changed = subprocess.run(["git", "diff", "--quiet", COMMIT, "--", *PROGRAMS], cwd=REPOSITORY, check=False)
    if changed.returncode:
        raise UserError(f"the code here is not that of {COMMIT}, whose files these are; see {Path(__file__).name}.")
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory) / "scratch"
        write_scratch(scratch)
        write_archive(scratch)
        expected = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
        expected[VERSION] = continued(Path(directory) / "copy")
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")


def write_scratch(scratch: Path) -> None:
    """Fill a scratch directory with one of everything; its texts name it by the placeholder."""
    with mock.patch.object(tiny, "write_model", write_smaller_model):
        tiny.build_tiny_scratch(scratch)
    interrupt_pack(placed([*PACK, UNFINISHED], scratch))
    for run in RUNS.values():
        script, arguments = f"ds_train/{run['phase']}.py", placed(run["argv"], scratch)
        done = launch(script, *arguments, "--stop_step", str(run["stop"]), num_ranks=run["ranks"])
        assert done.returncode == STOPPED, done.stdout
    output = scratch / "pptrain_test.json"
    evaluation = [str(scratch / "pptrain"), "--scratch_dir", str(scratch), "--split", "test", "--output", str(output)]
    done = launch("ds_train/evaluate.py", *evaluation, num_ranks=1)
    assert done.returncode == 0, done.stdout
    replace_in_texts(scratch, str(scratch), PLACEHOLDER)
    for lock in scratch.glob("*/.lock"):
        lock.write_text("process 1 on another_host\n")


def write_smaller_model(directory: Path) -> None:
    """The tiny model, narrower: checkpoints hold numbers that no archive makes smaller."""
    ORIGINAL_MODEL(directory)
    path = directory / "config.json"
    sizes = {"hidden_size": HIDDEN_SIZE, "intermediate_size": 2 * HIDDEN_SIZE}
    path.write_text(json.dumps(json.loads(path.read_text()) | sizes))


ORIGINAL_MODEL = tiny.write_model


def interrupt_pack(arguments: list[str]) -> None:
    """Pack until the third shard is about to get its name."""
    replace, renames = Path.replace, 0

    def interrupted(path: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames == RENAME_OF_THIRD_SHARD:
            raise KeyboardInterrupt
        return replace(path, target)

    try:
        with mock.patch.object(Path, "replace", interrupted):
            build_pretrain.main(arguments)
    except KeyboardInterrupt:
        return
    raise AssertionError("the pack was finished")


def write_archive(scratch: Path) -> None:
    """Pack a scratch directory, of which no file may tell where it was made."""
    with tarfile.open(archive_of(VERSION), "w:xz", preset=9) as archive:
        for path in files_of(scratch):
            content = path.read_bytes()
            for place in (scratch.parent, REPOSITORY, Path.home()):
                assert str(place).encode() not in content, f"{path} names {place}"
            archive.add(path, path.relative_to(scratch), filter=anonymous)


def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """An archive's entry without user and time."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def continued(scratch: Path) -> dict[str, Any]:
    """What this version gives when it continues a copy of its files, in the form that `former` describes."""
    unpack(VERSION, scratch)
    runs = {name: {key: run[key] for key in ("phase", "ranks", "stop")} for name, run in RUNS.items()}
    for name, run in runs.items():
        run["resume"] = RUNS[name]["argv"]
    # A run file stands for the command line as well.
    runs["pretrain"]["resume"] = ["--config", f"{PLACEHOLDER}/pretrain/run.yaml"]
    for ranks in (1, 2):
        run_all(continuations(runs, scratch, ranks), scratch, ranks)
    for name, run in runs.items():
        run |= {log: comparable(read_log(scratch / name, log)) for log in ("train", "eval")}
    straight = scratch / "straight_pack"
    build_pretrain.main(placed([*PACK, str(straight)], scratch))
    sha256 = {path.name: sha256_of_file(path) for path in sorted(straight.glob("*.bin"))}
    unfinished = {"resume": [*PACK, UNFINISHED], "sha256": sha256}
    return {"runs": runs, "unfinished_pack": unfinished, "finished_pack": {"repeat": FINISHED}}


if __name__ == "__main__":
    main()
