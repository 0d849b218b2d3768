"""The progress of a run: one live line on a terminal, a line per logged row where the output is a file."""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import timedelta

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ds_train.training.metrics import Row

logger = logging.getLogger(__name__)

_ROWS_TIMED = 11  # ten intervals
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
        self._recent: deque[tuple[int, float]] = deque(maxlen=_ROWS_TIMED)  # steps and times of the latest rows
        self._losses: dict[str, list[float]] = {}  # of the steps since the last row
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

    def step_done(self, losses: Mapping[str, float | None]) -> None:
        """Count an optimizer step with these losses; None where it had no such samples."""
        for name, loss in losses.items():
            if loss is not None:
                self._losses.setdefault(name, []).append(loss)
        if self._bar is not None:
            self._bar.update()

    def row(self, row: Row, describe: Callable[[Row], str]) -> None:
        """Show a row of train.jsonl, with losses that are means over the steps since the last row.

        Args:
            describe: the phase's own columns as text.
        """
        num_steps = len(self._losses.get("loss", ()))
        row = row | {name: sum(losses) / len(losses) for name, losses in self._losses.items()}
        self._losses.clear()
        mean = f" (mean of {num_steps} steps)" if num_steps > 1 else ""
        shown = f"loss {row['loss']:.4g}{mean}  lr {row['lr']:.3g}  {describe(row)}"
        shown += f"  {row['tokens_per_second']:,.0f} tokens/s"
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
                if key not in ("step", "timestamp") and not isinstance(value, list)
            )
            logger.info("evaluation at step %s  %s", row["step"], values)

    def _remaining(self, step: int) -> str:
        """The time left at the speed of the latest rows: steps become slower as problems grow."""
        now = time.monotonic()
        self._recent.append((step, now))
        first_step, first_time = self._recent[0]
        if step in (first_step, self._last_step) or self._last_step is None:
            return ""
        seconds = (now - first_time) / (step - first_step) * (self._last_step - step)
        return f"  {timedelta(seconds=round(seconds))} left"
