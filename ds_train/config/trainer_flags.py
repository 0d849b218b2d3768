"""The flags of both trainers, one dataclass per topic, and all flags of each."""

from dataclasses import dataclass
from typing import Literal

from ds_train.config.flags import AT_START, flag, required
from ds_train.config.phase_flags import PPTrainFlags, PretrainFlags, TransferFlags


@dataclass(frozen=True)
class RunFlags:
    """Directory, cadence in optimizer steps, and start of a run."""

    _argument_group_name = "run"

    scratch_dir: str = required("directory of all data and runs (layout: README)", "record", is_path=True)
    run_name: str | None = flag(None, "directory of this run under scratch_dir (default: the phase's name)", "record")
    seed: int = flag(
        1337, "seed of the initial weights and of all data order", "trajectory", through="seed", within="[-9e18, 9e18]"
    )
    log_every: int = flag(10, "steps between rows of train.jsonl", "record", within="[1, 1e9]")
    save_every: int | None = flag(
        None, "steps between checkpoints (default: 200 for pptrain, 500 for pretrain)", "record", within="[1, 1e9]"
    )
    eval_at: list[int] | None = flag(
        None, "steps after which to evaluate, besides --eval_every's: 1 2 4 8 16", "record", within="[1, 1e9]"
    )
    sync_save: bool = flag(False, "write each checkpoint before training continues, not in the background", "speed")
    keep_last: int = flag(3, "number of newest checkpoints to keep; 0 keeps all", "record", within="[0, 1e9]")
    keep_every: int = flag(0, "keep checkpoints at multiples of this forever; 0: none", "record", within="[0, 1e9]")
    keep_steps: list[int] | None = flag(None, "save at these steps, and keep that forever", "record", within="[1, 1e9]")
    keep_pflops: list[float] | None = flag(
        None, "save where the run has computed these PFLOPs, and keep that forever", "record", within="(0, 1e15]"
    )
    stop_step: int | None = flag(
        None, "end this launch cleanly at this step with a checkpoint, exit code 86", "launch", within="[1, 1e9]"
    )
    max_tokens: int | None = flag(
        None, "end the run with the step that reaches this many", "trajectory", through="tokens", within="[1, 1e15]"
    )
    max_pflops: float | None = flag(
        None, "the same for PFLOPs of forward and backward", "trajectory", through="flops", within="(0, 1e15]"
    )
    max_hours: float | None = flag(
        None, "end this launch after that time as --stop_step does", "launch", within="(0, 1e6]"
    )
    resume: str = flag(
        "auto", "auto or latest (newest complete checkpoint, else a fresh start), none, or a step directory", "launch"
    )
    resume_from: str | None = flag(None, "step directory to resume from; the same as --resume PATH", "launch")
    mirror: str | None = flag(
        None, "URL or path to copy the run to (below it: RUN/…), and to continue from where it is not here", "launch"
    )
    mirror_every: int = flag(
        1, "copy the checkpoints of steps divisible by this, and the last one", "launch", within="[1, 1e12]"
    )
    num_ranks: int | None = flag(
        None, "number of ranks that this launch must have; any other is an error", "speed", within="[1, 1e6]"
    )
    num_nodes: int | None = flag(
        None, "number of nodes that this launch must have; any other is an error", "speed", within="[1, 1e6]"
    )
    hang_timeout_s: float = flag(
        600.0, "seconds without progress after which the job ends, exit code 87", "speed", within="(0, 1e7]"
    )
    strict_layout: bool = flag(False, "refuse to resume in another layout (ranks, ZeRO stage, micro batch)", "speed")
    accept_change: list[str] | None = flag(
        None, "settings of the trajectory that a resumed run may change, by name", "launch"
    )
    num_workers: int = flag(
        1, "loader processes per rank; 0 builds batches in the trainer", "speed", within="[0, 1000]"
    )
    skip_nonfinite: int = flag(
        0, "number of steps with a non-finite loss or gradient that the run may skip", "speed", within="[0, 1e9]"
    )
    deterministic: bool = flag(
        False, "take only kernels that repeat bit by bit, for an exact resume on a GPU; slower", "speed"
    )
    tf32: bool = flag(False, "multiply fp32 matrices in TF32 on GPUs: faster, with 10 bits of mantissa", "trajectory")
    mlflow: str | None = flag(
        None, "experiment of MLflow to log to, on the server of MLFLOW_TRACKING_URI or in the run directory", "record"
    )
    notify: str | None = flag(
        None, "shell command that is given a line of JSON at start, promotions, end and failure of a run", "record"
    )
    profile_steps: str | None = flag(
        None, "trace these optimizer steps, FIRST:LAST such as 10:12; to profile/ in the run directory", "launch"
    )
    compile: bool = flag(False, "compile the layers by torch.compile; not with ZeRO 3 or recomputed ones", "speed")
    config: str | None = flag(None, "YAML file of flags; the command line wins", "launch")
    print_config: bool = flag(False, "print every setting and its origin as a run file, and exit", "launch")
    debug: bool = flag(False, "show the traceback of an error", "launch")
    local_rank: int = flag(-1, "set by the deepspeed launcher", "launch", within="[-1, 1e6]")


