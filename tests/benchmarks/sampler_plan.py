"""Milliseconds that planning a step costs every rank of a very large job: 1,024 ranks, global batch 8,192.

    python -m tests.benchmarks.sampler_plan

A plan covers the whole global batch; each rank takes its slice. The ledger is the rolling hash of all consumed samples
that a rank keeps beside it.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from data_tools.base.errors import run_command
from data_tools.samples.samplers import CurriculumSampler, Cursor, MixinShare, MixtureSampler, Sampler
from ds_train.config.layout import Layout
from tests.benchmarks.measure import parser, print_table, seconds_each

LAYOUT = Layout(world_size=1024, micro_batch=2, global_batch=8192)
RANK = 717


def main(argv: list[str] | None = None) -> None:
    command = parser(__doc__)
    command.add_argument("--steps", type=int, default=200, help="plans of each sampler (default 200)")
    args = command.parse_args(argv)
    size = LAYOUT.global_batch
    share = MixinShare(0.02, 0.02, "constant", args.steps)
    samplers: dict[str, Sampler] = {
        "pptrain": CurriculumSampler(size),
        "pretrain": MixtureSampler(size, 1337, share, num_c4_blocks=10**8, num_mixin_blocks=31_000, mixin_fill=0.81),
    }
    rows = []
    for phase, sampler in samplers.items():
        for what, work in (("plan and slice", slicer(sampler)), ("with ledger", slicer(sampler, with_ledger=True))):
            taken_ms = [1000 * s for s in seconds_each(time.perf_counter, work, args.steps)]
            rows.append([f"{phase}, {what}", median(taken_ms), max(taken_ms)])
    title = f"Planning one step for {LAYOUT.world_size:,} ranks, global batch {size:,}, milliseconds"
    print_table(title, ["", "median", "largest"], rows)


def slicer(sampler: Sampler, with_ledger: bool = False) -> Callable[[], Any]:
    """A function that does a rank's part of the next step at each call."""
    cursor, step, ledger = Cursor(stage=1), 0, ""
    part = LAYOUT.rank_slice(RANK)

    def plan() -> Any:
        nonlocal cursor, step, ledger
        step += 1
        planned = sampler.plan(cursor, step)
        cursor = planned.next_cursor
        if with_ledger:
            ledger = planned.extended_ledger(ledger)
        return planned.sources[part].tolist(), planned.indices[part].tolist()

    return plan


if __name__ == "__main__":
    run_command(main)
