"""Start the scripts of launch/ on a tiny scratch directory, and look at what their runs left."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support import tiny
from tests.support.launching import REPOSITORY, environment, read_log
from tests.support.waiting import wait_until

_TIMEOUT_S = 240
ONE_NODE_STEPS = 120  # of the run that those on several nodes must equal


def variables(**more: str) -> dict[str, str]:
    """The environment of a user who has this interpreter's installation and no GPU."""
    return {**environment(), "DS_TRAIN_VENV": str(Path(sys.executable).parents[1]), **more}


def trainer_flags(scratch: Path, run_name: str, **more: Any) -> list[str]:
    """A tiny run of two ranks with one micro-batch a step, unless ``more`` says otherwise."""
    flags = {"run_name": run_name, "global_batch": 8, "micro_batch": 4, **more}
    return [*tiny.flags(scratch), *(str(part) for name, value in flags.items() for part in (f"--{name}", value))]


def script(name: str) -> list[str]:
    return ["bash", str(REPOSITORY / "launch" / f"{name}.sh")]


@contextlib.contextmanager
def running(command: list[str], log: Path, **more: str) -> Iterator[subprocess.Popen]:
    """Run a command in the background, output to a file; what is left of its process group ends with the block."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=variables(**more), stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def finish(command: list[str], log: Path, timeout_s: float = _TIMEOUT_S, **more: str) -> str:
    """Run a command that must succeed; returns its output."""
    with running(command, log, **more) as process:
        code = process.wait(timeout_s)
    assert code == 0, f"exit code {code}\n{log.read_text()[-5000:]}"
    return log.read_text()


def steps_logged(run: Path) -> list[int]:
    """The steps in a run's train log, [] before it exists."""
    return [row["step"] for row in read_log(run)] if (run / "logs" / "train.jsonl").exists() else []


def wait_for_step(run: Path, step: int, process: subprocess.Popen | None = None) -> None:
    """Wait until a run has trained a step; fails at once when its process ends before."""

    def reached() -> bool:
        assert process is None or process.poll() is None, f"ended before step {step}, code {process.returncode}"
        return max(steps_logged(run), default=0) >= step

    wait_until(reached, f"step {step} of {run.name}")


def newest_checkpoint(run: Path) -> int:
    return max((int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*")), default=0)


def steps_said(output: str) -> list[int]:
    """The steps that the progress lines of one or more launches tell of, in order."""
    return [int(step) for step in re.findall(r" (?:pptrain|pretrain) (\d+)\b.* loss ", output)]
