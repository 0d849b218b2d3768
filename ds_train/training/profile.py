"""Where the time of a few optimizer steps goes (``--profile_steps``), and who held the memory when none was left.

Rank 0 writes a trace of the steps to RUN/profile. Each rank on a GPU keeps a history of its allocations, and writes it
there if it runs out of memory.
"""

import logging
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from data_tools.base.errors import UserError, file_problem, first_line
from ds_train.ranks.entry import on_out_of_memory
from ds_train.ranks.watchdog import Watchdog
from ds_train.ranks.world import World

logger = logging.getLogger(__name__)

DIRECTORY = "profile"
_NEVER = -1
_NUM_OPERATORS = 15
_NUM_ALLOCATIONS = 100_000  # of the history; an entry takes a few KB


def profiled_steps(text: str) -> tuple[int, int]:
    """``FIRST:LAST`` as two steps.

    Raises:
        UserError: it has another form, or names no step.
    """
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile_steps is {text!r}, expected FIRST:LAST with 1 <= FIRST <= LAST, such as 10:12.")
    return first, last


class StepProfile:
    """Traces the steps ``first`` to ``last`` of one launch.

    Attributes:
        next_at: `advance` is to be called before the step that follows this one; `_NEVER` where nothing is profiled.
    """

    def __init__(
        self, steps: tuple[int, int] | None = None, run_directory: Path = Path(), watchdog: Watchdog | None = None
    ) -> None:
        self._steps, self._directory, self._watchdog = steps, run_directory / DIRECTORY, watchdog
        self.next_at = _NEVER
        self._first_traced = 0
        self._profiler: Any = None
        self._marked = ExitStack()  # the step that is being traced

    def begin(self, step: int) -> None:
        """Await the steps, in a launch that starts after ``step``. Where these are over, a warning says so."""
        if self._steps is None:
            return
        first, last = self._steps
        if step >= last:
            logger.warning(
                "--profile_steps %d:%d: this launch begins at step %d; no step is profiled", first, last, step + 1
            )
            self._steps = None
        else:
            self.next_at = max(first - 1, step)

    def advance(self, step: int) -> None:
        """Between ``step`` and the next one: begin the trace, mark the next step in it, or end it."""
        assert self._steps
        if self._profiler is None:
            self._start(step + 1)
        self._marked.close()
        if step == self._steps[1]:
            self._write(step)
            return
        self._marked.enter_context(torch.profiler.record_function(f"optimizer step {step + 1}"))
        self.next_at = step + 1

    def end(self, step: int) -> None:
        """After the last step of the launch: write what there is, or say that there is none. Once is enough."""
        if self._profiler is not None:
            self._marked.close()
            self._write(step)
        elif self._steps:
            first, last = self._steps
            logger.warning(
                "--profile_steps %d:%d: this launch ended at step %d; no step was profiled", first, last, step
            )
            self._steps, self.next_at = None, _NEVER

    def _start(self, step: int) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler, self._first_traced = torch.profiler.profile(activities=activities), step
        self._profiler.start()

    def _write(self, last: int) -> None:
        """End the trace; write it whole or not at all, and log which operators took most."""
        profiler, self._profiler, self._steps, self.next_at = self._profiler, None, None, _NEVER
        if self._watchdog:
            self._watchdog.progress("writing the profile", is_long=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # kernels that still run belong to these steps
        profiler.stop()
        path = self._directory / f"steps_{self._first_traced}_{last}.json.gz"
        part = path.with_name(f".{path.name}")  # torch compresses by the suffix
        try:
            self._directory.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(part))
            part.replace(path)
        except (OSError, RuntimeError) as error:  # training is worth more
            problem = file_problem(error, path) if isinstance(error, OSError) else f"{path}: {first_line(error)}"
            logger.warning("the profile is not written: %s", problem)
            return
        key = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        averages = profiler.key_averages()
        logger.info("profile of steps %d to %d: %s (for https://ui.perfetto.dev)", self._first_traced, last, path)
        logger.info("operators that took most:\n%s", averages.table(key, _NUM_OPERATORS, max_name_column_width=48))


def record_memory(run_directory: Path, world: World, device: torch.device) -> None:
    """Keep a history of the allocations on a GPU, and write it if they exceed its memory."""
    if device.type != "cuda":
        return
    torch.cuda.memory._record_memory_history(max_entries=_NUM_ALLOCATIONS)
    path = run_directory / DIRECTORY / f"oom_rank_{world.rank}.pickle"

    def write() -> str:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(path))
        except OSError as error:
            return f" The history of the memory is not written: {file_problem(error, path)}."
        return f" The history of its memory is {path}, for https://pytorch.org/memory_viz."

    on_out_of_memory(write)
