"""Run directories as conditions: axes, seeds, rows without numbers, and what the pre-pretraining has cost."""

import json
import math

import numpy as np
import pytest

from data_tools.base.errors import UserError
from data_tools.compare.axes import AXES, positions_on, pptrain_cost
from data_tools.compare.conditions import read_condition
from data_tools.runs.logs import RunLogs
from data_tools.runs.settings import load_settings
from tests.support.runs import pptrain_rows, pretrain_rows, write_run


def train_rows(number=4):
    """A row every 10 steps and 1,000 tokens, a tenth of them synthetic."""
    return [
        {
            "step": 10 * n,
            "loss": 5.0,
            "tokens": 1000 * n,
            "mixin_fraction": 0.1,
            "pflops": 0.5 * n,
            "gpu_hours": 0.25 * n,
        }
        for n in range(1, number + 1)
    ]


def evaluations(losses, every=10):
    return [{"step": every * n, "heldout_c4_loss": loss, "heldout_acc": 0.1 * n} for n, loss in enumerate(losses)]


def only_run(directory, metric="heldout_c4_loss", axis="c4_tokens", charge=False):
    (run,) = read_condition("A", [directory], metric, axis, charge).runs.values()
    return run


@pytest.mark.parametrize(
    "axis, positions",
    [
        ("steps", [10, 20, 30]),
        ("tokens", [1000, 2000, 3000]),
        ("c4_tokens", [900, 1800, 2700]),
        ("pflops", [0.5, 1, 1.5]),
        ("gpu_hours", [0.25, 0.5, 0.75]),
    ],
)
def test_axes(tmp_path, axis, positions):
    """An evaluation before the first step is at no position of its own."""
    run = only_run(write_run(tmp_path / "A", train_rows(), evaluations([9, 5, 4, 3])), axis=axis)
    assert run.curve.positions == pytest.approx(positions) and run.curve.values.tolist() == [5, 4, 3]
    assert axis in AXES


def test_positions_between_and_after_rows(tmp_path):
    logs = RunLogs.read(write_run(tmp_path / "A", train_rows(), []), "A")
    assert positions_on(logs, "tokens", np.array([0, 5, 25, 44])).tolist() == [0, 500, 2500, 4400]
    assert np.isnan(positions_on(logs, "tokens", np.array([51]))).all()  # a row of the log would be there


@pytest.mark.parametrize("axis", ["c4_tokens", "pflops", "gpu_hours"])
def test_a_log_without_the_axis(tmp_path, axis):
    rows = [{"step": 10, "loss": 5.0, "tokens": 1000}]
    run = write_run(tmp_path / "A", rows, evaluations([9, 5, 4]))
    with pytest.raises(UserError, match=f"--axis {axis}: .*no column .*choose another of (?!.*{axis}).*steps"):
        only_run(run, axis=axis)


def test_missing_and_nan_rows_are_left_out(tmp_path):
    rows = train_rows()
    rows[1] = {"step": 20, "loss": None}
    losses = [None, 5.0, math.nan, 4.0, math.inf, 3.0]
    run = only_run(write_run(tmp_path / "A", rows, evaluations(losses)))
    assert run.curve.positions == pytest.approx([900, 2700, 4500]) and run.curve.values.tolist() == [5, 4, 3]


def test_steps_that_spend_nothing_on_the_axis_are_left_out(tmp_path):
    """A step without a block of C4 leaves the C4 tokens as they are, but for rounding."""
    rows = [
        {"step": n, "tokens": 1000 * n, "mixin_fraction": share} for n, share in enumerate((0, 1 / 2, 2 / 3, 1 / 4), 1)
    ]
    run = only_run(write_run(tmp_path / "A", rows, evaluations([9, 5, 4, 3, 2], every=1)))
    assert run.curve.positions == pytest.approx([1000, 3000]) and run.curve.values.tolist() == [5, 2]
    assert np.isfinite(run.curve.at(np.array([2000.0]))).all()


@pytest.mark.parametrize("losses", [[], [9.0], [9.0, 5.0], [None, None]])
def test_too_few_values(tmp_path, losses):
    run = write_run(tmp_path / "A", train_rows(), evaluations(losses))
    with pytest.raises(UserError, match=r"two are needed|has no value of it; its logs have"):
        only_run(run)


def test_accuracy_is_better_when_it_rises(tmp_path):
    run = write_run(tmp_path / "A", train_rows(), evaluations([9, 5, 4]))
    assert only_run(run).curve.falls and not only_run(run, "heldout_acc").curve.falls


def test_seeds(tmp_path):
    """Seed 0 is a seed; a run file without one has the default."""
    runs = [write_run(tmp_path / name, train_rows(), evaluations([9, 5, 4]), settings=settings)
            for name, settings in (("a", "seed: 0\n"), ("b", "seed: 4\n"), ("c", "total_steps: 9\n"))]  # fmt: skip
    assert read_condition("A", runs, "heldout_c4_loss", "steps", False).runs.keys() == {0, 4, 1337}
    again = write_run(tmp_path / "d", train_rows(), evaluations([9, 5, 4]), settings="seed: 4\n")
    with pytest.raises(UserError, match="A has two runs of seed 4"):
        read_condition("A", [*runs, again], "heldout_c4_loss", "steps", False)


