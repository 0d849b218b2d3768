"""Conditions over seeds: speed-ups are recovered, intervals cover the truth, and limits are stated."""

from pathlib import Path

import numpy as np
import pytest

from data_tools.base.errors import UserError
from data_tools.compare.comparison import compare
from data_tools.compare.conditions import Condition, SeedRun
from data_tools.compare.curves import Curve
from data_tools.compare.estimates import Estimate, geometric_mean_of, mean_of
from data_tools.compare.verdict import needs_table, verdict

POSITIONS = np.arange(250.0, 10_001, 250)


def run_of(speed=1.0, end=2.5, noise=None, total=10_000, **parts):
    positions = POSITIONS[: int(total // 250)]
    values = end + 30 * (positions * speed) ** -0.4
    noise = 0 if noise is None else noise[: len(positions)]
    return SeedRun(Curve(positions, values + noise), int(positions[-1]), **parts)


def condition(name, *runs):
    return Condition(name, dict(enumerate(runs, 1)))


def at_end(found):
    return next(target for target in found.targets if target.name == "100 % of its run")


def test_a_known_shift_is_recovered():
    found = compare(condition("B", *[run_of()] * 3), condition("A", *[run_of(1.6)] * 3))
    for target in found.targets:
        assert target.speed_up.mean == pytest.approx(1.6, rel=0.01), target.name
    assert [target.base_needs[0] for target in found.targets] == pytest.approx([2500, 5000, 7500, 10000], rel=1e-3)
    assert found.final.mean == pytest.approx(30 * 10_000**-0.4 * (1.6**-0.4 - 1))
    assert found.crossings == [] and found.notes == []


def test_intervals_cover_the_truth():
    """Over 200 experiments of 4 seeds, about 95 % of the intervals hold the true speed-up."""
    draws = np.random.default_rng(3)
    speed, covered = 1.5, []
    for _ in range(200):
        pairs = []
        for _ in range(4):
            of_seed = draws.normal(0, 0.02)  # shared by a pair, which has the seed's data order
            speeds = np.exp([draws.normal(0, 0.08), np.log(speed) + draws.normal(0, 0.08)])
            pairs.append([run_of(s, noise=of_seed + draws.normal(0, 0.004, len(POSITIONS))) for s in speeds])
        base, run = zip(*pairs, strict=True)
        found = compare(condition("B", *base), condition("A", *run))
        half_way = found.targets[1].speed_up
        covered.append(half_way.low <= speed <= half_way.high)
    assert 0.91 <= np.mean(covered) <= 0.985


def test_a_level_that_both_have_from_the_start_is_no_gain():
    flat = [SeedRun(Curve(positions, np.zeros(3)), 3) for positions in (np.array([1.0, 2, 3]), np.array([1.5, 2, 3]))]
    found = compare(condition("B", flat[0]), condition("A", flat[1]))
    assert all(np.isnan(target.speed_up.mean) for target in found.targets)
    assert "Both have B's final loss (0) from their first row on: what it takes" in verdict(found, "loss", "pflops")


def test_a_branch_is_named_as_one():
    parent, child = run_of(directory=Path("/r/c")), run_of(branched_from=Path("/r/c/checkpoints/step_00000010"))
    for base, run in ((parent, child), (child, parent)):
        (note,) = [n for n in compare(condition("B", base), condition("A", run)).notes if "branch" in n]
        assert note.startswith("A is a branch of B: " if run is child else "B is a branch of A: ")
    assert not any("branch" in note for note in compare(condition("B", run_of()), condition("A", child)).notes)


def test_equal_runs():
    found = compare(condition("B", run_of()), condition("A", run_of()))
    assert "A reaches B's final loss (3.254) with as many tokens" in verdict(found, "loss", "tokens")
    assert "loss is equal" in verdict(found, "loss", "tokens")


def test_few_seeds_have_no_interval():
    found = compare(condition("B", run_of(), run_of()), condition("A", run_of(2), run_of(2)))
    assert not at_end(found).speed_up.has_interval and found.notes[0].startswith("2 seeds: no interval.")
    assert "(2 seeds, no interval)" in verdict(found, "loss", "tokens")


def test_never_is_never_in_a_mean_as_well():
    """A seed that never gets there has no number, and a mean over the others would flatter."""
    found = compare(condition("B", *[run_of()] * 3), condition("A", run_of(2), run_of(2), run_of(0.5)))
    assert np.isnan(at_end(found).run_needs).tolist() == [False, False, True]
    assert np.isnan(at_end(found).speed_up.mean)
    assert "A never reaches B's final loss" in verdict(found, "loss", "tokens")
    assert "in 1 of 3 seeds" in verdict(found, "loss", "tokens") and "never in 1 of 3" in needs_table(found, "tokens")


def test_a_baseline_that_never_reaches_the_target():
    found = compare(condition("B", *[run_of()] * 3), condition("A", *[run_of(4)] * 3), levels=[3.0])
    given = found.targets[-1]
    assert np.isnan(given.base_needs).all() and np.isfinite(given.run_needs).all()
    assert np.isnan(given.speed_up.mean) and "never" in needs_table(found, "tokens")


def test_what_cannot_be_concluded_is_said():
    speeds = (0.75, 0.9, 1.4)
    found = compare(condition("B", *[run_of()] * 3), condition("A", *[run_of(s, end=2.4) for s in speeds]))
    assert "cannot be concluded" in verdict(found, "loss", "tokens")


def test_an_early_lead_that_is_lost():
    """The run leads, and then ends worse: the final difference alone would hide it."""
    found = compare(condition("B", run_of()), condition("A", run_of(4, end=3.0)))
    (crossing,) = found.crossings
    assert crossing.position == pytest.approx(((30 - 30 * 4**-0.4) / 0.5) ** 2.5, rel=0.01)
    assert not crossing.is_better_after and found.final.mean > 0
    text = verdict(found, "loss", "tokens")
    assert "(B leads after)" in text and "A is worse" in text and "A never reaches" in text


def test_tokens_saved_for_each_token_of_pre_pretraining():
    base, run = [run_of(pptrain_tokens=0.0)] * 3, [run_of(2, pptrain_tokens=2_000.0)] * 3
    found = compare(condition("B", *base), condition("A", *run), counts_c4=True)
    assert at_end(found).saved.mean == pytest.approx((10_000 - 5_000) / 2_000, rel=0.01)
    assert "C4 tokens saved" in needs_table(found, "c4_tokens")
    for same in (compare(condition("B", *base), condition("A", *base), counts_c4=True),
                 compare(condition("B", *base), condition("A", *run))):  # fmt: skip
        assert np.isnan(at_end(same).saved.mean)


def test_runs_that_are_still_training_and_schedules_of_other_lengths():
    base = condition("B", run_of(total_steps=10_000, decays=True))
    found = compare(base, condition("A", run_of(2, total=6_000, total_steps=8_000, decays=True)))
    assert found.end == 6_000
    assert any("A, seed 1, is at step 6,000 of 8,000" in note for note in found.notes)
    assert any("different steps (8,000 and 10,000)" in note for note in found.notes)
    constant = compare(
        condition("B", run_of(total_steps=10_000)), condition("A", run_of(total=6_000, total_steps=6_000))
    )
    assert not any("decay" in note for note in constant.notes)


def test_seeds_are_paired_or_left_out():
    base = Condition("B", {1: run_of(), 2: run_of()})
    found = compare(base, Condition("A", {2: run_of(2), 5: run_of(2)}))
    assert found.seeds == [2]
    assert found.notes[:2] == ["B: seed 1 has no partner in A and is left out.",
                               "A: seed 5 has no partner in B and is left out."]  # fmt: skip
    with pytest.raises(UserError, match=r"B has seeds 1, 2 and A seed 7 in run\.yaml"):
        compare(base, Condition("A", {7: run_of()}))


def test_estimates():
    assert mean_of([1.0, 2.0, 3.0, 4.0]).high == pytest.approx(2.5 + 3.182446 * 1.290994 / 2)
    assert geometric_mean_of([0.5, 2.0, 1.0]).mean == pytest.approx(1)
    assert not mean_of([1.0, 2.0]).has_interval and not mean_of([1.0, np.nan, 2.0, 3.0]).has_interval
    assert Estimate(1.5, 1.25, 1.75).text(".2f") == "1.50 (1.25 … 1.75)" and Estimate(np.nan).text(".2f") == "–"
