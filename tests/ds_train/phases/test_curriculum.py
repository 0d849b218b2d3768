"""When the stage advances, by the rule of the specification in exact decimal arithmetic."""

import math
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from data_tools.base.errors import UserError
from ds_train.checkpoints.state import TrainState
from ds_train.phases.curriculum import Curriculum
from ds_train.phases.evaluation import HeldOut
from ds_train.phases.pptrain import PPTrain
from ds_train.ranks.world import World


def window_with(num_right: int, size: int) -> list[int]:
    return [1] * num_right + [0] * (size - num_right)


def test_the_users_threshold_is_196_of_200():
    curriculum = Curriculum(max_stage=64)
    assert (curriculum.window, curriculum.threshold, curriculum.check_every) == (200, 0.98, 10)
    assert not curriculum.is_mastered(10, window_with(195, 200), 10)
    assert curriculum.is_mastered(10, window_with(196, 200), 10)


@pytest.mark.parametrize("threshold", ["0.98", "0.07", "0.29", "0.57", "0.9", "0.975", "0.3333", "1e-3", "1"])
def test_threshold_means_its_decimal_digits(threshold):
    # 0.07, 0.29 and 0.57 times 100 all miss the whole number in binary floating point.
    for size in range(1, 301):
        fewest = next(n for n in range(size + 1) if n >= Decimal(threshold) * size)
        curriculum = Curriculum(max_stage=5, window=size, threshold=float(threshold), check_every=1)
        assert curriculum.is_mastered(1, window_with(fewest, size), 1)
        assert not (fewest and curriculum.is_mastered(1, window_with(fewest - 1, size), 1))


def test_only_a_full_window_counts():
    curriculum = Curriculum(max_stage=5, window=8, threshold=0.5, check_every=1)
    assert not curriculum.is_mastered(1, [1] * 7, 1)
    assert curriculum.is_mastered(1, [1] * 8, 1)


def test_window_holds_the_latest_flags_oldest_first():
    curriculum = Curriculum(max_stage=5, window=5)
    assert curriculum.extended([0, 0, 1], [1, 0, 1]) == [0, 1, 1, 0, 1]
    assert curriculum.extended([], [0, 1]) == [0, 1]
    assert curriculum.extended([1, 1], [0, 0, 0, 1, 0, 1, 1]) == [0, 1, 0, 1, 1]


def test_rule_is_applied_every_check_every_steps_only():
    curriculum = Curriculum(max_stage=5, window=4, check_every=10)
    mastered = [step for step in range(1, 41) if curriculum.is_mastered(step, [1, 1, 1, 1], step)]
    assert mastered == [10, 20, 30, 40]


def test_a_stage_lasts_its_fewest_steps_and_up_to_a_check():
    curriculum = Curriculum(max_stage=5, window=20, check_every=10, min_stage_steps=25)
    assert [step for step in range(1, 61) if curriculum.is_mastered(step, [1] * 20, step)] == [30, 40, 50, 60]
    assert not curriculum.is_mastered(50, [1] * 20, 24) and curriculum.is_mastered(50, [1] * 20, 25)
    assert curriculum.fewest_steps(global_batch=8) == 5 * 30
    assert Curriculum(max_stage=5, window=100).fewest_steps(global_batch=8) == 5 * 20, "13 fill the window"


@pytest.mark.parametrize(
    ("window", "once", "one_of_20"), [(200, "9.50%", "86.4%"), (1000, "0.03%", "0.6%"), (300, "4.28%", "58.3%")]
)
def test_odds_of_a_promotion_by_chance_are_the_exact_binomial_tail(window, once, one_of_20):
    curriculum, accuracy = Curriculum(max_stage=5, window=window), Fraction(24, 25)
    fewest = math.ceil(window * Fraction(49, 50))
    tail = sum(math.comb(window, n) * accuracy**n * (1 - accuracy) ** (window - n) for n in range(fewest, window + 1))
    assert curriculum.chance_to_pass(0.96) == pytest.approx(float(tail), rel=1e-9)
    assert (f"{float(tail):.2%}", f"{float(1 - (1 - tail) ** 20):.1%}") == (once, one_of_20)


