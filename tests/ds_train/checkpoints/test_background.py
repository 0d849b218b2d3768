"""Checkpoints written behind training: the state at their step, with the whole commit protocol."""

import ctypes
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from ds_train.checkpoints import background as background_save
from ds_train.checkpoints.background import Snapshots
from ds_train.checkpoints.hashing_file import BULK_BYTES, write_file
from ds_train.checkpoints.manifest import defect_of, step_directories
from ds_train.checkpoints.save import read_state
from tests.support import tiny
from tests.support.comparing import assert_same_checkpoint, comparable
from tests.support.launching import launch, read_log
from tests.system.launched_background import HELD

STEPS = 8
LAYOUTS = {
    "zero0_fp32": ("0", "no"), "zero1_bf16": ("1", "bf16"), "zero2_fp32": ("2", "no"), "zero3_bf16": ("3", "bf16"),
    "zero3_fp32": ("3", "no"),
}  # fmt: skip


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch) -> Snapshots:
    monkeypatch.setattr(background_save, "gather_objects", lambda value: [value])
    return Snapshots()


def _state() -> dict:
    flat = torch.arange(12.0)
    flat.ds_id = "an attribute"  # type: ignore[attr-defined]
    return {
        "flat": flat, "views": [flat[2:6], flat.view(3, 4).t()], "empty": torch.empty(0, dtype=torch.bfloat16),
        "half": torch.ones(3, dtype=torch.bfloat16), "trained": torch.ones(2, requires_grad=True),
        "plain": {"window": [1, 0], "lr": 0.5},
    }  # fmt: skip


def test_a_snapshot_stays_what_it_was(snapshots: Snapshots) -> None:
    state, expected = _state(), _state()
    copy, problem = snapshots.try_take(state)
    assert problem is None
    state["flat"].add_(100)
    state["half"].zero_()
    state["plain"]["window"].append(1)
    assert copy["plain"] == expected["plain"] and copy["trained"].requires_grad
    assert copy["flat"].ds_id == "an attribute"
    for name in ("flat", "empty", "half", "trained"):
        assert copy[name].dtype == expected[name].dtype and torch.equal(copy[name], expected[name])
    for view, was in zip(copy["views"], expected["views"], strict=True):
        assert torch.equal(view, was) and view.stride() == was.stride()
        assert view.untyped_storage().data_ptr() == copy["flat"].untyped_storage().data_ptr()


def test_the_next_snapshot_uses_the_memory_again(snapshots: Snapshots) -> None:
    def addresses(copy: dict) -> set[int]:
        tensors = (copy["flat"], copy["half"], copy["trained"])
        return {tensor.untyped_storage().data_ptr() for tensor in tensors}

    first, _ = snapshots.try_take(_state())
    before = addresses(first)
    second, _ = snapshots.try_take(_state() | {"more": torch.ones(5)})
    assert addresses(second) == before and torch.equal(second["more"], torch.ones(5))


def test_a_snapshot_that_does_not_fit_is_not_taken(snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"weights": torch.ones(1000)}
    monkeypatch.setattr(background_save, "available_host_bytes", lambda: 4399)
    copy, problem = snapshots.try_take(state)
    assert copy is None and problem is not None and "of memory free" in problem
    monkeypatch.setattr(background_save, "available_host_bytes", lambda: 4400)
    assert snapshots.try_take(state)[1] is None
    monkeypatch.setattr(background_save, "available_host_bytes", lambda: 0)
    assert snapshots.try_take(state)[1] is None, "it has its memory already"


def test_ranks_of_a_host_share_its_memory(snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    for other, fits in (("elsewhere", True), ("here", False)):
        ranks = [("here", 4000, 7000), (other, 4000, 7000)]
        monkeypatch.setattr(background_save, "gather_objects", lambda value, ranks=ranks: ranks)
        assert (Snapshots().try_take({})[1] is None) == fits


def test_a_snapshot_is_written_from_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshots: Snapshots
) -> None:
    """Its pages go to the disk as they are; a copy of each would take a core that training wants."""
    value, _ = snapshots.try_take({"a": torch.rand(1 << 19), "b": torch.rand((1 << 19) + 1), "small": torch.ones(9)})
    write, written = os.write, []

    def noting(target: int, data: memoryview) -> int:
        written.append((np.frombuffer(data, np.uint8).ctypes.data, len(data)))
        return write(target, data)

    monkeypatch.setattr(os, "write", noting)
    write_file(tmp_path / "snapshot.pt", value)
    for name in ("a", "b"):
        assert (value[name].data_ptr(), 1 << 21) in written
    assert sum(size for address, size in written) - 2 * (1 << 21) < 1 << 16


