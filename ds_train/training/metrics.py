"""The records of a run: JSON-lines logs and throughput."""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

Row = dict[str, Any]


class JsonlLog:
    """An append-only log of rows with a ``step``, written by rank 0 alone.

    Args:
        path: file to append to; its directory is created.
        is_writer: whether this rank writes; on other ranks every call does nothing.
    """

    def __init__(self, path: Path, is_writer: bool) -> None:
        self._path = path
        self._is_writer = is_writer
        if is_writer:
            path.parent.mkdir(parents=True, exist_ok=True)

    def rewind(self, step: int) -> None:
        """Drop rows after ``step`` and a torn last line, so that the log continues from a checkpoint's step."""
        if not self._is_writer or not self._path.exists():
            return
        kept = [line for line in self._path.read_text().splitlines() if _step_of(line) <= step]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        partial.replace(self._path)

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; values that are not finite become null."""
        if self._is_writer:
            with self._path.open("a") as file:
                file.write(json.dumps({key: _finite(value) for key, value in row.items()}) + "\n")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # a line torn by a kill


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Throughput:
    """Tokens per second, share of the time spent waiting for data, peak memory and MFU since the last report.

    Args:
        peak: FLOP/s of this rank's device; without it there is no MFU.
    """

    def __init__(self, peak: float | None = None) -> None:
        self._peak = peak
        self._begin()

    def _begin(self) -> None:
        self._start = time.perf_counter()
        self._tokens = 0
        self._waited = self._flops = 0.0

    def waited(self, seconds: float) -> None:
        self._waited += seconds

    def trained(self, tokens: int, flops: float) -> None:
        """Count an optimizer step: tokens of all ranks, FLOPs of this one."""
        self._tokens += tokens
        self._flops += flops

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
        self._begin()
        return columns


def _peak_memory_gb() -> float:
    """Peak GPU memory of this rank, or on CPU its peak resident set, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux reports KiB
