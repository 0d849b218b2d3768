"""The conditions that the experiment compares, and the table of their results."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.base.text_table import aligned
from ds_train.checkpoints.state import TrainState

PPTRAIN = "pptrain"  # run directory of the pre-pretraining


@dataclass(frozen=True)
class Condition:
    """A run of pretrain.

    Attributes:
        run: name of its run directory.
        title: its name in legends and tables.
        is_pretrained: whether it starts from the pre-pretrained weights, not from random ones.
        is_mixed: whether it reads synthetic blocks among those of C4.
    """

    run: str
    title: str
    is_pretrained: bool
    is_mixed: bool


CONDITIONS = (
    Condition("A_pptrained_mix", "A pre-pretrained, C4 + mix", is_pretrained=True, is_mixed=True),
    Condition("B_fresh_c4", "B fresh, C4 only", is_pretrained=False, is_mixed=False),
    Condition("C_fresh_mix", "C fresh, C4 + mix", is_pretrained=False, is_mixed=True),
)


def evaluation_file(scratch: Path, run: str) -> Path:
    """The file with the evaluation of a run's last checkpoint."""
    return scratch / "evaluations" / f"{run}.json"


def result_table(scratch: Path) -> str:
    """The results of the conditions, with what each was trained on. All of them must have been evaluated."""
    before, pptrained = _outcome(scratch, PPTRAIN)
    rows = [["", "C4 loss", "test accuracy", "95 % interval", "steps", "tokens", "synthetic"]]
    for condition in CONDITIONS:
        report, state = _outcome(scratch, condition.run)
        states = [pptrained, state] if condition.is_pretrained else [state]
        rows.append([condition.title, *_columns(report, states), f"{state.mixin_tokens / state.tokens:.1%}"])
    rows.append(["  A before pretraining", *_columns(before, [pptrained]), ""])
    stage = f"stage {pptrained.stage} of {pptrained.fingerprints['max_stage']}"
    return "\n".join(
        [
            aligned(rows),
            f"Test accuracy: any valid answer, {before['num_examples']:,} problems of full difficulty.",
            "Steps and tokens of A: pre-pretraining + pretraining. Synthetic: share of the tokens of pretraining.",
            f"The pre-pretraining {'finished its curriculum' if pptrained.finished else f'ended in {stage}'}.",
        ]
    )


def _outcome(scratch: Path, run: str) -> tuple[dict[str, Any], TrainState]:
    """The evaluation of a run, and the state in the checkpoint that was evaluated."""
    report = json.loads(evaluation_file(scratch, run).read_text(encoding="utf-8"))
    from ds_train.checkpoints.save import read_state  # takes seconds

    return report, read_state(Path(report["checkpoint"]))


def _columns(report: dict[str, Any], states: list[TrainState]) -> list[str]:
    return [
        f"{report['c4_loss']:.4f}",
        f"{report['accuracy_any']:.4f}",
        f"{report['accuracy_any_low']:.4f} … {report['accuracy_any_high']:.4f}",
        " + ".join(f"{state.step:,}" for state in states),
        " + ".join(f"{state.tokens:,}" for state in states),
    ]
