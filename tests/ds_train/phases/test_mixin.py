"""What pretrain mixes in, as its own checks and set-up decide it."""

import random
import re
from pathlib import Path

import pytest

from data_tools import build_data_splits
from data_tools.samples.samplers import mixin_passes
from data_tools.search.splits import find_data_dir
from ds_train.phases import pretrain
from ds_train.ranks.world import World
from ds_train.training.phase import PhaseParts
from tests.support import tiny
from tests.support.paths import SUPPORT

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


def test_an_external_generator_runs_in_no_trainer(
    tiny_scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may reseed the global generators."""
    monkeypatch.syspath_prepend(str(SUPPORT))
    sizes = "--max_input_size 48 --max_lookahead 8 --eval_size 8 --test_size 3 --mixin_size 3 --workers 1"
    theirs = "--generator external_generator:StandInGenerator"
    build_data_splits.main(f"--scratch_dir {tmp_path} {sizes} {theirs}".split())
    argv = [*tiny.flags(tiny_scratch), *"--total_steps 2 --pptrain_checkpoint none --num_workers 0".split()]
    argv += ["--data_dir", str(find_data_dir(tmp_path)), "--mixin_source", "generator"]
    prepared, before = pretrain.prepare(argv, World(0, 0, 1)), random.getstate()
    setup = prepared.make_setup()
    assert prepared.num_workers == 1 and random.getstate() == before
    assert setup.fingerprints["generator"].startswith("external_generator:StandInGenerator ")
    assert setup.fingerprints["generator_examples"]


def test_fresh_examples_are_never_read_again(tiny_scratch: Path, caplog: pytest.LogCaptureFixture) -> None:
    table, fresh = (parts(tiny_scratch, "--mixin_percent", "0.9", "--mixin_source", s) for s in ("table", "generator"))
    assert caplog.text.count("would suffice") == 1  # of the table
    assert (table.sampler.num_mixin_blocks or 0) > 0 and fresh.sampler.num_mixin_blocks is None
    assert "fresh examples" in fresh.summary["mixin"]
    new = fresh.fingerprints.items() - table.fingerprints.items()
    assert new == {("generator", "built-in 1")}  # those of a table are as they were
