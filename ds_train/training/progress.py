"""What a run says while it trains: one live line on a terminal, a line now and then where output is a file."""

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
    """Rank 0's line; on the other ranks it does nothing.

    Args:
        name: of the phase.
        step: optimizer step that training starts after.
        last_step: where it ends at the latest, None where that is not known.
        is_main: whether this rank speaks.
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
        """Leave the line as it is."""
        self._stack.close()

    def step_done(self) -> None:
        """An optimizer step is done."""
        if self._bar is not None:
            self._bar.update()

    def row(self, row: Row, status: str) -> None:
        """A row of train.jsonl, and what the phase has to say of itself."""
        shown = f"loss {row['loss']:.4g}  lr {row['lr']:.3g}  {status}  {row['tokens_per_second']:,.0f} tokens/s"
        if "mfu" in row:
            shown += f"  MFU {row['mfu']:.1%}"
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
        elif self._is_main:
            step, end = row["step"], f"/{self._last_step}" if self._last_step else ""
            logger.info("%s %s%s  %s%s", self._name, step, end, shown, self._remaining(step))

    def evaluation(self, row: Row) -> None:
        """A row of eval.jsonl."""
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
