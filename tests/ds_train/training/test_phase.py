"""How many checkpoints a cadence leaves."""

from math import inf

import pytest

from ds_train.checkpoints.retention import Milestones
from ds_train.training.phase import Cadence


@pytest.mark.parametrize(
    ("max_steps", "keep_last", "keep_every", "expected"),
    [
        (1000, 3, 0, 3), (1000, 3, 100, 13), (1000, 0, 0, 5), (1001, 0, 500, 6),
        (None, 3, 0, 3), (None, 3, 100, inf), (None, 0, 0, inf),
    ],
)  # fmt: skip
def test_most_checkpoints_that_stay(max_steps: int | None, keep_last: int, keep_every: int, expected: float) -> None:
    assert Cadence(10, 200, max_steps, None).most_kept(keep_last, keep_every) == expected
    kept = Milestones(steps=(3, 5), stages=(1,))
    assert Cadence(10, 200, max_steps, None, milestones=kept).most_kept(keep_last, keep_every) == expected + 3
