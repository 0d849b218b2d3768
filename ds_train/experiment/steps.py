"""Runs commands in order: skips those that have succeeded before, and ends the running one on a signal."""

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from data_tools.base.command_line import did_you_mean
from data_tools.base.errors import UserError
from data_tools.base.files import InUseError, exclusive, write_json
from ds_train.ranks.signals import BURST_S, SIGNALS, STOP_FILE, ExitCode

_POLL_S = 0.1
_WAIT_S = 2.0  # between two looks at a step that another process runs


@dataclass(frozen=True)
class Step:
    """A command that may be repeated at any time: it continues where it was, or starts anew.

    Attributes:
        name: of its record.
        title: its name in the output.
        cache_key: all that its result depends on besides other steps, without the launcher and the number of ranks.
        command: program and arguments.
        product: file or directory that it leaves.
        needs: the steps whose results it reads.
        run: the run directory of a trainer, which saves and exits when it finds a file STOP there.
        check: called before the start; raises what the command would only find later.
        always_run: run it each time.
    """

    name: str
    title: str
    cache_key: str
    command: Sequence[str]
    product: Path
    needs: tuple["Step", ...] = ()
    run: Path | None = None
    check: Callable[[], None] | None = None
    always_run: bool = False

    @property
    def fingerprint(self) -> str:
        """Hash of all that its result depends on."""
        parts = [self.cache_key, *(step.fingerprint for step in self.needs)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def with_needs(steps: Sequence[Step], names: Collection[str]) -> list[Step]:
    """The steps of these names and all that they need, in their order.

    Raises:
        UserError: there is no such step.
    """
    by_name, wanted = {step.name: step for step in steps}, set[str]()
    for name in names:
        if name not in by_name:
            hint = did_you_mean(name, by_name, f"; there are {', '.join(by_name)}.")
            raise UserError(f"--steps: there is no step {name!r}{hint}")
        wanted |= {name, *(need.name for need in all_needs(by_name[name]))}
    return [step for step in steps if step.name in wanted]


def all_needs(step: Step) -> Iterator[Step]:
    """What a step needs, and what that needs; some more than once."""
    for need in step.needs:
        yield need
        yield from all_needs(need)


class Records:
    """Which steps have succeeded: a JSON file for each, so that steps run in any order, also of several processes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def is_done(self, step: Step) -> bool:
        """Whether a step has succeeded, has not changed since, nor what it needs, and its product still exists."""
        path = self._path(step)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return record["fingerprint"] == step.fingerprint and step.product.exists()
        except FileNotFoundError:
            return False
        except (OSError, ValueError, TypeError, KeyError) as error:
            print(f"{path} cannot be read ({error}); the step is run again", flush=True)
            return False

    def add(self, step: Step, seconds: float) -> None:
        path = self._path(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"fingerprint": step.fingerprint, "command": [*step.command], "seconds": round(seconds, 1)}
        write_json(path, record)

    def claimed(self, step: Step) -> AbstractContextManager[None]:
        """Hold a step inside the block; raises ``InUseError`` where another process runs it."""
        return exclusive(self._directory / ".running" / step.name, "it will be waited for")

    def _path(self, step: Step) -> Path:
        return self._directory / f"{step.name}.json"


def run_steps(plan: Callable[[], Sequence[Step]], records: Records) -> int:
    """Run all steps in order, except those that are done. A step that another process runs is waited for.

    Args:
        plan: the steps; asked before each one, since what a step does may follow from the results of earlier ones.

    Returns:
        0, the exit code of the first step that failed, or 85 after a signal.
    """
    began = time.monotonic()
    with _Runner() as runner:
        number, waits_for = 0, None
        while number < len(steps := plan()):
            if runner.is_asked:
                return ExitCode.PREEMPTED
            step = steps[number]
            heading = f"{step.title} ({number + 1} of {len(steps)})"
            try:
                if code := _run_step(step, heading, records, runner, began):
                    return code
            except InUseError as held:
                if waits_for != step.name:
                    print(f"\n== {_since(began)}  waiting for another process: {heading}\n{held}", flush=True)
                waits_for = step.name
                time.sleep(_WAIT_S)
            else:
                number += 1
    return 0


def _run_step(step: Step, heading: str, records: Records, runner: "_Runner", began: float) -> int:
    """Run a step unless it is done; returns its exit code."""

    def is_done() -> bool:
        if done := records.is_done(step) and not step.always_run:
            print(f"== done before: {heading}", flush=True)
        return done

    if is_done():
        return 0
    with nullcontext() if step.always_run else records.claimed(step):
        if is_done():  # by another process, since
            return 0
        started = time.monotonic()
        print(f"\n== {_since(began)}  {heading}", flush=True)
        if step.check:
            step.check()
        code = runner.run(step)
        if not code:
            records.add(step, time.monotonic() - started)
        return code


def _since(began: float) -> str:
    minutes, seconds = divmod(int(time.monotonic() - began), 60)
    return f"{minutes}:{seconds:02d}"


class _Runner:
    """Runs steps. A first signal asks the running one to end; another, two seconds later or more, kills it."""

    def __init__(self) -> None:
        self._step: Step | None = None
        self._process: subprocess.Popen | None = None
        self._asked_at: float | None = None

    def __enter__(self) -> "_Runner":
        under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        wanted = SIGNALS if under_nohup else (*SIGNALS, signal.SIGHUP)
        self._previous = {number: signal.signal(number, self._take) for number in wanted}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def is_asked(self) -> bool:
        return self._asked_at is not None

    def run(self, step: Step) -> int:
        """Run a step; returns its exit code in a shell's form, or 85 if a signal ended it."""
        # In a new session Ctrl-C reaches this process alone. Launchers do not pass signals on reliably, so trainers are
        # stopped by a file, which works with all launchers and on any node.
        with subprocess.Popen(step.command, stdin=subprocess.DEVNULL, start_new_session=True) as process:
            self._step, self._process = step, process
            if self.is_asked:  # the signal came before the process was known
                self._ask()
            while (code := process.poll()) is None:
                time.sleep(_POLL_S)  # a blocking wait might not wake up for a signal, which any thread may get
            self._process = None
        if self.is_asked:
            if step.run:
                (step.run / STOP_FILE).unlink(missing_ok=True)  # still there if the run ended before it saw the file
            if code and not (step.run and code == ExitCode.ERROR):
                return ExitCode.PREEMPTED
        return 128 - code if code < 0 else code

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
            self._ask()
        elif now - self._asked_at > BURST_S and self._process:
            _say("killing the step at once")
            self._kill(signal.SIGKILL)

    def _ask(self) -> None:
        if self._process is None or self._step is None:
            return
        if self._step.run:
            _say("stopping after the current optimizer step, with a checkpoint; a second signal kills at once")
            self._step.run.mkdir(parents=True, exist_ok=True)
            (self._step.run / STOP_FILE).touch()
        else:
            _say("stopping")
            self._kill(signal.SIGTERM)

    def _kill(self, number: int) -> None:
        assert self._process
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _say(text: str) -> None:
    os.write(2, f"\nsignal: {text}\n".encode())  # print is unsafe in signal handlers
