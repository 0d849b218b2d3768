"""Seconds and host memory of loading a checkpoint into the same and into another layout, on each road.

    python -m tests.benchmarks.resume --model_name pythia-160m --changes 2:1-4:1

A change is RANKS:ZERO_STAGE as saved, then as loaded. Checkpoints are saved by engines in bf16 that did not train, with
numbers in place of Adam's moments, and are in the page cache when they are loaded. For the new layout the table shows

- what DeepSpeed takes for a checkpoint of this very layout,
- what ours takes for the same, and for the checkpoint of the saved layout,
- what DeepSpeed takes for the latter: conversion to its universal format by one process, and loading that.

Seconds are those of the slowest rank, from the built engine on. Memory is the largest of a rank, in GiB, beyond that of
the built engine: at the peak (anonymous pages, which no kernel can drop), and what stays: the optimizer's states, which
the engine does not have before. The last column is the peak beyond what stays, in units of the largest parameter.
"""

import argparse
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_tools.base.errors import run_command
from ds_train.checkpoints.restore import load
from ds_train.checkpoints.state import TrainState
from ds_train.model.causal_lm import build_model, load_model_config
from ds_train.ranks.collectives import gather_objects, init_distributed
from ds_train.ranks.world import world_from_env
from ds_train.step.engine import Engine, build_engine
from ds_train.step.losses import PackedLM
from tests.benchmarks.measure import parser, print_table, run_python
from tests.support.engine_configs import changed, resolve
from tests.support.launching import launch

GIB = 2**30
CHANGES = ["3:1-2:1", "1:1-1:2", "1:1-3:1"]


class Layout(NamedTuple):
    """Ranks and ZeRO stage."""

    ranks: int
    stage: int

    def __str__(self) -> str:
        return f"{self.ranks}:{self.stage}"

    @classmethod
    def read(cls, text: str) -> "Layout":
        ranks, stage = text.split(":")
        return cls(int(ranks), int(stage))


def main(argv: list[str] | None = None) -> None:
    command = parser(__doc__)
    command.add_argument("--model_name", default="pythia-160m", help="preset (default pythia-160m)")
    command.add_argument("--changes", nargs="+", default=CHANGES, help=f"default: {' '.join(CHANGES)}")
    command.add_argument("--scratch", help="directory for the checkpoints, 14 bytes a parameter each (default /tmp)")
    command.add_argument("--on_rank", nargs=3, help=argparse.SUPPRESS)  # a launched rank: work, layout, checkpoint
    args = command.parse_args(argv)
    if args.on_rank:
        on_rank(args.model_name, *args.on_rank)
        return
    columns = ["", "seconds", "peak, GiB", "stays, GiB", "beyond, largest parameters"]
    for change in args.changes:
        saved, loaded = (Layout.read(layout) for layout in change.split("-"))
        with tempfile.TemporaryDirectory(prefix="ds_train_benchmark_", dir=args.scratch) as directory:
            rows = measure(args.model_name, saved, loaded, Path(directory))
        print_table(f"{args.model_name}, saved as {saved} and loaded as {loaded} (ranks:ZeRO stage)", columns, rows)


def measure(model_name: str, saved: Layout, loaded: Layout, directory: Path) -> list[list[Any]]:
    """The rows of a change's table."""

    def take(work: str, layout: Layout, checkpoint: Path) -> list[Any]:
        arguments = ["--model_name", model_name, "--on_rank", work, str(layout), str(checkpoint)]
        done = launch("tests/benchmarks/resume.py", *arguments, num_ranks=layout.ranks)
        if done.returncode:
            raise SystemExit(done.stdout[-3000:])
        return json.loads(done.stdout.splitlines()[-1])

    same, other = directory / f"step_of_{loaded}", directory / f"step_of_{saved}"
    take("save", loaded, same)
    rows = [[f"DeepSpeed, of {loaded}", *take("deepspeed", loaded, same)]]
    rows.append([f"ours, of {loaded}", *take("ours", loaded, same)])
    shutil.rmtree(same)
    take("save", saved, other)
    rows.append([f"ours, of {saved}", *take("ours", loaded, other)])
    universal = directory / "universal" / other.name
    universal.mkdir(parents=True)
    started = time.perf_counter()
    command = ["-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state", "--input_folder", other]
    run_python([*command, "--output_folder", universal])
    conversion_s = time.perf_counter() - started
    loading_s, *memory = take("universal", loaded, universal)
    rows.append([f"DeepSpeed's universal format, of {saved}", conversion_s + loading_s, *memory])
    return rows


