"""The stream of rank batches: loader workers get plans and return tensors, with the cursor that follows them."""

import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data_tools.base.errors import UserError
from data_tools.base.processes import end_with_parent, starting
from data_tools.samples.readers import Overflow, Reader, Sample
from data_tools.samples.samplers import Cursor, GlobalBatchPlan, Sampler
from ds_train.config.layout import Layout
from ds_train.step.micro_batch import C4, SYNTHETIC, MicroBatch, divide

_CLOSED = 1 << 62  # later than any plan's generation: workers skip what is left


@dataclass
class RankBatch:
    """What one rank trains in one optimizer step.

    Attributes:
        plan: the global plan, the same on every rank; ``plan.next_cursor`` follows this batch.
        micro_batches: this rank's, in order.
        positions: in the global batch, of the samples that each of them holds documents of.
        num_examples: this rank's samples.
        weights: (2,) float64, sum of loss weights of C4 and of synthetic targets on this rank.
        tokens: (2,) int64, real targets likewise, of the documents that are trained on.
        computed: (2,) int64, tokens of all documents, and pairs of tokens of one document: FLOPs follow from them.
        overflows: candidates of this rank's samples that were longer than seq_len.
    """

    plan: GlobalBatchPlan
    micro_batches: list[MicroBatch]
    positions: list[list[int]]
    num_examples: int
    weights: np.ndarray
    tokens: np.ndarray
    computed: np.ndarray
    overflows: list[Overflow]

    def pin_memory(self) -> "RankBatch":
        self.micro_batches = [micro_batch.pin_memory() for micro_batch in self.micro_batches]
        return self


class RankBatchBuilder:
    """Builds one rank's batches from plans. This part of the stream runs inside the workers, and can be pickled.

    Args:
        seq_len: inputs of a full sample.
        one_document_a_row: whether the model reads documents so.
    """

    def __init__(
        self,
        readers: Mapping[int, Reader],
        layout: Layout,
        rank: int,
        seq_len: int,
        *,
        one_document_a_row: bool = False,
    ) -> None:
        self._readers = readers
        self._samples_of_rank = layout.rank_slice(rank)
        self._num_tokens = layout.micro_batch * seq_len
        self._one_document_a_row = one_document_a_row

    def build(self, plan: GlobalBatchPlan) -> RankBatch:
        samples = self._read(plan)

        # Count loss weights and real targets, which a document that is only scored lacks, and what is computed.
        weights, tokens, computed = np.zeros(2), np.zeros(2, np.int64), np.zeros(2, np.int64)
        for document in (document for sample in samples for document in sample.documents):
            kind, length = SYNTHETIC if document.is_synthetic else C4, len(document.weights)
            weights[kind] += document.weights.sum(dtype=np.float64)
            if document.weights.any():  # then its prompt counts too, even where only the answer weighs
                tokens[kind] += length
            computed += length, sum(part**2 for part in document.lengths)

        # Fill micro-batches with them.
        documents = [sample.documents for sample in samples]
        parts = divide(documents, self._num_tokens, one_document_a_row=self._one_document_a_row)
        first = self._samples_of_rank.start
        return RankBatch(
            plan=plan,
            micro_batches=[part.pack() for part in parts],
            positions=[sorted({first + number for number in part.numbers}) for part in parts],
            num_examples=len(samples),
            weights=weights,
            tokens=tokens,
            computed=computed,
            overflows=[overflow for sample in samples for overflow in sample.overflows],
        )

    def _read(self, plan: GlobalBatchPlan) -> list[Sample]:
        """This rank's samples, read one kind at a time, in the plan's order."""
        sources, indices = plan.sources[self._samples_of_rank], plan.indices[self._samples_of_rank]
        samples: list = [None] * len(indices)
        for source in np.unique(sources).tolist():
            positions = np.flatnonzero(sources == source)
            found = self._readers[source].read(indices[positions].tolist(), plan.stage)
            for position, sample in zip(positions, found, strict=True):
                samples[position] = sample
        return samples


class _PlanSource:
    """The DataLoader's sampler: endless plans from where the stream was last (re)started; none before that."""

    def __init__(self) -> None:
        self.sampler: Sampler | None = None
        self.generation, self.cursor, self.step = 0, Cursor(), 0

    def __iter__(self) -> Iterator[tuple[int, GlobalBatchPlan]]:
        cursor, step = self.cursor, self.step
        while self.sampler is not None:
            step += 1
            plan = self.sampler.plan(cursor, step)
            yield self.generation, plan
            cursor = plan.next_cursor


