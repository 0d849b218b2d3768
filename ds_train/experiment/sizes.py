"""What a pre-pretraining has taken, or will take at most, and the lengths of other runs that follow from it."""

import json
from dataclasses import dataclass
from functools import cache
from math import ceil, inf
from pathlib import Path
from typing import Any

from data_tools.base.errors import UserError
from ds_train.checkpoints.manifest import step_directories
from ds_train.checkpoints.save import DESCRIPTION
from ds_train.checkpoints.state import PFLOP, STATE_FILE
from ds_train.model.causal_lm import load_model_config
from ds_train.model.flops import TrainingFlops, training_flops
from ds_train.phases.early_check import EarlyCheck


@dataclass(frozen=True)
class Spent:
    """What a run took, or takes at most; infinite where nothing limits it.

    Attributes:
        global_batch: examples of a step.
        flops: of its model.
    """

    steps: float
    tokens: float
    pflops: float
    global_batch: int
    flops: TrainingFlops

    def steps_on_c4(self, seq_len: int) -> float:
        """Steps of the same batch that read as many tokens of C4."""
        return _whole(self.tokens / (self.global_batch * seq_len))

    def steps_of_its_compute(self, global_batch: int, seq_len: int) -> float:
        """Steps of pretrain that take as many PFLOPs."""
        return _whole(self.pflops / pflops_of_blocks(self.flops, global_batch, seq_len))


def pflops_of_blocks(flops: TrainingFlops, num_blocks: float, seq_len: int) -> float:
    """PFLOPs of training on packed blocks, each of which is one document."""
    return num_blocks * flops.of_documents([seq_len]) / PFLOP


def last_state(run: Path) -> dict[str, Any]:
    """The training state in a run's last checkpoint."""
    return json.loads((_last_checkpoint(run) / STATE_FILE).read_text(encoding="utf-8"))


def spent_by(run: Path) -> Spent:
    """What a finished run took."""
    state, flops = last_state(run), _flops_of(_last_checkpoint(run) / DESCRIPTION)
    return Spent(state["step"], state["tokens"], state["flops"] / PFLOP, state["global_batch"], flops)


def _last_checkpoint(run: Path) -> Path:
    if found := step_directories(run / "checkpoints"):
        return found[0]
    record = run.parents[1] / "steps" / run.parent.name / f"{run.name}.json"
    raise UserError(
        f"{run} was finished, and has no checkpoint any more; restore its last one, or delete {record}, and it is "
        "trained again."
    )


@cache
def _flops_of(model: Path) -> TrainingFlops:
    return training_flops(load_model_config(str(model)))


def most_spent(checked: EarlyCheck) -> Spent:
    """What a run takes at most, if each of its examples fills ``seq_len``; steps are those of ``--max_steps``."""
    assert checked.model_config
    flops, batch, seq_len = training_flops(checked.model_config), checked.engine.layout.global_batch, checked.seq_len
    of_token = pflops_of_blocks(flops, 1, seq_len) / seq_len
    steps, run = checked.cadence.max_steps or inf, checked.run_flags
    tokens = min(steps * batch * seq_len, run.max_tokens or inf, (run.max_pflops or inf) / of_token)
    return Spent(steps, tokens, tokens * of_token, batch, flops)


def _whole(steps: float) -> float:
    return steps if steps == inf else ceil(steps)
