"""Useful examples a second on one core of the whole synthetic data path, at (384, 64), by alpha and by world size.

    python -m tests.benchmarks.data_path

Whole path: plan, generate, filter against the reserved prompts, tokenize, collate (`RankBatchBuilder.build`), for 32
samples a rank in micro-batches of 2, as rank 0 of 1 and as rank 17 of 64. In turns with it: its reading part alone, the
generator alone, and the GPT-NeoX tokenizer's own batch call on the generator's texts, each on its own samples, for
none may find its work in another's caches. Seconds are CPU seconds of this process, which keeps to one core; so other
load on the machine does not count.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tokenizers import Tokenizer

from data_tools.base.errors import run_command
from data_tools.samples.readers import Reader
from data_tools.samples.samplers import Cursor, SampleKind, Sampler
from data_tools.search.examples import Example
from data_tools.search.generator import ExampleGenerator
from ds_train.phases.pptrain import prepare
from ds_train.ranks.world import World
from ds_train.step.stream import RankBatch, RankBatchBuilder
from tests.benchmarks.measure import build_splits, parser, print_table, scratch_directory

MICRO_BATCH, GRAD_ACCUM = 2, 16
SAMPLES = MICRO_BATCH * GRAD_ACCUM
WORLDS = {"rank 0 of 1": World(0, 0, 1), "rank 17 of 64": World(17, 1, 64)}
STAGES = (1, 16, 32, 64)


def main(argv: list[str] | None = None) -> None:
    command = parser(__doc__)
    command.add_argument("--batches", type=int, default=20, help="rank batches of each kind (default 20)")
    command.add_argument(
        "--stages", type=int, nargs="+", default=STAGES, help="alpha = stage / 64 (default 1 16 32 64)"
    )
    command.add_argument("--mixin_size", type=int, default=1000, help="reserved prompts of that split (default 1000)")
    args = command.parse_args(argv)
    os.environ["RAYON_NUM_THREADS"] = "1"  # read when the tokenizer first works
    with scratch_directory() as scratch:
        build_splits(scratch, mixin_size=args.mixin_size)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        paths = {name: data_path(scratch, world) for name, world in WORLDS.items()}
        tokenizer = Tokenizer.from_file(f"{scratch}/tokenizer/tokenizer.json")
        rates, shares = [], []
        for stage in args.stages:
            taken = measure_stage(paths, tokenizer, stage, args.batches)
            alone, sharded, read, generator, plain = (1e6 * median(taken[name]) / SAMPLES for name in taken)
            alpha = f"{stage / 64:.4g}"
            rates.append([alpha, *(1e6 / us for us in (alone, sharded, generator, plain)), alone / sharded])
            shares.append([alpha, alone, generator, read - generator, alone - read])
    columns = ["alpha", *WORLDS, "generator alone", "plain tokenizer alone", "64 ranks / 1"]
    print_table("Synthetic data path, useful examples a second on one core", columns, rates)
    columns = ["alpha", "whole", "generate", "tokenize, filter", "plan, collate"]
    print_table("Where the time of rank 0 of 1 goes, microseconds an example", columns, shares)


@dataclass(frozen=True)
class DataPath:
    """What the trainer of a rank uses, made by its own assembly."""

    sampler: Sampler
    builder: RankBatchBuilder
    reader: Reader

    global_batch: int

    def build(self, batch: int, stage: int) -> RankBatch:
        """Plan and build the rank's part of the ``batch``-th global batch."""
        return self.builder.build(self.sampler.plan(Cursor(batch * self.global_batch, stage), batch + 1))


def data_path(scratch: Path, world: World) -> DataPath:
    flags = f"""--scratch_dir {scratch} --run_name rank_{world.rank} --tokenizer {scratch}/tokenizer
        --micro_batch {MICRO_BATCH} --grad_accum {GRAD_ACCUM}""".split()
    prepared = prepare(flags, world)
    setup = prepared.make_setup()
    layout = prepared.inputs.engine.layout
    builder = RankBatchBuilder(setup.readers, layout, world.rank, prepared.inputs.model_flags.seq_len)
    return DataPath(setup.sampler, builder, setup.readers[SampleKind.STREAM], layout.global_batch)


def measure_stage(paths: dict[str, DataPath], tokenizer: Tokenizer, stage: int, batches: int) -> dict[str, list[float]]:
    """Seconds of each batch of 32 samples: whole path by world, reading, generator, plain tokenization."""
    source = ExampleGenerator(None, max_input_size=384, max_lookahead=64, seed=0, purpose="benchmark")
    reader = next(iter(paths.values())).reader
    taken: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        started = time.process_time()
        result = work(*arguments, **options)
        taken.setdefault(name, []).append(time.process_time() - started)
        return result

    for batch in range(batches + 1):
        indices = list(range(batch * SAMPLES, (batch + 1) * SAMPLES))
        for name, path in paths.items():
            timed(name, path.build, batch, stage)
        timed("read", reader.read, [2**40 + index for index in indices], stage)
        examples = timed("generate", _generate, source, indices, stage)
        texts = [e.input_text for e in examples] + [f" {text}" for e in examples for text in e.output_texts]
        timed("plain tokenizer", tokenizer.encode_batch_fast, texts, add_special_tokens=False)
    return {name: seconds[1:] for name, seconds in taken.items()}  # the first batch warms the caches


def _generate(source: ExampleGenerator, indices: list[int], stage: int) -> list[Example]:
    return [source.example(index, stage) for index in indices]


if __name__ == "__main__":
    run_command(main)
