"""Learning rates against the formulas of the specification, step by step."""

import math
from itertools import pairwise

import pytest

from data_tools.base.errors import UserError
from ds_train.config.schedule import Schedule, schedule_from_block

BASE = 5e-4


def block(kind: str, **params) -> dict:
    return {"type": kind, "params": params}


def assert_rates(schedule: Schedule, formula, last: int) -> None:
    for k in range(1, last + 1):
        assert schedule.lr(k) == pytest.approx(formula(k), rel=1e-13, abs=BASE * 1e-15), f"step {k}"


@pytest.mark.parametrize("warmup", [0, 1, 2, 7, 1000])
def test_linear_warm_up_then_constant(warmup):
    schedule = schedule_from_block(block("WarmupLR", warmup_num_steps=warmup, warmup_type="linear"), BASE, None)
    assert_rates(schedule, lambda k: BASE * k / warmup if k <= warmup else BASE, 2500)


@pytest.mark.parametrize("warmup", [0, 1, 2, 7, 1000])
@pytest.mark.parametrize("total", [2000, 1001])
@pytest.mark.parametrize("floor", [0.1, 0.0, 1.0])
def test_linear_warm_up_then_cosine(warmup, total, floor):
    given = block("WarmupCosineLR", warmup_num_steps=warmup, warmup_type="linear", cos_min_ratio=floor)
    schedule = schedule_from_block(given, BASE, total)
    low = BASE * floor

    def formula(k: int) -> float:
        if k <= warmup:
            return BASE * k / warmup
        return low + (BASE - low) * (1 + math.cos(math.pi * (k - warmup) / (total - warmup))) / 2

    assert_rates(schedule, formula, total)


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_linear_warm_up_then_linear_decay(warmup):
    given = block("WarmupDecayLR", warmup_num_steps=warmup, warmup_type="linear", total_num_steps=50)
    schedule = schedule_from_block(given, BASE, 50)
    assert_rates(schedule, lambda k: BASE * k / warmup if k <= warmup else BASE * (50 - k) / (50 - warmup), 50)


@pytest.mark.parametrize("kind", ["linear", "1-sqrt"])
@pytest.mark.parametrize(("warmup", "decay"), [(7, 10), (0, 1), (20, 30), (0, 50)])
def test_linear_warm_up_then_constant_then_decay(kind, warmup, decay):
    given = block("WarmupStableDecay", warmup_num_steps=warmup, warmup_type="linear", decay_num_steps=decay,
                  decay_type=kind)  # fmt: skip
    schedule = schedule_from_block(given, BASE, 50)

    def formula(k: int) -> float:
        done = max(0, k - (50 - decay)) / decay
        left = 1 - (done if kind == "linear" else math.sqrt(done))
        return BASE * (k / warmup if k < warmup else left)

    assert_rates(schedule, formula, 50)
    assert (schedule.lr(50), schedule.lr(60)) == (0, 0)
    assert f"until step {50 - decay}, then {kind} to 0 at step 50" in str(schedule)


def test_the_users_pretrain_schedule_at_its_corners():
    given = block(
        "WarmupCosineLR", total_num_steps="auto", warmup_min_ratio=0, warmup_num_steps=1000, warmup_type="linear",
        cos_min_ratio=0.1,
    )  # fmt: skip
    schedule = schedule_from_block(given, 5e-4, 10_000)
    corners = {1: 5e-7, 500: 2.5e-4, 1000: 5e-4, 5500: 2.75e-4, 10_000: 5e-5}
    assert {k: schedule.lr(k) for k in corners} == pytest.approx(corners, rel=1e-12)
    assert schedule.lr(999) < schedule.lr(1000) > schedule.lr(1001)


def test_a_run_shorter_than_its_warm_up_only_warms_up():
    given = block("WarmupCosineLR", warmup_num_steps=1000, warmup_type="linear", cos_min_ratio=0.1)
    assert_rates(schedule_from_block(given, BASE, 20), lambda k: BASE * k / 1000, 20)
    assert_rates(schedule_from_block(given, BASE, 1000), lambda k: BASE * k / 1000, 1000)


def test_behind_the_end_the_floor_is_kept():
    given = block("WarmupCosineLR", warmup_num_steps=2, warmup_type="linear", cos_min_ratio=0.1)
    schedule = schedule_from_block(given, BASE, 10)
    assert [schedule.lr(k) for k in (10, 11, 500)] == pytest.approx([BASE * 0.1] * 3, rel=1e-12)


@pytest.mark.parametrize("kind", ["WarmupLR", "WarmupCosineLR", "WarmupDecayLR"])
def test_logarithmic_warm_up(kind):
    schedule = schedule_from_block(block(kind, warmup_num_steps=100, warmup_type="log"), BASE, 200)
    assert schedule == schedule_from_block(block(kind, warmup_num_steps=100), BASE, 200)  # DeepSpeed's default
    assert_rates(schedule, lambda k: BASE * math.log(1 + k) / math.log(101), 100)
    rises = [schedule.lr(k + 1) - schedule.lr(k) for k in range(1, 100)]
    assert all(0 < later < earlier for earlier, later in pairwise(rises))


