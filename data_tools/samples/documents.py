"""Token documents and the loss weights of their targets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_tools.corpus.tokenizer import TextTokenizer
from data_tools.samples.word_tokens import word_tokens


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """A graph-search example in tokens: the prompt, and every valid answer with its EOS; (n,) int64 each."""

    prompt: np.ndarray
    answers: list[np.ndarray]

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest valid answer and EOS."""
        return len(self.prompt) + max(map(len, self.answers))


def encode_examples(
    tokenizer: TextTokenizer, prompts: Sequence[str], answers: Sequence[Sequence[str]]
) -> list[EncodedExample]:
    """Tokenize examples: prompt as it stands, each answer with a leading space and followed by EOS."""
    space = "" if tokenizer.prepends_space else " "
    texts = [*prompts, *(f"{space}{answer}" for valid in answers for answer in valid)]
    encoded = iter(word_tokens(tokenizer).encode_batch(texts))
    prompt_ids = [next(encoded) for _ in prompts]
    return [
        EncodedExample(prompt, [np.append(next(encoded), tokenizer.eos_id) for _ in valid])
        for prompt, valid in zip(prompt_ids, answers, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Document:
    """One sequence that attends to itself only; inputs are tokens[:-1], targets tokens[1:].

    Its inputs may consist of parts that attend to themselves only, each. All targets stay, also that of a part's last
    input, which is the first input of the next part.

    Attributes:
        tokens: (n,) int64.
        weights: (n - 1,) float32 loss weight of each target.
        answer_targets: number of last targets that are the answer with its EOS and are scored; 0 if not scored.
        is_first_answer: whether the scored answer is the example's first one.
        is_synthetic: synthetic text, as opposed to C4.
        parts: number of inputs of each part; empty: it is one.
    """

    tokens: np.ndarray
    weights: np.ndarray
    answer_targets: int = 0
    is_first_answer: bool = False
    is_synthetic: bool = True
    parts: tuple[int, ...] = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Inputs of each part."""
        return self.parts or (len(self.weights),)

    def split(self) -> "list[Document]":
        """Its parts as documents, for rows that hold one each; it is no scored answer if it has several."""
        ends = np.cumsum(self.lengths).tolist()
        if len(ends) == 1:
            return [self]
        bounds = [(end - length, end) for end, length in zip(ends, self.lengths, strict=True)]
        return [
            Document(self.tokens[first : end + 1], self.weights[first:end], is_synthetic=self.is_synthetic)
            for first, end in bounds
        ]


def target_weights(num_targets: int, answer_targets: int, loss: str, seq_len: int = 0) -> np.ndarray:
    """Loss weights (num_targets,) float32 of a synthetic document.

    ``lm``: 1 everywhere. ``answer``: 1 on the answer, else 0. ``weighted``: 1, and 1 + total / answer on the answer
    (both counted in targets), so that the answer weighs about as much as the rest. ``perseq``: ``seq_len`` in all,
    evenly on the answer, else 0, so that the answer's mean loss weighs as much as that of a C4 block.
    """
    weights = np.full(num_targets, 0.0 if loss in ("answer", "perseq") else 1.0, np.float32)
    on_answer = {"weighted": 1 + num_targets / answer_targets, "perseq": seq_len / answer_targets}
    weights[num_targets - answer_targets :] = on_answer.get(loss, 1.0)
    return weights


def example_documents(
    example: EncodedExample, *, loss: str, seq_len: int = 0, trained: int = 0, scored: str | None = None
) -> list[Document]:
    """The documents of one example: one with the answer to train on, and zero-weight ones for other scored answers.

    Args:
        loss, seq_len: see `target_weights`.
        trained: number of the answer that is trained on.
        scored: ``any`` (every valid answer), ``first`` (the first one), or None: nothing is scored.
    """
    documents = []
    for number, answer in enumerate(example.answers):
        is_scored = scored == "any" or (scored == "first" and number == 0)
        if not is_scored and number != trained:
            continue
        tokens = np.concatenate([example.prompt, answer])
        num_targets = len(tokens) - 1
        weights = np.zeros(num_targets, np.float32)
        if number == trained:
            weights = target_weights(num_targets, len(answer), loss, seq_len)
        documents.append(Document(tokens, weights, len(answer) if is_scored else 0, number == 0))
    return documents
