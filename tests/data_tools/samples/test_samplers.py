"""Which samples are trained when: exact in order, whatever the layout, batch size or point of restart."""

import math
from dataclasses import replace

import numpy as np
import pytest

from data_tools.samples.samplers import (
    CurriculumSampler,
    Cursor,
    GlobalBatchPlan,
    MixinShare,
    MixtureSampler,
    SampleKind,
    Sampler,
    block_probability,
    c4_blocks_needed,
    mixin_passes,
)
from ds_train.config.layout import Layout

GLOBAL_BATCH = 3072
LAYOUTS = [
    Layout(1, 2, 3072), Layout(1, 3072, 3072), Layout(2, 4, 3072), Layout(3, 1024, 3072), Layout(7, 2, 3072),
    Layout(64, 6, 3072), Layout(1000, 1, 3072), Layout(3072, 3, 3072),
]  # fmt: skip


def mixture(
    share: float | MixinShare = 0.1, *, global_batch: int = GLOBAL_BATCH, fill: float = 0.8, **changes: int | None
) -> MixtureSampler:
    sizes = {"seed": 5, "num_c4_blocks": 10**9, "num_mixin_blocks": 997, **changes}
    if isinstance(share, float):
        share = MixinShare(share, share, "constant", 1000)
    return MixtureSampler(global_batch=global_batch, share=share, mixin_fill=fill, **sizes)


def plans(sampler: Sampler, num_steps: int, cursor: Cursor = Cursor(), step: int = 0) -> list[GlobalBatchPlan]:  # noqa: B008
    found = []
    for number in range(step + 1, step + num_steps + 1):
        found.append(sampler.plan(cursor, number))
        cursor = found[-1].next_cursor
    return found


def ids(plan: GlobalBatchPlan) -> list[tuple[int, int]]:
    return list(zip(plan.sources.tolist(), plan.indices.tolist(), strict=True))


def all_ids(found: list[GlobalBatchPlan]) -> list[tuple[int, int]]:
    return [pair for plan in found for pair in ids(plan)]


def indices_of(found: list[GlobalBatchPlan], source: SampleKind) -> np.ndarray:
    return np.concatenate([plan.indices[plan.sources == source] for plan in found])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_slices_of_all_ranks_put_the_global_batch_together(layout):
    assert layout.global_batch == GLOBAL_BATCH
    order = np.arange(GLOBAL_BATCH)
    slices = [order[layout.rank_slice(rank)] for rank in range(layout.world_size)]
    assert {len(part) for part in slices} <= {layout.samples_of_largest_rank, layout.samples_of_largest_rank - 1}
    assert np.array_equal(np.concatenate(slices), order)


@pytest.mark.parametrize("sampler", [CurriculumSampler(GLOBAL_BATCH), mixture()], ids=["curriculum", "mixture"])
def test_every_layout_trains_the_same_samples_in_the_same_order(sampler):
    start = Cursor(stage=3)
    reference = all_ids(plans(sampler, 20, start))
    for layout in LAYOUTS:
        num_steps = 20 if layout.world_size < 1000 else 4
        cursors = [start] * layout.world_size  # every rank plans for itself and keeps its own cursor
        trained = []
        for step in range(1, num_steps + 1):
            for rank in range(layout.world_size):
                plan, cut = sampler.plan(cursors[rank], step), layout.rank_slice(rank)
                trained += zip(plan.sources[cut].tolist(), plan.indices[cut].tolist(), strict=True)
                cursors[rank] = plan.next_cursor
        assert trained == reference[: num_steps * GLOBAL_BATCH], layout


