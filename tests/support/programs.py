"""Programs that only write down how they were called, for the scripts of launch/ and tests/run.sh."""

import subprocess
import sys
from pathlib import Path

from tests.support.launching import REPOSITORY, environment

_RECORDING = """#!/bin/bash
{ printf '%s\\n' "$(basename "$0")" "$@"; echo; } >> "$CALLS"
"""
# Answers what scripts ask of Python, but without importing torch: this is a machine without GPU.
_PYTHON = f"""#!/bin/bash
case "$1 $2" in
    "-c import torch;"*) echo 0 ;;
    "-c "*) exec {sys.executable} "$@" ;;
    *) {{ printf '%s\\n' python "$@"; echo; }} >> "$CALLS" ;;
esac
"""
# Slurm would run the script on a node of the job, with variables such as these.
_SBATCH = """#!/bin/bash
export SLURM_SUBMIT_DIR="$PWD" SLURM_JOB_ID=1 SLURM_NTASKS=8 SLURM_JOB_NODELIST=node
exec bash "$@"
"""


class Programs:
    """An installation in ``directory`` whose programs start nothing."""

    def __init__(self, directory: Path) -> None:
        self._calls, self._installed = directory / "calls", directory / "installed.txt"
        binaries = directory / "bin"
        binaries.mkdir(parents=True)
        texts = dict.fromkeys(("deepspeed", "srun", "pdsh", "pip", "ruff", "mypy"), _RECORDING)
        for name, text in {**texts, "python": _PYTHON, "sbatch": _SBATCH}.items():
            (binaries / name).write_text(text)
            (binaries / name).chmod(0o755)
        self._variables = {
            **environment(), "DS_TRAIN_VENV": str(directory), "CALLS": str(self._calls), "HOME": str(directory),
            "NUM_RANKS": "1",
        }  # fmt: skip
        self._variables["PATH"] = f"{binaries}:{self._variables['PATH']}"

    def run(self, argv: list[str], variables: dict[str, str]) -> tuple[int, str, list[list[str]]]:
        """Run a command with these programs first on PATH: its exit code, its output, and what it called."""
        self._calls.write_text("")
        self._installed.unlink(missing_ok=True)
        command = ["bash", "-c", 'source "$1"', "bash", argv[1]] if argv[0] == "source" else argv
        done = subprocess.run(
            command, cwd=REPOSITORY, env=self._variables | variables, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
        )  # fmt: skip
        calls = self._calls.read_text().split("\n\n")[:-1]
        return done.returncode, done.stdout, [call.split("\n") for call in calls]
