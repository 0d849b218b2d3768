"""Curves on synthetic power laws: a known shift is recovered, noise and bends do not deceive."""

import numpy as np
import pytest

from data_tools.compare.curves import Crossing, Curve, common_positions, crossings


def power_law(positions, speed=1.0, end=2.5):
    return end + 30 * (np.asarray(positions, float) * speed) ** -0.4


def curve(every, total, speed=1.0, end=2.5, noise=0.0, **parts):
    positions = np.arange(every, total + 1, every, dtype=float)
    values = power_law(positions, speed, end) + noise * np.random.default_rng(7).normal(size=len(positions))
    return Curve(positions, values, **parts)


@pytest.mark.parametrize("target", [3.0, 3.3, 4.0])
@pytest.mark.parametrize("every", [250, 400])
def test_a_target_is_reached_where_the_law_says(target, every):
    exact = (30 / (target - 2.5)) ** 2.5
    assert curve(every, 100_000).reach(target) == pytest.approx(exact, rel=0.002)
    assert curve(every, 100_000, speed=3).reach(target) == pytest.approx(exact / 3, rel=0.01)


def test_noise_does_not_make_a_target_come_early():
    """The first of many noisy rows below a target comes early; the monotone curve is right on average."""
    target, exact = 3.0, (30 / 0.5) ** 2.5
    positions = np.arange(250, 50_001, 250, dtype=float)
    needs, first_rows = [], []
    for seed in range(60):
        noisy = power_law(positions) + np.random.default_rng(seed).normal(0, 0.01, len(positions))
        needs.append(Curve(positions, noisy).reach(target))
        first_rows.append(positions[np.argmax(noisy <= target)])
    assert np.mean(needs) == pytest.approx(exact, rel=0.01)
    assert np.mean(first_rows) < 0.98 * exact


def test_never_and_at_once():
    one = curve(250, 10_000)
    assert np.isnan(one.reach(float(one.values[-1]) - 0.001))
    assert one.reach(float(one.values[-1])) == pytest.approx(10_000)
    assert one.reach(1e9) == 250, "the first row has it"


def test_a_level_is_that_of_the_monotone_curve():
    one = curve(250, 10_000)
    assert one.level(5_000) == pytest.approx(power_law(5_000), rel=1e-6)
    assert one.level(1) == one.values[0] and one.level(1e9) == pytest.approx(one.values[-1])


def test_accuracy_rises():
    positions = np.array([100.0, 200, 300, 400])
    one = Curve(positions, np.array([0.1, 0.3, 0.2, 0.9]), falls=False)
    assert one.reach(0.05) == 100 and 200 < one.reach(0.5) < 400 and np.isnan(one.reach(0.95))


def test_a_loss_that_rises_again_has_reached_its_lowest():
    """As when a run overfits: what comes after the best row is no noise, and does not undo it."""
    positions = np.arange(1.0, 41)
    rising = Curve(positions, 3 + (np.log(positions) - 2.5) ** 2)
    assert rising.reach(3.01) == pytest.approx(np.exp(2.4), rel=0.05)
    assert float(rising.at(40.0)) == rising.values[-1]


def test_a_curve_that_never_improves():
    flat = Curve(np.array([1.0, 2, 3]), np.array([2.0, 2.0, 2.0]))
    assert flat.reach(2.0) == 1 and np.isnan(flat.reach(1.9)) and flat.level(2) == 2


def test_the_noise_of_rows():
    assert curve(250, 10_000).noise < 1e-3
    assert curve(25, 100_000, noise=0.05).noise == pytest.approx(0.05, rel=0.05)


def lead_of(one, other):
    positions = common_positions([one, other])
    return positions, one.at(positions) - other.at(positions)


def test_where_curves_cross():
    """Unequal cadences; the second starts ahead and ends behind, as a pre-pretrained run may."""
    one, other = curve(250, 20_000), curve(400, 18_000, speed=4, end=2.9)
    exact = ((30 - 30 * 4**-0.4) / 0.4) ** 2.5
    (found,) = crossings(*lead_of(one, other), noise=1e-4)
    assert found.position == pytest.approx(exact, rel=0.01) and not found.is_better_after


def test_noise_is_no_crossing():
    positions = np.arange(1.0, 201)
    noise = np.random.default_rng(1).normal(0, 0.01, 200)
    assert crossings(positions, noise, 0.01) == []
    lead = np.where(positions < 100.5, -0.2, 0.2) + noise
    (found,) = crossings(positions, lead, 0.01)
    assert 100 < found.position < 101 and found == Crossing(found.position, True)


def test_there_is_nothing_outside_of_what_was_measured():
    one = curve(250, 1_000)
    assert np.isnan(one.at([100.0, 2_000.0])).all()
    assert len(common_positions([one, Curve(np.array([2000.0, 3000]), np.array([1.0, 1]))])) == 0
