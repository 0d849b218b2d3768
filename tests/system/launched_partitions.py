"""Load the checkpoints of every layout into engines of every other, and compare all tensors by name, bit by bit.

    ranks 0 … 5 of one launch, with a directory and three free ports

The six ranks are three worlds, of 1, 2 and 3 ranks. Each starts from the same weights, trains and saves in every kind
of layout; DeepSpeed's own getters tell what its optimizers hold. When all have saved, each world loads what all worlds
saved. The model's sizes are odd, so that no number of ranks divides its tensors; one matrix is tied, some weights are
frozen, and some have no decay. DIRECTORY/differing_SIZE.json gets a line for each tensor that differs.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from transformers import LlamaConfig, PreTrainedModel

from data_tools.samples.readers import c4_document
from ds_train.checkpoints import saved_partitions
from ds_train.checkpoints.partitions import partitions_of
from ds_train.checkpoints.restore import fresh_engine, load
from ds_train.checkpoints.state import TrainState, mapped_file
from ds_train.model.causal_lm import DTYPES, build_model, empty_model
from ds_train.ranks.collectives import init_distributed
from ds_train.ranks.entry import run_entry
from ds_train.ranks.world import World, world_from_env
from ds_train.step.engine import Engine, build_engine, is_plain
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import pack
from tests.support.engine_configs import changed, resolve

SIZES = (1, 2, 3)
ADAM = {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True, "fused": True}}
KINDS: dict[str, tuple[int, bool, dict[str, Any]]] = {  # ZeRO stage, bf16, further settings
    **{f"fp32_zero{stage}": (stage, False, {}) for stage in range(4)},
    **{f"bf16_zero{stage}": (stage, True, {}) for stage in (1, 2, 3)},
    "bf16_offload": (2, True, {"zero_optimization.offload_optimizer": {"device": "cpu"}}),
}
UPDATES = 2


def main() -> int:
    directory, *ports = (argument for argument in sys.argv[1:] if not argument.startswith("--"))
    outer = world_from_env()
    everybody = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), outer.size, outer.is_main)
    world = world_of(outer.rank)
    os.environ["MASTER_PORT"] = ports[world.size - 1]
    init_distributed(world)

    differing = [line for kind in KINDS for line in save(Path(directory), kind, world)]
    meet(everybody, "saved", outer.size)

    differing += [line for kind in KINDS for line in compare_all(Path(directory), kind, world)]
    if world.is_main:
        (Path(directory) / f"differing_{world.size}.json").write_text(json.dumps(differing))
    meet(everybody, "loaded", outer.size, waits=outer.is_main)  # who holds the store
    return 0


def meet(store: dist.TCPStore, what: str, num_ranks: int, *, waits: bool = True) -> None:
    """Wait until the ranks of all worlds have done something."""
    if store.add(f"ranks that have {what}", 1) == num_ranks:
        store.set(what, "")
    if waits:
        store.wait([what])


def world_of(outer_rank: int) -> World:
    """The world of 1, 2 or 3 ranks that one of six belongs to."""
    for size in SIZES:
        if outer_rank < size:
            return World(outer_rank, outer_rank, size, "a test")
        outer_rank -= size
    raise ValueError(outer_rank)


def packed(model: PreTrainedModel) -> PackedLM:
    model.model.layers[0].requires_grad_(False)
    return PackedLM(model, no_decay=[name for name, _ in model.named_parameters() if "norm" in name])


def model_config() -> LlamaConfig:
    sizes = {"num_hidden_layers": 2, "hidden_size": 14, "num_attention_heads": 1, "intermediate_size": 13}
    return LlamaConfig(vocab_size=101, use_cache=False, tie_word_embeddings=True, **sizes)


def empty(kind: str) -> PackedLM:
    """A model whose weights are bad, so that none may stay."""
    model = packed(empty_model(model_config(), DTYPES[precision_of(kind)]))
    for parameter in model.parameters():
        parameter.data.fill_(7.0)
    return model


def precision_of(kind: str) -> str:
    return "bf16" if KINDS[kind][1] else "fp32"


def json_of(kind: str, size: int) -> dict[str, Any]:
    stage, is_half, more = KINDS[kind]
    settings = {
        "train_batch_size": size, "train_micro_batch_size_per_gpu": 1, "optimizer": ADAM,
        "bf16.enabled": is_half, "zero_optimization.stage": stage, **more,
    }  # fmt: skip
    return resolve(changed(*settings.items()), world_size=size).deepspeed


def state_of(kind: str, size: int) -> TrainState:
    stage, _, _ = KINDS[kind]
    return TrainState(1, size, 1, 1, size, zero_stage=stage, precision=precision_of(kind), step=UPDATES)


def save(directory: Path, kind: str, world: World) -> Iterator[str]:
    """Train from the weights of a seed, save a checkpoint and what DeepSpeed says that it holds.

    Yields a line for each weight that does not start as one rank would build it.
    """
    source = packed(build_model(model_config(), seed=1))
    engine = fresh_engine(empty(kind), json_of(kind, world.size), source if world.is_main else None)
    starts = contents(engine, ("fp32",))
    for name, weights in source.named_parameters():
        for found in (f"model {name}", f"fp32 {name}"):
            if found in starts and not torch.equal(starts[found], weights.to(starts[found].dtype)):
                yield f"fresh {kind}_{world.size}: {found}"

    batch = pack([[c4_document(np.arange(1 + world.rank, 40 + world.rank))]])
    engine.optimizer.overflow = False  # which a plain optimizer has from a whole step of ours
    for _ in range(UPDATES):
        loss, *_ = engine(batch)
        engine.backward(loss)
        engine.step()
    name = f"{kind}_{world.size}"
    engine.save_checkpoint(str(directory), tag=name, save_latest=False, client_state={})
    held = contents(engine)
    if world.is_main:
        torch.save(held, directory / f"{name}.pt")


def contents(engine: Engine, keys: Sequence[str] = ("fp32", "exp_avg", "exp_avg_sq")) -> dict[str, torch.Tensor]:
    """What DeepSpeed's getters give: fp32 weights, moments and model weights by name, and counts. Collective."""
    if len(keys) > 1 and hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    found = {}
    for name, parameter in engine.module.named_parameters():
        with GatheredParameters([parameter]):
            found[f"model {name}"] = parameter.detach().clone()
        for key in keys if parameter.requires_grad else ():
            found[f"{key} {name}"] = held_by(engine, parameter, key).clone()
    base = engine.optimizer if is_plain(engine) else engine.optimizer.optimizer
    found["steps"] = torch.tensor([float(state.get("step", 0)) for state in base.state.values()]).unique()
    found["global_steps"] = torch.tensor(engine.global_steps)
    return found


