"""What it is worth to fill forwards with tokens: forwards of a pptrain step, and tokens a second, by stage.

    python -m tests.benchmarks.filling

A forward has room for micro batch × seq_len tokens. "by samples" takes micro batch samples a forward, whatever their
length, as a DataLoader would; "by tokens" fills the room, as training does. Both run the same optimizer steps on one
rank, in turns. Forwards are those of the rank that has most. Imbalance is the largest number of tokens of a rank by the
mean over ranks: what ranks that wait for one another lose. Forwards and imbalance are means over the steps; rates and
their ratio are medians without the first step.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from statistics import mean, median

import numpy as np

from data_tools.base.errors import run_command
from data_tools.samples.samplers import Cursor, SampleKind
from ds_train.config.layout import Layout
from ds_train.model.causal_lm import build_model
from ds_train.phases.pptrain import prepare
from ds_train.ranks.world import World
from ds_train.step.engine import build_engine, train_step
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import pack
from ds_train.step.stream import RankBatch, RankBatchBuilder
from tests.benchmarks.measure import build_splits, parser, print_table, scratch_directory
from tests.support.process_group import one_rank

STAGES, WORLDS = (1, 8, 32, 64), (1, 2, 8)


def main(argv: list[str] | None = None) -> None:
    command = parser(__doc__)
    command.add_argument("--model_name", default="pythia-14m", help="preset (default pythia-14m)")
    command.add_argument("--micro_batch", type=int, default=2, help="full samples of a forward (default 2)")
    command.add_argument("--global_batch", type=int, default=32, help="samples of a step (default 32)")
    command.add_argument("--steps", type=int, default=4, help="optimizer steps at each stage, at least 2 (default 4)")
    command.add_argument("--stages", type=int, nargs="+", default=STAGES, help="alpha = stage / 64 (default 1 8 32 64)")
    args = command.parse_args(argv)
    with scratch_directory() as scratch, one_rank():
        build_splits(scratch)
        flags = f"""--scratch_dir {scratch} --tokenizer {scratch}/tokenizer --model_name {args.model_name}
            --global_batch {args.global_batch} --micro_batch {args.micro_batch} --mixed_precision no""".split()
        work = Work(flags, args.steps)
        forwards, rates = [], []
        for stage in args.stages:
            forwards.append([f"{stage / 64:.4g}", *work.forwards(stage)])
            rates.append([f"{stage / 64:.4g}", *work.rates(stage)])
    what = f"global batch {args.global_batch}, room of {args.micro_batch} × 2,048 tokens"
    of_ranks = [f"{name}, {size}" for size in WORLDS for name in ("by samples", "by tokens")]
    print_table(f"Forwards of a step, by ranks; {what}", ["alpha", *of_ranks, "imbalance, 8"], forwards)
    columns = ["alpha", "room used by tokens", "tokens/s by samples", "tokens/s by tokens", "ratio"]
    print_table(f"Optimizer steps on one rank, {args.model_name} in fp32; {what}", columns, rates)


class Work:
    """The trainer's data path and engine on one rank."""

    def __init__(self, flags: list[str], num_steps: int) -> None:
        prepared = prepare(flags, World(0, 0, 1))
        setup, self._inputs, self._num_steps = prepared.make_setup(), prepared.inputs, num_steps
        self._sampler, self._readers = setup.sampler, setup.readers
        self._layout, self._seq_len = self._inputs.engine.layout, self._inputs.model_flags.seq_len
        model = PackedLM(build_model(self._inputs.model_config, seed=1))
        with redirect_stdout(sys.stderr):
            self._engine = build_engine(model, self._inputs.engine.deepspeed)

    def _batches(self, stage: int, layout: Layout, rank: int) -> Iterator[RankBatch]:
        builder = RankBatchBuilder(self._readers, layout, rank, self._seq_len)
        for step in range(1, self._num_steps + 1):
            yield builder.build(self._sampler.plan(Cursor((step - 1) * layout.global_batch, stage), step))

    def forwards(self, stage: int) -> list[float]:
        """Mean forwards of a step by samples and by tokens, by number of ranks; the imbalance of the last number."""
        columns: list[float] = []
        for world_size in WORLDS:
            layout = replace(self._layout, world_size=world_size)
            ranks = [list(self._batches(stage, layout, rank)) for rank in range(world_size)]
            by_step = list(zip(*ranks, strict=True))
            columns += [
                mean(max(-(-batch.num_examples // layout.micro_batch) for batch in step) for step in by_step),
                mean(max(len(batch.micro_batches) for batch in step) for step in by_step),
            ]
            tokens = np.array([[batch.computed[0] for batch in step] for step in by_step])
        return [*columns, float((tokens.max(1) / tokens.mean(1)).mean())]

    def rates(self, stage: int) -> list[float]:
        """Share of the room that tokens fill; median tokens/s by samples and by tokens, and their ratio."""
        seconds: dict[str, list[float]] = {"by samples": [], "by tokens": []}
        used, tokens = [], []
        for batch in self._batches(stage, self._layout, 0):
            room = len(batch.micro_batches) * self._layout.micro_batch * self._seq_len
            used.append(batch.computed[0] / room)
            tokens.append(int(batch.tokens.sum()))
            for name, variant in (("by samples", self._by_samples(batch)), ("by tokens", batch)):
                started = time.perf_counter()
                train_step(self._engine, variant, self._layout, "any", lambda: (0, 0, 0))
                seconds[name].append(time.perf_counter() - started)
        rates = {name: median(np.array(tokens[1:]) / np.array(taken[1:])) for name, taken in seconds.items()}
        ratio = median(np.array(seconds["by samples"][1:]) / np.array(seconds["by tokens"][1:]))
        return [mean(used), *rates.values(), float(ratio)]

    def _by_samples(self, batch: RankBatch) -> RankBatch:
        """The same samples, micro batch of them a forward."""
        size, plan = self._layout.micro_batch, batch.plan
        samples = self._readers[SampleKind.STREAM].read(plan.indices.tolist(), plan.stage)
        numbers = [range(first, min(first + size, len(samples))) for first in range(0, len(samples), size)]
        micro_batches = [pack([samples[n].documents for n in part], part) for part in numbers]
        return replace(batch, micro_batches=micro_batches, positions=[list(part) for part in numbers])


if __name__ == "__main__":
    run_command(main)