def test_the_stream_is_consumed_in_order_at_the_cursors_stage():
    found = plans(CurriculumSampler(24), 50, Cursor(consumed_index=100, stage=7))
    assert all_ids(found) == [(SampleKind.STREAM, 100 + n) for n in range(24 * 50)]
    assert {plan.stage for plan in found} == {7}
    assert [plan.step for plan in found] == list(range(1, 51))
    assert found[-1].next_cursor == Cursor(consumed_index=100 + 24 * 50, stage=7)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_c4_blocks_come_once_in_order_and_mixin_blocks_once_a_pass(share):
    found = plans(mixture(share, global_batch=256, num_mixin_blocks=101), 40)
    c4, mixin = indices_of(found, SampleKind.C4), indices_of(found, SampleKind.MIXIN)
    assert np.array_equal(c4, np.arange(len(c4)))
    assert len(c4) + len(mixin) == 256 * 40
    assert (len(mixin) == 0) == (share == 0) and (len(c4) == 0) == (share == 1)
    whole_passes = mixin[: len(mixin) // 101 * 101].reshape(-1, 101)
    assert (np.sort(whole_passes, axis=1) == np.arange(101)).all()
    rest = mixin[whole_passes.size :]
    assert len(set(rest)) == len(rest) and (not len(rest) or max(rest) < 101)
    assert len({tuple(order) for order in whole_passes.tolist()}) == len(whole_passes)  # a new order each pass
    last = found[-1].next_cursor
    assert last == Cursor(consumed_index=256 * 40, c4_block_idx=len(c4), mixin_idx=len(mixin))


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_seed_can_decide_the_order_of_c4(share):
    """One for all conditions of a seed: mixing leaves blocks out at the end, and changes no place."""
    found = plans(mixture(share, global_batch=64, num_c4_blocks=150, shuffles_c4=True), 10)
    c4, alone = (
        indices_of(p, SampleKind.C4) for p in (found, plans(mixture(0.0, num_c4_blocks=150, shuffles_c4=True), 1))
    )
    assert np.array_equal(c4, alone[: len(c4)])
    assert (np.sort(c4[:300].reshape(2, 150)) == np.arange(150)).all() and list(c4[:150]) != list(c4[150:300])
    other = indices_of(plans(mixture(0.0, num_c4_blocks=150, shuffles_c4=True, seed=6), 1), SampleKind.C4)
    assert not np.array_equal(alone, other)


def test_a_repeated_pack_is_read_in_order_again():
    found = plans(mixture(0.1, global_batch=64, num_c4_blocks=150), 10)
    c4 = indices_of(found, SampleKind.C4)
    assert np.array_equal(c4, np.arange(len(c4)) % 150)
    assert found[-1].next_cursor.c4_block_idx == len(c4) > 150  # the cursor counts blocks, not positions


@pytest.mark.parametrize(
    "sampler",
    [
        CurriculumSampler(32),
        mixture(0.2, global_batch=32, num_mixin_blocks=23, num_c4_blocks=700),
        mixture(global_batch=32, share=MixinShare(0.0, 0.6, "cosine", 30), num_mixin_blocks=1),
        mixture(0.3, global_batch=32, num_mixin_blocks=None),
        mixture(global_batch=32, share=MixinShare(0.9, 0.1, "exponential", 30)),
        mixture(0.2, global_batch=32, num_mixin_blocks=23, num_c4_blocks=700, shuffles_c4=True),
    ],
    ids=["curriculum", "mixture", "moving mixture", "endless mixture", "falling mixture", "shuffled C4"],
)
def test_restart_from_any_cursor_continues_identically(sampler):
    whole = plans(sampler, 30, Cursor(stage=2))
    for done in range(30):
        rest = plans(sampler, 30 - done, whole[done - 1].next_cursor if done else Cursor(stage=2), done)
        assert all_ids(rest) == all_ids(whole[done:])
        assert [plan.next_cursor for plan in rest] == [plan.next_cursor for plan in whole[done:]]


def test_draws_do_not_depend_on_the_batch_size():
    one = all_ids(plans(mixture(0.3, global_batch=4096), 1))
    for global_batch in (1, 3, 32, 1000):
        found = all_ids(plans(mixture(0.3, global_batch=global_batch), math.ceil(4096 / global_batch)))
        assert found[:4096] == one


def test_the_seed_decides():
    same, other = mixture(0.3, seed=5), mixture(0.3, seed=6)
    assert all_ids(plans(mixture(0.3, seed=5), 2)) == all_ids(plans(same, 2))
    assert not np.array_equal(plans(same, 1)[0].sources, plans(other, 1)[0].sources)
    order, other_order = (indices_of(plans(mixture(1.0, seed=s), 1), SampleKind.MIXIN)[:997] for s in (5, 6))
    assert not np.array_equal(order, other_order)


@pytest.mark.parametrize("fill", [0.4, 0.8, 1.0])
@pytest.mark.parametrize("share", [0.02, 0.25, 0.9])
def test_the_share_of_real_tokens_is_the_one_asked_for(fill, share):
    samples = 400_000
    found = plans(mixture(share, fill=fill, global_batch=4000), samples // 4000)
    num_mixin = len(indices_of(found, SampleKind.MIXIN))
    measured = num_mixin * fill / (num_mixin * fill + samples - num_mixin)
    # d share / d q at share(q) = q f / (q f + 1 - q), times the binomial deviation of q.
    q = num_mixin / samples
    deviation = fill / (q * fill + 1 - q) ** 2 * math.sqrt(q * (1 - q) / samples)
    assert abs(measured - share) < 4 * deviation


def test_block_probability_at_its_ends():
    assert block_probability(0.0, 0.7) == 0.0
    assert block_probability(1.0, 0.7) == pytest.approx(1.0, abs=1e-15)
    assert block_probability(0.02, 1.0) == pytest.approx(0.02)
    assert block_probability(0.02, 0.8) == pytest.approx(0.0248756, rel=1e-5)


def test_share_schedules():
    constant, linear, cosine = (MixinShare(0.1, 0.5, kind, 101) for kind in ("constant", "linear", "cosine"))
    assert [constant.at(k) for k in (1, 50, 101)] == [0.1] * 3
    assert [linear.at(k) for k in (1, 26, 51, 101)] == pytest.approx([0.1, 0.2, 0.3, 0.5])
    quarter = 0.1 + 0.4 * (1 - math.cos(math.pi / 4)) / 2
    assert [cosine.at(k) for k in (1, 26, 51, 101)] == pytest.approx([0.1, quarter, 0.3, 0.5])
    assert MixinShare(0.1, 0.5, "linear", 1).at(1) == 0.1
    exponential = MixinShare(0.1, 0.5, "exponential", 100)
    for done in (0, 25, 99):
        assert exponential.at(done + 1) == pytest.approx(0.5 + (0.1 - 0.5) * math.exp(-5 * done / 100))
    down = MixinShare(0.5, 0.0, "linear", 11)
    assert [down.at(k) for k in (1, 6, 11)] == pytest.approx([0.5, 0.25, 0.0])


def test_a_moving_share_is_followed():
    share = MixinShare(0.0, 1.0, "linear", 41)
    counts = [int((plan.sources == SampleKind.MIXIN).sum()) for plan in plans(mixture(share=share, fill=1.0), 41)]
    assert counts[0] == 0 and counts[40] == GLOBAL_BATCH
    for step in range(2, 41):
        q = (step - 1) / 40
        assert abs(counts[step - 1] - GLOBAL_BATCH * q) < 5 * math.sqrt(GLOBAL_BATCH * q * (1 - q))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "exponential"])
