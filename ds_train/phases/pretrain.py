"""The phase pretrain: packed C4 with a share of synthetic graph-search blocks mixed in."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_tools.base.errors import Problems
from data_tools.samples.samplers import (
    MixinShare,
    MixtureSampler,
    SampleKind,
    mixin_passes,
    mixin_share,
)
from data_tools.search.splits import Splits, find_data_dir
from ds_train.checkpoints.manifest import NEWEST, not_read, step_directories
from ds_train.checkpoints.save import DESCRIPTION
from ds_train.checkpoints.state import TrainState
from ds_train.checkpoints.weights import Weights, find_weights, place_of
from ds_train.config.flags import COMMAND_LINE, parse_flags
from ds_train.config.phase_flags import PretrainFlags
from ds_train.config.trainer_flags import GROUPS, DataFlags, RunFlags
from ds_train.model.transfer import Transfer
from ds_train.phases.evaluation import (
    BeforeBatch,
    HeldOut,
    evaluate_c4,
    evaluate_heldout,
    heldout_columns,
    heldout_examples,
)
from ds_train.phases.mixin import make_mixin, warn_of_repeats
from ds_train.phases.pack_check import PackCheck
from ds_train.phases.text_packs import TextPacks, blocks_read, find_text_packs, with_sorted_packs
from ds_train.ranks.entry import set_up_logging
from ds_train.ranks.world import World, world_from_env
from ds_train.run.assembly import CheckedRun, launch
from ds_train.run.branch import branch_point, check_branch, with_length_of_branch
from ds_train.run.inputs import CommonInputs, check_inputs
from ds_train.step.engine import Engine, StepResult
from ds_train.training.metrics import Row
from ds_train.training.phase import Cadence, PhaseParts

logger = logging.getLogger(__name__)

SAVE_EVERY = 500  # by default


@dataclass
class Pretrain:
    """Trains for a fixed number of steps, without a curriculum, and evaluates at a fixed cadence."""

    total_steps: int
    eval_every: int
    heldout: HeldOut
    text: TextPacks
    world: World
    num_tokens: int  # of a forward
    name: str = "pretrain"
    accuracy: str = "any"  # no sample is scored while training
    pack_check: PackCheck | None = None

    def record(self, state: TrainState, result: StepResult) -> None:
        if self.pack_check:
            self.pack_check.raise_if_damaged()
        num_new = int((result.plan.sources != SampleKind.MIXIN).sum())
        self.text.warn_of_repeats(state.seed, state.step, state.c4_block_idx - num_new, state.c4_block_idx)

    def train_columns(self, state: TrainState, result: StepResult) -> dict[str, Any]:
        num_mixin = int((result.plan.sources == SampleKind.MIXIN).sum())
        return {
            "c4_loss": result.c4_loss,
            "mixin_loss": result.synthetic_loss,
            "c4_count": len(result.plan.sources) - num_mixin,
            "mixin_count": num_mixin,
            "mixin_fraction": state.mixin_tokens / state.tokens,
            **self.text.token_columns(state.seed, state.c4_block_idx),
        }

    def status(self, row: Row) -> str:
        losses = (("C4", row["c4_loss"]), ("mixin", row["mixin_loss"]))
        shown = "  ".join(f"{name} {loss:.4g}" for name, loss in losses if loss is not None)
        return f"{shown}  synthetic {row['mixin_fraction']:.2%}"

    def promote(self, state: TrainState) -> bool:
        return False

    def is_finished(self, state: TrainState) -> bool:
        return state.step >= self.total_steps

    def wants_evaluation(self, state: TrainState, promoted: bool) -> bool:
        return state.step % self.eval_every == 0

    def evaluate(self, engine: Engine, state: TrainState, before_batch: BeforeBatch) -> dict[str, Any]:
        how: Any = {"num_tokens": self.num_tokens, "world": self.world, "before_batch": before_batch}
        result = evaluate_heldout(engine, self.heldout, **how)
        how |= {"is_masked": self.text.is_masked}
        losses = {f"heldout_{name}_loss": evaluate_c4(engine, pack, **how) for name, pack in self.text.packs.items()}
        return heldout_columns(result, self.heldout) | losses


def _initial_weights(run: RunFlags, flags: PretrainFlags) -> Weights | None:
    """The weights and model to start from, which all ranks read and verify later.

    A run that resumes takes its model from its own checkpoint.
    """
    directory, resume = Path(run.scratch_dir) / (run.run_name or "pretrain"), run.resume_from or run.resume
    check_branch(run, flags, directory)
    if flags.pptrain_checkpoint == "none":
        return None
    for own in step_directories(directory / "checkpoints") if resume in NEWEST else [Path(resume)]:
        if (own / DESCRIPTION / "config.json").exists():
            return Weights(own, True)
    if origin := branch_point(flags):
        return Weights(origin, True)
    return find_weights(flags.pptrain_checkpoint, Path(run.scratch_dir) / flags.pptrain_run, not_read)


def prepare(argv: list[str] | None, world: World) -> CheckedRun:
    """Parse and check everything, without building anything or joining a process group.

    Raises:
        UserError: with all problems in one message.
    """
    all_flags, sources = parse_flags(*GROUPS["pretrain"], description="", argv=argv)
    run, flags, model, data, overrides, moved = all_flags
    is_length_given = sources.get("total_steps") == COMMAND_LINE  # not that of a file, which may be the origin's
    flags = with_sorted_packs(with_length_of_branch(flags, overrides.decay_steps, is_length_given))
    all_flags = (run, flags, *all_flags[2:])
    problems = Problems()
    splits = share = inputs = None
    with problems.collect():
        splits = Splits(find_data_dir(run.scratch_dir, data.data_dir))
    with problems.collect():
        share = mixin_share(flags.mixin_percent, flags.mixin_schedule, flags.mixin_end, flags.total_steps)
    with problems.collect():
        inputs = check_inputs(
            "pretrain", run, model, overrides, problems, world=world,
            total_steps=flags.total_steps, min_lr_ratio=flags.min_lr_ratio, weights=_initial_weights(run, flags),
            transfer=Transfer.of_flags(moved.transfer, moved.embeddings, moved.freeze),
        )  # fmt: skip
    text = find_text_packs(flags, run.scratch_dir, inputs, problems)
    problems.raise_if_any()
    assert inputs and splits and text and share
    defaults = {
        "save_every": SAVE_EVERY, "data_dir": str(splits.directory), **text.defaults,
        "min_lr_ratio": inputs.engine.effective.get("scheduler", {}).get("params", {}).get("cos_min_ratio"),
    }  # fmt: skip
    setup = partial(_setup, inputs, flags, data, share, splits, text)
    # An external generator reseeds global generators: it must never run in the trainer itself.
    is_external = flags.mixin_source == "generator" and splits.meta.generator.name is not None
    num_workers = max(int(is_external), run.num_workers)
    return CheckedRun(inputs, all_flags, sources, num_workers, defaults, setup)


def main(argv: list[str] | None = None) -> int:
    world = world_from_env()
    set_up_logging(world)
    return launch(prepare(argv, world))


def _setup(
    inputs: CommonInputs, flags: PretrainFlags, data: DataFlags, share: MixinShare, splits: Splits, text: TextPacks
) -> PhaseParts:
    run, layout, seq_len = inputs.run_flags, inputs.engine.layout, inputs.model_flags.seq_len
    # The mixture, and whether the pack has enough blocks for it.
    mixin = make_mixin(
        flags, share, splits, inputs.tokenizer, seq_len=seq_len, seed=run.seed, world=inputs.world,
        cache_dir=Path(run.scratch_dir) / "data" / "cache", accepted=run.accept_change or (),
    )  # fmt: skip
    sampler = MixtureSampler(
        layout.global_batch, run.seed, share, text.num_blocks, mixin.num_blocks, mixin.fill, flags.c4_order == "seed",
        text.mixture,
    )  # fmt: skip
    sizes = blocks_read(text, sampler, flags)
    passes = mixin_passes(sampler, flags.total_steps)
    warn_of_repeats(passes, splits)
    read = "fresh examples" if mixin.num_blocks is None else f"{mixin.num_blocks:,} blocks read {passes:.1f} times"

    # Held-out problems.
    heldout = heldout_examples(
        splits.rows("eval"), inputs.tokenizer, seq_len=seq_len, subset_size=data.eval_subset_size, seed=run.seed
    )
    if heldout.num_too_long:
        logger.warning("%d held-out examples are longer than seq_len and are left out", heldout.num_too_long)
    return PhaseParts(
        phase=Pretrain(
            flags.total_steps,
            flags.eval_every,
            heldout,
            text,
            inputs.world,
            layout.micro_batch * seq_len,
            pack_check=PackCheck(text.packs.values(), inputs.world),
        ),
        cadence=Cadence.of(run, SAVE_EVERY, flags.total_steps),
        sampler=sampler,
        readers={**text.readers(), SampleKind.MIXIN: mixin.reader},
        first_stage=0,
        weights_place=place_of(flags.pptrain_checkpoint, Path(run.scratch_dir) / flags.pptrain_run),
        branch_from=branch_point(flags),
        fingerprints={
            "splits": splits.fingerprint,
            "pack": text.fingerprint,
            **mixin.fingerprints,
            **inputs.transfer.fingerprints,
        },
        summary={
            "length": f"{flags.total_steps:,} steps, {text.describe(sizes)}",
            "mixin": f"{' → '.join(f'{end:.1%}' for end in dict.fromkeys((share.start, share.end)))} of the tokens "
            f"({share.schedule}), {read}, loss {flags.mixin_loss}",
            "data": f"{text.places}; {splits.directory} ({splits.fingerprint[:12]})",
        },
    )
