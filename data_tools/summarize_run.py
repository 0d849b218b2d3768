"""Print a short table of what runs achieved, from their logs and from evaluation files.

    python -m data_tools.summarize_run SCRATCH/pptrain SCRATCH/pretrain --evaluation pptrain.json pretrain.json

A RUN holds logs/train.jsonl and logs/eval.jsonl, finished or still going on; the files of --evaluation are what
``ds_train/evaluate.py --output`` writes.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_tools.errors import UserError, run_command

Row = dict[str, Any]
_ROWS_AVERAGED = 10  # a single step's loss is noise


def summarize_run(directory: Path) -> str:
    """What the logs of one run say, as text: progress, losses, and for pptrain the curriculum.

    Raises:
        UserError: the directory holds no logs, or a line that is no row.
    """
    train = _read_log(directory / "logs" / "train.jsonl")
    evaluations = _read_log(directory / "logs" / "eval.jsonl")
    if not train:
        raise UserError(f"{directory / 'logs' / 'train.jsonl'} has no rows yet; wait for the run's first log interval.")
    lines = [f"{directory.name}: {_progress(train)}", f"  training loss {_change(train, 'loss')}"]
    if any("c4_loss" in row for row in train):
        lines += _pretrain_lines(train, evaluations)
    if any("stage" in row for row in train):
        lines += _curriculum_lines(train, evaluations)
    if scored := [row for row in evaluations if row.get("heldout_acc") is not None]:
        lines.append(
            f"  held-out problems of full difficulty ({scored[-1]['num_examples']}): "
            f"accuracy {scored[0]['heldout_acc']:.3f} → {scored[-1]['heldout_acc']:.3f}, "
            f"loss {_number(scored[0]['heldout_loss'])} → {_number(scored[-1]['heldout_loss'])}"
        )
    return "\n".join(lines)


def _progress(train: list[Row]) -> str:
    """Steps and tokens so far, and the time that took, without pauses between launches."""
    text = f"{train[-1]['step']:,} steps"
    if not all(row.get("tokens_per_second") and row.get("tokens") for row in train):
        return text
    before = [0, *(row["tokens"] for row in train)]
    seconds = sum((row["tokens"] - start) / row["tokens_per_second"] for row, start in zip(train, before, strict=False))
    return f"{text}, {before[-1]:,} tokens in {seconds:,.0f} s ({before[-1] / seconds:,.0f} tokens/s)"


def _pretrain_lines(train: list[Row], evaluations: list[Row]) -> Iterator[str]:
    yield f"  training loss on C4 {_change(train, 'c4_loss')}"
    yield f"  training loss on synthetic blocks {_change(train, 'mixin_loss')}"
    if (share := train[-1].get("mixin_fraction")) is not None:
        yield f"  synthetic share of tokens {share:.3f}"
    held_out = [row for row in evaluations if row.get("heldout_c4_loss") is not None]
    if held_out:
        losses = " → ".join(f"{row['heldout_c4_loss']:.3f} (step {row['step']:,})" for row in held_out[:: len(held_out)])
        yield f"  held-out C4 loss {losses}"


def _curriculum_lines(train: list[Row], evaluations: list[Row]) -> Iterator[str]:
    """One line a mastered stage: pptrain evaluates at its start and after each advance, never otherwise."""
    window = {row["step"]: row.get("curr_acc") for row in train}
    for before, after in pairwise(evaluations):
        accuracy = window.get(after["step"])
        yield (
            f"  stage {before['stage']} (alpha {before['alpha']:.3f}) mastered at step {after['step']:,}, "
            f"window accuracy {_number(accuracy)}"
        )
    last = train[-1]
    yield f"  stage {last['stage']} at the end, window accuracy {_number(last['curr_acc'])}"


def _change(rows: list[Row], column: str) -> str:
    """First value → mean of the last ones."""
    values = [row[column] for row in rows if row.get(column) is not None]
    if not values:
        return "–"
    last = values[-_ROWS_AVERAGED:]
    return f"{values[0]:.3f} → {sum(last) / len(last):.3f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
