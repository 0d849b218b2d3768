"""Start real training processes from tests."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.paths import REPOSITORY, SUPPORT

TIMEOUT_S = 600
DYING_WORDS_S = 5
_OF_THIS_PROCESS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # its port may still be taken


def environment(num_ranks: int = 1) -> dict[str, str]:
    """Variables for quiet CPU runs: one thread a rank (thread counts change the bits), the venv's programs first."""
    return {
        **{name: value for name, value in os.environ.items() if name not in _OF_THIS_PROCESS},
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{SUPPORT}",
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "CUDA_VISIBLE_DEVICES": "",
    }


def launch(script: str, *arguments: str, num_ranks: int, through_launcher: bool = False) -> subprocess.CompletedProcess:
    """Run a script of the repository on so many ranks; more than one go through the ``deepspeed`` launcher.

    Returns:
        the finished process; standard error is merged into ``stdout``.
    """
    command = [sys.executable, script]
    if num_ranks > 1 or through_launcher:
        port = 20_000 + uuid.uuid4().int % 10_000
        command = ["deepspeed", "-q", "--num_gpus", str(num_ranks), "--master_port", str(port), script]
    process = subprocess.Popen(
        [*command, *arguments], cwd=REPOSITORY, env=environment(num_ranks), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)  # each says where its threads are
        time.sleep(DYING_WORDS_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(
            f"{command} took longer than {TIMEOUT_S} s:\n{process.communicate()[0][-50_000:]}"
        ) from None
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # the launcher's children would outlive it
        raise
    return subprocess.CompletedProcess(command, process.returncode, output)


def run_all(runs: list[dict[str, Any]], directory: Path, num_ranks: int) -> str:
    """Run many configurations one after another in one launch (see launched.py); returns the output."""
    path = directory / f"runs_{uuid.uuid4().hex}.json"
    path.write_text(json.dumps(runs))
    done = launch("tests/system/launched.py", str(path), num_ranks=num_ranks)
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def read_log(run_directory: Path, name: str = "train") -> list[dict[str, Any]]:
    """The rows of a run's log."""
    return [json.loads(line) for line in (run_directory / "logs" / f"{name}.jsonl").read_text().splitlines()]
