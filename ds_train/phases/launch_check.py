"""Checks a launch without building anything or joining a process group: does it start, does it fit, how long is it?"""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from data_tools.base.files import existing_parent
from data_tools.samples.samplers import MixtureSampler, pack_blocks_needed
from ds_train.checkpoints.manifest import choose_checkpoint, damage_in, step_directories
from ds_train.checkpoints.resume import adapted_state
from ds_train.checkpoints.save import read_state
from ds_train.checkpoints.state import PFLOP
from ds_train.checkpoints.weights import verified
from ds_train.config.flags import former_values
from ds_train.config.trainer_flags import GROUPS
from ds_train.model.flash import check_flash_here
from ds_train.model.flops import training_flops
from ds_train.model.footprint import GIB, HOST_RUNTIME, ModelShape, RankMemory, checkpoint_bytes, model_shape
from ds_train.model.peaks import PEAK_FLOPS
from ds_train.model.recomputation import recomputed_layers
from ds_train.phases import pptrain, pretrain
from ds_train.ranks.world import World
from ds_train.run.assembly import CheckedRun, fresh_state
from ds_train.run.memory import rank_memory
from ds_train.run.summary import describe_recomputation, describe_rows, starting_point
from ds_train.training.phase import Cadence, PhaseParts

_GPU, _MFU = "H100 SXM", 0.3  # to predict hours: a usual share of the peak for small models
PHASES: dict[str, ModuleType] = {"pptrain": pptrain, "pretrain": pretrain}


@dataclass(frozen=True)
class Launch:
    """One column: nodes × accelerators, and a DeepSpeed JSON (None: the phase's default).

    Attributes:
        gpu_memory_gb: of each accelerator; infinite where ranks train on CPUs.
    """

    nodes: int
    gpus_per_node: int
    config: str | None
    gpu_memory_gb: float

    @property
    def on_cpu(self) -> bool:
        return math.isinf(self.gpu_memory_gb)

    @property
    def world(self) -> World:
        gpu_bytes = None if self.on_cpu else int(self.gpu_memory_gb * GIB)
        return World(0, 0, self.nodes * self.gpus_per_node, "preflight", gpu_bytes)

    @property
    def title(self) -> str:
        size = f"{self.nodes} × {self.gpus_per_node}"
        return f"{size} {Path(self.config).stem}" if self.config else size


def report(phase: str, launch: Launch, trainer_flags: list[str], problems: list[str]) -> dict[str, str]:
    """The rows of one column; raises the trainer's own ``UserError`` where it would refuse."""
    # The trainer's own checks, up to the checkpoint that it would resume from.
    argv = [*trainer_flags, *(["--deepspeed_config", launch.config] if launch.config else [])]
    prepared = PHASES[phase].prepare(argv, launch.world)
    setup = prepared.make_setup()
    inputs, layout, flags = prepared.inputs, prepared.inputs.engine.layout, prepared.inputs.run_flags
    if flags.num_nodes not in (None, launch.nodes):
        problems.append(
            f"--num_nodes {flags.num_nodes} refuses a launch on {launch.nodes} nodes; leave it out or make them agree."
        )
    if launch.on_cpu:
        check_flash_here(inputs.model_config._attn_implementation, torch.device("cpu"))
    chosen = choose_checkpoint(inputs.run_directory / "checkpoints", flags.resume, flags.resume_from)
    step = 0
    if inputs.weights and not chosen:
        verified(inputs.weights, damage_in)
    if chosen:
        saved = read_state(chosen)
        adapted_state(
            saved, fresh_state(inputs, setup, prepared.all_flags), chosen, strict_layout=flags.strict_layout,
            accepted=flags.accept_change or (), former=former_values(GROUPS[phase]),
        )  # fmt: skip
        step = saved.step

    # What would run, and what it needs.
    shape = model_shape(inputs.model_config)
    rows = {
        "ranks": f"{layout.world_size}",
        "global batch": f"{layout.global_batch:,}",
        "tokens of a forward, at most": f"{layout.micro_batch * inputs.model_flags.seq_len:,}",
        "starts": starting_point(inputs, step, chosen),
        "model, parameters": f"{shape.num_parameters / 1e6:,.1f} M",
        "documents": describe_rows(inputs.model_config, inputs.one_document_a_row),
        **describe_recomputation(len(recomputed_layers(shape.num_layers, inputs.engine.recompute_every)), shape),
    }
    rows |= _length_rows(prepared, setup, launch)
    rows |= _disk_rows(prepared, shape, setup.cadence, problems)
    return rows | _memory_rows(prepared, shape, launch, problems)


