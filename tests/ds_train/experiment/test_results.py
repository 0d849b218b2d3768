"""What a finished grid is summed up to, and what one that is to run is predicted to take."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.base.files import write_json
from data_tools.base.text_table import round_up
from data_tools.runs.intervals import wilson_interval
from ds_train.experiment.conditions import BUILT_IN
from ds_train.experiment.forecast import Forecast, check_and_forecast, grid_table
from ds_train.experiment.plan import Experiment
from ds_train.experiment.results import result_table
from ds_train.model.causal_lm import load_model_config
from ds_train.model.flops import training_flops
from tests.support.experiments import SHIPPED, TRAINING, experiment, write

PFLOP = 10**15


def finish(grid: Experiment, name: str, seed: int, num_right: int = 0, **state: Any) -> None:
    """Write what a finished run leaves: its last state, and its evaluation."""
    checkpoint = grid.trainers.run(name, seed) / "checkpoints" / "step_00000050"
    checkpoint.mkdir(parents=True)
    values = {"global_batch": 8, "finished": False, "fingerprints": {"max_stage": "64"}, "mixin_tokens": 0}
    write_json(checkpoint / "state.json", values | state)
    (checkpoint / "huggingface").mkdir()
    (checkpoint / "huggingface" / "config.json").write_text(load_model_config("pythia-14m").to_json_string())
    low, high = wilson_interval(num_right, 200)
    report = {"num_examples": 200, "c4_loss": 4.25, "accuracy_any": num_right / 200}
    path = grid.trainers.evaluation_file(name, seed)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report | {"accuracy_any_low": low, "accuracy_any_high": high}))


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3]])
def test_result_table(tmp_path: Path, seeds: list[int]) -> None:
    grid = experiment(write(tmp_path, seeds=seeds), tmp_path)
    for seed in seeds:
        finish(grid, "pptrain", seed, 100, step=1200, tokens=5000, flops=2 * PFLOP, stage=7)
        for number, name in enumerate("ABC"):
            right = 40 * number + seed - 1
            finish(grid, name, seed, right, step=50, tokens=1000, flops=PFLOP, mixin_tokens=20 * number)
    lines = result_table(grid.trainers, grid.conditions, seeds).splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["A", "B", "C", "pptrain,"]
    a, c = (lines[row].split("mix")[1] for row in (1, 3))
    assert a.split()[-10:] == "1,200 + 50 5,000 + 1,000 2 + 1 0.0%".split()
    if len(seeds) == 1:
        assert c.split() == "4.2500 0.4000 (0.3346 … 0.4692) 50 1,000 1 4.0%".split()
    else:  # 80, 81 and 82 of 200
        assert c.split() == "4.2500 (4.2500 … 4.2500) 0.4050 (0.3926 … 0.4174) 50 1,000 1 4.0%".split()
    assert lines[5].startswith("Test accuracy: any valid answer, 200 problems")
    assert lines[7:] == [f"pptrain, seed {seed}, ended in stage 7 of 64." for seed in seeds]


def forecasts(config: Path, scratch: Path) -> dict[str, Forecast]:
    grid = experiment(config, scratch, conditions=[*BUILT_IN])
    return {one.run: one for one in check_and_forecast(grid)}


def test_forecast_before_and_after_pre_pretraining(tmp_path: Path) -> None:
    """B+ has the FLOPs of both phases of A, N's first phase the tokens of A's; at most, and then exactly."""
    config = write(tmp_path, training=TRAINING)
    of_block = training_flops(load_model_config("pythia-14m")).of_documents([128])
    before = forecasts(config, tmp_path)
    most = before["pptrain/seed_1337"]
    assert (most.steps, most.is_bound, before["A/seed_1337"].is_bound) == (100, True, False)
    assert most.pflops == pytest.approx(100 * 32 * of_block / PFLOP)  # the JSON's batch, whole length
    assert before["B+/seed_1337"].steps == 50 + 100 * 32 / 8
    assert before["pptrain_on_c4/seed_1337"].blocks == 100 * 32
    assert before["A/seed_1337"].pflops == pytest.approx(50 * 8 * of_block / PFLOP)

    grid = experiment(config, tmp_path, conditions=[*BUILT_IN])
    finish(grid, "pptrain", 1337, step=60, tokens=60 * 32 * 20, flops=100 * of_block, global_batch=32)
    pptrain = next(step for step in grid.steps() if step.name == "pptrain/seed_1337")
    for step in pptrain.needs:
        step.product.mkdir(parents=True, exist_ok=True)
    grid.records.add(pptrain, 1.0)
    after = forecasts(config, tmp_path)
    done = after["pptrain/seed_1337"]
    assert (done.is_done, done.steps, done.is_bound) == (True, 60, False)
    assert after["B+/seed_1337"].steps == 50 + 13  # 100 blocks of 128 tokens in batches of 8
    assert after["pptrain_on_c4/seed_1337"].blocks == 320  # 38,400 tokens: 300 blocks of 128 in batches of 32

    of_checkpoint = before["A/seed_1337"].disk / 4  # three and one being written
    assert before["pptrain/seed_1337"].disk == 4 * of_checkpoint
    kept = write(tmp_path, training=TRAINING | {"keep_steps": [7]}, pptrain={"max_steps": 100, "keep_every": 25})
    assert forecasts(kept, tmp_path / "other")["pptrain/seed_1337"].disk == (4 + 4 + 1) * of_checkpoint

    table = grid_table([*after.values()])
    assert table.splitlines()[1].split()[:2] == ["pptrain/seed_1337", "done"] and "≤ " not in table.split("Hours")[0]
    assert "≤ 450" in grid_table([*before.values()])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_would_start(path: Path, tmp_path: Path) -> None:
    """By the checks of the trainers that need no data."""
    grid = experiment(path, tmp_path)
    grid.check_data()
    assert all(one.pflops > 0 for one in check_and_forecast(grid))


def test_no_limit_is_shown(tmp_path: Path) -> None:
    found = forecasts(write(tmp_path, training=TRAINING, pptrain={}), tmp_path)
    assert "  ?" in grid_table([*found.values()])
    found = forecasts(write(tmp_path, training=TRAINING, pptrain={"max_tokens": 128 * 32 * 10 - 1}), tmp_path)
    assert found["pptrain_on_c4/seed_1337"].steps == 10


def test_packs_of_similar_runs_are_the_same() -> None:
    assert [round_up(number) for number in (1, 99, 100, 101, 4400, 4401)] == [1, 99, 100, 110, 4400, 4500]
