"""The progress of a run: one live line on a terminal, a line per logged row where the output is a file."""

import logging
import sys
import time
from contextlib import ExitStack
from datetime import timedelta

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ds_train.training.metrics import Row

logger = logging.getLogger(__name__)

_LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_LINE_WITHOUT_END = "{desc}: {n_fmt} [{elapsed}, {rate_fmt}{postfix}]"


class Progress:
    """The progress line of rank 0; on other ranks every call does nothing.

    Args:
        name: of the phase.
        step: optimizer step after which training starts.
        last_step: the last step at most, None if unknown.
        is_main: whether this is rank 0.
    """

    def __init__(self, name: str, step: int, last_step: int | None, is_main: bool) -> None:
        self._name, self._last_step, self._is_main = name, last_step, is_main
        self._first: tuple[int, float] | None = None  # step and time of the first row: steps before it warm up
        self._stack = ExitStack()
        self._bar = None
        if is_main and sys.stderr.isatty():
            self._stack.enter_context(logging_redirect_tqdm())  # other lines go above the live one
            self._bar = self._stack.enter_context(
                tqdm(
                    desc=name, initial=step, total=last_step, unit=" steps", dynamic_ncols=True, position=0,
                    bar_format=_LINE if last_step else _LINE_WITHOUT_END,
                )
            )  # fmt: skip

    def close(self) -> None:
        """Release the terminal; the line stays visible."""
        self._stack.close()

    def step_done(self) -> None:
        """Count an optimizer step."""
        if self._bar is not None:
            self._bar.update()

    def row(self, row: Row, status: str) -> None:
        """Show a row of train.jsonl, with the phase's own columns in ``status``."""
        shown = f"loss {row['loss']:.4g}  lr {row['lr']:.3g}  {status}  {row['tokens_per_second']:,.0f} tokens/s"
        if "mfu" in row:
            shown += f"  MFU {row['mfu']:.1%}"
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
        elif self._is_main:
            step, end = row["step"], f"/{self._last_step}" if self._last_step else ""
            logger.info("%s %s%s  %s%s", self._name, step, end, shown, self._remaining(step))

    def evaluation(self, row: Row) -> None:
        """Show a row of eval.jsonl."""
        if self._is_main:
            values = "  ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in row.items()
                if key not in ("step", "timestamp")
            )
            logger.info("evaluation at step %s  %s", row["step"], values)

    def _remaining(self, step: int) -> str:
        now = time.monotonic()
        first_step, first_time = self._first = self._first or (step, now)
        if step in (first_step, self._last_step) or self._last_step is None:
            return ""
        seconds = (now - first_time) / (step - first_step) * (self._last_step - step)
        return f"  {timedelta(seconds=round(seconds))} left"
