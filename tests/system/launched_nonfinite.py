"""Training runs in which chosen steps get a bad value on one rank.

    deepspeed --num_gpus 2 tests/system/launched_nonfinite.py RUNS.json REPORT.json

RUNS.json holds a list of {"phase", "argv", "inject": {step: [kind, rank, micro-batch]}}, kind ``loss`` or ``gradient``.
REPORT.json gets for each run the error it ended with, and for each rank the injected steps that changed something.
The error of the last run is left to end the program.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from data_tools.base.errors import UserError
from data_tools.base.files import write_json
from ds_train.ranks.collectives import gather_objects
from ds_train.ranks.entry import run_entry
from ds_train.ranks.world import world_from_env
from ds_train.step import engine
from ds_train.training import loop
from tests.support.comparing import tensors_of
from tests.system.runs_in_turn import MAINS


def main() -> int:
    runs_file, report_file = (argument for argument in sys.argv[1:] if not argument.startswith("--"))
    reports = []
    for run in json.loads(Path(runs_file).read_text()):
        changed: list[int] = []
        loop.train_step = injected(run["inject"], changed)
        error = None
        try:
            MAINS[run["phase"]](run["argv"])
        except UserError as raised:
            error = raised
        reports.append({"error": error and str(error), "changed": gather_objects(changed)})
        if world_from_env().is_main:
            write_json(Path(report_file), reports)
    if error:
        raise error
    return 0


def injected(injections: dict[str, list], changed: list[int]) -> Callable:
    """The engine's ``train_step``, with bad values at the given steps; adds steps that changed something."""

    def train_step(engine_, batch, *more):
        step = batch.plan.step
        if str(step) not in injections:
            return engine.train_step(engine_, batch, *more)
        kind, rank, number = injections[str(step)]
        before = snapshot(engine_)
        hook = None
        if rank == engine_.global_rank and kind == "loss":
            batch.micro_batches[number].weights[0] = math.nan
        elif rank == engine_.global_rank:
            hook = bad_gradient(engine_, number, len(batch.micro_batches))
        result = engine.train_step(engine_, batch, *more)
        if hook:
            hook.remove()
        after = snapshot(engine_)
        if before.keys() != after.keys() or any(not torch.equal(before[name], after[name]) for name in before):
            changed.append(step)
        return result

    return train_step


def bad_gradient(engine_, number: int, num_micro_batches: int):
    """Make one weight's gradient infinite in micro-batch ``number`` of every step."""
    calls = 0

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return gradient * (math.inf if (calls - 1) % num_micro_batches == number else 1)

    return list(engine_.module.parameters())[3].register_hook(spoil)


def snapshot(engine_) -> dict[str, torch.Tensor]:
    """Copies of this rank's part of weights and optimizer state."""
    weights = {name: getattr(p, "ds_tensor", p).data for name, p in engine_.module.named_parameters()}
    return {name: tensor.clone() for name, tensor in tensors_of([weights, engine_.optimizer.state_dict()]).items()}


if __name__ == "__main__":
    run_entry(main)
