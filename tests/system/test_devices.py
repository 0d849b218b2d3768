"""The same promises on a CPU and on a GPU: exact repeats and resumes, rows, saving, precisions, waits."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny
from tests.support.comparing import assert_same_checkpoint, comparable
from tests.support.devices import DEVICES
from tests.support.launching import launch_alone, read_log, run_all

STEPS, STOP = 6, 3
EXACT = ("--deterministic", "--mixed_precision", "bf16")
RUNS = {
    "straight": EXACT,
    "again": EXACT,
    "stopped": EXACT,
    "saved_at_once": (*EXACT, "--sync_save"),
    "fp32": ("--mixed_precision", "no"),
    "tf32": ("--mixed_precision", "no", "--tf32"),
}
pytestmark = pytest.mark.launch


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def runs(device: str, tiny_scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The directories of all runs, of one launch on the device."""

    def run(name: str, *more: str, code: int = 0) -> dict[str, Any]:
        argv = [
            *tiny.flags(tiny_scratch, precision=None), *RUNS[name], "--max_steps", str(STEPS), "--lr", "2e-3",
            "--global_batch", "8", "--micro_batch", "2", "--num_workers", "1", "--save_every", str(STOP),
            "--keep_last", "0", "--run_name", f"{device}_{name}", *more,
        ]  # fmt: skip
        return {"phase": "pptrain", "argv": argv, "code": code}

    launched = [run(name) for name in RUNS]
    place = list(RUNS).index("stopped")
    launched[place:place] = [run("stopped", "--stop_step", str(STOP), code=86)]
    run_all(launched, tmp_path_factory.mktemp(device), 1, device)
    return {name: tiny_scratch / f"{device}_{name}" for name in RUNS}


@pytest.fixture(scope="module")
def steps(device: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """See launched_devices.py."""
    path = tmp_path_factory.mktemp(device) / "steps.json"
    done = launch_alone(device, "tests/system/launched_devices.py", str(path))
    assert done.returncode == 0, done.stdout[-3000:]
    found = json.loads(path.read_text())
    assert {each["device"] for each in found.values()} == {device}
    return found


@pytest.mark.parametrize("other", ["again", "stopped", "saved_at_once"])
def test_a_run_repeats_bit_by_bit(other: str, runs: dict[str, Path]) -> None:
    """Also if it was stopped and resumed, and whether its checkpoints are copied aside or written at once."""
    for log in ("train", "eval"):
        assert comparable(read_log(runs[other], log)) == comparable(read_log(runs["straight"], log))
    for step in (STOP, STEPS):
        assert_same_checkpoint(runs[other], runs["straight"], step)


def test_products_in_tf32_differ_little(runs: dict[str, Path], device: str) -> None:
    exact, rounded = ([row["loss"] for row in read_log(runs[name])] for name in ("fp32", "tf32"))
    assert rounded == pytest.approx(exact, rel=1e-2)
    assert (rounded == exact) == (device == "cpu")


def test_evaluation_in_bf16_is_close_to_that_in_fp32(runs: dict[str, Path], device: str, tmp_path: Path) -> None:
    losses = []
    for dtype in ("fp32", "bf16"):
        report = tmp_path / f"{dtype}.json"
        done = launch_alone(
            device, "ds_train/evaluate.py", str(runs["fp32"]), "--scratch_dir", str(runs["fp32"].parent),
            "--dtype", dtype, "--output", str(report),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:]
        losses.append(json.loads(report.read_text())["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2) and losses[1] != losses[0]


@pytest.mark.parametrize(("precision", "tolerance"), [("no", 1e-5), ("bf16", 2e-2)])
def test_documents_end_to_end_train_as_one_a_row(precision: str, tolerance: float, steps: dict[str, Any]) -> None:
    packed, rows = (steps[precision][name] for name in ("end to end", "one a row"))
    for name in ("loss", "norm"):
        assert [row[name] for row in packed] == pytest.approx([row[name] for row in rows], rel=tolerance)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_host_waits_for_no_forward(precision: str, steps: dict[str, Any]) -> None:
    found = steps[precision]
    assert found["many"]["forwards"] > found["few"]["forwards"]
    assert len(found["waits"]["many"]) == len(found["waits"]["few"]) > 0, found["waits"]
