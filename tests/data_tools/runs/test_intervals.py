"""Wilson's interval against published values and against what defines it."""

from math import sqrt

import numpy as np
import pytest

from data_tools.runs.intervals import accuracy_intervals, wilson_interval


@pytest.mark.parametrize(
    ("num_right", "num_examples", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_newcombes_table(num_right: int, num_examples: int, low: float, high: float) -> None:
    """Table I of Newcombe (1998), method 3, to its four decimals."""
    assert wilson_interval(num_right, num_examples) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("num_right", "num_examples"), [(1, 2), (3, 10), (49, 50), (700, 5000)])
def test_ends_are_the_shares_that_a_score_test_just_accepts(
    num_right: int, num_examples: int, confidence: float
) -> None:
    z = {0.9: 1.6448536, 0.95: 1.9599640, 0.99: 2.5758293}[confidence]
    for sign, end in zip((1, -1), wilson_interval(num_right, num_examples, confidence), strict=True):
        score = (num_right / num_examples - end) / sqrt(end * (1 - end) / num_examples)
        assert score == pytest.approx(sign * z, rel=1e-6)


def test_all_none_and_nothing() -> None:
    low, high = wilson_interval(10, 10)
    assert (1 - high, 1 - low) == pytest.approx(wilson_interval(0, 10)) and high == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_intervals_of_measured_accuracies() -> None:
    low, high = accuracy_intervals(np.array([0.0, 15 / 148]), np.array([20.0, 148.0]))
    assert low == pytest.approx([0, 0.0624], abs=5e-5) and high == pytest.approx([0.1611, 0.1605], abs=5e-5)
    assert np.isnan(accuracy_intervals(np.array([0.5, 0.6]), np.array([]))).all()
