"""The trainers' checks that need no data, for a launch whose data are still to be made."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from data_tools.base.errors import Problems, UserError
from data_tools.base.hub import use_fetched
from data_tools.samples.samplers import mixin_share
from ds_train.config.deepspeed_json import EngineConfig
from ds_train.config.flags import parse_flags
from ds_train.config.trainer_flags import GROUPS, RunFlags
from ds_train.model.causal_lm import load_model_config, model_without_weights
from ds_train.model.transfer import Transfer
from ds_train.phases import pptrain, pretrain
from ds_train.phases.pptrain import check_pairs, make_curriculum
from ds_train.phases.text_packs import check_named_packs
from ds_train.ranks.world import World
from ds_train.run.inputs import DEFAULT_MODEL, check_run
from ds_train.training.phase import Cadence


@dataclass(frozen=True)
class EarlyCheck:
    """What is known of a launch before there are data; the model's configuration is None if weights will bring it."""

    run_flags: RunFlags
    cadence: Cadence
    seq_len: int
    engine: EngineConfig
    model_config: PretrainedConfig | None


def check_early(phase: str, argv: list[str], max_lookahead: int, has_weights: bool) -> EarlyCheck:
    """Check flags, DeepSpeed JSON, run directory and model as ``phase`` would on one rank.

    Args:
        max_lookahead: of the splits that will be built.
        has_weights: whether the model will come from a run that does not exist yet.

    Raises:
        UserError: with all problems in one message.
    """
    run, own, model, _, overrides, *moved = parse_flags(*GROUPS[phase], description="", argv=argv)[0]
    problems = Problems()
    is_pptrain = phase == "pptrain"
    steps = own.max_steps if is_pptrain else own.total_steps
    floor = None if is_pptrain else own.min_lr_ratio
    _, engine = check_run(phase, run, overrides, problems, world=World(0, 0, 1), total_steps=steps, min_lr_ratio=floor)
    keep_stages: list[int] = []
    with problems.collect():
        if is_pptrain:
            if own.max_lookahead not in (None, max_lookahead):
                raise UserError(
                    f"--max_lookahead {own.max_lookahead} contradicts the splits, which have {max_lookahead}."
                )
            keep_stages = make_curriculum(own, max_lookahead).named_stages(own.keep_stages or ())
            if engine:
                check_pairs(own, engine.layout.global_batch, problems)
        else:
            mixin_share(own.mixin_percent, own.mixin_schedule, own.mixin_end, own.total_steps)
            check_named_packs(own, run.scratch_dir)
    config = None
    use_fetched(run.scratch_dir)
    if not has_weights:
        with problems.collect():
            config = load_model_config(model.model_name or DEFAULT_MODEL)
            for flags in moved:
                transfer = Transfer.of_flags(flags.transfer, flags.embeddings, flags.freeze)
                transfer.check(model_without_weights(config), problems, has_weights=model.init == "pretrained")
    problems.raise_if_any()
    assert engine
    save_every = pptrain.SAVE_EVERY if is_pptrain else pretrain.SAVE_EVERY
    return EarlyCheck(run, Cadence.of(run, save_every, steps, keep_stages), model.seq_len, engine, config)