@pytest.mark.parametrize("global_batch", [1, 7, 32])
def test_c4_blocks_needed_is_what_a_run_reads(schedule, global_batch):
    share = MixinShare(0.3, 0.3 if schedule == "constant" else 0.0, schedule, 60)
    sampler = mixture(global_batch=global_batch, share=share, num_c4_blocks=5)
    read = plans(sampler, 60)[-1].next_cursor.c4_block_idx
    assert c4_blocks_needed(sampler, 60) == read
    # The answer that matters, "is the pack large enough", is right on both sides of the edge.
    for size in (read - 1, read, read + 1, 60 * global_batch, 10**9):
        enough = c4_blocks_needed(replace(sampler, num_c4_blocks=size), 60) <= size
        assert enough == (size >= read)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_the_cursor_before_any_step_is_found_without_the_plans(schedule):
    sampler = mixture(MixinShare(0.2, 0.8, schedule, 40), global_batch=48)
    cursor = Cursor()
    for plan in plans(sampler, 40):
        assert sampler.cursor_before(plan.step) == cursor
        cursor = plan.next_cursor
    assert sampler.cursor_before(41) == cursor and cursor.mixin_idx > 0


def test_an_endless_series_of_synthetic_blocks_is_read_in_order():
    mixin = indices_of(plans(mixture(0.5, global_batch=40, num_mixin_blocks=None), 20), SampleKind.MIXIN)
    assert np.array_equal(mixin, np.arange(len(mixin))) and len(mixin) > 300


