"""Signals and STOP files in every state: no optimizer step is lost or repeated, and exit codes tell what happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ds_train.checkpoints.manifest import step_directories
from ds_train.checkpoints.save import read_state
from ds_train.ranks import signals
from tests.support import tiny
from tests.support.comparing import assert_same_checkpoint, comparable
from tests.support.launching import REPOSITORY, environment, launch, read_log
from tests.support.process_group import one_rank
from tests.support.running import running, wait_for_step
from tests.system.launched_signals import STATES

STARTING = ("start-up", "model building", "loader start-up", "first evaluation")  # nothing to save yet
BEHIND = "writing behind training"
MORE_FLAGS = {"the commit of a save": ["--sync_save"]}  # so that it is known what training does meanwhile


def _arguments(scratch: Path, phase: str, name: str) -> list[str]:
    return [
        *tiny.flags(scratch), *tiny.SHORT_FLAGS[phase], "--micro_batch", "2",
        "--num_workers", "1", "--save_every", "4", "--run_name", f"signal_{phase}_{name}",
    ]  # fmt: skip


@pytest.mark.launch
def test_a_stop_in_every_state_loses_nothing(tiny_scratch: Path, tmp_path: Path) -> None:
    asked = [("pptrain", state, "SIGUSR1", 85) for state in STATES]
    asked += [("pretrain", state, "SIGTERM", 85) for state in ("a later evaluation", "a step")]
    asked += [("pptrain", "first evaluation", "STOP", 86), ("pretrain", "a step", "STOP", 86)]
    runs = [
        {
            "phase": phase, "state": state, "how": how, "codes": [code, 0],
            "argv": [*_arguments(tiny_scratch, phase, f"{how}_{number}"), *MORE_FLAGS.get(state, [])],
        }
        for number, (phase, state, how, code) in enumerate(asked)
    ]  # fmt: skip
    for phase in tiny.SHORT_FLAGS:
        argv = _arguments(tiny_scratch, phase, "straight")
        runs.append({"phase": phase, "state": "undisturbed", "how": "", "codes": [0], "argv": argv})
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(runs))
    done = launch("tests/system/launched_signals.py", str(path), num_ranks=2)
    assert done.returncode == 0, done.stdout[-5000:]

    for number, (phase, state, how, _) in enumerate(asked):
        run, straight = (tiny_scratch / f"signal_{phase}_{name}" for name in (f"{how}_{number}", "straight"))
        assert not (run / "STOP").exists(), "the file stops one launch and is gone"
        for log in ("train", "eval"):
            assert comparable(read_log(run, log)) == comparable(read_log(straight, log)), (phase, state, log)
        assert_same_checkpoint(run, straight, tiny.SHORT_STEPS)
        stopped_at = [int(path.name.removeprefix("step_")) for path in step_directories(run / "checkpoints")]
        extra = set(stopped_at) - {4, 8, tiny.SHORT_STEPS}
        pending = [path for path in step_directories(run / "checkpoints") if read_state(path).evaluation_pending]
        if state == BEHIND:  # training is anywhere then, an evaluation included
            assert len(pending) <= 1
        else:
            assert len(pending) == (state == "a later evaluation")
        assert len(extra) <= (state not in STARTING), state


@pytest.mark.launch
def test_a_signal_during_the_imports_does_not_kill(tiny_scratch: Path) -> None:
    """The handlers come first: a trainer that gets a signal while it starts exits with 85 and saves nothing."""
    arguments = [sys.executable, "ds_train/pptrain.py", *_arguments(tiny_scratch, "pptrain", "imports")]
    process = subprocess.Popen(
        arguments, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not _catches(process.pid, signal.SIGUSR1):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 85, output
    assert "received SIGUSR1" in output and step_directories(tiny_scratch / "signal_pptrain_imports/checkpoints") == []


@pytest.mark.launch
def test_a_killed_loader_worker_is_a_lost_rank(tiny_scratch: Path, tmp_path: Path) -> None:
    """As the kernel does when memory runs out: one message, and a job requeues itself."""
    arguments, log = _arguments(tiny_scratch, "pptrain", "worker"), tmp_path / "output"
    with running([sys.executable, "ds_train/pptrain.py", *arguments, "--max_steps", "100000"], log) as process:
        wait_for_step(tiny_scratch / "signal_pptrain_worker", 2, process)
        (worker,) = _children(process.pid)
        os.kill(worker, signal.SIGKILL)
        assert process.wait(60) == 87, log.read_text()
    words = log.read_text()
    assert f"error: rank 0: loader worker {worker} was killed by SIGKILL; if host memory ran out" in words
    assert "Traceback" not in words


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


_SLEEPER = """
import os, signal, sys, time
from ds_train.ranks import signals as preemption
preemption.install_handlers()
if sys.argv[1] == "late":
    preemption.BURST_S = 0.0
os.kill(os.getpid(), signal.SIGTERM)
while preemption._received.number is None:
    time.sleep(0.001)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.2)
print("still here", flush=True)
"""


def test_time_that_is_up_stops_a_launch_without_a_requeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 3599.0, 3600.0])
    with one_rank(), monkeypatch.context() as patch:
        patch.setattr(signals.time, "monotonic", lambda: next(now))
        stop = signals.StopRequests(tmp_path, True, torch.device("cpu"), max_hours=1.0)
        stop.check()
        with pytest.raises(signals.StopTraining, match="--max_hours 1") as stopped:
            stop.check()
    assert stopped.value.exit_code == signals.ExitCode.STOPPED


@pytest.mark.parametrize(
    ("when", "code", "message"), [("soon", 0, "still here"), ("late", 85, "second signal (SIGINT)")]
)
def test_a_second_signal_ends_at_once_but_a_burst_is_one(when: str, code: int, message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SLEEPER, when], cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, message in done.stdout) == (code, True), done.stdout