@dataclass(frozen=True)
class ModelFlags:
    """Model, tokenizer, sequence length."""

    _argument_group_name = "model"

    model_name: str | None = flag(
        None,
        "preset of ds_configs/models, local directory or hub id (default: pythia-160m)",
        "trajectory",
        through="model",
        is_path=True,
    )
    init: Literal["scratch", "pretrained"] = flag(
        "scratch", "random weights, or the model's own", "trajectory", through=AT_START
    )
    tokenizer: str | None = flag(
        None,
        "hub id, directory or tokenizer.json (default: the model's)",
        "trajectory",
        through="tokenizer",
        is_path=True,
    )
    seq_len: int = flag(2048, "longest document, in tokens", "trajectory", through="seq_len", within="[2, 1e7]")
    attn_implementation: str = flag(
        "auto",
        "packed (each document by itself, no mask), sdpa, eager, flash_attention_2 or flash_attention_3 (packages that "
        "must be installed), or another; auto: the first of packed, sdpa and eager that isolates documents",
        "speed",
    )
    keep_dropout: bool = flag(
        False, "leave dropout on; the trajectory then depends on the layout", "trajectory", through="model"
    )


@dataclass(frozen=True)
class DataFlags:
    """Synthetic data."""

    _argument_group_name = "data"

    data_dir: str | None = flag(
        None,
        "directory of the splits (default: the only one under scratch_dir)",
        "trajectory",
        through="splits",
        is_path=True,
    )
    eval_subset_size: int = flag(
        500, "examples of eval.jsonl in each held-out evaluation, a seeded subset", "record", within="[1, 1e9]"
    )


@dataclass(frozen=True)
class OverrideFlags:
    """DeepSpeed JSON, and hyper-parameters that win over it."""

    _argument_group_name = "DeepSpeed JSON and overrides"

    deepspeed_config: str | None = flag(
        None, "DeepSpeed JSON file (default: the phase's, from ds_configs)", "trajectory", through="optimizer"
    )
    global_batch: int | None = flag(
        None,
        "samples per optimizer step over all ranks (train_batch_size)",
        "trajectory",
        json_key="train_batch_size",
        within="[1, 1e9]",
    )
    micro_batch: int | Literal["auto"] | None = flag(
        None,
        "full samples whose tokens fit into a forward (train_micro_batch_size_per_gpu); auto: as many as are predicted "
        "to fit into memory",
        "speed",
        json_key="train_micro_batch_size_per_gpu",
        within="[1, 1e9]",
    )
    grad_accum: int | None = flag(
        None,
        "micro-batches of full samples per rank and step (gradient_accumulation_steps)",
        "speed",
        json_key="gradient_accumulation_steps",
        within="[1, 1e9]",
    )
    lr: float | None = flag(
        None,
        "base learning rate (optimizer.params.lr)",
        "trajectory",
        json_key="optimizer.params.lr",
        within="(0, 1e9]",
    )
    warmup_steps: int | None = flag(
        None,
        "warm-up steps (scheduler.params.warmup_num_steps)",
        "trajectory",
        json_key="scheduler.params.warmup_num_steps",
        within="[0, 1e9]",
    )
    decay_steps: int | None = flag(
        None,
        "last steps, in which a constant rate decays to 0 (scheduler.params.decay_num_steps)",
        "trajectory",
        json_key="scheduler.params.decay_num_steps",
        within="[1, 1e9]",
    )
    weight_decay: float | None = flag(
        None,
        "weight decay (optimizer.params.weight_decay)",
        "trajectory",
        json_key="optimizer.params.weight_decay",
        within="[0, 1e9]",
    )
    no_decay: list[Literal["norms", "biases", "embeddings"]] | None = flag(
        None, "parameters without weight decay (default: none)", "trajectory", through="no_decay"
    )
    grad_clip: float | None = flag(
        None,
        "largest global gradient norm (gradient_clipping)",
        "trajectory",
        json_key="gradient_clipping",
        within="[0, 1e9]",
    )
    mixed_precision: Literal["bf16", "fp16", "no"] | None = flag(
        None, "precision (bf16.enabled, fp16.enabled)", "trajectory", json_key="bf16.enabled"
    )
    zero_stage: int | None = flag(
        None, "ZeRO stage 0 … 3 (zero_optimization.stage)", "speed", json_key="zero_optimization.stage", within="[0, 3]"
    )
    activation_checkpointing: int | None = flag(
        None,
        "keep only the inputs of every N-th layer, of every one without N, and recompute the rest in the backward; "
        "0: none (activation_checkpointing.every)",
        "speed",
        json_key="activation_checkpointing.every",
        within="[0, 1e9]",
        bare=1,
    )
    wandb: str | None = flag(
        None, "project of Weights & Biases to log to (wandb.enabled, wandb.project)", "record", json_key="wandb.project"
    )


GROUPS: dict[str, tuple[type, ...]] = {
    "pptrain": (RunFlags, PPTrainFlags, ModelFlags, DataFlags, OverrideFlags),
    "pretrain": (RunFlags, PretrainFlags, ModelFlags, DataFlags, OverrideFlags, TransferFlags),
}
