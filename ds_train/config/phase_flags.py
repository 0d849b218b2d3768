"""Flags of one phase: curriculum and stream of pptrain; length, initial weights, mixture and transfer of pretrain."""

from dataclasses import dataclass
from typing import Literal

from ds_train.config.flags import AT_START, flag

Part = Literal["all", "blocks", "attention", "mlp", "norms", "embeddings", "head"]


@dataclass(frozen=True)
class PPTrainFlags:
    """The curriculum and its stream."""

    _argument_group_name = "curriculum"

    max_steps: int | None = flag(
        None,
        "optimizer steps at most (default: until the curriculum is finished)",
        "trajectory",
        through="schedule",
        within="[1, 1e9]",
    )
    eval_every: int | None = flag(
        None,
        "optimizer steps between held-out evaluations, besides those after each promotion and at both ends of the run",
        "record",
        within="[1, 1e9]",
    )
    generator: str | None = flag(
        None,
        "external generator, package.module:ClassName (default: the splits' generator)",
        "trajectory",
        through="generator",
    )
    generator_task: Literal["search", "dfs", "si"] | None = flag(
        None, "what the generator is asked for (default: the splits' task)", "trajectory", through="generator"
    )
    generator_options: list[str] | None = flag(
        None,
        "more keywords of its generate_batch, key=value … (default: the splits' options)",
        "trajectory",
        through="generator",
    )
    max_input_size: int | None = flag(
        None, "size budget of examples (default: the splits')", "trajectory", through="splits", within="[8, 1e6]"
    )
    max_lookahead: int | None = flag(
        None,
        "lookahead at the last stage, and number of stages (default: the splits')",
        "trajectory",
        through="max_stage",
        within="[1, 1e6]",
    )
    train_answer: Literal["first", "random"] = flag("first", "which valid answer is trained on", "trajectory")
    accuracy: Literal["any", "first"] = flag("any", "right by any valid answer, or by the first only", "trajectory")
    loss: Literal["weighted", "answer", "lm"] = flag(
        "weighted", "targets that weigh: answers about as much as the rest, answers alone, or all alike", "trajectory"
    )
    answers: Literal["valid", "shuffled"] = flag(
        "valid", "shuffled: a control that cannot be learnt, each two samples swap their answers", "trajectory"
    )
    curriculum: Literal["gated", "none", "replay"] = flag(
        "gated",
        "stages advance with the accuracy; none: only the last stage is trained; replay: as they did in --replay_run",
        "trajectory",
    )
    replay_run: str | None = flag(
        None, "run of pptrain whose stages are repeated, step by step", "trajectory", through="replay", is_path=True
    )
    curr_window: int = flag(
        200, "number of latest answers that the promotion rule looks at", "trajectory", within="[1, 1e9]"
    )
    curr_threshold: float = flag(
        0.98, "accuracy over the window that advances the stage", "trajectory", within="(0, 1]"
    )
    curr_check_every: int = flag(
        10, "optimizer steps between checks of the promotion rule", "trajectory", within="[1, 1e9]"
    )
    start_stage: int = flag(
        1, "first stage; alpha = stage / max_lookahead", "trajectory", through=AT_START, within="[1, 1e6]"
    )
    stage_step: int = flag(1, "stages gained by a promotion", "trajectory", within="[1, 1e6]")
    min_stage_steps: int = flag(0, "optimizer steps of each stage at least", "trajectory", within="[0, 1e9]")
    keep_stages: list[str] | None = flag(
        None, "save where these stages are mastered, and keep that forever; all: each", "record"
    )


@dataclass(frozen=True)
class PretrainFlags:
    """Length, initial weights, mixture."""

    _argument_group_name = "pretraining"

    total_steps: int = flag(
        10_000, "optimizer steps of the run; of a branch: up to its end", "trajectory", within="[1, 1e9]"
    )
    eval_every: int = flag(
        500, "optimizer steps between held-out evaluations, besides those at both ends", "record", within="[1, 1e9]"
    )
    min_lr_ratio: float | None = flag(
        None,
        "floor of the cosine as a fraction of lr (default: the JSON's, 0.1)",
        "trajectory",
        json_key="scheduler.params.cos_min_ratio",
        within="[0, 1]",
    )
    pptrain_checkpoint: str = flag(
        "latest",
        "weights to start from: latest, a step, run or Hugging Face directory, none",
        "trajectory",
        through=AT_START,
        is_path=True,
    )
    pptrain_run: str = flag(
        "pptrain", "run whose newest checkpoint --pptrain_checkpoint latest takes", "trajectory", through=AT_START
    )
    branch_from: str | None = flag(
        None,
        "step directory of a run at a constant rate: continue its state in a new run that decays over --decay_steps",
        "trajectory",
        through=AT_START,
        is_path=True,
    )
    pack_dir: str | None = flag(
        None, "packed blocks (default: scratch_dir/data/c4_packed)", "trajectory", through="pack", is_path=True
    )
    packs: list[str] | None = flag(
        None,
        "named packs and their shares of the text tokens, c4=0.9 code=0.1; --pack_dir is then that of c4",
        "trajectory",
    )
    c4_order: Literal["pack", "seed"] = flag(
        "pack", "blocks in the order of each pack, or in one that the seed decides", "trajectory"
    )
    c4_documents: Literal["joined", "masked"] = flag(
        "joined", "attention in a packed block reads all documents before, or only its own", "trajectory"
    )
    allow_repeat: bool = flag(False, "read a pack more than once if it is too small for the run", "speed")
    mixin_percent: float = flag(
        0.02, "synthetic share of real tokens, as a fraction: 0.02 is 2 %%", "trajectory", within="[0, 1]"
    )
    mixin_schedule: Literal["constant", "linear", "cosine", "exponential"] = flag(
        "constant", "how the synthetic share moves from mixin_percent to mixin_end", "trajectory"
    )
    mixin_end: float | None = flag(
        None,
        "synthetic share that the schedule ends at, as a fraction (all but constant)",
        "trajectory",
        within="[0, 1]",
    )
    mixin_source: Literal["table", "generator"] = flag(
        "table", "synthetic examples of mixin.jsonl, or fresh ones of the splits' generator", "trajectory"
    )
    mixin_pack: Literal["packed", "single"] = flag(
        "packed", "whole examples packed to seq_len, or one per block", "trajectory"
    )
    mixin_loss: Literal["lm", "answer", "weighted", "perseq"] = flag(
        "lm", "loss weights of synthetic targets; perseq: each answer weighs as much as a C4 block", "trajectory"
    )


@dataclass(frozen=True)
class TransferFlags:
    """What moves over from the weights that a run starts from."""

    _argument_group_name = "transfer"

    transfer: list[Part] | None = flag(
        None,
        "parts of the model that get the initial weights (default: all); the others stay random",
        "trajectory",
        through="transfer",
    )
    embeddings: Literal["rows", "mean"] = flag(
        "rows",
        "token embeddings are transferred row by row, or each row becomes their mean",
        "trajectory",
        through="transfer",
    )
    freeze: list[Part] | None = flag(
        None, "parts of the model that are never trained (default: none)", "trajectory", through="freeze"
    )
