"""A whole grid of a few steps, all conditions of one seed: that they differ in what each says, and in nothing else."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.corpus.shards import PackMeta
from data_tools.runs.settings import load_settings
from data_tools.samples.samplers import Cursor, SampleKind
from ds_train.experiment import __main__, steps
from ds_train.experiment.steps import Step
from ds_train.phases import pretrain
from ds_train.ranks.world import World
from tests.support import tiny
from tests.support.experiments import write_tiny_experiment
from tests.support.launching import launch, read_log

pytestmark = pytest.mark.launch

STEPS, SEED = 6, 3
ALL = ["A", "B", "C", "D", "B+", "N"]


def run_here(self: Any, step: Step) -> int:
    """Trainers are forked from a process that has imported everything; other commands run in this one."""
    if step.command[0] == "launch":
        done = launch(f"ds_train/{step.command[1]}.py", *step.command[2:], num_ranks=1)
        assert done.returncode == 0, done.stdout[-3000:]
    else:
        module = step.command[2]
        is_package = module == "data_tools.compare"
        importlib.import_module(f"{module}.__main__" if is_package else module).main(list(step.command[3:]))
    return 0


@pytest.fixture(scope="module")
def config(tiny_scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    return write_tiny_experiment(
        path, tiny_scratch, splits={"seed": 1, "eval_size": 16, "test_size": 16, "mixin_size": 60},
        pack={"val_blocks": 2}, pptrain={"max_steps": STEPS, "micro_batch": 8},
        training={"lr": 2e-3, "warmup_steps": 2, "eval_subset_size": 4, "sync_save": True},
        pretrain={"total_steps": STEPS, "micro_batch": 4, "eval_every": 2}, conditions=ALL, seeds=[SEED],
    )  # fmt: skip


@pytest.fixture(scope="module")
def grid(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("grid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps._Runner, "run", run_here)
        assert __main__.main([str(config), str(directory), "--launcher", "launch {}"]) == 0
        yield directory


def rows(grid: Path, name: str, log: str = "train") -> list[dict[str, Any]]:
    return read_log(grid / name / f"seed_{SEED}", log)


def ledgers(grid: Path, name: str) -> list[str]:
    return [row["ledger"] for row in rows(grid, name)]


def c4_blocks(grid: Path, name: str) -> np.ndarray:
    """The blocks that a run has read, in order, by its own settings; its ledger agrees."""
    run = grid / name / f"seed_{SEED}"
    sampler = pretrain.prepare(["--config", str(run / "run.yaml")], World(0, 0, 1)).make_setup().sampler
    cursor, ledger, found = Cursor(), "", []
    for step, expected in enumerate(ledgers(grid, name), 1):
        plan = sampler.plan(cursor, step)
        cursor, ledger = plan.next_cursor, plan.extended_ledger(ledger)
        assert ledger == expected
        found.append(plan.indices[plan.sources == SampleKind.C4])
    return np.concatenate(found)


def test_ledgers(grid: Path) -> None:
    """Those that mix read the same samples, those that do not read the same; both read C4 in one order."""
    assert ledgers(grid, "A") == ledgers(grid, "C") == ledgers(grid, "N") != ledgers(grid, "B")
    assert ledgers(grid, "B") == ledgers(grid, "D")
    mixed, alone = c4_blocks(grid, "A"), c4_blocks(grid, "B")
    assert len(mixed) < len(alone) and np.array_equal(mixed, alone[: len(mixed)])
    assert not np.array_equal(alone, np.sort(alone)), "the seed decides the order"


def test_effective_settings(grid: Path) -> None:
    found = {name: load_settings(grid / name / f"seed_{SEED}" / "run.yaml") for name in ALL}

    def differing(one: str, other: str) -> set[str]:
        names = found[one].keys() | found[other].keys()
        return {name for name in names if found[one].get(name) != found[other].get(name)} - {"run_name"}

    weights, mix = {"pptrain_checkpoint", "model_name"}, {"mixin_percent"}
    assert differing("A", "C") == differing("D", "B") == weights
    assert differing("A", "D") == differing("C", "B") == mix
    assert differing("A", "N") == {"pptrain_checkpoint"}
    assert differing("B", "B+") == {"total_steps", "pack_dir"}
    assert {settings["seed"] for settings in found.values()} == {SEED}


def test_initial_weights(grid: Path) -> None:
    """What each knows of C4 at its start tells whose weights it has."""
    start = {name: rows(grid, name, "eval")[0]["heldout_c4_loss"] for name in ALL}
    assert start["A"] == start["D"] and start["B"] == start["C"] == start["B+"]
    assert len({start["A"], start["B"], start["N"]}) == 3
    assert start["N"] == pytest.approx(start["B"], abs=1.0) and start["N"] < start["B"]


def test_first_phase_on_c4_reads_other_documents(grid: Path) -> None:
    """Packs of two halves of one source share no document, as the tests of packing show."""
    packs = {path.name: PackMeta.read(path) for path in (grid / "data").glob("c4_*")}
    second = [meta for name, meta in packs.items() if name.startswith("c4_second")]
    assert [meta.half for meta in second] == ["second"] and len(packs) == 3
    assert {meta.half for name, meta in packs.items() if name.startswith("c4_packed")} == {"first"}
    assert len({(meta.source_sha256, meta.seed, meta.shuffle_buffer) for meta in packs.values()}) == 1
    on_c4, pptrain = rows(grid, "pptrain_on_c4")[-1], rows(grid, "pptrain")[-1]
    assert 0 <= on_c4["tokens"] - pptrain["tokens"] < 8 * tiny.SEQ_LEN
    assert [row["lr"] for row in rows(grid, "pptrain_on_c4")] == [row["lr"] for row in rows(grid, "pptrain")][
        : len(rows(grid, "pptrain_on_c4"))
    ]


def test_longer_baseline_has_the_compute_of_both_phases(grid: Path) -> None:
    flops = {name: rows(grid, name)[-1]["pflops"] for name in ("pptrain", "B", "B+")}
    excess = flops["B+"] - flops["B"] - flops["pptrain"]
    assert 0 <= excess < flops["B"] / STEPS


def test_it_ends_with_a_comparison_and_is_done(grid: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compared = json.loads((grid / "comparison" / "comparison.json").read_text())["comparisons"]
    assert {(one["base"], one["name"]) for one in compared} == {("B", name) for name in ALL if name != "B"}
    assert (grid / "report" / "report.html").exists()
    assert __main__.main([str(config), str(grid), "--launcher", "launch {}", "--dry_run"]) == 0
    output = capsys.readouterr().out
    assert output.count("(done)") == 19 and "≤ " not in output.split("Hours")[0]