def _length_rows(prepared: CheckedRun, setup: PhaseParts, launch: Launch) -> dict[str, str]:
    """Rows about the steps, tokens and data of the whole run."""
    schedule, layout = prepared.inputs.engine.schedule, prepared.inputs.engine.layout
    seq_len, steps = prepared.inputs.model_flags.seq_len, setup.cadence.max_steps
    flops = training_flops(prepared.inputs.model_config)
    rows = {"warm-up steps": f"{schedule.warmup_steps:,}"}
    if isinstance(setup.sampler, MixtureSampler):
        assert steps is not None
        num_tokens = layout.global_batch * seq_len
        in_all = _tokens_in_all(prepared, num_tokens, steps)
        of_packs, share = pack_blocks_needed(setup.sampler, steps), setup.sampler.share
        rows |= {
            "steps": f"{steps:,}",
            "tokens a step": f"{num_tokens:,}",
            "tokens in all": f"{in_all / 1e9:,.3f} G",
            **{f"{name} blocks needed / packed": f"{needed:,} / {size:,}" for name, (needed, size) in of_packs.items()},
            "synthetic share": " → ".join(f"{end:.1%}" for end in dict.fromkeys((share.start, share.end))),
        }
        return rows | _time_row(launch, in_all * flops.of_documents([seq_len]) / seq_len)
    assert isinstance(setup.phase, pptrain.PPTrain)
    curriculum, samples = setup.phase.curriculum, setup.phase.heldout.samples
    num_targets = sum(len(documents[0].weights) for documents in samples)
    tokens = layout.global_batch * num_targets / len(samples)
    rows |= {
        "steps": f"at most {steps:,}" if steps else "until finished",
        "stages": f"{len(curriculum.stages):,}",
        "steps to master all, at least": f"{curriculum.fewest_steps(layout.global_batch):,}",
        "tokens a step, last stage": f"{tokens:,.0f}",
    }
    in_all = _tokens_in_all(prepared, tokens, steps)
    if in_all == math.inf:
        return rows
    rows["tokens in all"] = f"at most {in_all / 1e9:,.3f} G"
    at_full_difficulty = flops.of_documents(len(document.weights) for sample in samples for document in sample)
    most = (prepared.inputs.run_flags.max_pflops or math.inf) * PFLOP
    return rows | _time_row(launch, min(in_all * at_full_difficulty / num_targets, most), "at most ")


def _tokens_in_all(prepared: CheckedRun, of_a_step: float, steps: int | None) -> float:
    """Tokens of the run at most, by its limits; infinite without any."""
    flags, of_a_token = prepared.inputs.run_flags, training_flops(prepared.inputs.model_config).per_token
    by_flops = flags.max_pflops * PFLOP / of_a_token if flags.max_pflops else math.inf
    return min(of_a_step * steps if steps else math.inf, flags.max_tokens or math.inf, by_flops)


def _time_row(launch: Launch, flops: float, bound: str = "") -> dict[str, str]:
    """The length of the run in hours, which is unknown on CPUs."""
    if launch.on_cpu:
        return {"hours": "unknown on CPUs; the log shows the time left"}
    seconds = flops / (launch.world.size * _MFU * PEAK_FLOPS[_GPU])
    return {f"hours, at {_MFU:.0%} of an {_GPU}'s peak": f"{bound}{seconds / 3600:,.1f}"}


