"""Global batch, micro batch, accumulation: any two give the layout; flags come before the JSON."""

import pytest

from data_tools.base.errors import UserError
from ds_train.config.layout import Layout
from tests.support.engine_configs import BASE, batch, changed, resolve


@pytest.mark.parametrize("world_size", [1, 2, 8])
@pytest.mark.parametrize(
    ("in_json", "flags", "micro_batch", "global_batch"),
    [
        # any two of three in the JSON
        (batch(32, 2), {}, 2, 32),
        (batch(32, grad_accum=4), {}, {1: 8, 2: 4, 8: 1}, 32),
        (batch(micro_batch=2, grad_accum=4), {}, 2, {1: 8, 2: 16, 8: 64}),
        (batch(32, 2, "auto"), {}, 2, 32),
        # any two of three on the command line
        (batch(), {"global_batch": 64, "micro_batch": 4}, 4, 64),
        (batch(), {"global_batch": 64, "grad_accum": 2}, {1: 32, 2: 16, 8: 4}, 64),
        (batch(), {"micro_batch": 4, "grad_accum": 2}, 4, {1: 8, 2: 16, 8: 64}),
        # flags win over the JSON
        (batch(32, 2), {"global_batch": 64, "micro_batch": 4}, 4, 64),
        (batch(32, 2), {"micro_batch": 4, "grad_accum": 2}, 4, {1: 8, 2: 16, 8: 64}),
        (batch(32, 2), {"micro_batch": 4}, 4, 32),
        (batch(32, 2), {"global_batch": 64}, 2, 64),
        (batch(32, 2, 2), {"micro_batch": 4}, 4, 32),
        (batch(micro_batch=2, grad_accum=4), {"global_batch": 64}, 2, 64),
        # nothing needs to be a multiple of anything
        (batch(30, 4), {}, 4, 30),
        (batch(8, 2), {"micro_batch": 5}, 5, 8),
        (batch(33, grad_accum=4), {}, {1: 9, 2: 5, 8: 2}, 33),
    ],
)
def test_any_two_of_three_give_the_layout(in_json, flags, micro_batch, global_batch, world_size):
    micro, total = (n[world_size] if isinstance(n, dict) else n for n in (micro_batch, global_batch))
    assert resolve(changed(*in_json), world_size=world_size, **flags).layout == Layout(world_size, micro, total)


def test_all_three_may_be_given_when_they_agree():
    assert resolve(changed(*batch(32, 2, 4)), world_size=4).layout == Layout(4, 2, 32)
    assert resolve(BASE, world_size=4, global_batch=48, micro_batch=3, grad_accum=4).layout == Layout(4, 3, 48)
    assert resolve(BASE, world_size=4, global_batch=47, micro_batch=3, grad_accum=4).layout == Layout(4, 3, 47)


@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_deepspeed_gets_batch_sizes_that_it_accepts(world_size):
    resolved = resolve(changed(*batch(32, 2)), world_size=world_size)
    total, micro, accumulation = (
        resolved.deepspeed[f"{key}"]
        for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    )
    assert (total, accumulation) == (micro * world_size, 1) and micro == resolved.layout.samples_of_largest_rank
    assert resolved.effective["train_batch_size"] == 32 and resolved.effective["train_micro_batch_size_per_gpu"] == 2


@pytest.mark.parametrize(
    ("in_json", "world_size", "flags", "named"),
    [
        (batch(32, 2), 64, {}, "global batch 32.*64 ranks.*--global_batch 64"),
        (batch(32, 2, 4), 8, {}, "global batch 32.*micro_batch 2 takes 2 forwards.*grad_accum is 4"),
        (batch(32), 1, {}, "batch is not determined.*global_batch.*32"),
        (batch(), 1, {}, "batch is not determined"),
        (batch(), 1, {"micro_batch": 2}, "batch is not determined.*micro_batch.*2"),
        (batch(0, 2), 1, {}, "train_batch_size is 0"),
        (batch(32, -2), 1, {}, "train_micro_batch_size_per_gpu is -2"),
        (batch(32, 2.5), 1, {}, "train_micro_batch_size_per_gpu is 2.5"),
        (batch("32", 2), 1, {}, "train_batch_size is '32'"),
        (batch(True, 2), 1, {}, "train_batch_size is True"),
        (batch(None, 2), 1, {}, "train_batch_size is None"),
        (batch([32], 2), 1, {}, "train_batch_size is .32."),
        (batch(32, 2), 1, {"micro_batch": 0}, "micro_batch.* is 0"),
    ],
)
def test_batches_that_cannot_be_are_named(in_json, world_size, flags, named):
    with pytest.raises(UserError, match=named):
        resolve(changed(*in_json), world_size=world_size, **flags)
