"""Global batch, micro batch, accumulation: any two fix the third; flags come before the JSON."""

import pytest

from data_tools.base.errors import UserError
from ds_train.config.layout import Layout
from tests.support.engine_configs import BASE, batch, changed, resolve


@pytest.mark.parametrize("world_size", [1, 2, 8])
@pytest.mark.parametrize(
    ("in_json", "flags", "micro_batch", "grad_accum_at_one_rank"),
    [
        # any two of three in the JSON
        (batch(32, 2), {}, 2, 16),
        (batch(32, grad_accum=4), {}, None, 4),
        (batch(micro_batch=2, grad_accum=4), {}, 2, None),
        (batch(32, 2, "auto"), {}, 2, 16),
        # any two of three on the command line
        (batch(), {"global_batch": 64, "micro_batch": 4}, 4, 16),
        (batch(), {"global_batch": 64, "grad_accum": 2}, None, 2),
        (batch(), {"micro_batch": 4, "grad_accum": 2}, 4, None),
        # flags win over the JSON
        (batch(32, 2), {"global_batch": 64, "micro_batch": 4}, 4, 16),
        (batch(32, 2), {"micro_batch": 4, "grad_accum": 2}, 4, None),
        (batch(32, 2), {"micro_batch": 4}, 4, 8),
        (batch(32, 2), {"global_batch": 64}, 2, 32),
        (batch(32, 2, 2), {"micro_batch": 4}, 4, 8),
        (batch(micro_batch=2, grad_accum=4), {"global_batch": 64}, 2, 32),
    ],
)
def test_any_two_of_three_fix_the_third(in_json, flags, micro_batch, grad_accum_at_one_rank, world_size):
    layout = resolve(changed(*in_json), world_size=world_size, **flags).layout
    given = {key: value for key, value in in_json if isinstance(value, int)}
    global_batch = flags.get("global_batch", given.get("train_batch_size"))
    if {"micro_batch", "grad_accum"} <= set(flags) or global_batch is None:
        micro = flags.get("micro_batch", given.get("train_micro_batch_size_per_gpu"))
        accumulation = flags.get("grad_accum", given.get("gradient_accumulation_steps"))
        assert layout == Layout(world_size, micro, accumulation)
    elif micro_batch is None:
        assert layout == Layout(
            world_size, global_batch // grad_accum_at_one_rank // world_size, grad_accum_at_one_rank
        )
    else:
        assert layout == Layout(world_size, micro_batch, grad_accum_at_one_rank // world_size)
        assert layout.global_batch == global_batch


def test_all_three_may_be_given_when_they_agree():
    assert resolve(changed(*batch(32, 2, 4)), world_size=4).layout == Layout(4, 2, 4)
    assert resolve(BASE, world_size=4, global_batch=48, micro_batch=3, grad_accum=4).layout == Layout(4, 3, 4)


@pytest.mark.parametrize(
    ("in_json", "world_size", "flags", "named"),
    [
        (batch(32, 3), 1, {}, "global batch 32.*micro_batch 3.*1, 2, 4, 8, 16, 32"),
        (batch(32, 2), 3, {}, "global batch 32.*3 ranks"),
        (batch(32, 2), 64, {}, "global batch 32.*64 ranks.*128"),
        (batch(32, 2, 4), 8, {}, "global batch 32.*micro_batch 2.*grad_accum 4"),
        (batch(32, 2), 1, {"global_batch": 33}, "global batch 33.*micro_batch 2"),
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