@pytest.mark.parametrize(
    "params, settings, total, decays",
    [
        ({"type": "WarmupCosineLR", "params": {"total_num_steps": "auto"}}, "total_steps: 50\n", 50, True),
        ({"type": "WarmupDecayLR", "params": {"total_num_steps": 70}}, "total_steps: 50\n", 70, True),
        ({"type": "WarmupLR", "params": {}}, "total_steps: 50\n", 50, False),
        (None, "seed: 1\n", None, False),
    ],
)
def test_schedules(tmp_path, params, settings, total, decays):
    directory = write_run(tmp_path / "A", train_rows(), evaluations([9, 5, 4]), settings=settings)
    (directory / "deepspeed.json").write_text(json.dumps({"scheduler": params}))
    run = only_run(directory)
    assert (run.last_step, run.total_steps, run.decays) == (40, total, decays)


@pytest.fixture
def started_from(tmp_path):
    """A run that started from weights as given; pptrain, beside it, has four rows."""
    write_run(tmp_path / "pptrain", pptrain_rows([4.0, 3.0, 2.0, 1.0]))

    def start(checkpoint, scratch=tmp_path):
        settings = f"scratch_dir: {scratch}\npptrain_checkpoint: {checkpoint}\n"
        return write_run(tmp_path / "A", train_rows(), evaluations([9, 5, 4]), settings=settings)

    return start


def cost(directory, axis="tokens"):
    return pptrain_cost(RunLogs.read(directory, "A"), load_settings(directory / "run.yaml"), axis)


def test_cost_of_the_pre_pretraining(tmp_path, started_from):
    for checkpoint, tokens in (
        ("none", 0), ("latest", 4000), (tmp_path / "pptrain", 4000),
        (tmp_path / "pptrain" / "checkpoints" / "step_00000025", 2500),
    ):  # fmt: skip
        directory = started_from(checkpoint)
        assert cost(directory) == tokens, checkpoint
        run = only_run(directory, axis="tokens", charge=True)
        assert run.curve.start == tokens == run.pptrain_tokens
        # What was evaluated before the first step has a position now.
        assert run.curve.positions.tolist() == [tokens + at for at in (0, 1000, 2000) if tokens + at]
        directory.rename(tmp_path / f"was_{tokens}_{len(str(checkpoint))}")


def test_a_run_that_was_moved_finds_the_first_phase_beside_it(started_from):
    assert cost(started_from("latest", scratch="/gone")) == 4000


def test_a_step_of_a_run_that_was_moved_is_found_beside_it(started_from):
    assert cost(started_from("/gone/pptrain/checkpoints/step_00000025", scratch="/gone")) == 2500


def test_an_experiment_that_was_moved_finds_the_first_phase_of_the_seed(tmp_path):
    """And does not take the run itself for its own first phase."""
    checkpoint = "/gone/pptrain/seed_1/checkpoints/step_00000025"
    run = write_run(
        tmp_path / "A" / "seed_1", train_rows(4), evaluations([9, 5, 4]), settings=f"pptrain_checkpoint: {checkpoint}\n"
    )  # fmt: skip
    with pytest.raises(UserError, match="whose run is not at"):
        cost(run)
    write_run(tmp_path / "pptrain" / "seed_1", train_rows(5))
    assert cost(run) == 2500


def test_what_is_counted_from_a_later_step_is_no_axis(tmp_path):
    rows = train_rows()
    del rows[0]["pflops"]
    with pytest.raises(UserError, match=r"--axis pflops: .*A began before it was counted"):
        only_run(write_run(tmp_path / "A", rows, evaluations([9, 5, 4])), axis="pflops")


def test_a_first_phase_that_is_not_there(tmp_path, started_from):
    directory = started_from(tmp_path / "elsewhere")
    assert math.isnan(only_run(directory).pptrain_tokens), "nothing was to be charged"
    with pytest.raises(UserError, match=r"whose run is not at .*elsewhere; its cost is not known"):
        only_run(directory, axis="tokens", charge=True)


def test_a_first_phase_without_the_column(started_from):
    with pytest.raises(UserError, match=r"pptrain/logs/train\.jsonl has no column pflops"):
        cost(started_from("latest"), "pflops")


def test_columns_of_the_training_log_are_metrics_too(tmp_path):
    run = only_run(write_run(tmp_path / "A", pretrain_rows([6.0, 5.0, 4.0])), "c4_loss", "tokens")
    assert run.curve.positions.tolist() == [2000, 4000, 6000] and run.curve.values.tolist() == [7, 6, 5]
