"""The stream of rank batches: plans go to loader workers, tensors come back with the cursor that follows them."""

import atexit
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data_tools.errors import UserError
from ds_train.documents import MicroBatch, pack
from ds_train.layout import Layout
from ds_train.losses import C4, SYNTHETIC
from ds_train.readers import Overflow, Reader
from ds_train.samplers import GlobalBatchPlan, Sampler, Source
from ds_train.state import Cursor

_LOOK_FOR_TRAINER_S = 1.0
_CLOSED = 1 << 62  # a generation that no plan belongs to: nobody wants batches any more


@dataclass
class RankBatch:
    """What one rank trains in one optimizer step.

    Attributes:
        plan: the global plan, the same on every rank; ``plan.next_cursor`` follows this batch.
        micro_batches: this rank's, in order.
        num_examples: this rank's samples.
        weights: (2,) float64, sum of loss weights of C4 and of synthetic targets on this rank.
        tokens: (2,) int64, real targets likewise, of the documents that are trained on.
        overflows: candidates of this rank's samples that were longer than seq_len.
    """

    plan: GlobalBatchPlan
    micro_batches: list[MicroBatch]
    num_examples: int
    weights: np.ndarray
    tokens: np.ndarray
    overflows: list[Overflow]

    def pin_memory(self) -> "RankBatch":
        self.micro_batches = [micro_batch.pin_memory() for micro_batch in self.micro_batches]
        return self


class RankBatchBuilder(Dataset):
    """Builds rank batches from plans: the part of the stream that runs inside workers."""

    def __init__(self, readers: dict[Source, Reader], layout: Layout, rank: int) -> None:
        self._readers = readers
        self._layout = layout
        self._rank = rank
        self.generation = multiprocessing.Value("q", 0)  # plans of an earlier generation are skipped unread

    @property
    def is_closed(self) -> bool:
        return self.generation.get_obj().value == _CLOSED

    def __getitem__(self, item: tuple[int, GlobalBatchPlan]) -> RankBatch | UserError | None:
        generation, plan = item
        if generation < self.generation.value:
            return None
        try:
            return self.build(plan)
        except UserError as error:
            return error  # raised by the consumer, without the worker's traceback around it

    def build(self, plan: GlobalBatchPlan) -> RankBatch:
        part = self._layout.rank_slice(self._rank)
        sources, indices = plan.sources[part], plan.indices[part]
        samples: list = [None] * len(indices)
        for source in map(Source, np.unique(sources)):
            where = np.flatnonzero(sources == source)
            for position, sample in zip(
                where, self._readers[source].read(indices[where].tolist(), plan.stage), strict=True
            ):
                samples[position] = sample
        weights, tokens = np.zeros(2), np.zeros(2, np.int64)
        for document in (document for sample in samples for document in sample.documents):
            kind = SYNTHETIC if document.is_synthetic else C4
            weights[kind] += document.weights.sum(dtype=np.float64)
            if document.weights.any():  # its prompt is text too where only the answer weighs; a scored copy is none
                tokens[kind] += len(document.weights)
        size = self._layout.micro_batch
        return RankBatch(
            plan=plan,
            micro_batches=[
                pack([sample.documents for sample in samples[first : first + size]], first)
                for first in range(0, len(samples), size)
            ],
            num_examples=len(samples),
            weights=weights,
            tokens=tokens,
            overflows=[overflow for sample in samples for overflow in sample.overflows],
        )


class _PlanSource:
    """The DataLoader's sampler: endless plans from wherever the stream was last (re)started."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.generation, self.cursor, self.step = 0, Cursor(), 0

    def __iter__(self) -> Iterator[tuple[int, GlobalBatchPlan]]:
        cursor, step = self.cursor, self.step
        while True:
            step += 1
            plan = self._sampler.plan(cursor, step)
            yield self.generation, plan
            cursor = plan.next_cursor


class Stream:
    """Rank batches in order, prefetched by workers; `restart` discards what was prefetched.

    Args:
        sampler: plans global batches.
        builder: makes this rank's tensors.
        num_workers: loader processes; 0 builds batches in this process.
        device: batches are pinned when it is a GPU.
    """

    def __init__(self, sampler: Sampler, builder: RankBatchBuilder, num_workers: int, device: torch.device) -> None:
        self._plans = _PlanSource(sampler)
        self._builder = builder
        self._loader: DataLoader = DataLoader(
            builder,
            sampler=self._plans,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=_unchanged,
            persistent_workers=num_workers > 0,
            prefetch_factor=4 if num_workers else None,
            pin_memory=device.type == "cuda",
            worker_init_fn=_init_worker,
            generator=torch.Generator(),  # of its own: the global one must go on as if nothing had been loaded
        )
        self._batches: Iterator | None = None
        weakref.finalize(self, _release, builder)
        atexit.register(_close, weakref.ref(self))  # before the interpreter waits for the workers

    def close(self) -> None:
        """End the workers."""
        _release(self._builder)
        self._batches = None
        vars(self).pop("_loader", None)  # its iterator, which it keeps, ends them when it goes

    def restart(self, cursor: Cursor, step: int) -> None:
        """Continue with the global batch that follows ``cursor``, for optimizer step ``step`` + 1."""
        self._plans.generation += 1
        self._plans.cursor, self._plans.step = cursor, step
        with self._builder.generation.get_lock():
            self._builder.generation.value = self._plans.generation
        self._batches = iter(self._loader)

    def next(self) -> RankBatch:
        """The next rank batch.

        Raises:
            UserError: a sample cannot be made.
        """
        assert self._batches is not None, "restart() comes first"
        batch = next(self._batches)
        if isinstance(batch, UserError):
            raise batch
        return batch


def _release(builder: RankBatchBuilder) -> None:
    """Let workers skip what they were to build, and end when they are told to."""
    builder.generation.value = _CLOSED


def _close(stream: "weakref.ref[Stream]") -> None:
    if open_stream := stream():
        open_stream.close()


def _unchanged(item):
    return item


def _init_worker(worker_id: int) -> None:
    """Signals stop the trainer, which finishes its step first; a worker that died of them would break that step."""
    for name in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    info = get_worker_info()
    assert info is not None
    builder = cast(RankBatchBuilder, info.dataset)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if builder.is_closed else None)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_trainer, args=(os.getppid(),), daemon=True).start()


def _end_with_trainer(trainer: int) -> None:
    """A worker whose trainer was killed would wait for ever for somebody to take its last batch."""
    while os.getppid() == trainer:
        time.sleep(_LOOK_FOR_TRAINER_S)
    os._exit(1)