def on_rank(model_name: str, work: str, layout: str, checkpoint: str) -> None:
    """Save or load on one of the ranks; the main rank prints the row."""
    world, path = world_from_env(), Path(checkpoint)
    init_distributed(world)
    engine = engine_of(model_name, Layout.read(layout), is_universal=work == "universal")
    if work == "save":
        save(engine, path)
        row: list[Any] = []
    else:
        ranks, stage = path.name.removeprefix("step_of_").split(":")
        saved = TrainState(1, int(ranks), 1, 1, int(ranks), zero_stage=int(stage), precision="bf16")
        roads: dict[str, Callable[[], Any]] = {"ours": lambda: load(engine, path, saved, world)}
        by_deepspeed = lambda: engine.load_checkpoint(str(path.parent), tag=path.name)  # noqa: E731
        row = measured(roads.get(work, by_deepspeed), largest_parameter_bytes(engine))
    if world.is_main:
        print(json.dumps(row))


def engine_of(model_name: str, layout: Layout, *, is_universal: bool) -> Engine:
    adam = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True, "fused": True}}
    settings = {"train_batch_size": layout.ranks, "train_micro_batch_size_per_gpu": 1, "optimizer": adam,
                "zero_optimization": {"stage": layout.stage, "reduce_bucket_size": 5e7}}  # fmt: skip
    config = resolve(changed(*settings.items()), world_size=layout.ranks).deepspeed
    if is_universal:
        config["checkpoint"] = {"load_universal": True}
    config_of_model = load_model_config(model_name)
    config_of_model.use_cache = False
    return build_engine(PackedLM(build_model(config_of_model, seed=1)), config)


def save(engine: Engine, path: Path) -> None:
    base = engine.optimizer.optimizer
    partitioned = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
    for weights in partitioned or [weights for group in base.param_groups for weights in group["params"]]:
        moments = {key: torch.full_like(weights, 0.5).detach() for key in ("exp_avg", "exp_avg_sq")}
        base.state[weights] = {"step": torch.tensor(3.0), **moments}
    engine.save_checkpoint(str(path.parent), tag=path.name, save_latest=False, client_state={})


def largest_parameter_bytes(engine: Engine) -> int:
    return 4 * max(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())


def measured(work: Callable[[], Any], largest_bytes: int) -> list[float]:
    """Seconds and memory of the work, of the rank that takes most; collective."""
    before = anonymous_bytes()
    gather_objects(None)
    started = time.perf_counter()
    with highest(anonymous_bytes) as peak:
        work()
    seconds = time.perf_counter() - started
    stays = anonymous_bytes() - before
    rows = gather_objects((seconds, (peak[0] - before) / GIB, stays / GIB, (peak[0] - before - stays) / largest_bytes))
    return [max(column) for column in zip(*rows, strict=True)]


@contextmanager
def highest(value: Callable[[], int]) -> Iterator[list[int]]:
    """The highest value within the block, in a list; read every two milliseconds."""
    found, is_over = [value()], threading.Event()

    def look() -> None:
        while not is_over.wait(0.002):
            found[0] = max(found[0], value())

    thread = threading.Thread(target=look)
    thread.start()
    yield found
    is_over.set()
    thread.join()


def anonymous_bytes() -> int:
    """Resident memory of this process without pages of files."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


if __name__ == "__main__":
    run_command(main)
