"""Confidence intervals of a measured share."""

from math import sqrt
from statistics import NormalDist

import numpy as np


def wilson_interval(num_right: int, num_examples: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a binomial proportion: low and high end, fractions in [0, 1].

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American
    Statistical Association 22 (1927), 209–212; without continuity correction, as method 3 of R. G. Newcombe,
    Statistics in Medicine 17 (1998), 857–872. Unlike p ± z·sqrt(p(1 − p)/n) it holds near 0 and 1 and for few examples.

    Args:
        num_right: from 0 to num_examples.
        num_examples: number of examples; 0 gives (0, 1).
        confidence: the share of such intervals that hold the true proportion.
    """
    if num_examples == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = num_right / num_examples
    denominator = 1 + z**2 / num_examples
    centre = (share + z**2 / (2 * num_examples)) / denominator
    half = z / denominator * sqrt(share * (1 - share) / num_examples + z**2 / (4 * num_examples**2))
    # At 0 and at n the ends are 0 and 1 exactly, which rounding misses.
    return (0.0 if num_right == 0 else centre - half), (1.0 if num_right == num_examples else centre + half)


def accuracy_intervals(accuracies: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(2, n) low and high ends of the 95 % intervals of accuracies over ``sizes`` examples; NaN without their sizes."""
    if len(sizes) != len(accuracies):
        return np.full((2, len(accuracies)), np.nan)
    num_right = np.rint(np.clip(accuracies, 0, 1) * sizes)
    return np.reshape(list(map(wilson_interval, num_right, sizes)), (-1, 2)).T
