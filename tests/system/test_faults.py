"""Kills, full disks, read-only directories, two trainers at once: nothing is lost, nothing is repeated."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.base.files import exclusive, size_on_disk
from ds_train.checkpoints.manifest import step_directories
from tests.support import tiny
from tests.support.file_systems import small_file_system
from tests.support.launching import REPOSITORY, environment, launch, read_log, run_all

FLAGS = "--max_steps 8 --curr_window 16 --curr_threshold 0.4 --curr_check_every 2 --global_batch 8 --lr 2e-3"


def _arguments(scratch: Path, name: str, *more: str) -> list[str]:
    flags = [*FLAGS.split(), "--micro_batch", "2", "--save_every", "2", "--run_name", name]
    return [*tiny.flags(scratch), *flags, *more]


def _campaign(name: str, *arguments: str) -> dict[str, dict[str, int]]:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.system.{name}", *arguments],
        cwd=REPOSITORY, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return json.loads(done.stdout[done.stdout.rindex("\n{\n") :])


@pytest.mark.launch
def test_killed_inside_saves_and_at_random_instants() -> None:
    results = _campaign("fault_campaign", "--operations", "3", "--kills", "4")
    for phase in ("pptrain", "pretrain"):
        assert results[f"{phase} operations"] == {"killed, equal": 3}
        assert results[f"{phase} kills"]["kill"] >= 2
        assert results[f"{phase} kills"]["run equal"] >= 1


@pytest.mark.slow
@pytest.mark.launch
def test_killed_at_every_file_operation() -> None:
    results = _campaign("fault_campaign", "--operations", "all", "--kills", "40")
    assert all(set(counts) <= {"killed, equal", "kill", "run equal"} for counts in results.values())


@pytest.mark.slow
@pytest.mark.launch
def test_stopped_at_random_instants() -> None:
    """A pause of all ranks changes nothing; a rank or a loader worker that stays stopped is named."""
    results = _campaign("pause_campaign", "--pauses", "6", "--stops", "8", "--workers", "4")
    assert results["pauses"] == {"ended well": 6, "equal": 6}
    assert results["stops"]["named"] >= 4 and results["workers"]["named"] >= 1


@pytest.mark.launch
def test_failed_write_on_one_rank_costs_only_that_checkpoint(tiny_scratch: Path, tmp_path: Path) -> None:
    runs = [
        {"phase": "pptrain", "argv": _arguments(tiny_scratch, "enough_disk")},
        {"phase": "pptrain", "argv": _arguments(tiny_scratch, "full_disk", "--stop_step", "2"), "code": 86},
        {"phase": "pptrain", "argv": _arguments(tiny_scratch, "full_disk"), "file_bytes": 50_000,
         "error": "the last checkpoint, of step 8, could not be saved"},
    ]  # fmt: skip
    output = run_all(runs, tmp_path, 2)
    checkpoints = tiny_scratch / "full_disk" / "checkpoints"
    for step in (4, 6, 8):
        assert f"no checkpoint of step {step}: " in output
    assert "writing stopped short, is the disk full?" in output or "File too large" in output
    assert [path.name for path in step_directories(checkpoints)] == ["step_00000002"]
    assert not list(checkpoints.glob(".saving*"))

    output = run_all([{"phase": "pptrain", "argv": _arguments(tiny_scratch, "full_disk")}], tmp_path, 2)
    assert "at step 2" in output
    losses = [[row["loss"] for row in read_log(tiny_scratch / name)] for name in ("full_disk", "enough_disk")]
    assert losses[0] == losses[1] and len(losses[0]) == 8


@pytest.mark.launch
def test_full_and_read_only_file_systems(tiny_scratch: Path, tmp_path: Path) -> None:
    """A full disk costs log rows and checkpoints, never the run; with room for less than --keep_last the oldest go."""
    run_directory = tiny_scratch / "small_disk"
    checkpoints, filler = run_directory / "checkpoints", run_directory / "logs" / "filler"
    run = {"phase": "pptrain", "argv": _arguments(tiny_scratch, "small_disk")}
    with small_file_system(checkpoints, "size=600k"), small_file_system(filler.parent, "size=64k"):
        filler.write_bytes(bytes(64 << 10))
        output = run_all([{**run, "error": "the last checkpoint, of step 8"}], tmp_path, 1)
        assert "GiB are needed" in output
        assert [path.name for path in step_directories(checkpoints)] == ["step_00000002"]
        for name in ("train", "eval"):
            assert output.count(f"{name}.jsonl: No space left on device. Training continues") == 1
        assert "The log lacks its last 8 rows" in output
        filler.unlink()

        size = size_on_disk(checkpoints / "step_00000002")
        subprocess.run(["mount", "-o", f"remount,ro,size={int(2.5 * size)}", str(checkpoints)], check=True)
        output = run_all([{**run, "error": "the last checkpoint, of step 8"}], tmp_path, 1)
        assert "Read-only file system" in output
        subprocess.run(["mount", "-o", "remount,rw", str(checkpoints)], check=True)
        run_all([run], tmp_path, 1)
        assert [path.name for path in step_directories(checkpoints)] == ["step_00000008", "step_00000006"]
        assert [row["step"] for row in read_log(run_directory)] == list(range(3, 9))


@pytest.mark.launch
def test_second_trainer_on_a_run_directory_is_refused(tiny_scratch: Path) -> None:
    run = tiny_scratch / "locked"
    run.mkdir()
    with exclusive(run, "wait"):
        done = launch("ds_train/pptrain.py", *_arguments(tiny_scratch, "locked"), num_ranks=2)
    assert done.returncode == 1
    assert done.stdout.count(f"is in use by process {os.getpid()}") == 1
    assert not (run / "logs").exists()
