"""Means over seeds with their 95 % intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

import numpy as np
from scipy.special import stdtrit  # Student's t; scipy.stats takes most of a second to import

MIN_SEEDS = 3  # with two, Student's t is 12.7 and the interval useless


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and the ends of its interval; NaN where it is not known."""

    mean: float
    low: float = np.nan
    high: float = np.nan

    @property
    def has_interval(self) -> bool:
        return isfinite(self.low)

    def excludes(self, value: float) -> bool:
        """Whether the interval is there and does not contain the value."""
        return self.has_interval and not self.low <= value <= self.high

    def text(self, form: str) -> str:
        """``1.52 (1.31 … 1.77)``, with a format for each number."""
        interval = f" ({self.low:{form}} … {self.high:{form}})" if self.has_interval else ""
        return f"{self.mean:{form}}{interval}" if isfinite(self.mean) else "–"


def mean_of(values: Sequence[float] | np.ndarray) -> Estimate:
    """The mean and Student's 95 % interval; none for fewer than `MIN_SEEDS`, not even a mean if a value is missing."""
    mean = float(np.mean(values)) if len(values) else np.nan
    if len(values) < MIN_SEEDS or not isfinite(mean):
        return Estimate(mean)
    half = float(half_width(np.asarray(values)))
    return Estimate(mean, mean - half, mean + half)


def half_width(values: np.ndarray) -> np.ndarray:
    """Half of Student's 95 % interval of the mean over the first dimension."""
    number = len(values)
    return stdtrit(number - 1, 0.975) * np.std(values, axis=0, ddof=1) / sqrt(number)


def geometric_mean_of(ratios: Sequence[float] | np.ndarray) -> Estimate:
    """The same for ratios, by their logarithms: twice as fast and half as fast average to equally fast."""
    of_logs = mean_of(np.log(ratios))
    return Estimate(*(float(np.exp(value)) for value in (of_logs.mean, of_logs.low, of_logs.high)))
