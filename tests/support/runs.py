"""Run directories for tests: what a run leaves behind, without the run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_tools.runs.logs import RunLogs

Row = dict[str, Any]
THROUGHPUT = {"tokens", "pflops", "gpu_hours", "grad_norm", "skipped_steps", "ledger", "forwards",
              "tokens_per_second", "data_wait_fraction", "peak_memory_gb"}  # fmt: skip
TRAIN_FIELDS = {
    "pptrain": {"step", "loss", "lr", "curr_acc", "stage", "alpha", "lookahead", "timestamp"} | THROUGHPUT,
    "pretrain": {
        "step",
        "loss",
        "lr",
        "c4_loss",
        "mixin_loss",
        "c4_count",
        "mixin_count",
        "mixin_fraction",
        "timestamp",
    }
    | THROUGHPUT,
}
_HELDOUT = {"step", "heldout_acc", "heldout_loss", "num_examples", "by_lookahead", "timestamp"}
EVAL_FIELDS = {
    "pptrain": {"stage", "alpha", "mastered", "stage_acc"} | _HELDOUT,
    "pretrain": {"heldout_c4_loss"} | _HELDOUT,
}


def write_run(
    directory: Path, train: Sequence[Row], evaluations: Sequence[Row] | None = (), launches: Sequence[int] = (0,),
    settings: str = "",
) -> Path:  # fmt: skip
    """A run directory.

    Args:
        evaluations: None for no file at all.
        launches: the step that each launch began after.
        settings: of its run file.
    """
    (directory / "logs").mkdir(parents=True)
    for name, rows in (("train", train), ("eval", evaluations)):
        if rows is not None:
            (directory / "logs" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [json.dumps({"step": step, "timestamp": 1e9 + 100 * n, "ranks": 2}) for n, step in enumerate(launches)]
    (directory / "launches.jsonl").write_text("".join(line + "\n" for line in lines))
    (directory / "run.yaml").write_text(settings or "seed: 1337\n")
    return directory


def read_run(directory: Path, name: str = "run", **parts: Any) -> RunLogs:
    """A run directory written and read."""
    return RunLogs.read(write_run(directory, **parts), name)


def pptrain_rows(losses: Sequence[float], stages: Sequence[int] | None = None) -> list[Row]:
    """A row every 10 steps and 1,000 tokens, at 100 tokens per second."""
    return [
        {"step": 10 * n, "loss": loss, "lr": 1e-3, "curr_acc": 0.5, "stage": stage, "alpha": stage / 8,
         "timestamp": 1e9 + n, "tokens": 1000 * n, "grad_norm": 1.0, "ledger": "e38f", "tokens_per_second": 100.0}
        for n, (loss, stage) in enumerate(zip(losses, stages or [1] * len(losses), strict=True), start=1)
    ]  # fmt: skip


def pretrain_rows(losses: Sequence[float]) -> list[Row]:
    """A row every 10 steps and 2,000 tokens, at 400 tokens per second; every other one without a synthetic block."""
    return [
        {"step": 10 * n, "loss": loss, "lr": 5e-4, "c4_loss": loss + 1, "mixin_loss": loss / 2 if n % 2 else None,
         "mixin_fraction": 0.02, "timestamp": 1e9 + n, "tokens": 2000 * n, "grad_norm": 0.5,
         "tokens_per_second": 400.0}
        for n, loss in enumerate(losses, start=1)
    ]  # fmt: skip


def stage_rows(steps: Sequence[int], stages: Sequence[int]) -> list[Row]:
    """pptrain's evaluations: at its start and after every stage."""
    return [
        {"step": step, "stage": stage, "alpha": stage / 8, "heldout_acc": n / 10, "heldout_loss": 8.0 - n,
         "num_examples": 200, "timestamp": 1e9 + step}
        for n, (step, stage) in enumerate(zip(steps, stages, strict=True))
    ]  # fmt: skip


def report(checkpoint: str, accuracies: Sequence[float], half_width: float | None = None) -> Row:
    """A file of evaluate.py: an accuracy for each lookahead from 0 up, with intervals if a half width is given."""

    def columns(accuracy: float) -> Row:
        low, high = max(0.0, accuracy - (half_width or 0)), min(1.0, accuracy + (half_width or 0))
        interval = {} if half_width is None else {"accuracy_any_low": low, "accuracy_any_high": high}
        return {"num_examples": 50, "accuracy_any": accuracy, "accuracy_first": accuracy / 2, **interval}

    rows = [{"lookahead": n, **columns(accuracy)} for n, accuracy in enumerate(accuracies)]
    return {"checkpoint": checkpoint, "split": "test", "loss": 2.5, "c4_loss": None, "by_lookahead": rows,
            **columns(sum(accuracies) / len(accuracies)), "num_examples": 50 * len(rows)}  # fmt: skip
