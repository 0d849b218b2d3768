"""What pretrain mixes in, as its own checks and set-up decide it."""

import re
from pathlib import Path

import pytest

from data_tools.samples.samplers import mixin_passes
from ds_train.phases import pretrain
from ds_train.ranks.world import World
from ds_train.training.phase import PhaseParts
from tests.support import tiny

STEPS = 30


def parts(scratch: Path, *more: str) -> PhaseParts:
    """What pretrain makes of these flags."""
    flags = f"--total_steps {STEPS} --global_batch 8 --micro_batch 4 --pptrain_checkpoint none --allow_repeat".split()
    return pretrain.prepare([*tiny.flags(scratch), *flags, *more], World(0, 0, 1)).make_setup()


def test_a_table_that_is_read_again_is_warned_of_with_a_size_that_suffices(
    tiny_scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = "--mixin_percent 0.9 --mixin_pack single".split()
    passes = mixin_passes(parts(tiny_scratch, *flags).sampler, STEPS)
    assert passes > 1
    (warning,) = re.findall(r"the 150 examples of mixin\.jsonl ([\d.]+) times; (\d+) would suffice", caplog.text)
    assert float(warning[0]) == pytest.approx(passes, abs=0.05)
    assert 150 * passes <= int(warning[1]) <= 1.1 * 150 * passes + 1


@pytest.mark.parametrize("percent", ["0.1", "0"])
def test_a_table_that_is_read_once_is_not_warned_of(
    tiny_scratch: Path, caplog: pytest.LogCaptureFixture, percent: str
) -> None:
    setup = parts(tiny_scratch, "--mixin_percent", percent)
    assert mixin_passes(setup.sampler, STEPS) < 1
    assert "would suffice" not in caplog.text
