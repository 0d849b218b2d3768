"""Micro-batches of token documents, without padding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from data_tools.samples.documents import Document

C4, SYNTHETIC = 0, 1  # positions in every per-source sum


@dataclass(frozen=True)
class MicroBatch:
    """Documents end to end, with the targets to train and to score. Tensors are on the CPU until `to` moves them.

    N targets need logits (a non-zero weight, or part of a scored answer), A of them belong to scored answers,
    D documents are scored.

    Attributes:
        input_ids: (rows, T) int64. One row holding all documents, or one full-length document a row.
        position_ids: (rows, T) int64, restarting at each part of a document; transformers isolates documents by it.
        logit_positions: (N,) int64 positions of the only row, or None: all positions of all rows.
        targets: (N,) int64.
        weights: (N,) float32.
        is_synthetic: (N,) bool.
        answer_targets: (A,) int64 index into the N targets.
        answer_document: (A,) int64 scored document of each answer target.
        document_example: (D,) int64 sample of the rank's batch each scored document belongs to.
        document_is_first: (D,) bool, whether it holds the example's first answer.
        cu_seq_lens: (parts + 1,) int32, where each part of a document begins in the concatenated rows, and the end of
            all; most documents are one part.
        lengths: inputs of each part, on the host wherever the tensors are.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    logit_positions: torch.Tensor | None
    targets: torch.Tensor
    weights: torch.Tensor
    is_synthetic: torch.Tensor
    answer_targets: torch.Tensor
    answer_document: torch.Tensor
    document_example: torch.Tensor
    document_is_first: torch.Tensor
    cu_seq_lens: torch.Tensor
    lengths: tuple[int, ...]

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "MicroBatch":
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)

    def tensors(self) -> dict[str, torch.Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as plain arrays: between processes each tensor would need a file descriptor, which is slow."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return _from_arrays, (values | {name: tensor.numpy() for name, tensor in self.tensors().items()},)

    def to(self, device: torch.device) -> "MicroBatch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "MicroBatch":
        """Called by the DataLoader where batches go to a GPU."""
        return self._map(torch.Tensor.pin_memory)


def fill(lengths: Sequence[int], num_tokens: int, *, one_document_a_row: bool = False) -> list[list[int]]:
    """Divide documents among few micro-batches: each goes, the longest first, into the first one with room for it.

    Args:
        lengths: inputs of each document.
        num_tokens: inputs that a micro-batch may have, with the padding of its rows. A longer document gets its own.
        one_document_a_row: whether documents are padded to the longest of their micro-batch.

    Returns:
        the numbers of the documents of each micro-batch, in order.
    """
    filled: list[list[int]] = []
    rooms: list[int] = []  # tokens, or rows of the length of the first document
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        length = lengths[number]
        taken = 1 if one_document_a_row else length
        place = next((n for n, room in enumerate(rooms) if room >= taken), len(filled))
        if place == len(filled):
            filled.append([])
            rooms.append(num_tokens // length if one_document_a_row else num_tokens)
        filled[place].append(number)
        rooms[place] -= taken
    return [sorted(numbers) for numbers in filled]


@dataclass(frozen=True)
class Part:
    """The documents of one micro-batch, and the number of the sample of each."""

    documents: list[Document]
    numbers: list[int]

    def pack(self) -> MicroBatch:
        return pack([[document] for document in self.documents], self.numbers)


def divide(samples: Sequence[Sequence[Document]], num_tokens: int, *, one_document_a_row: bool = False) -> list[Part]:
    """Divide the documents of some samples, which are numbered from 0, among few micro-batches; see `fill`."""
    if one_document_a_row:
        samples = [[part for document in sample for part in document.split()] for sample in samples]
    documents = [document for sample in samples for document in sample]
    numbers = [number for number, sample in enumerate(samples) for _ in sample]
    lengths = [len(document.weights) for document in documents]
    filled = fill(lengths, num_tokens, one_document_a_row=one_document_a_row)
    return [Part([documents[n] for n in chosen], [numbers[n] for n in chosen]) for chosen in filled]


def pack(samples: Sequence[Sequence[Document]], numbers: Sequence[int] | None = None) -> MicroBatch:
    """Pack documents of some samples end to end into one micro-batch.

    Args:
        samples: documents of each sample, in order.
        numbers: of the samples within the rank's batch; by default they count from 0.
    """
    # All targets, end to end, and where each document ends.
    documents = [document for sample in samples for document in sample]
    targets = np.concatenate([document.tokens[1:] for document in documents])
    weights = np.concatenate([document.weights for document in documents])
    lengths = np.array([len(document.weights) for document in documents])
    ends = np.cumsum(lengths)

    # The answer of a scored document is its last targets. Only weighted and scored targets need logits.
    scored = [n for n, document in enumerate(documents) if document.answer_targets]
    in_answer = [np.arange(ends[n] - documents[n].answer_targets, ends[n]) for n in scored]
    answer = np.concatenate(in_answer) if scored else np.empty(0, np.int64)
    needed = weights != 0
    needed[answer] = True
    needed[-1] |= not needed.any()  # without logits there would be no graph to go backward through

    # Documents of equal length, all of whose targets are needed, get a row each. Otherwise all share one row.
    parts = [length for document in documents for length in document.lengths]  # of each that attends to itself only
    are_alike = needed.all() and (lengths == lengths[0]).all() and len(parts) == len(documents)
    rows = len(documents) if are_alike else 1
    examples = np.repeat(range(len(samples)) if numbers is None else numbers, [len(sample) for sample in samples])
    return MicroBatch(
        input_ids=_tensor(np.concatenate([document.tokens[:-1] for document in documents])).view(rows, -1),
        position_ids=_tensor(np.concatenate([np.arange(length) for length in parts])).view(rows, -1),
        logit_positions=None if needed.all() else _tensor(np.flatnonzero(needed)),
        targets=_tensor(targets[needed]),
        weights=_tensor(weights[needed]),
        is_synthetic=_tensor(np.repeat([document.is_synthetic for document in documents], lengths)[needed]),
        answer_targets=_tensor((np.cumsum(needed) - 1)[answer]),
        answer_document=_tensor(np.repeat(np.arange(len(scored)), [len(part) for part in in_answer]).astype(np.int64)),
        document_example=_tensor(examples[scored].astype(np.int64)),
        document_is_first=_tensor(np.array([documents[n].is_first_answer for n in scored], bool)),
        cu_seq_lens=_tensor(np.cumsum([0, *parts]).astype(np.int32)),
        lengths=tuple(parts),
    )


def idle_micro_batch() -> MicroBatch:
    """Work without effect, for a rank that must join the forwards of others: under ZeRO 3 they are collective."""
    return pack([[Document(np.zeros(2, np.int64), np.zeros(1, np.float32))]])


def _from_arrays(values: dict[str, Any]) -> MicroBatch:
    tensors = {name: _tensor(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    return MicroBatch(**{**values, **tensors})


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
