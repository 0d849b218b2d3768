"""What the readers make of an example: the answers that are trained on, and the targets that weigh."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from data_tools.samples.documents import Document
from data_tools.samples.readers import StreamReader
from tests.support.tiny_models import stream_reader

Trained = tuple[tuple[int, ...], tuple[int, ...]]


def trained(reader: StreamReader, indices: range, stage: int = 8) -> list[Trained]:
    """Prompt and answer that each sample trains on, in tokens."""
    found = []
    for sample in reader.read([*indices], stage):
        (document,) = (document for document in sample.documents if document.weights.any())
        tokens = tuple(document.tokens.tolist())
        found.append((tokens[: -document.answer_targets], tokens[-document.answer_targets :]))
    return found


@pytest.mark.parametrize("train_answer", ["first", "random"])
def test_shuffled_answers_are_those_of_the_stage_and_none_keeps_its_own(train_answer: str) -> None:
    valid = trained(stream_reader(train_answer=train_answer), range(64))
    shuffled = trained(stream_reader(train_answer=train_answer, answers="shuffled"), range(64))
    assert [prompt for prompt, _ in shuffled] == [prompt for prompt, _ in valid]
    for first in range(0, 64, 2):  # each pair, so any stage that begins and ends with pairs
        pair = slice(first, first + 2)
        assert Counter(answer for _, answer in shuffled[pair]) == Counter(answer for _, answer in valid[pair])
    assert not any(ours == theirs for (_, ours), (_, theirs) in zip(shuffled, valid, strict=True))


@pytest.mark.parametrize("indices", [[7], [6, 9], [3, 2, 4]])
def test_shuffled_samples_are_pure_functions_of_their_index(indices: list[int]) -> None:
    whole = stream_reader(answers="shuffled").read([*range(12)], 3)
    for index, sample in zip(indices, stream_reader(answers="shuffled").read(indices, 3), strict=True):
        assert_same_documents(sample.documents, whole[index].documents)


def test_a_prompt_too_long_for_its_new_answer_loses_its_beginning() -> None:
    first, second = sorted(stream_reader().candidates([0, 1], 8), key=lambda each: len(each.encoded.prompt))
    length = second.encoded.longest
    answers = [np.append(np.arange(1, 9), answer) for answer in first.encoded.answers]  # longer by eight
    longer = replace(first, encoded=replace(first.encoded, answers=answers))
    sample = stream_reader(seq_len=length).sample(second, 8, longer)
    assert max(len(document.tokens) for document in sample.documents) == length
    (document,) = (document for document in sample.documents if document.weights.any())
    kept = document.tokens[: -document.answer_targets]
    assert 0 < len(second.encoded.prompt) - len(kept) <= 10
    assert np.array_equal(kept, second.encoded.prompt[-len(kept) :])


@pytest.mark.parametrize("loss", ["weighted", "answer", "lm"])
def test_loss_decides_which_targets_weigh(loss: str) -> None:
    for sample in stream_reader(loss=loss).read([*range(8)], 5):
        document = sample.documents[0]
        total, answer = len(document.weights), document.answer_targets
        rest, on_answer = {"weighted": (1, 1 + total / answer), "answer": (0, 1), "lm": (1, 1)}[loss]
        expected = np.array([rest] * (total - answer) + [on_answer] * answer, np.float32)
        assert np.array_equal(document.weights, expected)


def assert_same_documents(ours: list[Document], theirs: list[Document]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert np.array_equal(our.tokens, their.tokens) and np.array_equal(our.weights, their.weights)
        assert (our.answer_targets, our.is_first_answer) == (their.answer_targets, their.is_first_answer)
