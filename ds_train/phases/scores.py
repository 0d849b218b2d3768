"""Scores checkpoints: accuracy by lookahead on a split, and loss on held-out C4."""

import argparse
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data_tools.base.errors import UserError
from data_tools.base.files import write_json
from data_tools.base.hub import use_fetched
from data_tools.base.text_table import pluralize
from data_tools.corpus.named_packs import C4_PACK, named_pack_directory
from data_tools.corpus.shards import META_NAME, PackedBlocks, pack_directory
from data_tools.corpus.tokenizer import TextTokenizer, load_tokenizer
from data_tools.runs.intervals import wilson_interval
from data_tools.search.splits import Splits, find_data_dir
from ds_train.checkpoints.manifest import defect_of, not_read, step_directories
from ds_train.checkpoints.save import read_state
from ds_train.checkpoints.verification import with_all_ranks
from ds_train.checkpoints.weights import Weights, find_weights, model_with_weights, saved_seq_len, verified
from ds_train.model.causal_lm import DTYPES, cast_parameters, load_model_config, prepare_config
from ds_train.model.isolation import settle_rows
from ds_train.phases.evaluation import (
    BeforeBatch,
    HeldOut,
    HeldOutResult,
    evaluate_c4,
    evaluate_heldout,
    heldout_examples,
)
from ds_train.phases.harness import Harness
from ds_train.phases.score_table import ScoreTable
from ds_train.ranks.collectives import check_num_nodes, device_of, is_emulated, on_main
from ds_train.ranks.entry import set_up_logging
from ds_train.ranks.judge import Patience
from ds_train.ranks.watchdog import Watchdog, supervision
from ds_train.ranks.world import World, check_num_ranks, world_from_env
from ds_train.step.losses import PackedLM
from ds_train.step.probe import check_isolation

logger = logging.getLogger(__name__)

_DEFAULT_SEQ_LEN = 2048
_PATIENCE = Patience(stalled_s=1800.0, long_s=math.inf)  # with a batch; the tasks of the harness report no progress


def score(args: argparse.Namespace) -> int:
    """Evaluate each checkpoint on all ranks, print its table, and write reports and the CSV file. Collective.

    Args:
        args: the flags of ``ds_train/evaluate.py``.
    """
    # Find all checkpoints and check the inputs.
    world = world_from_env()
    set_up_logging(world)
    args = argparse.Namespace(**{**vars(args), "dtype": args.dtype or default_dtype(device_of(world))})
    check_num_ranks(world, args.num_ranks)
    use_fetched(args.scratch_dir)
    found = [weights for spec in args.checkpoint for weights in _checkpoints(spec, args.all_checkpoints)]
    splits = Splits(find_data_dir(args.scratch_dir, args.data_dir))
    table = ScoreTable(args.csv, _settings(args, splits)) if args.csv else None
    pending = [weights for weights in found if not (table and table.has(weights))]  # read before a rank may write
    if len(found) > len(pending):
        logger.info("%s has %d of %s already", args.csv, len(found) - len(pending), pluralize(len(found), "checkpoint"))
    harness = Harness(args.tasks, args.tasks_dir, world) if args.tasks else None
    if is_emulated(args.dtype, device_of(world)):
        logger.warning("this CPU has no %s arithmetic and emulates it, which is slow; use --dtype fp32", args.dtype)
    inputs = _inputs(args, splits, pending[0]) if pending else None  # mistakes are found before ranks meet
    with supervision(world, _PATIENCE) as watchdog:
        check_num_nodes(world, args.num_nodes)

        # Load and evaluate one after another those that rank 0 has found: a run that still trains saves and deletes.
        pending = on_main(world, lambda: pending)
        for weights in pending:
            watchdog.progress(f"loading {weights.path}", is_long=True)
            if not args.all_checkpoints:
                weights = with_all_ranks(world, partial(verified, weights))
            elif defect := with_all_ranks(world, partial(defect_of, weights.path)):
                logger.warning("skipping %s: %s", weights.path, defect)
                continue
            inputs = _inputs(args, splits, weights, inputs)
            report = _report(args, splits, weights, inputs, harness, world, watchdog)
            if world.is_main:
                print(as_table(report))
                if args.output:
                    write_json(args.output, report)
                if table:
                    table.add(weights, report)
    return 0


