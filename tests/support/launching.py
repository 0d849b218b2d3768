"""Start real training processes from tests."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.paths import REPOSITORY, SUPPORT

TIMEOUT_S = 600
_OF_THIS_PROCESS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # its port may still be taken


def environment() -> dict[str, str]:
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


def launch_alone(device: str, script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a script of the repository on one rank: on a CPU as `launch` does, on a GPU ("cuda") in a new process."""
    if device == "cpu":
        return launch(script, *arguments, num_ranks=1)
    return subprocess.run(
        [sys.executable, script, *arguments], cwd=REPOSITORY, env=_environment_of_gpus(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


def _environment_of_gpus() -> dict[str, str]:
    """`environment` without what hides GPUs."""
    quiet = {name: value for name, value in environment().items() if name != "DS_ACCELERATOR"}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {name: value for name, value in quiet.items() if name != "CUDA_VISIBLE_DEVICES"} | (
        {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    )


def launch(script: str, *arguments: str, num_ranks: int, through_launcher: bool = False) -> subprocess.CompletedProcess:
    """Run a script of the repository on some ranks, forked from a process that has imported everything.

    Args:
        through_launcher: start the ranks with ``deepspeed`` instead, each as a new process, as users do.

    Returns:
        the finished processes; standard error is merged into ``stdout``.
    """
    if through_launcher:
        return _launch_with_deepspeed(script, *arguments, num_ranks=num_ranks)
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "output"
        codes = _rank_server().run(script, arguments, [output] * num_ranks)
        code = next((code for code in codes if code), 0)
        return subprocess.CompletedProcess([script, *arguments], code, output.read_text())


def launch_unsupervised(
    script: str, *arguments: str, num_ranks: int, killed_last: int | None
) -> tuple[list[int], list[str]]:
    """Run a script on ranks that nobody ends when one of them fails.

    Args:
        killed_last: this rank is killed when all others have ended; None: all must end by themselves.

    Returns:
        the exit code and the output of each rank.
    """
    with tempfile.TemporaryDirectory() as directory:
        outputs = [Path(directory) / str(rank) for rank in range(num_ranks)]
        codes = _rank_server().run(script, arguments, outputs, killed_last)
        return codes, [output.read_text() for output in outputs]


class _RankServer:
    """The client of rank_server.py: one process for all tests, which answers one job after another."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "tests/support/rank_server.py"], cwd=REPOSITORY, env=environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def run(
        self, script: str, arguments: Sequence[str], outputs: list[Path], killed_last: int | None = None
    ) -> list[int]:
        """Exit codes of ranks that write their output to these files."""
        ranks = [environment() | variables for variables in _launcher_variables(len(outputs))]
        job = {"script": script, "arguments": arguments, "environment": ranks, "outputs": [*map(str, outputs)],
               "killed_last": killed_last, "timeout_s": TIMEOUT_S}  # fmt: skip
        group = int(self._exchange(json.dumps(job)))
        try:
            return json.loads(self._exchange())
        except BaseException:
            os.killpg(group, signal.SIGKILL)
            raise

    def _exchange(self, request: str = "") -> str:
        """Send a request, if there is one, and read the next answer."""
        assert self._process.stdin and self._process.stdout
        if request:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        return self._process.stdout.readline()


@cache
def _rank_server() -> _RankServer:
    return _RankServer()


def _launcher_variables(num_ranks: int) -> list[dict[str, str]]:
    """What a launcher tells each of several ranks on one node; a process alone has no launcher."""
    if num_ranks == 1:
        return [{}]
    common = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **common} for rank in range(num_ranks)]


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _launch_with_deepspeed(script: str, *arguments: str, num_ranks: int) -> subprocess.CompletedProcess:
    command = ["deepspeed", "-q", "--num_gpus", str(num_ranks), "--master_port", str(free_port()), script]
    process = subprocess.Popen(
        [*command, *arguments], cwd=REPOSITORY, env=environment(), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # the launcher's children would outlive it
        raise
    return subprocess.CompletedProcess(command, process.returncode, output)


def run_all(runs: list[dict[str, Any]], directory: Path, num_ranks: int, device: str = "cpu") -> str:
    """Run many configurations one after another in one launch (see runs_in_turn.py); returns the output.

    Args:
        device: "cuda" for a GPU, then on one rank.
    """
    path = directory / f"runs_{uuid.uuid4().hex}.json"
    path.write_text(json.dumps(runs))
    script = "tests/system/launched.py"
    done = launch_alone(device, script, str(path)) if num_ranks == 1 else launch(script, str(path), num_ranks=num_ranks)
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def read_log(run_directory: Path, name: str = "train") -> list[dict[str, Any]]:
    """The rows of a run's log."""
    return [json.loads(line) for line in (run_directory / "logs" / f"{name}.jsonl").read_text().splitlines()]
