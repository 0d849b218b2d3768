"""Tells people what a run does (``--notify``): a shell command gets a line of JSON at each event."""

import json
import os
import signal
import socket
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

from data_tools.base.errors import first_line, user_message
from ds_train.ranks.signals import ExitCode
from ds_train.training.errands import Errands

_LONGEST_S = 60.0  # of a command, which is then killed
_LAST_WAIT_S = 10.0  # for commands at the end of a run; what takes longer continues without it
_LOST_WAIT_S = 3.0  # where a rank is lost: the others are waiting


class Notices:
    """Sends what happens to a command.

    Args:
        command: for a shell; None: nothing is sent.
        facts: of the run, part of each line.
    """

    def __init__(self, command: str | None = None, **facts: Any) -> None:
        self._command, self._facts = command, facts
        self._errands = Errands("--notify")

    @classmethod
    def of(cls, command: str | None, phase: str, directory: Path, run_name: str) -> "Notices":
        job = os.environ.get("SLURM_JOB_ID")
        return cls(command, run=run_name, phase=phase, directory=str(directory), host=socket.gethostname(), job=job)

    def started(self, step: int, num_ranks: int) -> None:
        how = f"continues after step {step:,}" if step else "started"
        self._send("start", f"{how} on {num_ranks} ranks" if num_ranks > 1 else how, step=step, ranks=num_ranks)

    def promoted(self, step: int, mastered: int, stage: int | None) -> None:
        """Args: the stage that was mastered, and the next one, None after the last."""
        then = f"stage {stage} begins" if stage else "the curriculum is finished"
        self._send("promotion", f"stage {mastered} is mastered at step {step:,}; {then}", step=step, mastered=mastered)

    def ended(self, step: int, code: ExitCode, error: BaseException | None) -> None:
        """The end of a launch, by itself or by an error; waits for the last commands, but not long."""
        if error is None:
            how = f"{code.name.lower().replace('_', ' ')} at step {step:,}"
            self._send("end", f"{how} (exit code {int(code)})" if code else how, step=step, exit_code=int(code))
        else:
            problem = user_message(error) if isinstance(error, Exception) else None
            self._failed(problem or first_line(error), code, step=step)
        self._errands.wait(_LAST_WAIT_S)

    def lost(self, code: int, reason: str) -> None:
        """This process is about to end, because a rank died or hangs or had an error."""
        self._failed(reason, code)
        self._errands.wait(_LOST_WAIT_S)

    def _failed(self, problem: str, code: int, **facts: Any) -> None:
        self._send("failure", f"failed: {problem}", message=problem, exit_code=int(code), **facts)

    def _send(self, event: str, what: str, **facts: Any) -> None:
        if self._command is not None:
            text = f"{self._facts.get('run', 'a run')} {what}"
            line = {"event": event, "text": text, "timestamp": time.time(), **self._facts, **facts}
            self._errands.add(partial(_run, self._command, json.dumps(line) + "\n"))


def _run(command: str, line: str) -> None:
    """Run a command with a line as its standard input.

    Raises:
        RuntimeError: it failed, or took too long.
    """
    process = subprocess.Popen(
        command, shell=True, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        _, errors = process.communicate(line, timeout=_LONGEST_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise RuntimeError(f"the command took longer than {_LONGEST_S:g} s and was killed") from None
    if process.returncode:
        last = "".join(errors.strip().splitlines()[-1:])
        raise RuntimeError(f"the command ended with code {process.returncode}{last and ': '}{last}")
