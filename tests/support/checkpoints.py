"""A training state with something in every field, and checkpoint directories without a model."""

from pathlib import Path

from ds_train.checkpoints.manifest import commit, file_entry, saving_name
from ds_train.checkpoints.rank_rng import rng_state
from ds_train.checkpoints.state import InitialWeights, TrainState

LAYOUT = {
    "seed": 1337,
    "world_size": 2,
    "micro_batch": 2,
    "grad_accum": 8,
    "global_batch": 32,
    "zero_stage": 2,
    "precision": "bf16",
}


def full_state() -> TrainState:
    """A state with a distinct value in every field."""
    return TrainState(
        **LAYOUT, step=200, consumed_index=6400, stage=7, c4_block_idx=6100, mixin_idx=300, window=[1, 0, 1, 1],
        stage_steps=4, tokens=10**12, mixin_tokens=10**10, overflows=12, flops=3 * 10**21, gpu_hours=1.5,
        initial_weights=InitialWeights("/s/pptrain/checkpoints/step_9", "/s/pptrain", 9, 3, "ab"), ledger="ab" * 16,
        rng=[rng_state(), rng_state()],
        fingerprints={"splits": "x", "pack": "y"}, versions={"torch": "2"},
    )  # fmt: skip


FILES = {"mp_rank_00_model_states.pt": b"weights" * 50, "zero_pp_rank_0_optim_states.pt": b"adam" * 80}


def write_checkpoint(directory: Path, step: int) -> Path:
    """A complete checkpoint, as far as names and hashes tell; returns its step directory."""
    saving = directory / saving_name(step)
    (saving / "huggingface").mkdir(parents=True)
    for name, content in {**FILES, "huggingface/config.json": b"{}"}.items():
        (saving / name).write_bytes(content + str(step).encode())
    entries = {path.relative_to(saving).as_posix(): file_entry(path) for path in saving.rglob("*") if path.is_file()}
    return commit(directory, step, entries)