def test_warm_up_may_start_above_zero():
    low = schedule_from_block(block("WarmupLR", warmup_min_lr=1e-4, warmup_num_steps=4, warmup_type="linear"), 5e-4, 9)
    assert_rates(low, lambda k: min(5e-4, 1e-4 + k * 1e-4), 9)
    given = block("WarmupCosineLR", warmup_min_ratio=0.2, warmup_num_steps=4, warmup_type="linear")
    assert_rates(schedule_from_block(given, 5e-4, 4), lambda k: 1e-4 + k * 1e-4, 4)


def test_no_scheduler_is_a_constant_rate():
    assert_rates(schedule_from_block(None, BASE, None), lambda k: BASE, 50)
    assert schedule_from_block(block("WarmupLR", warmup_num_steps=0), BASE, None).lr(1) == BASE


@pytest.mark.parametrize("kind", ["WarmupCosineLR", "WarmupDecayLR"])
def test_total_num_steps_auto_is_the_runs_length(kind):
    auto, absent, equal = (
        schedule_from_block(block(kind, **params), BASE, 3000)
        for params in ({"total_num_steps": "auto"}, {}, {"total_num_steps": 3000})
    )
    assert auto == absent == equal
    assert auto.total_steps == 3000


@pytest.mark.parametrize(
    ("given", "total", "named"),
    [
        (block("WarmupCosineLR", total_num_steps=500), 600, r"500.*600"),
        (block("WarmupDecayLR", total_num_steps=500), 600, r"500.*600"),
        (block("WarmupCosineLR", total_num_steps="auto"), None, "total_num_steps"),
        (block("WarmupLR", warmup_max_lr=1e-3), None, r"warmup_max_lr 0.001.*0.0005"),
        (block("OneCycle"), None, "OneCycle.*WarmupLR"),
        ({"params": {}}, None, "type"),
        (block("WarmupLR", warmup_steps=5), None, "warmup_steps.*warmup_num_steps"),
        (block("WarmupLR", total_num_steps=5), 5, "total_num_steps"),
        (block("WarmupLR", warmup_num_steps=-1), None, "warmup_num_steps.*-1"),
        (block("WarmupLR", warmup_num_steps="auto"), None, "warmup_num_steps.*auto"),
        (block("WarmupLR", warmup_num_steps=2.5), None, "warmup_num_steps.*2.5"),
        (block("WarmupLR", warmup_num_steps=True), None, "warmup_num_steps.*True"),
        (block("WarmupLR", warmup_num_steps=None), None, "warmup_num_steps.*None"),
        (block("WarmupLR", warmup_min_lr="auto"), None, "warmup_min_lr.*auto"),
        (block("WarmupLR", warmup_min_lr=float("nan")), None, "warmup_min_lr.*nan"),
        (block("WarmupLR", warmup_type="cosine"), None, "warmup_type.*cosine"),
        (block("WarmupLR", warmup_type=3), None, "warmup_type.*3"),
        (block("WarmupCosineLR", cos_min_ratio="auto"), 9, "cos_min_ratio.*auto"),
        (block("WarmupCosineLR", cos_min_ratio=1.5), 9, "cos_min_ratio.*1.5"),
        (block("WarmupCosineLR", warmup_min_ratio=[0]), 9, "warmup_min_ratio"),
        (block("WarmupCosineLR", total_num_steps="ten"), 9, "total_num_steps.*ten"),
        (block("WarmupCosineLR", total_num_steps=0), None, "total_num_steps.*0"),
        (block("WarmupStableDecay"), 50, "decay_num_steps"),
        (block("WarmupStableDecay", decay_num_steps=0), 50, "decay_num_steps.*0"),
        (block("WarmupStableDecay", decay_num_steps=5), None, "total_num_steps"),
        (block("WarmupStableDecay", decay_num_steps=5, decay_type="sqrt"), 9, "decay_type.*sqrt"),
        (block("WarmupStableDecay", decay_num_steps=5, warmup_num_steps=46), 50, "46.*5.*50"),
        (block("WarmupLR", decay_num_steps=5), 50, "decay_num_steps"),
        ({"type": "WarmupLR", "params": None}, None, "params"),
        ({"type": "WarmupLR", "params": [1]}, None, "params"),
        ({"type": ["WarmupLR"]}, None, "type"),
        ({"type": "WarmupLR", "param": {"warmup_num_steps": 5}}, None, "param"),
        ("WarmupLR", None, "WarmupLR"),
    ],
)
def test_contradictions_and_bad_values_are_named(given, total, named):
    with pytest.raises(UserError, match=named):
        schedule_from_block(given, BASE, total)


def test_auto_peak_is_the_base_rate():
    for params in ({}, {"warmup_max_lr": "auto"}, {"warmup_max_lr": BASE}):
        schedule = schedule_from_block(block("WarmupLR", warmup_num_steps=3, **params), BASE, None)
        assert schedule.lr(3) == schedule.lr(4) == BASE
