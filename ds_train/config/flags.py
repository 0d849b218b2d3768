"""Command-line flags shared by both phases, one dataclass a topic."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_type_hints

from transformers import HfArgumentParser

from data_tools.base.command_line import HelpFormatter, refuse_unknown_flags
from data_tools.base.errors import UserError
from ds_train.config.run_file import arguments_of


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
    config: str | None = flag(None, "YAML file of flags; those of the command line win")
    print_config: bool = flag(False, "show every setting and where it comes from, as a run file, and end")
    debug: bool = flag(False, "show where an error arose (traceback)")
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


class _Parser(HfArgumentParser):
    """Errors like the rest of the program: one message, exit code 1, said by rank 0 only."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removesuffix('.')}. See --help.")


def parse_flags(
    *groups: type, description: str, argv: list[str] | None = None
) -> tuple[tuple[Any, ...], dict[str, str]]:
    """Parse the command line, and the run file that it names, into one instance of each dataclass.

    Returns:
        the instances; and where each flag that was given comes from.

    Raises:
        UserError: an unknown flag, a missing one, or a value of the wrong kind.
    """
    given = sys.argv[1:] if argv is None else argv
    named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    named.add_argument("--config")
    path = named.parse_known_args(given)[0].config
    from_file = []
    if path:
        from_file = arguments_of(Path(path), flags_known_to(groups))
        try:
            _parse(groups, description, from_file, are_all=False)
        except UserError as error:
            raise UserError(f"--config {path}: {error}") from None
    sources = dict.fromkeys(_names(from_file), path) | dict.fromkeys(_names(given), "command line")
    return _parse(groups, description, [*from_file, *given]), sources


def flags_known_to(groups: Iterable[type]) -> dict[str, bool]:
    """Names of all flags of these dataclasses, and whether they take several values."""
    return {
        name: list[str] in (kind, *get_args(kind)) for group in groups for name, kind in get_type_hints(group).items()
    }


def _names(arguments: Sequence[str]) -> list[str]:
    return [argument[2:].split("=")[0] for argument in arguments if argument.startswith("--")]


def _parse(groups: Sequence[type], description: str, arguments: list[str], are_all: bool = True) -> tuple[Any, ...]:
    """Parse arguments into the groups; a part of them may lack flags that are required."""
    parser = _Parser(
        groups,
        description=description,
        prog=Path(sys.argv[0]).name,
        usage="deepspeed ds_train/%(prog)s --scratch_dir DIR [--config YAML] [FLAG …]",
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    if not are_all:
        for action in parser._actions:
            if action.required:
                action.required, action.default = False, ""
    refuse_unknown_flags(arguments, [*parser._option_string_actions])
    return parser.parse_args_into_dataclasses(args=arguments, look_for_args_file=False)