@pytest.mark.parametrize(("num_blocks", "num_steps"), [(None, 5), (100, 10), (7, 3), (0, 5)])
def test_passes_over_the_table_are_those_of_the_run(num_blocks, num_steps):
    sampler = mixture(0.5 if num_blocks else 0.0, global_batch=40, num_mixin_blocks=num_blocks)
    num_read = len(indices_of(plans(sampler, num_steps), SampleKind.MIXIN))
    assert mixin_passes(sampler, num_steps) == (num_read / num_blocks if num_blocks else 0)


def ledger_of(found: list[GlobalBatchPlan]) -> str:
    ledger = ""
    for plan in found:
        ledger = plan.extended_ledger(ledger)
    return ledger


def changed(plan: GlobalBatchPlan, position: int, *, index: int = 0, source: int = 0) -> GlobalBatchPlan:
    indices, sources = plan.indices.copy(), plan.sources.copy()
    indices[position] += index
    sources[position] = (sources[position] + source) % 3
    return replace(plan, indices=indices, sources=sources)


def test_ledger_tells_any_difference():
    found = plans(mixture(0.5, global_batch=64), 3, Cursor(stage=1))
    first, second, third = found
    swap = np.r_[1, 0, np.arange(2, 64)]
    variants = {
        "as it is": found,
        "an id": [first, changed(second, 63, index=1), third],
        "an id far off": [first, changed(second, 0, index=1 << 40), third],
        "a source": [first, changed(second, 17, source=1), third],
        "the first batch": [changed(first, 0, index=1), second, third],
        "the stage": [first, replace(second, stage=2), third],
        "a far stage": [first, replace(second, stage=1 + 256), third],
        "the order": [first, replace(second, sources=second.sources[swap], indices=second.indices[swap]), third],
        "the order of batches": [second, first, third],
        "one batch less": [first, second],
        "one batch twice": [first, second, third, third],
    }
    ledgers = {name: ledger_of(variant) for name, variant in variants.items()}
    assert len(set(ledgers.values())) == len(variants), ledgers
    assert all(len(bytes.fromhex(ledger)) == 16 for ledger in ledgers.values())


def test_ledger_is_the_same_for_every_layout():
    found = plans(mixture(0.5), 2)
    for layout in LAYOUTS:
        cuts = [layout.rank_slice(rank) for rank in range(layout.world_size)]
        gathered = [
            replace(
                plan,
                sources=np.concatenate([plan.sources[cut] for cut in cuts]),
                indices=np.concatenate([plan.indices[cut] for cut in cuts]),
            )
            for plan in found
        ]
        assert ledger_of(gathered) == ledger_of(found)


def test_ledger_continues_after_a_restart():
    found = plans(mixture(0.5, global_batch=64), 4)
    ledger = ledger_of(found[:2])
    for plan in found[2:]:
        ledger = plan.extended_ledger(ledger)
    assert ledger == ledger_of(found)
