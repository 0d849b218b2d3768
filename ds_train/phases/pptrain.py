"""The phase pptrain: an endless stream of graph-search problems, whose difficulty rises with the model's accuracy."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_tools.base.errors import Problems, UserError
from data_tools.samples.readers import StreamReader, training_source
from data_tools.samples.samplers import CurriculumSampler, SampleKind
from data_tools.search.generator import ExampleGenerator, GeneratorIdentity
from data_tools.search.splits import Splits, find_data_dir
from ds_train.checkpoints.state import TrainState
from ds_train.config.flags import parse_flags
from ds_train.config.phase_flags import PPTrainFlags
from ds_train.config.trainer_flags import GROUPS, DataFlags
from ds_train.phases.curriculum import Curriculum
from ds_train.phases.evaluation import BeforeBatch, HeldOut, evaluate_heldout, heldout_columns, heldout_examples
from ds_train.phases.generator_check import check_generator, generator_fingerprints
from ds_train.phases.replay import check_same_data, read_replay
from ds_train.phases.stage_examples import StageExamples
from ds_train.ranks.collectives import on_main
from ds_train.ranks.entry import set_up_logging
from ds_train.ranks.world import World, world_from_env
from ds_train.run.assembly import CheckedRun, launch
from ds_train.run.inputs import CommonInputs, check_inputs
from ds_train.step.engine import Engine, StepResult
from ds_train.training.metrics import Row
from ds_train.training.phase import Cadence, PhaseParts

logger = logging.getLogger(__name__)

SAVE_EVERY = 200  # by default


@dataclass
class PPTrain:
    """Adds accuracy flags to the window; a full and accurate window advances the stage."""

    curriculum: Curriculum
    heldout: HeldOut
    stage_examples: Callable[[int], HeldOut]
    world: World
    num_tokens: int  # of a forward
    accuracy: str
    eval_every: int | None = None
    longest_lookahead: Callable[[int], int | None] = lambda stage: None
    name: str = "pptrain"

    def record(self, state: TrainState, result: StepResult) -> None:
        state.window = self.curriculum.extended(state.window, result.flags)
        state.stage_steps += 1

    def train_columns(self, state: TrainState, result: StepResult) -> dict[str, Any]:
        accuracy = sum(state.window) / len(state.window) if state.window else None
        return {"curr_acc": accuracy, **self._stage_columns(state), "lookahead": self.longest_lookahead(state.stage)}

    def status(self, row: Row) -> str:
        accuracy = "–" if row["curr_acc"] is None else f"{row['curr_acc']:.3f}"
        rule = self.curriculum
        return f"stage {row['stage']}/{rule.max_stage}  accuracy {accuracy} of {rule.threshold:g}"

    def promote(self, state: TrainState) -> bool:
        if not self.curriculum.is_mastered(state.step, state.window, state.stage_steps):
            return False
        stage = self.curriculum.next_stage(state.stage)
        state.finished = stage is None
        state.stage = stage or state.stage
        state.window, state.stage_steps = [], 0
        return True

    def is_finished(self, state: TrainState) -> bool:
        return state.finished

    def wants_evaluation(self, state: TrainState, promoted: bool) -> bool:
        return promoted or (self.eval_every is not None and state.step % self.eval_every == 0)

    def evaluate(self, engine: Engine, state: TrainState, before_batch: BeforeBatch) -> dict[str, Any]:
        how: Any = {"num_tokens": self.num_tokens, "world": self.world, "before_batch": before_batch}
        result = evaluate_heldout(engine, self.heldout, **how)
        at_stage = evaluate_heldout(engine, self.stage_examples(state.stage), **how)
        return {
            **self._stage_columns(state),
            "mastered": state.step > 0 and not state.window,  # a promotion has just emptied the window
            "stage_acc": at_stage.accuracy,
            **heldout_columns(result, self.heldout),
        }

    def _stage_columns(self, state: TrainState) -> dict[str, Any]:
        return {"stage": state.stage, "alpha": self.curriculum.alpha(state.stage)}


def _check_data(flags: PPTrainFlags, splits: Splits) -> None:
    """Refuse size flags that contradict the splits."""
    for name in ("max_input_size", "max_lookahead"):
        given, built = getattr(flags, name), getattr(splits.meta, name)
        if given not in (None, built):
            raise UserError(
                f"--{name} {given} contradicts {splits.directory}, which was built with {built}; leave the flag out, "
                "or build splits of that size."
            )


def _fingerprints(
    curriculum: Curriculum, splits: Splits, source: ExampleGenerator, identity: GeneratorIdentity
) -> dict[str, str]:
    return {
        "splits": splits.fingerprint,
        "max_stage": str(curriculum.max_stage),
        **generator_fingerprints(source, identity),
    }


def check_pairs(flags: PPTrainFlags, global_batch: int, problems: Problems) -> None:
    """Refuse batches that end within a pair of samples that swap their answers: a stage might end there too."""
    if flags.answers == "shuffled" and global_batch % 2:
        problems.add(
            "--answers shuffled: pairs of samples swap their answers, and a global batch of "
            f"{global_batch} would end within a pair; use an even one."
        )


def _check_overflow(heldout: HeldOut, seq_len: int) -> None:
    total = len(heldout.samples) + heldout.num_too_long
    if not heldout.samples:
        raise UserError(f"all {total} examples of eval.jsonl are longer than --seq_len {seq_len}; use a larger one.")
    if heldout.num_too_long:
        logger.warning(
            "%.1f %% of the alpha-1 examples are longer than seq_len %d; late stages replace this share of candidates. "
            "With seq_len 2048 use max_lookahead 64 and max_input_size 384 (0 %%); lookahead 128 needs seq_len 4096 "
            "(74 %% too long at 2048).",
            100 * heldout.num_too_long / total,
            seq_len,
        )


def prepare(argv: list[str] | None, world: World) -> CheckedRun:
    """Parse and check everything, without building anything or joining a process group.

    Raises:
        UserError: with all problems in one message.
    """
    all_flags, sources = parse_flags(*GROUPS["pptrain"], description="", argv=argv)
    run, flags, model, data, overrides = all_flags
    problems = Problems()
    splits = curriculum = source = None
    with problems.collect():
        splits = Splits(find_data_dir(run.scratch_dir, data.data_dir))
        _check_data(flags, splits)
    if splits:
        with problems.collect():
            source = training_source(
                splits.meta.generator.changed(flags.generator, flags.generator_task, flags.generator_options),
                max_input_size=splits.meta.max_input_size,
                max_lookahead=splits.meta.max_lookahead,
                seed=run.seed,
            )
        with problems.collect():
            curriculum = make_curriculum(flags, splits.meta.max_lookahead)
            if flags.replay_run:
                curriculum = replace(curriculum, replay=read_replay(Path(flags.replay_run), curriculum.stages))
            curriculum.named_stages(flags.keep_stages or ())
            if source:
                source.budget(curriculum.alpha(curriculum.start_stage))  # refuses a stage that allows no edge
    inputs = check_inputs("pptrain", run, model, overrides, problems, world=world, total_steps=flags.max_steps)
    if inputs:
        check_pairs(flags, inputs.engine.layout.global_batch, problems)
    problems.raise_if_any()
    assert inputs and splits and curriculum and source
    # An external generator reseeds global generators: it must never run in the trainer itself.
    num_workers = max(int(source.is_external), run.num_workers)
    defaults = {
        "save_every": SAVE_EVERY, "data_dir": str(splits.directory), "max_lookahead": curriculum.max_stage,
        "max_input_size": splits.meta.max_input_size,
    }  # fmt: skip
    setup = partial(_setup, inputs, flags, data, splits, curriculum, source)
    return CheckedRun(inputs, all_flags, sources, num_workers, defaults, setup)


def main(argv: list[str] | None = None) -> int:
    world = world_from_env()
    set_up_logging(world)
    return launch(prepare(argv, world))


def make_curriculum(flags: PPTrainFlags, max_lookahead: int) -> Curriculum:
    """The curriculum that the flags define for splits of this lookahead, without the promotions to replay.

    Raises:
        UserError: flags contradict one another, or the first stage is beyond the last.
    """
    if (flags.curriculum == "replay") != bool(flags.replay_run):
        raise UserError("--curriculum replay and --replay_run RUN need each other; give both, or neither.")
    is_last_only = flags.curriculum == "none"
    if is_last_only and flags.start_stage not in (1, max_lookahead):
        raise UserError(
            f"--curriculum none trains stage {max_lookahead} only, but --start_stage is {flags.start_stage}; leave out "
            "one of them."
        )
    return Curriculum(
        max_stage=max_lookahead,
        window=flags.curr_window,
        threshold=flags.curr_threshold,
        check_every=flags.curr_check_every,
        start_stage=max_lookahead if is_last_only else flags.start_stage,
        stage_step=flags.stage_step,
        min_stage_steps=flags.min_stage_steps,
    )


def _setup(
    inputs: CommonInputs,
    flags: PPTrainFlags,
    data: DataFlags,
    splits: Splits,
    curriculum: Curriculum,
    source: ExampleGenerator,
) -> PhaseParts:
    run, layout, seq_len = inputs.run_flags, inputs.engine.layout, inputs.model_flags.seq_len
    heldout = heldout_examples(
        splits.rows("eval"), inputs.tokenizer, seq_len=seq_len, subset_size=data.eval_subset_size, seed=run.seed
    )
    _check_overflow(heldout, seq_len)
    # Rank 0's reading counts: a run that is replayed while it trains may be promoted before another rank looks.
    curriculum = on_main(inputs.world, lambda: curriculum)
    for warning in curriculum.warnings(layout.global_batch):
        logger.warning("%s", warning)
    # Rank 0 is the first to import an external generator, and compiles it if need be; workers follow.
    identity = on_main(inputs.world, source.identity)
    check_generator(splits, source, identity, run.accept_change or ())
    of_data = _fingerprints(curriculum, splits, source, identity)
    max_steps, replay = flags.max_steps, curriculum.replay
    if flags.replay_run and replay:
        replayed = Path(flags.replay_run)
        on_main(inputs.world, lambda: check_same_data(replayed, run.seed, layout.global_batch, of_data))
        if max_steps and max_steps > replay.last_step:
            raise UserError(f"--max_steps {max_steps} is beyond step {replay.last_step}, the last of --replay_run.")
        max_steps = max_steps or replay.last_step
    promotions = [step for step in replay.steps if step <= max_steps] if replay and max_steps else []
    reader = StreamReader(
        source, inputs.tokenizer, seq_len, splits.reserved_digests(), run.seed, flags.train_answer, flags.accuracy,
        flags.loss, flags.answers,
    )  # fmt: skip
    return PhaseParts(
        phase=PPTrain(
            curriculum,
            heldout,
            StageExamples(reader, data.eval_subset_size, inputs.world),
            inputs.world,
            layout.micro_batch * seq_len,
            flags.accuracy,
            flags.eval_every,
            source.longest_lookahead,
        ),
        cadence=Cadence.of(run, SAVE_EVERY, max_steps, curriculum.named_stages(flags.keep_stages or ())),
        sampler=CurriculumSampler(layout.global_batch),
        readers={SampleKind.STREAM: reader},
        first_stage=curriculum.start_stage,
        fingerprints={**of_data, "replay": " ".join(map(str, promotions)) if replay else "nothing"},
        summary={
            "curriculum": str(curriculum),
            "samples": f"{flags.answers} answers, loss {flags.loss}",
            "length": f"at most {max_steps:,} steps" if max_steps else "until the last stage is mastered",
            "data": f"{source.name} generator {identity.version}; {splits.directory} ({splits.fingerprint[:12]})",
        },
    )
