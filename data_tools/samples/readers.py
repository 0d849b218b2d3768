"""Readers turn sample indices into documents: pure functions of (index, stage), called inside loader workers."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from data_tools.base.errors import UserError
from data_tools.base.rng import CounterStream
from data_tools.corpus.shards import PackedBlocks
from data_tools.corpus.tokenizer import TextTokenizer
from data_tools.samples.documents import Document, EncodedExample, encode_examples, example_documents
from data_tools.samples.mixin_table import MixinTable
from data_tools.search.examples import Example, GeneratorChoice
from data_tools.search.generator import MAX_ATTEMPTS, ExampleGenerator
from data_tools.search.splits import SplitRows, prompt_digest


@dataclass(frozen=True, slots=True)
class Overflow:
    """A candidate of sample ``index`` that was longer than seq_len."""

    index: int
    attempt: int
    num_tokens: int


@dataclass(frozen=True)
class Sample:
    """One sample of a global batch: its documents, and the candidates that were rejected as too long."""

    documents: list[Document]
    overflows: list[Overflow] = field(default_factory=list)


class Reader(Protocol):
    """Reads the samples of one kind."""

    def read(self, indices: Sequence[int], stage: int) -> list[Sample]: ...


def training_source(
    generator: GeneratorChoice | None, *, max_input_size: int, max_lookahead: int, seed: int
) -> ExampleGenerator:
    """The generator of the training stream's candidates.

    Args:
        generator: which one, and what it is asked for; None for the built-in one.
        max_input_size, max_lookahead: those of the splits that the run is evaluated on.
        seed: the run's seed.
    """
    return ExampleGenerator(
        generator, max_input_size=max_input_size, max_lookahead=max_lookahead, seed=seed, purpose="train"
    )


@dataclass(frozen=True)
class Candidate:
    """The example that became sample ``index``: the first attempt that was neither too long nor reserved."""

    index: int
    attempt: int
    example: Example
    encoded: EncodedExample
    overflows: list[Overflow]


@dataclass(frozen=True)
class StreamReader:
    """Reads the synthetic training stream: sample ``index`` at a stage is a pure function of (index, stage).

    The next attempt at the same index replaces a candidate that is reserved or longer than seq_len.

    Attributes:
        reserved: digests of prompts that training must not use.
        train_answer: which answer is trained on, ``first`` or ``random``.
        accuracy: which answers are scored, ``any`` or ``first``.
        loss: which targets weigh, see `target_weights`.
        answers: ``valid``, or ``shuffled``: samples 2k and 2k + 1 have each other's answers, which nothing in their
            prompts tells. All else is that of the valid stream, and each pair has the same answers as there.
    """

    source: ExampleGenerator
    tokenizer: TextTokenizer
    seq_len: int
    reserved: Container[bytes]
    seed: int
    train_answer: str
    accuracy: str
    loss: str = "weighted"
    answers: str = "valid"

    def read(self, indices: Sequence[int], stage: int) -> list[Sample]:
        if self.answers == "valid":
            return [self.sample(candidate, stage) for candidate in self.candidates(indices, stage)]
        pairs = sorted({*indices, *map(_partner, indices)})
        found = dict(zip(pairs, self.candidates(pairs, stage), strict=True))
        return [self.sample(found[index], stage, found[_partner(index)]) for index in indices]

    def candidates(self, indices: Sequence[int], stage: int) -> list[Candidate]:
        """Choose the example of each sample.

        Raises:
            UserError: no attempt at a sample is usable.
        """
        found: dict[int, Candidate] = {}
        overflows: dict[int, list[Overflow]] = {index: [] for index in indices}
        pending = list(indices)
        for attempt in range(MAX_ATTEMPTS):
            # One attempt at each sample that still has none; all of them are tokenized together.
            examples = [self.source.example(index, stage, attempt) for index in pending]
            encoded = encode_examples(
                self.tokenizer, [e.input_text for e in examples], [e.output_texts for e in examples]
            )
            for index, example, tokens in zip(pending, examples, encoded, strict=True):
                if tokens.longest > self.seq_len:
                    overflows[index].append(Overflow(index, attempt, tokens.longest))
                elif prompt_digest(example.input_text) not in self.reserved:
                    found[index] = Candidate(index, attempt, example, tokens, overflows[index])
            pending = [index for index in pending if index not in found]
            if not pending:
                return [found[index] for index in indices]
        too_long = len(overflows[pending[0]]) / MAX_ATTEMPTS
        raise UserError(
            f"sample {pending[0]} of stage {stage} (alpha {stage / self.source.max_lookahead:.4f}): none of "
            f"{MAX_ATTEMPTS} attempts was usable, {too_long:.0%} were longer than seq_len {self.seq_len}, "
            "the rest were reserved by eval, test or mixin. Use a larger --seq_len, or splits with a smaller "
            "max_input_size."
        )

    def sample(self, candidate: Candidate, stage: int, answered: Candidate | None = None) -> Sample:
        """Make the documents of an example: the answer to train on, and those to score.

        Args:
            answered: the candidate whose answers it gets, if not its own. A prompt that is too long with them loses
                its first tokens.
        """
        answered = answered or candidate
        encoded = replace(answered.encoded, prompt=candidate.encoded.prompt)
        encoded = replace(encoded, prompt=encoded.prompt[max(0, encoded.longest - self.seq_len) :])
        trained = 0
        if self.train_answer == "random":
            address = (answered.index, stage, answered.attempt)
            trained = CounterStream(self.seed, "train/answer", *address).below(len(encoded.answers))
        documents = example_documents(encoded, loss=self.loss, trained=trained, scored=self.accuracy)
        return Sample(documents, candidate.overflows)


def _partner(index: int) -> int:
    """The other sample of the pair 2k, 2k + 1."""
    return index ^ 1


@dataclass(frozen=True)
class C4Reader:
    """Reads packed block ``index``: one document of seq_len inputs and seq_len targets.

    Attributes:
        is_masked: whether the documents in a block are isolated from each other.
    """

    blocks: PackedBlocks
    is_masked: bool = False

    def read(self, indices: Sequence[int], stage: int) -> list[Sample]:
        eos_id = self.blocks.meta.eos_id if self.is_masked else None
        return [Sample([c4_document(self.blocks.block(index), eos_id)]) for index in indices]


def c4_document(block: np.ndarray, eos_id: int | None = None) -> Document:
    """A block of seq_len + 1 tokens as a document; every target weighs 1.

    Args:
        eos_id: the token that ends documents, where those in the block are parts of it; None: it is one.
    """
    num_inputs = len(block) - 1
    parts: tuple[int, ...] = ()
    if eos_id is not None:
        starts = np.flatnonzero(block[: num_inputs - 1] == eos_id) + 1
        parts = tuple(np.diff([0, *starts, num_inputs]).tolist())
    return Document(block, np.ones(num_inputs, np.float32), is_synthetic=False, parts=parts)


@dataclass(frozen=True)
class MixinReader:
    """Reads synthetic block ``index``: the mixin examples that the table puts into it, each a document."""

    rows: SplitRows
    table: MixinTable
    tokenizer: TextTokenizer
    loss: str
    seq_len: int

    def read(self, indices: Sequence[int], stage: int) -> list[Sample]:
        members = [self.table.examples_of(index) for index in indices]
        rows = [self.rows[row] for block in members for row in block]
        encoded = iter(
            encode_examples(self.tokenizer, [r["input_text"] for r in rows], [r["output_texts"][:1] for r in rows])
        )
        return [
            Sample(
                [
                    document
                    for _ in block
                    for document in example_documents(next(encoded), loss=self.loss, seq_len=self.seq_len)
                ]
            )
            for block in members
        ]