class _BatchDataset(Dataset):
    """The DataLoader's dataset: a batch for each plan. Its workers get the builder through a file that they inherit."""

    def __init__(self) -> None:
        self._builder: RankBatchBuilder | None = None
        self._pickled = TemporaryFile()  # noqa: SIM115  open as long as its workers live
        # Workers skip plans of an earlier generation. No lock: a worker that is killed would keep it.
        self.generation = multiprocessing.Value("q", 0, lock=False)

    @property
    def is_closed(self) -> bool:
        return self.generation.value == _CLOSED

    def supply(self, builder: RankBatchBuilder) -> None:
        self._builder = builder
        pickle.dump(builder, self._pickled)
        self._pickled.flush()

    def __getitem__(self, item: tuple[int, GlobalBatchPlan]) -> RankBatch | UserError | None:
        generation, plan = item
        if generation < self.generation.value:
            return None
        if self._builder is None:  # a worker's first plan; pread, because workers share the file's position
            self._builder = pickle.loads(os.pread(self._pickled.fileno(), os.fstat(self._pickled.fileno()).st_size, 0))
        try:
            return self._builder.build(plan)
        except UserError as error:
            return error  # the trainer raises it, without the worker's traceback


class Stream:
    """Rank batches in order, prefetched by workers; `restart` discards what was prefetched.

    Forks workers immediately; construct it before any thread starts (process group, engine, watchdog), or a child may
    inherit a held lock. An early fork also keeps them small: memory that the trainer changes later is copied.

    Args:
        num_workers: loader processes; 0 builds batches in this process.
        device: if it is a GPU (the current one), batches are pinned.
    """

    def __init__(self, num_workers: int, device: torch.device) -> None:
        self._plans = _PlanSource()
        with starting("--num_workers"):
            self._start(num_workers, device)

    def _start(self, num_workers: int, device: torch.device) -> None:
        self._dataset = _BatchDataset()
        self._loader: DataLoader = DataLoader(
            self._dataset,
            sampler=self._plans,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=_unchanged,
            persistent_workers=num_workers > 0,
            prefetch_factor=4 if num_workers else None,
            multiprocessing_context="fork" if num_workers else None,
            pin_memory=device.type == "cuda",
            worker_init_fn=_init_worker,
            generator=torch.Generator(),  # so that loading draws nothing from the global generator
        )
        self._batches: Iterator | None = iter(self._loader) if num_workers else None

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers."""
        self._dataset.generation.value = _CLOSED  # they skip the plans that are left, and obey SIGTERM
        self._batches = None
        vars(self).pop("_loader", None)  # its iterator ends the workers when it is deleted

    def supply(self, sampler: Sampler, builder: RankBatchBuilder) -> None:
        """Set what batches are made of. Call it once, before the first `restart`.

        Args:
            sampler: plans global batches.
            builder: makes this rank's tensors.
        """
        self._plans.sampler = sampler
        self._dataset.supply(builder)

    def restart(self, cursor: Cursor, step: int) -> None:
        """Continue with the global batch that follows ``cursor``, for optimizer step ``step`` + 1."""
        assert self._plans.sampler is not None, "supply() comes first"
        self._plans.generation += 1
        self._plans.cursor, self._plans.step = cursor, step
        self._dataset.generation.value = self._plans.generation
        self._batches = iter(self._loader)

    def next(self) -> RankBatch:
        """The next rank batch.

        Raises:
            UserError: a sample could not be read or generated.
        """
        assert self._batches is not None, "restart() comes first"
        batch = next(self._batches)
        if isinstance(batch, UserError):
            raise batch
        return batch

    def lost_worker(self) -> str | None:
        """Why a loader worker died, for a message; None while all live."""
        for worker in getattr(self._batches, "_workers", ()):
            if worker.exitcode:
                how = f"exited with code {worker.exitcode}"
                if worker.exitcode < 0:
                    how = f"was killed by {signal.Signals(-worker.exitcode).name}"
                return f"loader worker {worker.pid} {how}; if host memory ran out, lower --num_workers"
        return None


def _unchanged(item):
    return item


def _init_worker(worker_id: int) -> None:
    """Ignore the signals that stop the trainer: it finishes its step first, and needs its workers for that."""
    for name in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    info = get_worker_info()
    assert info is not None
    dataset = cast(_BatchDataset, info.dataset)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if dataset.is_closed else None)
    torch.set_num_threads(1)
    end_with_parent()  # a worker whose trainer was killed would wait forever for its last batch to be taken
