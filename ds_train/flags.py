"""Command-line flags shared by both phases, one dataclass a topic."""

import argparse
import difflib
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn

from transformers import HfArgumentParser

from data_tools.errors import UserError


def flag(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


def required(help: str) -> Any:
    """A flag without a default."""
    return field(metadata={"help": help})


@dataclass(frozen=True)
class RunFlags:
    """Where the run lives, and its cadences in optimizer steps."""

    _argument_group_name = "run"

    scratch_dir: str = required("directory of all data and runs (layout: README)")
    run_name: str | None = flag(None, "directory of this run under scratch_dir (default: the phase's name)")
    seed: int = flag(1337, "seed of the initial weights and of all data order")
    log_every: int = flag(10, "steps between rows of train.jsonl")
    save_every: int | None = flag(None, "steps between checkpoints (default: 200 for pptrain, 500 for pretrain)")
    sync_save: bool = flag(False, "write each checkpoint before training goes on, not behind it")
    keep_last: int = flag(3, "newest checkpoints kept; 0 keeps all")
    keep_every: int = flag(0, "checkpoints at multiples of this are kept for good; 0: none")
    stop_step: int | None = flag(None, "end this launch cleanly at this step with a checkpoint, exit code 86")
    resume: str = flag("auto", "auto (newest complete checkpoint, else a fresh start), none, or a step directory")
    resume_from: str | None = flag(None, "step directory to resume from; the same as --resume PATH")
    num_ranks: int | None = flag(None, "ranks that this launch must have; another number is an error")
    num_nodes: int | None = flag(None, "nodes that this launch must have; another number is an error")
    hang_timeout_s: float = flag(600.0, "seconds without progress on a rank after which the job ends, exit code 87")
    strict_layout: bool = flag(False, "refuse to resume in another layout (ranks, ZeRO stage, micro batch)")
    accept_change: list[str] | None = flag(None, "settings of the trajectory that a resumed run may change, by name")
    num_workers: int = flag(1, "loader processes per rank; 0 builds batches in the trainer")
    skip_nonfinite: int = flag(0, "steps with a non-finite loss or gradient that the run skips before it stops")
    deterministic: bool = flag(False, "ask torch for deterministic kernels (bitwise resume on a GPU)")
    local_rank: int = flag(-1, "set by the deepspeed launcher")


@dataclass(frozen=True)
class ModelFlags:
    """Model, tokenizer, sequence length."""

    _argument_group_name = "model"

    model_name: str | None = flag(None, "preset of ds_configs/models, local directory or hub id (default: pythia-160m)")
    init: Literal["scratch", "pretrained"] = flag("scratch", "random weights, or the model's own")
    tokenizer: str | None = flag(None, "hub id, directory or tokenizer.json (default: the model's)")
    seq_len: int = flag(2048, "longest document, in tokens")
    attn_implementation: str = flag(
        "auto",
        "packed (each document by itself, no mask) or transformers' sdpa, eager …; auto: packed where the model can",
    )
    keep_dropout: bool = flag(False, "leave dropout on; the trajectory then depends on the layout")


@dataclass(frozen=True)
class DataFlags:
    """Synthetic data."""

    _argument_group_name = "data"

    data_dir: str | None = flag(None, "directory of the splits (default: the only one under scratch_dir)")
    eval_subset_size: int = flag(500, "examples of eval.jsonl in each held-out evaluation, a seeded subset")


@dataclass(frozen=True)
class OverrideFlags:
    """DeepSpeed JSON, and hyper-parameters that win over it."""

    _argument_group_name = "DeepSpeed JSON and overrides"

    deepspeed_config: str | None = flag(None, "DeepSpeed JSON file (default: the phase's, from ds_configs)")
    global_batch: int | None = flag(None, "samples per optimizer step over all ranks (train_batch_size)")
    micro_batch: int | None = flag(None, "samples per rank and forward (train_micro_batch_size_per_gpu)")
    grad_accum: int | None = flag(None, "micro-batches per optimizer step (gradient_accumulation_steps)")
    lr: float | None = flag(None, "base learning rate (optimizer.params.lr)")
    warmup_steps: int | None = flag(None, "warm-up steps (scheduler.params.warmup_num_steps)")
    weight_decay: float | None = flag(None, "weight decay (optimizer.params.weight_decay)")
    grad_clip: float | None = flag(None, "largest global gradient norm (gradient_clipping)")
    mixed_precision: Literal["bf16", "fp16", "no"] | None = flag(None, "precision (bf16.enabled, fp16.enabled)")
    zero_stage: int | None = flag(None, "ZeRO stage 0 … 3 (zero_optimization.stage)")


class _HelpFormatter(argparse.HelpFormatter):
    """Shows a default where there is one and the text does not tell it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        has_none = action.required or any(action.default is none for none in (None, False, argparse.SUPPRESS))
        return text if has_none or "(default" in text else f"{text} (default: %(default)s)"


class _Parser(HfArgumentParser):
    """Errors like the rest of the program: one message, exit code 1, said by rank 0 only."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See --help.")


def parse_flags(*groups: type, description: str, argv: list[str] | None = None) -> tuple[Any, ...]:
    """Parse the command line into one instance of each dataclass.

    Raises:
        UserError: an unknown flag, a missing one, or a value of the wrong kind.
    """
    parser = _Parser(
        groups,
        description=description,
        prog=Path(sys.argv[0]).name,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    *parsed, unknown = parser.parse_args_into_dataclasses(
        args=argv, look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        known = [f"--{item.name}" for group in groups for item in fields(group)]
        near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
        raise UserError(f"unknown flag {unknown[0]}{f'; did you mean {near[0]}?' if near else ''}. See --help.")
    return tuple(parsed)
