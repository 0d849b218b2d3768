"""Generators from outside, which reseed global generators, keep state or compile, train with exact order and resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_tools import build_data_splits
from data_tools.base.errors import UserError
from data_tools.inspect import __main__ as inspect_command
from data_tools.samples.readers import StreamReader
from data_tools.samples.samplers import SampleKind
from data_tools.search.examples import GeneratorChoice
from data_tools.search.generator import ExampleGenerator
from data_tools.search.splits import Splits, find_data_dir
from ds_train.phases import pptrain
from ds_train.ranks.world import World
from ds_train.training.phase import PhaseParts
from tests.support import tiny
from tests.support.comparing import comparable
from tests.support.launching import read_log, run_all
from tests.support.paths import SUPPORT

STEPS = 10


def _arguments(scratch: Path, name: str, *more: str) -> list[str]:
    return [
        *tiny.flags(scratch), *"--generator external_generator:StandInGenerator --global_batch 8 --lr 2e-3".split(),
        *f"--max_steps {STEPS} --curr_window 16 --curr_threshold 0.4 --curr_check_every 2".split(),
        "--run_name", f"external_{name}", *more,
    ]  # fmt: skip


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A copy of the compiled generator, in a directory in which no process is started."""
    directory = tmp_path / "their files"
    shutil.copytree(SUPPORT / "compiled_generator", directory, ignore=shutil.ignore_patterns("__pycache__"))
    return directory


def _edit(theirs: Path) -> None:
    """Change what the generator compiles, not its Python file, and forget what was compiled."""
    (theirs / "person.cpp").write_text("Eve\n")
    for name in ("person.so", "compilations"):
        (theirs / name).unlink()


def test_it_trains_beside_the_splits_that_it_would_build(
    tiny_scratch: Path, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for directory in (SUPPORT, theirs):
        monkeypatch.syspath_prepend(str(directory))
    sizes = "--max_input_size 48 --max_lookahead 8 --eval_size 20 --test_size 3 --mixin_size 3 --workers 1"
    dfs = "--generator compiled_generator:CompiledGenerator --generator_task dfs"
    options = "--generator_options requested_backtrack=2"
    build_data_splits.main(f"--scratch_dir {tmp_path} {sizes} {dfs} {options}".split())
    flags = [*tiny.flags(tiny_scratch), "--data_dir", str(find_data_dir(tmp_path)), "--max_steps", "1"]

    def source(*more: str) -> ExampleGenerator:
        setup = pptrain.prepare([*flags, *more], World(0, 0, 1)).make_setup()
        assert setup.fingerprints["generator"].endswith(f" {json.dumps(dict(reader(setup).choice.options))}")
        return reader(setup)

    def reader(setup: PhaseParts) -> ExampleGenerator:
        stream = setup.readers[SampleKind.STREAM]
        assert isinstance(stream, StreamReader)
        return stream.source

    assert source().choice == source(*dfs.split()).choice == find_choice(tmp_path)
    _edit(theirs)
    with pytest.raises(UserError, match=r"gives other examples than when .* was built: it was changed, or what it is"):
        source()
    with pytest.raises(UserError, match="gives other examples than when"):
        inspect_command.main(["stream", "--data_dir", str(find_data_dir(tmp_path))])
    source("--accept_change", "generator_examples")
    assert "gives other examples than when" in caplog.text
    assert source("--generator_options", "requested_backtrack=3").choice.options == {"requested_backtrack": 3}


def find_choice(scratch: Path) -> GeneratorChoice:
    return Splits(find_data_dir(scratch)).meta.generator


def _compiled(directory: Path, scratch: Path, *more: str, **expected: Any) -> dict[str, Any]:
    """A run with a generator that compiles what is in this directory, from where no process is started."""
    argv = _arguments(scratch, "compiled", "--micro_batch", "2", "--max_steps", "4", *more)
    argv[argv.index("--generator") + 1] = "compiled_generator:CompiledGenerator"
    return {"phase": "pptrain", "argv": argv, "import_from": str(directory), **expected}


@pytest.mark.launch
def test_external_generator_trains_with_exact_order_and_resume(
    tiny_scratch: Path, theirs: Path, tmp_path: Path
) -> None:
    one_rank = [
        # 0 workers are raised to 1: the generator must not run in the trainer, whose global generators it reseeds.
        {"phase": "pptrain", "argv": _arguments(tiny_scratch, "straight", "--micro_batch", "4", "--num_workers", "0")},
        {"phase": "pptrain", "argv": _arguments(tiny_scratch, "resumed", "--micro_batch", "4", "--stop_step", "5"),
         "code": 86},
        {"phase": "pptrain", "argv": _arguments(tiny_scratch, "resumed", "--micro_batch", "4")},
        {"phase": "pptrain", "argv": _arguments(tiny_scratch, "workers", "--micro_batch", "2", "--num_workers", "2")},
    ]  # fmt: skip
    stopped = _compiled(theirs, tiny_scratch, "--stop_step", "1", code=86)
    dfs = ["--generator_task", "dfs", "--generator_options", "requested_backtrack=1"]
    run_all([*one_rank, stopped, _compiled(theirs, tiny_scratch, "--run_name", "compiled_dfs", *dfs)], tmp_path, 1)

    # Of two ranks, one compiles what is edited.
    _edit(theirs)
    two_ranks = [
        {"phase": "pptrain", "argv": _arguments(tiny_scratch, "ranks", "--micro_batch", "2")},
        _compiled(theirs, tiny_scratch, error="generator_examples: saved another one, with hash"),
        _compiled(theirs, tiny_scratch, "--accept_change", "generator_examples"),
    ]
    run_all(two_ranks, tmp_path, 2)
    assert (theirs / "compilations").read_text() == "compiled\n"
    assert len(read_log(tiny_scratch / "external_compiled")) == 4
    assert len(read_log(tiny_scratch / "compiled_dfs")) == 4

    straight = read_log(tiny_scratch / "external_straight")
    assert straight[-1]["stage"] >= 2 and len(straight) == STEPS
    resumed = read_log(tiny_scratch / "external_resumed")
    assert comparable(straight) == comparable(resumed)
    for name in ("workers", "ranks"):
        rows = read_log(tiny_scratch / f"external_{name}")
        for column in ("ledger", "stage", "tokens"):
            assert [row[column] for row in rows] == [row[column] for row in straight]
