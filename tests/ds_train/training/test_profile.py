"""Traces of chosen steps: which operations they hold, what is said where there are none, and the memory's history."""

import gzip
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_tools.base.errors import UserError
from ds_train.ranks import entry
from ds_train.ranks.world import World
from ds_train.training.profile import StepProfile, profiled_steps, record_memory
from tests.support import tiny
from tests.support.launching import launch


def _events(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        return json.load(file)["traceEvents"]


def _steps(events: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Begin and end of each step that is marked."""
    marks = [event for event in events if str(event.get("name")).startswith("optimizer step")]
    return {
        event["name"]: (event["ts"], event["ts"] + event["dur"]) for event in marks if event["cat"] == "user_annotation"
    }


def _train(profile: StepProfile, first: int, last: int) -> None:
    """What the loop does: step N multiplies N matrices."""
    profile.begin(first - 1)
    for step in range(first, last + 1):
        if step - 1 == profile.next_at:
            profile.advance(step - 1)
        for _ in range(step):
            torch.ones(2, 2) @ torch.ones(2, 2)
    profile.end(last)
    profile.end(last)  # again where an error passes through


@pytest.mark.parametrize(
    ("steps", "first", "last", "file", "traced"),
    [
        ((2, 3), 1, 5, "steps_2_3", [2, 3]),
        ((1, 1), 1, 5, "steps_1_1", [1]),
        ((2, 4), 3, 5, "steps_3_4", [3, 4]),  # resumed within
        ((4, 9), 1, 5, "steps_4_5", [4, 5]),  # ended within
        ((5, 5), 1, 5, "steps_5_5", [5]),
    ],
)
def test_a_trace_holds_the_operations_of_its_steps(
    steps: tuple[int, int], first: int, last: int, file: str, traced: list[int], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    _train(StepProfile(steps, tmp_path), first, last)
    assert [path.name for path in (tmp_path / "profile").iterdir()] == [f"{file}.json.gz"]
    events = _events(tmp_path / "profile" / f"{file}.json.gz")
    assert [*_steps(events)] == [f"optimizer step {step}" for step in traced]
    assert sum(event.get("name") == "aten::matmul" for event in events) == sum(traced)
    assert f"profile of steps {traced[0]} to {traced[-1]}" in caplog.messages[0]
    assert "aten::matmul" in caplog.messages[1] and "Self CPU" in caplog.messages[1]


@pytest.mark.parametrize(
    ("steps", "first", "message"),
    [((2, 3), 4, "begins at step 4; no step is profiled"), ((7, 8), 1, "ended at step 5; no step was profiled")],
)
def test_steps_that_do_not_occur_are_said_once(
    steps: tuple[int, int], first: int, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _train(StepProfile(steps, tmp_path), first, 5)
    assert len(caplog.messages) == 1 and message in caplog.messages[0]
    assert not (tmp_path / "profile").exists()


def test_without_steps_nothing_is_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    profile = StepProfile()
    profile.advance = None  # type: ignore[method-assign, assignment]  # would fail
    _train(profile, 1, 5)
    assert caplog.messages == [] and profile.next_at == -1


def test_a_disk_that_takes_no_trace_does_not_end_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "profile").write_text("no directory")
    _train(StepProfile((2, 3), tmp_path), 1, 5)
    (message,) = caplog.messages
    assert message.startswith("the profile is not written: ") and str(tmp_path / "profile") in message


@pytest.mark.parametrize("text", ["", "3", "0:2", "3:2", "1:2:3", "a:b", "-1:2", "1.5:2"])
def test_bad_ranges_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--profile_steps is .* expected FIRST:LAST"):
        profiled_steps(text)


def test_the_history_of_the_memory_is_written_when_there_is_none_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, int] = {}
    memory = SimpleNamespace(
        _record_memory_history=lambda **given: kept.update(given),
        _dump_snapshot=lambda path: Path(path).write_bytes(b"history"),
    )
    monkeypatch.setattr(torch.cuda, "memory", memory)
    monkeypatch.setattr(entry, "_more_on_out_of_memory", [])
    record_memory(tmp_path, World(1, 1, 2), torch.device("cpu"))
    assert kept == {} and entry._more_on_out_of_memory == []
    record_memory(tmp_path, World(1, 1, 2), torch.device("cuda", 1))
    assert kept["max_entries"] > 0
    (write,) = entry._more_on_out_of_memory
    path = tmp_path / "profile" / "oom_rank_1.pickle"
    assert not path.exists() and str(path) in write() and path.read_bytes() == b"history"
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("no directory")
    assert "is not written" in write()


@pytest.mark.launch
def test_a_run_traces_its_steps_and_says_where_there_are_none(tiny_scratch: Path) -> None:
    flags = [*tiny.flags(tiny_scratch), *"--global_batch 8 --micro_batch 4 --run_name profiled".split()]
    done = launch("ds_train/pptrain.py", *flags, *"--max_steps 4 --profile_steps 2:3".split(), num_ranks=1)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "operators that took most" in done.stdout and "aten::" in done.stdout
    events = _events(tiny_scratch / "profiled" / "profile" / "steps_2_3.json.gz")
    steps = _steps(events)
    assert [*steps] == ["optimizer step 2", "optimizer step 3"]
    forward = [event["ts"] for event in events if event.get("name") == "aten::embedding"]
    begin, end = steps["optimizer step 2"][0], steps["optimizer step 3"][1]
    assert len(forward) >= 2 and all(begin <= at <= end for at in forward)
    again = launch("ds_train/pptrain.py", *flags, *"--max_steps 5 --profile_steps 2:3".split(), num_ranks=1)
    assert again.returncode == 0 and "this launch begins at step 5; no step is profiled" in again.stdout
    assert "\nprofile_steps" not in (tiny_scratch / "profiled" / "run.yaml").read_text()
