"""The grid of an experiment as a table: what is done, and what each run takes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite

from data_tools.base.text_table import aligned
from ds_train.checkpoints.state import PFLOP
from ds_train.experiment.conditions import PPTRAIN, Condition
from ds_train.experiment.plan import Experiment
from ds_train.experiment.sizes import most_spent, pflops_of_blocks
from ds_train.experiment.trainers import PRETRAIN
from ds_train.model.flops import training_flops
from ds_train.model.footprint import GIB, checkpoint_bytes, model_shape
from ds_train.model.peaks import PEAK_FLOPS
from ds_train.phases.early_check import EarlyCheck, check_early

_GPU, _MFU = "H100 SXM", 0.3  # a usual share of the peak for small models


@dataclass(frozen=True)
class Forecast:
    """What a run takes.

    Attributes:
        blocks: packed ones, of C4 and synthetic; none in pre-pretraining.
        disk: bytes of the checkpoints that are kept, and of one being written.
        is_bound: whether the numbers are the most that it can take, and follow from a pre-pretraining to come.
    """

    run: str
    is_done: bool
    steps: float
    blocks: float
    pflops: float
    disk: float
    is_bound: bool

    @property
    def hours(self) -> float:
        return self.pflops * PFLOP / (_MFU * PEAK_FLOPS[_GPU]) / 3600


@dataclass(frozen=True)
class _Checked:
    """The settings of a condition's runs; those of pre-pretraining where there is one."""

    pptrain: EarlyCheck | None
    c4_phase: EarlyCheck | None
    pretrain: EarlyCheck


def check_and_forecast(experiment: Experiment) -> list[Forecast]:
    """Check the flags of all runs, and predict what each takes.

    Raises:
        UserError: a trainer would refuse its flags, JSON or model.
    """
    checked = {condition.name: _check(experiment, condition) for condition in experiment.conditions}
    done = {step.name for step in experiment.steps() if experiment.records.is_done(step)}
    found = {
        forecast.run: forecast
        for seed in experiment.seeds
        for condition in experiment.conditions
        for forecast in _forecasts(experiment, condition, checked[condition.name], seed, done)
    }
    return [*found.values()]


def _check(experiment: Experiment, condition: Condition) -> _Checked:
    trainers, seed = experiment.trainers, experiment.seeds[0]
    lookahead = int(experiment.file.section("splits")["max_lookahead"])
    pptrain = c4_phase = None
    if condition.first_phase or condition.has_total_compute:
        with experiment.file.naming(PPTRAIN):
            pptrain = check_early(PPTRAIN, trainers.pptrain(condition, seed), lookahead, has_weights=False)
            if other := trainers.replayed(condition):  # it is as long
                replayed = check_early(PPTRAIN, trainers.pptrain(other, seed), lookahead, has_weights=False)
                pptrain = replace(pptrain, cadence=replayed.cadence)
    with experiment.file.naming(PRETRAIN):
        if condition.first == "c4":
            c4_phase = check_early(PRETRAIN, trainers.c4_phase(condition, seed), lookahead, has_weights=False)
        has_weights = bool(condition.first_phase)
        pretrain = check_early(PRETRAIN, trainers.pretrain(condition, seed), lookahead, has_weights)
    return _Checked(pptrain, c4_phase, pretrain)


def _forecasts(
    experiment: Experiment, condition: Condition, checked: _Checked, seed: int, done: set[str]
) -> Iterator[Forecast]:
    """Of a condition's first phase and its pretraining."""
    trainers = experiment.trainers
    config = (checked.pptrain or checked.pretrain).model_config
    assert config
    flops, shape = training_flops(config), model_shape(config)

    def forecast(name: str, of: EarlyCheck, steps: float, blocks: float, pflops: float, is_bound: bool) -> Forecast:
        size = checkpoint_bytes(shape.num_parameters, stage=of.engine.zero_stage, half=of.engine.is_half)
        cadence = replace(of.cadence, max_steps=int(steps) if isfinite(steps) else None)
        kept = cadence.most_kept(of.run_flags.keep_last, of.run_flags.keep_every)
        run = f"{name}/seed_{seed}"
        return Forecast(run, run in done, steps, blocks, pflops, (kept + 1) * size, is_bound)

    spent = None
    measured = trainers.spent(condition, seed)
    if checked.pptrain:
        spent = measured or most_spent(checked.pptrain)
        yield forecast(condition.pptrain, checked.pptrain, spent.steps, 0, spent.pflops, measured is None)
    if checked.c4_phase and spent:
        steps = spent.steps_on_c4(trainers.seq_len)
        pflops = pflops_of_blocks(flops, blocks := steps * spent.global_batch, trainers.seq_len)
        yield forecast(condition.first_phase, checked.c4_phase, steps, blocks, pflops, measured is None)
    steps = trainers.total_steps(condition, spent)
    pflops = pflops_of_blocks(flops, blocks := steps * checked.pretrain.engine.layout.global_batch, trainers.seq_len)
    is_bound = condition.has_total_compute and measured is None
    yield forecast(condition.name, checked.pretrain, steps, blocks, pflops, is_bound)


def grid_table(forecasts: list[Forecast]) -> str:
    """A row for each run, and the sum of those that are not done."""
    rows = [["run", "", "steps", "blocks", "PFLOPs", f"{_GPU} hours", "checkpoints, GiB"]]
    for one in forecasts:
        numbers = (one.steps, one.blocks, one.pflops, one.hours, one.disk / GIB)
        cells = [_number(number, one.is_bound and not one.is_done) for number in numbers[:4]]
        rows.append([one.run, "done" if one.is_done else "", *cells, _number(numbers[4])])
    rest = [one for one in forecasts if not one.is_done]
    sums = [sum(getattr(one, name) for one in rest) for name in ("steps", "blocks", "pflops", "hours")]
    is_bound = any(one.is_bound for one in rest)
    rows.append(
        [
            "still to run",
            "",
            *(_number(total, is_bound) for total in sums),
            _number(sum(one.disk for one in rest) / GIB),
        ]
    )
    return (
        f"{aligned(rows)}\nHours at {_MFU:.0%} of the peak. ≤: at most, with problems of full length; ?: no limit. "
        "Lengths that follow from a pre-pretraining are set once that has ended."
    )


def _number(value: float, is_bound: bool = False) -> str:
    if not isfinite(value):
        return "?"
    text = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
    return f"≤ {text}" if is_bound and value else text
