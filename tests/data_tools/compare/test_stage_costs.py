"""Costs within stages, of promotions whose costs are known."""

import numpy as np
import pytest

from data_tools.compare.promotions import Promotions
from data_tools.compare.stage_costs import stage_cost_notes, stage_costs

LONGEST = 64


def promotions(step, cost_at, num_runs=1):
    """Runs in which one more lookahead costs ``cost_at`` the middle of its stage."""
    lookaheads = np.arange(step, LONGEST + 1, step, dtype=float)
    middles = np.sqrt(lookaheads[1:] * lookaheads[:-1])
    costs = np.cumsum([100.0, *(step * cost_at(middles))])  # the first stage is of another kind
    runs = np.arange(num_runs).repeat(len(costs))
    return Promotions(f"by {step}", np.tile(costs, num_runs), np.tile(lookaheads, num_runs), runs, False)


@pytest.mark.parametrize("num_runs", [1, 3])
def test_costs_are_recovered_and_cross_where_they_do(num_runs):
    """3 L^0.5 and 0.5 L cross at L = 36: finer stages pay from there on."""
    finer = stage_costs(promotions(1, lambda length: 3 * length**0.5, num_runs))
    coarser = stage_costs(promotions(8, lambda length: 0.5 * length, num_runs))
    assert (finer.step, coarser.step) == (1, 8)
    assert coarser.costs == pytest.approx(0.5 * coarser.lookaheads)
    assert len(finer.costs) == (LONGEST - 1) * num_runs
    (note,) = stage_cost_notes([finer, coarser], "pflops")
    assert note.endswith("they cross at 36.")


def test_one_is_cheaper_everywhere():
    every = [stage_costs(promotions(step, lambda length, step=step: 10 * length / step)) for step in (1, 4, 8)]
    notes = stage_cost_notes(every, "tokens")
    assert len(notes) == 3 and all("they do not cross between" in note for note in notes)
    assert "by 1 (stages of 1) and by 4 (stages of 4): the finer cost 4 times as much at" in notes[0]
    assert stage_cost_notes([every[0], every[0]], "tokens") == []


def test_too_few_stages():
    assert stage_costs(promotions(32, lambda length: length)) is None
