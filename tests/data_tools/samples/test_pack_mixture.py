"""Blocks of several packs: shares kept at every point of a run, in an order that only seed and step decide."""

from itertools import pairwise

import numpy as np
import pytest

from data_tools.base.rng import permutation
from data_tools.samples.pack_mixture import PackMixture
from data_tools.samples.samplers import (
    Cursor,
    MixinShare,
    MixtureSampler,
    SampleKind,
    pack_blocks_needed,
    source_of_pack,
)

SHARES = {"books": 0.2, "c4": 0.7, "code": 0.1}
MIXTURE = PackMixture.of({name: round(share * 1e6) for name, share in SHARES.items()}, (40, 1000, 30))


def sampler(percent: float = 0.2, *, global_batch: int = 16, packs: PackMixture | None = MIXTURE, **changes):
    share = MixinShare(percent, percent, "constant", 100)
    return MixtureSampler(global_batch, 5, share, 1070, 23, 0.8, packs=packs, **changes)


def plans(of: MixtureSampler, num_steps: int, cursor: Cursor = Cursor(), step: int = 0):  # noqa: B008
    found = []
    for number in range(step + 1, step + num_steps + 1):
        found.append(of.plan(cursor, number))
        cursor = found[-1].next_cursor
    return found


def ids(found) -> list[tuple[int, int]]:
    return [pair for plan in found for pair in zip(plan.sources.tolist(), plan.indices.tolist(), strict=True)]


@pytest.mark.parametrize("seed", [1, 1337])
@pytest.mark.parametrize("first", [0, 10**12])
def test_shares_are_kept_at_every_block_without_drift(seed: int, first: int) -> None:
    numbers = MIXTURE.numbers(seed, first, 5000)
    given = np.cumsum(numbers[None] == np.arange(3)[:, None], axis=1) + np.array(MIXTURE.counts(seed, first))[:, None]
    asked = np.array([*SHARES.values()])[:, None] * np.arange(first + 1, first + 5001)
    assert abs(given - asked).max() < 3
    assert given[:, -1].tolist() == MIXTURE.counts(seed, first + 5000)


def test_the_seed_decides_and_the_numbering_begins_anywhere() -> None:
    whole = MIXTURE.numbers(1, 0, 1000)
    for first, end in pairwise((0, 1, 8, 500, 1000)):
        assert np.array_equal(MIXTURE.numbers(1, first, end - first), whole[first:end])
    assert not np.array_equal(whole, MIXTURE.numbers(2, 0, 1000))
    assert MIXTURE.numbers(1, 7, 0).tolist() == []


@pytest.mark.parametrize("shuffles", [False, True])
def test_each_pack_is_read_as_if_it_were_alone(shuffles: bool) -> None:
    found = plans(sampler(shuffles_c4=shuffles), 40)
    assert found[0].names == ("stream", "books", "mixin", "c4", "code")
    for number, size in enumerate(MIXTURE.sizes):
        source = source_of_pack(number)
        own = np.concatenate([plan.indices[plan.sources == source] for plan in found])
        once = own[:size]
        assert len(set(once.tolist())) == len(once) and (shuffles or np.array_equal(own, np.arange(len(own)) % size))
    read = [int(sum((plan.sources == source_of_pack(n)).sum() for plan in found)) for n in range(3)]
    last = found[-1].next_cursor
    assert read == MIXTURE.counts(5, last.c4_block_idx) and sum(read) == last.c4_block_idx
    needed = pack_blocks_needed(sampler(), 40)
    assert needed == {name: (n, size) for name, n, size in zip(MIXTURE.names, read, MIXTURE.sizes, strict=True)}
    assert needed["books"][0] > 40, "it is read again"


def test_c4_keeps_the_order_and_synthetic_blocks_the_places_that_they_have_alone() -> None:
    mixed, alone = plans(sampler(shuffles_c4=True), 30), plans(sampler(packs=None, shuffles_c4=True), 30)
    is_mixin = [np.concatenate([p.sources == SampleKind.MIXIN for p in found]) for found in (mixed, alone)]
    assert np.array_equal(*is_mixin)
    for found, size in ((alone, 1070), (mixed, 1000)):
        is_c4 = [np.array(found[0].names)[plan.sources] == "c4" for plan in found]
        c4 = np.concatenate([plan.indices[chosen] for plan, chosen in zip(found, is_c4, strict=True)])
        assert np.array_equal(c4, permutation(5, "pretrain/c4 order", size)[: len(c4)])
    one_pack = plans(sampler(packs=PackMixture.of({"c4": 1_000_000}, (1070,)), shuffles_c4=True), 30)
    assert ids(one_pack) == ids(alone) and one_pack[0].names == alone[0].names


@pytest.mark.parametrize("done", [1, 7, 29])
def test_a_resume_and_another_batch_continue_identically(done: int) -> None:
    whole = plans(sampler(), 30)
    assert ids(plans(sampler(), 30 - done, whole[done - 1].next_cursor, done)) == ids(whole[done:])
    assert ids(plans(sampler(global_batch=4), 120)) == ids(whole)
    ledgers = {plan.extended_ledger("") for plan in (whole[0], plans(sampler(packs=None), 1)[0])}
    assert len(ledgers) == 2