class _Cudart:
    """Stands in for torch's CUDA runtime: which memory is registered, and whether it is still there when it leaves."""

    cudaError = SimpleNamespace(success=0)  # noqa: N815

    def __init__(self, code: int = 0) -> None:
        self.code, self.registered = code, {}

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:  # noqa: N802
        if self.code == 0:
            self.registered[address] = num_bytes
        return self.code

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        ctypes.string_at(address, self.registered.pop(address))  # reads memory that must be mapped
        return 0


def test_copies_from_a_gpu_get_pinned_pages_of_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's pinned memory would be rounded up: here to 4 MiB."""
    runtime, num_bytes = _Cudart(), BULK_BYTES * 5 // 2
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    buffer = background_save._host_buffer(num_bytes, is_pinned=True)
    assert runtime.registered == {buffer.data_ptr(): num_bytes} and len(buffer) == num_bytes
    view = torch.empty(0, dtype=torch.uint8).set_(buffer.untyped_storage())
    del buffer
    assert runtime.registered, "a view still uses it"
    del view
    assert runtime.registered == {}
    background_save._host_buffer(num_bytes, is_pinned=False)
    assert runtime.registered == {}


def test_pages_that_cannot_be_pinned_are_used_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def report(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "cudart", lambda: _Cudart(code=2))
    monkeypatch.setattr(torch, "zeros", report)
    buffer = background_save._host_buffer(BULK_BYTES, is_pinned=True)
    assert buffer.fill_(1).sum() == BULK_BYTES
    assert "of memory cannot be pinned" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_snapshot_of_a_gpu_takes_its_size_of_host_memory(snapshots: Snapshots) -> None:
    torch.zeros(1, device="cuda").cpu()
    state = {"weights": torch.rand(3 << 26, device="cuda"), "small": torch.rand(9, device="cuda")}
    expected = {name: tensor.cpu() for name, tensor in state.items()}
    before = psutil.Process().memory_info().rss
    copy, problem = snapshots.try_take(state)
    taken = psutil.Process().memory_info().rss - before
    assert problem is None and taken < 1.1 * (3 << 28)
    for name, tensor in state.items():
        tensor.zero_()
        assert copy[name].is_pinned() and torch.equal(copy[name], expected[name])


def _run(scratch: Path, name: str, scenario: str, *more: str, ends: int | str = 0) -> dict:
    flags = f"""--max_steps {STEPS} --curr_window 16 --curr_threshold 0.4 --curr_check_every 2 --global_batch 8
        --lr 2e-3 --micro_batch 2 --save_every {HELD} --keep_last 0 --run_name behind_{name}""".split()
    return {"scenario": scenario, "argv": [*tiny.flags(scratch), *flags, *more], "ends": ends}


