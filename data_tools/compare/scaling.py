"""How the lookahead that a run has mastered grows with what it has spent: four forms, fitted to promotions."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import least_squares

from data_tools.base.rng import CounterStream
from data_tools.compare.estimates import Estimate

MIN_PROMOTIONS = 5  # a form of three parameters and a variance needs more points than these
_NUM_RESAMPLES = 1000
_FACTORS = (1 / 3, 3.0)  # of guesses


@dataclass(frozen=True)
class Form:
    """A form of growth.

    Attributes:
        text: its formula, with C for what was spent.
        names: of its parameters.
        predict: (parameters, costs) → lookaheads.
        guess: (costs, lookaheads) → parameters to begin with.
        is_log: for each parameter whether it is fitted by its logarithm, and so is positive.
    """

    text: str
    names: tuple[str, ...]
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray]
    guess: Callable[[np.ndarray, np.ndarray], list[float]]
    is_log: bool = True


@dataclass(frozen=True)
class Fit:
    """A fitted form; residuals are of log L, so that an error of 10 % weighs the same at every lookahead.

    Attributes:
        r_squared: share of the variance of log L that it explains.
        aicc: Akaike's criterion with the correction for few points; the lowest of several forms is the best. Infinite
            where there are too few points for so many parameters.
    """

    form: str
    parameters: dict[str, float]
    r_squared: float
    aicc: float


def _middle(costs: np.ndarray) -> float:
    return float(np.exp(np.log(costs).mean()))


def _through_the_ends(costs: np.ndarray, lookaheads: np.ndarray) -> list[float]:
    """a and b of the logarithm through the least and the greatest point: positive at all of them."""
    slope = np.ptp(lookaheads) / np.ptp(np.log(costs))
    return [lookaheads.min() - slope * np.log(costs.min()), slope]


FORMS = {
    "power law": Form(
        "a C^b", ("a", "b"), lambda p, cost: p[0] * cost ** p[1],
        lambda cost, look: [look.mean() / _middle(cost) ** 0.5, 0.5],
    ),
    "saturating power": Form(
        "L C^b / (C^b + c^b)", ("L", "c", "b"), lambda p, cost: p[0] / (1 + (p[1] / cost) ** p[2]),
        lambda cost, look: [1.5 * look.max(), _middle(cost), 0.7],
    ),
    "Weibull": Form(
        "L (1 - exp(-(C/c)^b))", ("L", "c", "b"), lambda p, cost: -p[0] * np.expm1(-((cost / p[1]) ** p[2])),
        lambda cost, look: [1.5 * look.max(), _middle(cost), 0.7],
    ),
    "logarithm": Form(
        "a + b log C", ("a", "b"), lambda p, cost: p[0] + p[1] * np.log(cost),
        _through_the_ends, is_log=False,
    ),
}  # fmt: skip


def fit_forms(costs: np.ndarray, lookaheads: np.ndarray) -> list[Fit]:
    """Fit every form to promotions, the best by AICc first; none for fewer than `MIN_PROMOTIONS`.

    Args:
        costs: (promotions,) spent up to each, above 0.
        lookaheads: (promotions,) mastered by then, above 0.
    """
    if len(costs) < MIN_PROMOTIONS or np.ptp(costs) == 0 or np.ptp(lookaheads) == 0:
        return []
    return sorted((_fit(name, form, costs, lookaheads) for name, form in FORMS.items()), key=lambda fit: fit.aicc)


def _fit(name: str, form: Form, costs: np.ndarray, lookaheads: np.ndarray) -> Fit:
    known = np.log(lookaheads)

    def parameters(free: np.ndarray) -> np.ndarray:
        return np.exp(np.clip(free, -300, 300)) if form.is_log else free

    def residuals(free: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            predicted = form.predict(parameters(free), costs)
        return np.log(np.clip(predicted, 1e-9, 1e30)) - known  # a logarithm may be below 0 where it does not fit

    starts = _starts(form, costs, lookaheads)
    found = min(
        (least_squares(residuals, start, x_scale="jac", max_nfev=500) for start in starts), key=lambda fit: fit.cost
    )
    rest, number, free = float(2 * found.cost), len(costs), len(form.names) + 1  # and the variance
    correction = 2 * free * (free + 1) / (number - free - 1) if number > free + 1 else np.inf
    aicc = number * np.log(max(rest, 1e-300) / number) + 2 * free + correction
    values = dict(zip(form.names, map(float, parameters(found.x)), strict=True))
    return Fit(name, values, 1 - rest / float(((known - known.mean()) ** 2).sum()), float(aicc))


def _starts(form: Form, costs: np.ndarray, lookaheads: np.ndarray) -> list[np.ndarray]:
    """Free parameters to begin with. From one of them alone, a form of three may end in a local minimum."""
    guess = np.array(form.guess(costs, lookaheads), float)
    if not form.is_log:
        return [guess]
    factors = product([1.0], *[_FACTORS] * (len(guess) - 1))
    return [np.log(guess), *(np.log(guess) + np.log(factor) for factor in factors)]


def exponent(costs: np.ndarray, lookaheads: np.ndarray) -> Estimate:
    """The exponent of the power law, with the 95 % percentile interval of a bootstrap over promotions.

    Promotions of one run follow one another, so that the interval is rather too narrow.
    """
    x, y = np.log(costs), np.log(lookaheads)
    stream = CounterStream(0, "compare/bootstrap")
    picks = np.array(stream.below_many(len(x), _NUM_RESAMPLES * len(x)), int).reshape(_NUM_RESAMPLES, len(x))
    slopes = _slope(x[picks], y[picks])
    low, high = np.nanquantile(slopes, [0.025, 0.975])
    return Estimate(float(_slope(x[None], y[None])[0]), float(low), float(high))


def _slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The slope of the line through each row's points, (rows,); NaN where all x are equal."""
    x = x - x.mean(axis=1, keepdims=True)
    spread = (x**2).sum(axis=1)
    return (x * y).sum(axis=1) / np.where(spread > 0, spread, np.nan)