def _disk_rows(prepared: CheckedRun, shape: ModelShape, cadence: Cadence, problems: list[str]) -> dict[str, str]:
    """Rows about disk space: the checkpoints that retention keeps, and the one being written, must fit."""
    inputs, flags = prepared.inputs, prepared.inputs.run_flags
    engine = inputs.engine
    size = checkpoint_bytes(shape.num_parameters, stage=engine.zero_stage, half=engine.is_half)
    kept = cadence.most_kept(flags.keep_last, flags.keep_every)
    own = sum(
        path.stat().st_size
        for directory in step_directories(inputs.run_directory / "checkpoints")
        for path in directory.rglob("*")
        if path.is_file()
    )
    free = shutil.disk_usage(existing_parent(inputs.run_directory)).free
    rows = {"checkpoint": _gib(size), "free for checkpoints": _gib(free + own)}
    if kept == math.inf:
        return rows | {"needed for checkpoints": "grows without limit"}
    needed = (kept + 1) * size
    if needed > free + own:
        problems.append(
            f"checkpoints need {_gib(needed)} in {inputs.run_directory} ({kept:.0f} kept and one being written, "
            f"{_gib(size)} each), but {_gib(free + own)} are available; free some, or use a smaller --keep_last."
        )
    return rows | {"needed for checkpoints": f"{_gib(needed)} ({kept:.0f} kept, 1 being written)"}


def _memory_rows(prepared: CheckedRun, shape: ModelShape, launch: Launch, problems: list[str]) -> dict[str, str]:
    """Rows about memory: the parts of the configured ZeRO stage, and the total of every stage."""
    inputs = prepared.inputs
    configured, half = inputs.engine.zero_stage, inputs.engine.is_half

    def at(stage: int) -> RankMemory:
        return rank_memory(
            inputs.engine,
            inputs.model_config,
            shape,
            inputs.model_flags.seq_len,
            stage=stage,
            on_cpu=launch.on_cpu,
            one_document_a_row=inputs.one_document_a_row,
        )

    limit = launch.gpu_memory_gb * GIB
    own = at(configured)
    copy = 0  # of a checkpoint in host memory, while it is written in the background
    if not inputs.run_flags.sync_save:
        copy = checkpoint_bytes(shape.num_parameters, stage=configured, half=half) // inputs.engine.layout.world_size
    # At first rank 0 has the initial weights in fp32, until all ranks have theirs.
    of_rank = own.host + (own.device if launch.on_cpu else HOST_RUNTIME)
    in_host = launch.gpus_per_node * of_rank + max(4 * shape.num_parameters, launch.gpus_per_node * copy)
    rows = {f"rank memory, ZeRO {stage}": _gib(at(stage).device) for stage in range(4) if not (half and stage == 0)}
    rows[f"rank memory, ZeRO {configured}"] += " *"
    rows |= {
        "* weights": _gib(own.weights),
        "* gradients": _gib(own.gradients),
        "* optimizer": _gib(own.optimizer),
        "* buckets, gathered weights": _gib(own.buffers),
        "* activations, logits (most)": _gib(own.activations),
        "* runtime": _gib(own.runtime),
        "host memory of a node": _gib(in_host),
    }
    if own.device > limit:
        fitting = [stage for stage in range(1, 4) if at(stage).device <= limit]
        problems.append(
            f"a rank is predicted to need {_gib(own.device)}, more than --gpu_memory_gb {launch.gpu_memory_gb:g}; "
            + (f"ZeRO {' or '.join(map(str, fitting))} would fit, or " if fitting else "use ")
            + "a smaller --micro_batch"
            + ("." if inputs.engine.recompute_every else " or --activation_checkpointing.")
        )
    return rows


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:,.2f} GiB"