def test_a_window_that_promotes_by_chance_is_reported_with_its_odds():
    (found,) = Curriculum(max_stage=5).warnings(global_batch=32)
    assert "true accuracy is 0.96 passes a check at --curr_threshold 0.98 in 9.50% of cases" in found
    assert found.endswith("one of 20 checks in 86.4%. With a window of 800 it passes a check in 0.12%")
    assert Curriculum(max_stage=5, window=800).warnings(global_batch=800) == []
    (found,) = Curriculum(max_stage=5, window=800).warnings(global_batch=801)
    assert "--curr_window 800 is smaller than the global batch: of its 801 answers" in found
    assert len(Curriculum(max_stage=5).warnings(global_batch=512)) == 2
    assert Curriculum(max_stage=5, threshold=0.01).warnings(1) == [], "nothing is below that"
    assert "true accuracy is 0.98 passes" in Curriculum(max_stage=5, threshold=1.0, window=50).warnings(1)[0]


@pytest.mark.parametrize(
    ("start", "step", "last", "stages"),
    [
        (1, 1, 4, [1, 2, 3, 4]),
        (1, 3, 8, [1, 4, 7, 8]),
        (1, 3, 7, [1, 4, 7]),
        (2, 100, 64, [2, 64]),
        (64, 1, 64, [64]),
        (1, 1, 1, [1]),
    ],
)
def test_the_last_stage_is_always_trained(start, step, last, stages):
    curriculum = Curriculum(max_stage=last, start_stage=start, stage_step=step)
    visited, stage = [], start
    while stage is not None:
        visited.append(stage)
        stage = curriculum.next_stage(stage)
    assert visited == stages


def test_alpha_is_the_share_of_the_last_stage():
    assert [Curriculum(max_stage=4).alpha(stage) for stage in (1, 2, 4)] == [0.25, 0.5, 1.0]


def test_a_first_stage_beyond_the_last_is_refused():
    with pytest.raises(UserError, match=r"--start_stage 9 .* last stage 8"):
        Curriculum(max_stage=8, start_stage=9)


def phase_and_state(curriculum: Curriculum) -> tuple[PPTrain, TrainState]:
    state = TrainState(1, 1, 1, 1, 1, zero_stage=1, precision="bf16", stage=curriculum.start_stage)
    nothing_held_out = HeldOut([], np.empty(0, np.int64), 0)
    return PPTrain(
        curriculum, nothing_held_out, lambda stage: nothing_held_out, World(0, 0, 1), num_tokens=1, accuracy="any"
    ), state


def test_phase_follows_a_plain_reimplementation():
    curriculum = Curriculum(max_stage=7, window=50, threshold=0.8, check_every=3, stage_step=2)
    phase, state = phase_and_state(curriculum)
    rng = np.random.default_rng(0)
    flags: list[int] = []  # since the last promotion
    stage, finished, num_promotions = 1, False, 0
    for step in range(1, 2000):
        if finished:
            break
        new = (rng.random(8) < (0.75 if step % 40 < 30 else 0.9)).astype(int).tolist()
        flags += new
        last = flags[-50:]
        state.step = step
        phase.record(state, SimpleNamespace(flags=new))
        columns = phase.train_columns(state, SimpleNamespace())
        assert columns == {"curr_acc": sum(last) / len(last), "stage": stage, "alpha": stage / 7, "lookahead": None}
        promote = step % 3 == 0 and len(last) == 50 and 10 * sum(last) >= 8 * 50
        assert phase.promote(state) == promote
        if promote:
            num_promotions += 1
            flags, finished, stage = [], stage == 7, min(stage + 2, 7)
        assert (state.stage, state.window, phase.is_finished(state)) == (stage, flags[-50:], finished)
    assert finished and num_promotions == 4  # stages 1, 3, 5, 7


def test_finishing_keeps_the_last_stage_in_the_state():
    phase, state = phase_and_state(Curriculum(max_stage=2, window=2, check_every=1, start_stage=2))
    state.step, state.window = 1, [1, 1]
    assert phase.promote(state)
    assert (state.stage, state.finished, state.window) == (2, True, [])


def test_curr_acc_is_null_while_the_window_is_empty():
    phase, state = phase_and_state(Curriculum(max_stage=2))
    assert phase.train_columns(state, SimpleNamespace())["curr_acc"] is None


def test_stages_to_keep_are_those_that_are_trained() -> None:
    curriculum = Curriculum(max_stage=8, start_stage=2, stage_step=4)
    assert curriculum.stages == curriculum.named_stages(["all"]) == [2, 6, 8]
    assert curriculum.named_stages(["8", "2"]) == [8, 2] and curriculum.named_stages([]) == []
    for wrong in ("3", "none", "10"):
        with pytest.raises(UserError, match=f"--keep_stages {wrong}: .*give all, or 2 6 8"):
            curriculum.named_stages(["2", wrong])
