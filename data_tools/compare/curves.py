"""One run's metric against an axis: its values between rows, and the position at which it reaches a target."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

_NORMAL_MAD = 1.4826  # standard deviation of a normal distribution by its median absolute deviation
_CLEAR_RISE = 4.0  # standard deviations of noise


@dataclass(frozen=True)
class Curve:
    """A metric of one run. Between rows it is interpolated in the logarithm of the position (PCHIP, no overshoot).

    Attributes:
        positions: (rows,) rising positions on the axis, above 0.
        values: (rows,) the metric there, two at least, finite.
        start: the position at which the run began: what was spent before it.
        falls: whether lower is better, as for a loss.
    """

    positions: np.ndarray
    values: np.ndarray
    start: float = 0.0
    falls: bool = True

    @property
    def end(self) -> float:
        return float(self.positions[-1])

    def at(self, positions: np.ndarray | float) -> np.ndarray:
        """Values as measured, (positions,); NaN before the first row and after the last."""
        inside = (np.asarray(positions) >= self.positions[0]) & (np.asarray(positions) <= self.end)
        return np.where(inside, self._measured(np.log(np.clip(positions, self.positions[0], self.end))), np.nan)

    @cached_property
    def _measured(self) -> PchipInterpolator:
        return PchipInterpolator(np.log(self.positions), self.values)

    @cached_property
    def noise(self) -> float:
        """Standard deviation of a row around the line through its neighbours; 0 for fewer than 3 rows.

        The median keeps it from the bend at the start of training.
        """
        if len(self.values) < 3:
            return 0.0
        x, y = np.log(self.positions), self.values
        before = (x[2:] - x[1:-1]) / (x[2:] - x[:-2])
        residuals = y[1:-1] - before * y[:-2] - (1 - before) * y[2:]
        return float(_NORMAL_MAD * np.median(np.abs(residuals) / np.sqrt(1 + before**2 + (1 - before) ** 2)))

    def level(self, position: float) -> float:
        """The value without noise at a position: of the monotone curve, which is constant beyond its ends."""
        steps = self._monotone
        return self._sign * float(steps(np.clip(np.log(position), steps.x[0], steps.x[-1])))

    def reach(self, target: float) -> float:
        """The position at which the metric is first as good as the target; NaN if never.

        A target that the first row fulfils is reached there: the position is at most that.
        """
        steps, wanted = self._monotone, self._sign * target
        if wanted >= steps(steps.x[0]):
            return float(self.positions[0])
        found = steps.solve(wanted, extrapolate=False)
        # The interpolation's last value differs from that of the last row by rounding.
        is_last = np.isclose(wanted, steps(steps.x[-1]), rtol=1e-12, atol=0)
        return float(np.exp(found[0] if len(found) else steps.x[-1])) if len(found) or is_last else np.nan

    @property
    def _sign(self) -> int:
        return 1 if self.falls else -1

    @cached_property
    def _monotone(self) -> PchipInterpolator:
        """The falling curve nearest to the rows in least squares (isotonic regression), from block centre to centre.

        The first row below a target would be a lucky one: with noise, a minimum over rows comes too early.
        """
        count = self._num_improving
        fit = isotonic_regression(self._sign * self.values[:count], increasing=False)
        starts = fit.blocks[:-1]
        starts = starts[np.append(True, np.diff(fit.x[starts]) < 0)]
        lengths = np.diff(np.append(starts, count))
        centres = np.add.reduceat(np.log(self.positions[:count]), starts) / lengths
        if len(starts) == 1:  # it never improves
            centres, starts = np.log(self.positions[[0, -1]]), starts[[0, 0]]
        return PchipInterpolator(centres, fit.x[starts])

    @cached_property
    def _num_improving(self) -> int:
        """Rows up to the best one, where the metric clearly becomes worse afterwards; else all."""
        worse = self._sign * self.values
        smooth = np.convolve(np.pad(worse, 1, mode="edge"), np.ones(3) / 3, mode="valid")
        best = int(np.argmin(smooth))
        return best + 1 if smooth[-1] - smooth[best] > _CLEAR_RISE * self.noise and best > 0 else len(worse)


@dataclass(frozen=True)
class Crossing:
    """Where two curves cross.

    Attributes:
        position: on the axis.
        is_better_after: whether the second curve is the better one after it.
    """

    position: float
    is_better_after: bool


def common_positions(curves: list[Curve]) -> np.ndarray:
    """All rows' positions within the stretch that every curve covers, (positions,); empty where there is none."""
    start, end = max(curve.positions[0] for curve in curves), min(curve.end for curve in curves)
    every = np.unique(np.concatenate([[start, end], *(curve.positions for curve in curves)]))
    return every[(every >= start) & (every <= end)]


def crossings(positions: np.ndarray, lead: np.ndarray, noise: float) -> list[Crossing]:
    """Changes of who leads that are more than noise: on both sides the lead exceeds three standard deviations.

    Args:
        positions: (n,) rising.
        lead: (n,) by how much the second curve is better; its zero lies between positions, linear in their logarithm.
        noise: standard deviation of ``lead``.
    """
    clear = np.flatnonzero(np.abs(lead) > 3 * noise)
    found = []
    for one, other in pairwise(clear):
        if lead[one] * lead[other] < 0:
            between = lead[one : other + 1] * np.sign(lead[other])
            at = one + int(np.flatnonzero(between <= 0)[-1])  # the last row before the new leader stays ahead
            share = lead[at] / (lead[at] - lead[at + 1])
            logs = np.log(positions[at : at + 2])
            found.append(Crossing(float(np.exp(logs[0] + share * (logs[1] - logs[0]))), bool(lead[other] > 0)))
    return found
