"""The table of an experiment's results: a row for each condition."""

import json
from collections.abc import Sequence
from typing import Any

from data_tools.base.text_table import aligned
from data_tools.compare.estimates import Estimate, mean_of
from ds_train.checkpoints.state import PFLOP
from ds_train.experiment.conditions import PPTRAIN, Condition
from ds_train.experiment.sizes import last_state
from ds_train.experiment.trainers import Trainers


def result_table(trainers: Trainers, conditions: Sequence[Condition], seeds: Sequence[int]) -> str:
    """The results of the conditions, with what each was trained on. All of them must have been evaluated."""
    rows = [["", "C4 loss", "test accuracy", "steps", "tokens", "PFLOPs", "synthetic"]]
    for condition in conditions:
        phases = [name for name in (condition.first_phase, condition.name) if name]
        states = [_states(trainers, name, seeds) for name in phases]
        synthetic = sum(state["mixin_tokens"] for state in states[-1]) / sum(state["tokens"] for state in states[-1])
        rows.append([condition.title, *_columns(trainers, condition.name, seeds, states), f"{synthetic:.1%}"])
    for name in dict.fromkeys(condition.pptrain for condition in conditions if condition.first == PPTRAIN):
        before = [_states(trainers, name, seeds)]
        rows.append([f"  {name}, before pretraining", *_columns(trainers, name, seeds, before), ""])
    return "\n".join([aligned(rows), *_notes(trainers, conditions, seeds)])


def _notes(trainers: Trainers, conditions: Sequence[Condition], seeds: Sequence[int]) -> list[str]:
    report = _evaluation(trainers, conditions[0].name, seeds[0])
    over = f"over {len(seeds)} seeds" if len(seeds) > 1 else "over problems (one seed)"
    notes = [
        f"Test accuracy: any valid answer, {report['num_examples']:,} problems of full difficulty. "
        f"In parentheses: 95 % intervals {over}.",
        "Steps, tokens, PFLOPs: first phase + pretraining. Synthetic: share of the tokens of pretraining.",
    ]
    for name in dict.fromkeys(condition.pptrain for condition in conditions if condition.first == PPTRAIN):
        for seed, state in zip(seeds, _states(trainers, name, seeds), strict=True):
            stage = f"ended in stage {state['stage']} of {state['fingerprints']['max_stage']}"
            how = "finished its curriculum" if state["finished"] else stage
            notes.append(f"{name}, seed {seed}, {how}.")
    return notes


def _columns(trainers: Trainers, name: str, seeds: Sequence[int], states: list[list[dict[str, Any]]]) -> list[str]:
    """Results of a run's last checkpoint, and what its phases took; means over seeds."""
    reports = [_evaluation(trainers, name, seed) for seed in seeds]
    accuracy = mean_of([report["accuracy_any"] for report in reports])
    if len(reports) == 1:
        accuracy = Estimate(accuracy.mean, reports[0]["accuracy_any_low"], reports[0]["accuracy_any_high"])
    spent = [
        " + ".join(f"{mean_of([state[column] / unit for state in of_phase]).mean:{form}}" for of_phase in states)
        for column, unit, form in (("step", 1, ",.0f"), ("tokens", 1, ",.0f"), ("flops", PFLOP, ".4g"))
    ]
    return [mean_of([report["c4_loss"] for report in reports]).text(".4f"), accuracy.text(".4f"), *spent]


def _evaluation(trainers: Trainers, name: str, seed: int) -> dict[str, Any]:
    return json.loads(trainers.evaluation_file(name, seed).read_text(encoding="utf-8"))


def _states(trainers: Trainers, name: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The training state of each seed's last checkpoint."""
    return [last_state(trainers.run(name, seed)) for seed in seeds]