def held_by(engine: Engine, parameter: torch.nn.Parameter, key: str) -> torch.Tensor:
    if is_plain(engine):
        return parameter.detach() if key == "fp32" else engine.optimizer.state[parameter][key]
    return safe_get_full_fp32_param(parameter) if key == "fp32" else safe_get_full_optimizer_state(parameter, key)


def compare_all(directory: Path, kind: str, world: World) -> Iterator[str]:
    """Load all checkpoints of the same precision into one engine after another; a line for each difference."""
    engine = build_engine(empty(kind), json_of(kind, world.size))
    for other in (other for other in KINDS if KINDS[other][1] == KINDS[kind][1]):
        for size in SIZES:
            checkpoint = directory / f"{other}_{size}"
            read: list[int] = []
            with mock.patch.object(saved_partitions, "count", read.append):
                load(engine, checkpoint, state_of(other, size), world)
            own = sum(piece.length for partition in partitions_of(engine) for piece in partition.pieces)
            if sum(read) != 3 * 4 * own:  # fp32 weights and two moments
                yield f"{checkpoint.name} into {kind}_{world.size}: other bytes were read than its share"
            got, expected = contents(engine), mapped_file(checkpoint.with_suffix(".pt"))
            assert got.keys() == expected.keys()
            for name, tensor in expected.items():
                if not torch.equal(got[name], tensor):
                    yield f"{checkpoint.name} into {kind}_{world.size}: {name}"


if __name__ == "__main__":
    run_entry(main)
