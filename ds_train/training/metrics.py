"""The records of a run: JSON-lines logs and throughput."""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch

from data_tools.base.errors import file_problem, is_number
from data_tools.base.files import append, whole_file
from data_tools.base.text_table import pluralize
from ds_train.ranks.collectives import uses_gpus

logger = logging.getLogger(__name__)

Row = dict[str, Any]


class JsonlLog:
    """An append-only log of rows with a ``step``, written by rank 0 alone.

    Rows that cannot be written (disk full) are kept in memory and written when they can be.

    Args:
        path: file to append to; its directory is created.
        is_writer: whether this rank writes; on other ranks every call does nothing.
    """

    def __init__(self, path: Path, is_writer: bool) -> None:
        self._path = path
        self._is_writer = is_writer
        self._unwritten: list[bytes] = []
        if is_writer:
            path.parent.mkdir(parents=True, exist_ok=True)

    def rewind(self, step: int) -> None:
        """Drop rows after ``step`` and lines that are no rows, so that the log continues from a checkpoint's step."""
        if not self._is_writer or not self._path.exists():
            return
        lines = self._path.read_bytes().splitlines()
        steps = [_step_of(line) for line in lines]
        if num_damaged := steps.count(None):
            logger.warning("%s: dropped %s, torn or damaged", self._path, pluralize(num_damaged, "line"))
        with whole_file(self._path) as file:
            kept = (line for line, at in zip(lines, steps, strict=True) if at is not None and at <= step)
            file.writelines(line + b"\n" for line in kept)

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; values that are not finite become null."""
        if not self._is_writer:
            return
        is_waiting = bool(self._unwritten)
        line = json.dumps({key: _finite(value) for key, value in row.items()})
        self._unwritten.append(f"{line}\n".encode())
        problem = self._write()
        if problem and not is_waiting:
            logger.warning("%s. Training continues; rows of this log wait in memory until they can be written", problem)

    def _write(self) -> str | None:
        """Write the rows that are not yet in the file; returns an error message if that fails."""
        try:
            append(self._path, b"".join(self._unwritten))
        except OSError as error:
            return file_problem(error, self._path)
        self._unwritten.clear()
        return None

    def close(self) -> None:
        """Write the rows that are still waiting, or report that they are lost."""
        if self._unwritten and (problem := self._write()):
            logger.error("%s. The log lacks its last %s", problem, pluralize(len(self._unwritten), "row"))


def _step_of(line: bytes) -> float | None:
    """The step of a row, None for a line that is none: torn by a kill, or damaged."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if is_number(step) else None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class DeviceHours:
    """Hours of all devices while they train, evaluations and saves included, from construction on.

    Args:
        num_devices: that work at the same time.
    """

    def __init__(self, num_devices: int) -> None:
        self._num_devices, self._last = num_devices, time.perf_counter()

    def since_last(self) -> float:
        """Device hours since the last call."""
        before, self._last = self._last, time.perf_counter()
        return (self._last - before) / 3600 * self._num_devices


class Throughput:
    """Tokens per second, share of the time spent waiting for data, peak memory, MFU and HFU since the last report.

    MFU counts the FLOPs of the model, HFU also those of recomputed activations: see Chowdhery et al. (arXiv 2204.02311,
    appendix B).

    Args:
        peak: FLOP/s of this rank's device; without it there is neither.
    """

    def __init__(self, peak: float | None = None) -> None:
        self._peak = peak
        self._begin()

    def _begin(self) -> None:
        self._start = time.perf_counter()
        self._tokens = 0
        self._waited = self._flops = self._recomputed = 0.0

    def waited(self, seconds: float) -> None:
        self._waited += seconds

    def trained(self, tokens: int, flops: float, recomputed: float = 0.0) -> None:
        """Count an optimizer step: tokens of all ranks, FLOPs of this one, and those of its recomputed activations."""
        self._tokens += tokens
        self._flops += flops
        self._recomputed += recomputed

    def report(self) -> dict[str, float]:
        """Columns for a log row; starts the next interval."""
        elapsed = time.perf_counter() - self._start
        columns = {
            "tokens_per_second": round(self._tokens / elapsed, 1),
            "data_wait_fraction": round(self._waited / elapsed, 5),
            "peak_memory_gb": round(_peak_memory_gb(), 3),
        }
        if self._peak:
            columns["mfu"] = round(self._flops / elapsed / self._peak, 4)
            if self._recomputed:
                columns["hfu"] = round((self._flops + self._recomputed) / elapsed / self._peak, 4)
        self._begin()
        return columns


def _peak_memory_gb() -> float:
    """Peak GPU memory of this rank, or on CPU its peak resident set, in GiB."""
    if uses_gpus():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux reports KiB
