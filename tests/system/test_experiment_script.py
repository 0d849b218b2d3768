"""A grid in miniature, 2 seeds × 4 conditions; and a part of it, interrupted twice: it has the same results."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.experiments import write_tiny_experiment
from tests.support.launching import read_log
from tests.support.running import finish, running, script, steps_logged, wait_for_step

PPTRAIN_STEPS, PRETRAIN_STEPS = 60, 40
_GRID_S = 1800  # for twenty processes, each of which imports for seconds
RUNS = ("pptrain", "A", "B")  # of those that are interrupted

pytestmark = [pytest.mark.launch, pytest.mark.slow]


@pytest.fixture(scope="module")
def config(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    one_rank = {
        "pptrain": {"max_steps": PPTRAIN_STEPS, "micro_batch": 8},
        "pretrain": {"total_steps": PRETRAIN_STEPS, "micro_batch": 4},
    }
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    return write_tiny_experiment(path, scratch, **one_rank, conditions=["A", "B", "C", "D"], seeds=[1, 2])


@pytest.fixture(scope="module")
def launcher() -> dict[str, str]:
    """One rank without a launcher, the fastest to start."""
    return {"LAUNCHER": "python ds_train/{}.py", "OMP_NUM_THREADS": "1"}


def results(scratch: Path) -> dict[str, Any]:
    """Everything that a stop could have changed: losses of all steps, evaluations; not their times and paths."""
    found: dict[str, Any] = {}
    for run in RUNS:
        found[run] = [(row["step"], row["loss"], row["ledger"]) for row in read_log(scratch / run / "seed_1")]
        report = json.loads((scratch / "evaluations" / f"{run}_seed_1.json").read_text())
        found[f"{run} evaluated"] = {name: report[name] for name in ("loss", "c4_loss", "accuracy_any")}
    return found


def test_a_grid_and_a_part_of_it_interrupted_twice(config: Path, launcher: dict[str, str], tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    output = finish([*script("experiment"), str(config), str(whole)], tmp_path / "whole.log", _GRID_S, **launcher)
    assert re.search(rf"^B fresh.* {PRETRAIN_STEPS} ", output, re.MULTILINE)
    assert re.search(rf"^A pre-pretrained.* {PPTRAIN_STEPS} \+ {PRETRAIN_STEPS} ", output, re.MULTILINE)
    assert "95 % intervals over 2 seeds" in output and "Note: 2 seeds: no interval." in output
    assert (whole / "report" / "report.html").exists()
    compared = json.loads((whole / "comparison" / "comparison.json").read_text())["comparisons"]
    assert {one["name"]: one["seeds"] for one in compared} == {"A": [1, 2], "C": [1, 2], "D": [1, 2]}

    part = ["--conditions", "A", "B", "--seeds", "1"]
    command, log = [*script("experiment"), str(config), str(stopped), *part], tmp_path / "stopped.log"
    for number, run in ((signal.SIGINT, "pptrain"), (signal.SIGUSR1, "A")):
        with running(command, log, **launcher) as process:
            wait_for_step(stopped / run / "seed_1", 10, process)
            process.send_signal(number)
            assert process.wait(120) == 85, log.read_text()[-3000:]
        assert "stopping after the current optimizer step" in log.read_text()
        assert not (stopped / run / "seed_1" / "STOP").exists()
    assert 10 <= max(steps_logged(stopped / "A" / "seed_1")) < PRETRAIN_STEPS and not (stopped / "B").exists()
    output = finish(command, log, _GRID_S, **launcher)
    assert "done before: pre-pretraining" in output and "done before: pretrain A" not in output
    assert results(stopped) == results(whole)

    output = finish(command, log, _GRID_S, **launcher)
    assert output.count("== done before") == 8, "all but the report and the comparison"
    assert "B fresh, C4 only" in output