@pytest.fixture(scope="module")
def launched(tiny_scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """All runs of this file in one launch; returns what was printed."""
    runs = []
    for layout, (zero, precision) in LAYOUTS.items():
        chosen = ("--zero_stage", zero, "--mixed_precision", precision)
        runs.append(_run(tiny_scratch, f"{layout}_sync", "undisturbed", "--sync_save", *chosen))
        runs.append(_run(tiny_scratch, layout, "continues", *chosen))
    runs.append(_run(tiny_scratch, "next", "next save waits"))
    runs.append(_run(tiny_scratch, "same", "same save waits", "--stop_step", str(HELD), ends=86))
    runs.append(_run(tiny_scratch, "fails", "fails late"))
    runs.append(_run(tiny_scratch, "memory", "little memory"))
    runs.append(_run(tiny_scratch, "signal", "signal", ends=85))
    runs.append(_run(tiny_scratch, "signal", "undisturbed"))
    runs.append(_run(tiny_scratch, "error", "error", ends="made up, on all ranks"))
    path = tmp_path_factory.mktemp("behind") / "runs.json"
    path.write_text(json.dumps(runs))
    done = launch("tests/system/launched_background.py", str(path), num_ranks=2)
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def _events(scratch: Path, name: str) -> list[tuple[str, int]]:
    return [(what, step) for what, step in json.loads((scratch / f"behind_{name}" / "events.json").read_text())]


def _checkpoints(scratch: Path, name: str) -> list[int]:
    """Steps of the checkpoints, all of which must be whole; and nothing else may be left."""
    directory = scratch / f"behind_{name}" / "checkpoints"
    assert [defect_of(path) for path in step_directories(directory) if defect_of(path)] == []
    assert not list(directory.glob(".*"))
    return sorted(int(path.name.removeprefix("step_")) for path in step_directories(directory))


@pytest.mark.launch
@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_continues_and_the_checkpoint_is_that_of_its_step(
    launched: str, tiny_scratch: Path, layout: str
) -> None:
    events = _events(tiny_scratch, layout)
    assert events.index(("begun", HELD)) < events.index(("step", HELD + 2)) < events.index(("commit", HELD))
    straight = _events(tiny_scratch, f"{layout}_sync")
    assert straight.index(("commit", HELD)) < straight.index(("step", HELD + 1))
    assert events.index(("commit", STEPS)) < events.index(("begun", STEPS)), "the last one needs no copy"
    runs = [tiny_scratch / f"behind_{name}" for name in (layout, f"{layout}_sync")]
    assert _checkpoints(tiny_scratch, layout) == _checkpoints(tiny_scratch, f"{layout}_sync") == [3, 6, 8]
    for step in (3, 6, 8):
        assert_same_checkpoint(*runs, step=step)
        assert read_state(runs[0] / "checkpoints" / f"step_{step:08d}").step == step


@pytest.mark.launch
def test_the_next_save_waits_for_the_one_before(launched: str, tiny_scratch: Path) -> None:
    events = _events(tiny_scratch, "next")
    order = [("begun", 3), ("step", 6), ("save", 6), ("commit", 3), ("begun", 6), ("commit", 6)]
    assert sorted(order, key=events.index) == order
    assert _checkpoints(tiny_scratch, "next") == [3, 6, 8]


@pytest.mark.launch
def test_the_last_save_is_not_written_twice(launched: str, tiny_scratch: Path) -> None:
    events = _events(tiny_scratch, "same")
    assert [event for event in events if event[0] == "commit"] == [("commit", HELD)]
    assert _checkpoints(tiny_scratch, "same") == [HELD]


@pytest.mark.launch
def test_a_write_that_fails_behind_training_costs_only_its_checkpoint(launched: str, tiny_scratch: Path) -> None:
    assert launched.count(f"no checkpoint of step {HELD}: ") == 1 and "No space left on device" in launched
    assert _checkpoints(tiny_scratch, "fails") == [6, 8]
    steps = [step for what, step in _events(tiny_scratch, "fails") if what == "step"]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.launch
def test_a_stop_waits_for_the_checkpoint_being_written(launched: str, tiny_scratch: Path) -> None:
    made = _checkpoints(tiny_scratch, "signal")
    assert made[0] == HELD and HELD + 1 < made[1] <= 2 * HELD and made[-1] == STEPS
    run, straight = (tiny_scratch / f"behind_{name}" for name in ("signal", "next"))
    assert comparable(read_log(run)) == comparable(read_log(straight))
    assert_same_checkpoint(run, straight, step=STEPS)


@pytest.mark.launch
def test_an_error_waits_for_the_checkpoint_being_written(launched: str, tiny_scratch: Path) -> None:
    events = _events(tiny_scratch, "error")
    assert events.index(("error", HELD + 2)) < events.index(("commit", HELD))
    assert _checkpoints(tiny_scratch, "error") == [HELD]


@pytest.mark.launch
def test_without_memory_for_a_copy_training_waits(launched: str, tiny_scratch: Path) -> None:
    assert launched.count("checkpoints are written before training continues") == 1
    events = _events(tiny_scratch, "memory")
    for step in (3, 6):
        assert events.index(("commit", step)) < events.index(("begun", step)) < events.index(("step", step + 1))
    assert _checkpoints(tiny_scratch, "memory") == [3, 6, 8]