def default_dtype(device: torch.device) -> str:
    """The precision of an evaluation, unless it is given: bf16 where a GPU computes in it, as training does there."""
    in_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if in_bf16 else "fp32"


def _checkpoints(spec: str, are_all: bool) -> list[Weights]:
    """The weights that an argument names, not read yet; of a run directory all, oldest first, if ``are_all``."""
    if not are_all:
        return [find_weights(spec, find_damage=not_read)]
    paths = step_directories(Path(spec) / "checkpoints")
    if not paths:
        raise UserError(f"--all_checkpoints: {spec} has no checkpoints; give run directories.")
    return [Weights(path, True) for path in reversed(paths)]


def _settings(args: argparse.Namespace, splits: Splits) -> dict[str, Any]:
    """What decides the results of a checkpoint."""
    names = ("split", "num_examples", "seed", "seq_len", "tokenizer", "dtype", "tasks")
    pack = args.pack_dir and str(args.pack_dir.absolute())
    return {name: vars(args)[name] for name in names} | {"splits": splits.fingerprint[:12], "pack": pack}


@dataclass(frozen=True)
class _Inputs:
    """What a checkpoint is evaluated on."""

    tokenizer: TextTokenizer
    seq_len: int
    blocks: PackedBlocks | None
    heldout: HeldOut


def _inputs(args: argparse.Namespace, splits: Splits, weights: Weights, before: _Inputs | None = None) -> _Inputs:
    """Find and check the inputs for one checkpoint: those of the one before, if they fit it too."""
    tokenizer = load_tokenizer(args.tokenizer or str(weights.description))
    seq_len = args.seq_len or saved_seq_len(weights) or _DEFAULT_SEQ_LEN
    if before and (before.tokenizer.fingerprint, before.seq_len) == (tokenizer.fingerprint, seq_len):
        return before
    if not args.seq_len and not saved_seq_len(weights):
        logger.warning("%s has no seq_len; examples longer than %d are left out", weights.path, seq_len)
    blocks = _pack(args, tokenizer)
    heldout = heldout_examples(
        splits.rows(args.split), tokenizer, seq_len=seq_len, subset_size=args.num_examples, seed=args.seed
    )
    if not heldout.samples:
        raise UserError(
            f"all examples of {args.split}.jsonl are longer than seq_len {seq_len}; give a larger --seq_len."
        )
    return _Inputs(tokenizer, seq_len, blocks, heldout)


def _report(
    args: argparse.Namespace,
    splits: Splits,
    weights: Weights,
    inputs: _Inputs,
    harness: Harness | None,
    world: World,
    watchdog: Watchdog,
) -> dict[str, Any]:
    """Evaluate one checkpoint, in the form that ``--output`` writes."""
    heldout, dtype = inputs.heldout, DTYPES[args.dtype]
    model = _load(weights, world, inputs.seq_len, inputs.tokenizer.vocab_size, dtype)
    check_isolation(model, model, device_of(world))
    logger.info("evaluating %s on %s of %s", weights.path, pluralize(len(heldout.samples), "example"), args.split)
    how: Any = {"num_tokens": args.micro_batch * inputs.seq_len, "world": world}
    with _progress(args.split, world, watchdog) as before_batch:
        result = evaluate_heldout(model, heldout, **how, before_batch=before_batch)
    c4_loss = None
    if inputs.blocks:
        with _progress("C4", world, watchdog) as before_batch:
            c4_loss = evaluate_c4(model, inputs.blocks, **how, before_batch=before_batch, is_masked=_is_masked(weights))
    report = {
        "checkpoint": str(weights.path),
        "data_dir": str(splits.directory),
        "split": args.split,
        "seq_len": inputs.seq_len,
        "dtype": args.dtype,
        **summarize(result, heldout),
        "c4_loss": c4_loss,
    }
    if harness:
        del model
        watchdog.progress("tasks of the harness", is_long=True)
        report["tasks"] = harness.scores(
            weights, inputs.tokenizer, seq_len=inputs.seq_len, dtype=dtype, device=device_of(world),
            batch_size=args.micro_batch,
        )  # fmt: skip
    return report


def _is_masked(weights: Weights) -> bool:
    """Whether the checkpoint's run isolated the documents in a packed block; as it was trained, it is evaluated."""
    return weights.is_checkpoint and read_state(weights.path).fingerprints.get("c4_documents") == "masked"


