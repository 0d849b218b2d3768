"""An optimizer step whose loss or gradient is not finite: its description, and a dump of its samples."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.base.files import write_json
from data_tools.samples.samplers import GlobalBatchPlan
from ds_train.config.layout import Layout

_RANKS_IN_FULL = 4


@dataclass(frozen=True)
class NonFinite:
    """What was not finite, and where it arose; the same on every rank.

    Attributes:
        what: ``loss`` or ``gradient norm``.
        suspects: for each rank the positions in the global batch of the samples in its micro-batches whose own loss
            or gradient was not finite. All are empty where finite parts overflowed in their sum.
    """

    what: str
    suspects: list[list[int]]

    @property
    def ranks(self) -> list[int]:
        return [rank for rank, found in enumerate(self.suspects) if found]

    def describe(self, plan: GlobalBatchPlan) -> str:
        """One sentence: step, ranks, and the samples of the micro-batches in question."""
        if not self.ranks:
            return f"the {self.what} of step {plan.step} is not finite, though that of each single micro-batch is"
        samples = [f"rank {rank}: {_ids(plan, self.suspects[rank])}" for rank in self.ranks[:_RANKS_IN_FULL]]
        more = len(self.ranks) - len(samples)
        return (
            f"the {self.what} of step {plan.step} is not finite on rank{'s' * (len(self.ranks) > 1)} "
            f"{', '.join(map(str, self.ranks))}, with the samples of {'; '.join(samples)}"
            f"{f'; and {more} ranks more' if more else ''}"
        )

    def dump(self, path: Path, plan: GlobalBatchPlan, layout: Layout, values: dict[str, Any]) -> None:
        """Write ``values`` and the id of every sample of the step as JSON."""
        samples = [
            {"rank": rank, **sample, "suspect": position in self.suspects[rank]}
            for rank in range(layout.world_size)
            for position, sample in _samples(plan, layout.rank_slice(rank))
        ]
        write_json(path, {"step": plan.step, "what": self.what, "ranks": self.ranks, **values, "samples": samples})


def _samples(plan: GlobalBatchPlan, part: slice) -> list[tuple[int, dict[str, Any]]]:
    """Position and id of each sample of a part of the global batch."""
    return [
        (n, {"source": plan.names[plan.sources[n]], "index": int(plan.indices[n]), "stage": plan.stage})
        for n in range(part.start, part.stop)
    ]


def _ids(plan: GlobalBatchPlan, positions: list[int]) -> str:
    """Sample ids in short, e.g. ``stream 24-27, 32 (stage 3)``."""
    chosen = np.array(positions)
    parts = []
    for source in np.unique(plan.sources[chosen]):
        indices = np.sort(plan.indices[chosen[plan.sources[chosen] == source]])
        runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
        listed = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
        parts.append(f"{plan.names[source]} {listed}")
    return ", ".join(parts) + (f" (stage {plan.stage})" if plan.stage else "")


def drop_nonfinite_gradients(optimizer: Any, *_: Any) -> None:
    """Hook before a plain optimizer's step: without gradients it updates nothing."""
    if optimizer.overflow:
        optimizer.zero_grad(set_to_none=True)
