"""Turn sample indices into documents. Readers are pure in (index, stage) and run inside loader workers."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from data_tools.errors import UserError
from data_tools.generator import MAX_ATTEMPTS, ExampleSource
from data_tools.rng import CounterStream
from data_tools.shards import PackedBlocks
from data_tools.splits import SplitRows, prompt_digest
from data_tools.tokenizer import TextTokenizer
from ds_train.documents import Document, EncodedExample, encode_examples, example_documents
from ds_train.mixin_table import MixinTable


@dataclass(frozen=True, slots=True)
class Overflow:
    """A candidate of sample ``index`` that was longer than seq_len."""

    index: int
    attempt: int
    num_tokens: int


@dataclass(frozen=True)
class Sample:
    """One sample of a global batch: its documents, and the candidates that were passed over for it."""

    documents: list[Document]
    overflows: list[Overflow] = field(default_factory=list)


class Reader(Protocol):
    def read(self, indices: Sequence[int], stage: int) -> list[Sample]: ...


@dataclass(frozen=True)
class StreamReader:
    """SyntheticNL: sample ``index`` of the training stream at a stage, whoever asks and whenever.

    A candidate that is reserved or longer than seq_len is replaced by the next attempt of the same index.
    """

    source: ExampleSource
    tokenizer: TextTokenizer
    seq_len: int
    reserved: Container[bytes]
    seed: int
    train_answer: str
    accuracy: str

    def read(self, indices: Sequence[int], stage: int) -> list[Sample]:
        samples: dict[int, Sample] = {}
        overflows: dict[int, list[Overflow]] = {index: [] for index in indices}
        pending = list(indices)
        for attempt in range(MAX_ATTEMPTS):
            candidates = [self.source.example(index, stage, attempt) for index in pending]
            encoded = encode_examples(
                self.tokenizer, [c.input_text for c in candidates], [c.output_texts for c in candidates]
            )
            for index, candidate, example in zip(pending, candidates, encoded, strict=True):
                if example.longest > self.seq_len:
                    overflows[index].append(Overflow(index, attempt, example.longest))
                elif prompt_digest(candidate.input_text) not in self.reserved:
                    samples[index] = Sample(self._documents(example, index, stage, attempt), overflows[index])
            pending = [index for index in pending if index not in samples]
            if not pending:
                return [samples[index] for index in indices]
        too_long = len(overflows[pending[0]]) / MAX_ATTEMPTS
        raise UserError(
            f"sample {pending[0]} of stage {stage} (alpha {stage / self.source.max_lookahead:.4f}): none of "
            f"{MAX_ATTEMPTS} attempts was usable, {too_long:.0%} were longer than seq_len {self.seq_len}, "
            "the rest were reserved by eval, test or mixin. Use a larger --seq_len, or splits with a smaller "
            "max_input_size."
        )

    def _documents(self, example: EncodedExample, index: int, stage: int, attempt: int) -> list[Document]:
        trained = 0
        if self.train_answer == "random":
            trained = CounterStream(self.seed, "train/answer", index, stage, attempt).below(len(example.answers))
        return example_documents(example, loss="weighted", trained=trained, scored=self.accuracy)


@dataclass(frozen=True)
class C4Reader:
    """Packed block ``index``: one document of seq_len inputs and seq_len targets."""

    blocks: PackedBlocks

    def read(self, indices: Sequence[int], stage: int) -> list[Sample]:
        return [Sample([c4_document(self.blocks.block(index))]) for index in indices]


def c4_document(block: np.ndarray) -> Document:
    """A block of seq_len + 1 tokens as a document; every target weighs 1."""
    return Document(block, np.ones(len(block) - 1, np.float32), is_synthetic=False)


@dataclass(frozen=True)
class MixinReader:
    """Synthetic block ``index``: the whole mixin examples that the table puts into it, each its own document."""

    rows: SplitRows
    table: MixinTable
    tokenizer: TextTokenizer
    loss: str

    def read(self, indices: Sequence[int], stage: int) -> list[Sample]:
        members = [self.table.examples_of(index) for index in indices]
        rows = [self.rows[row] for block in members for row in block]
        encoded = iter(
            encode_examples(self.tokenizer, [r["input_text"] for r in rows], [r["output_texts"][:1] for r in rows])
        )
        return [
            Sample([document for _ in block for document in example_documents(next(encoded), loss=self.loss)])
            for block in members
        ]