def _pack(args: argparse.Namespace, tokenizer: TextTokenizer) -> PackedBlocks | None:
    """The pack whose validation blocks are scored: by default that of C4; None if there is none."""
    of_c4 = (pack_directory(args.scratch_dir), named_pack_directory(args.scratch_dir, C4_PACK, tokenizer))
    places = [args.pack_dir] if args.pack_dir else [path for path in of_c4 if (path / META_NAME).exists()]
    packs = [PackedBlocks(place) for place in places]
    fitting = [pack for pack in packs if pack.meta.tokenizer_sha256 == tokenizer.fingerprint]
    if packs and not fitting:
        other = packs[0]
        raise UserError(
            f"{other.directory} was packed with another tokenizer ({other.meta.tokenizer}) than the checkpoint's; "
            "give the --pack_dir of a pack with the checkpoint's tokenizer."
        )
    return fitting[0] if fitting else None


@contextmanager
def _progress(name: str, world: World, watchdog: Watchdog) -> Iterator[BeforeBatch]:
    """Report each batch to the watchdog, and on rank 0's progress bar, which is hidden where the output is a file."""
    with tqdm(desc=name, unit="batch", disable=None if world.is_main else True, leave=False) as bar:

        def before_batch(num_batches: int) -> None:
            watchdog.progress(f"evaluation on {name}")
            bar.total = num_batches
            bar.update()

        yield before_batch


def _load(weights: Weights, world: World, seq_len: int, vocab_size: int, dtype: torch.dtype) -> PackedLM:
    config = prepare_config(
        load_model_config(str(weights.description)),
        seq_len=seq_len,
        vocab_size=vocab_size,
        keep_dropout=False,
        scratch=False,
    )
    one_document_a_row = settle_rows(config, "auto", keep_dropout=False)
    model = PackedLM(model_with_weights(weights, config), one_document_a_row=one_document_a_row).eval()
    cast_parameters(model, dtype)
    return model.to(device_of(world))


def summarize(result: HeldOutResult, heldout: HeldOut) -> dict[str, Any]:
    """Loss and accuracies over all examples and by lookahead, in the form that ``--output`` writes."""
    return {
        "num_too_long": heldout.num_too_long,
        "loss": result.loss,
        **_accuracies(result.by_any, result.by_first),
        "by_lookahead": [
            {"lookahead": lookahead, **_accuracies(result.by_any[chosen], result.by_first[chosen])}
            for lookahead, chosen in heldout.groups
        ],
    }


def _accuracies(by_any: np.ndarray, by_first: np.ndarray) -> dict[str, Any]:
    """Number of examples, and both accuracies with their 95 % confidence intervals."""
    columns: dict[str, Any] = {"num_examples": len(by_any)}
    for name, flags in (("accuracy_any", by_any), ("accuracy_first", by_first)):
        columns[name] = float(flags.mean())
        columns[f"{name}_low"], columns[f"{name}_high"] = wilson_interval(int(flags.sum()), len(flags))
    return columns


def as_table(report: dict[str, Any]) -> str:
    """The report as text."""
    c4_loss = "" if report["c4_loss"] is None else f"   C4 validation loss {report['c4_loss']:.4f}"
    lines = [
        f"{report['checkpoint']} on {report['split']}: {report['num_examples']} examples, "
        f"{report['num_too_long']} longer than seq_len {report['seq_len']} left out",
        f"weighted loss {report['loss']:.4f}{c4_loss}   in {report['dtype']}",
        "accuracies with 95 % confidence intervals (Wilson)",
        "lookahead  examples            any valid answer                first answer",
    ]
    for row in [*report["by_lookahead"], {**report, "lookahead": "all"}]:
        accuracies = (
            f"{row[name]:.4f} [{row[f'{name}_low']:.4f}, {row[f'{name}_high']:.4f}]"
            for name in ("accuracy_any", "accuracy_first")
        )
        lines.append("  ".join([f"{row['lookahead']:>9}  {row['num_examples']:>8}", *(f"{a:>26}" for a in accuracies)]))
    for task, metrics in report.get("tasks", {}).items():
        lines.append(f"{task}: " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    return "\n".join(lines)
