"""Documents and loss weights of examples, against plain lists."""

from fractions import Fraction

import numpy as np
import pytest

from data_tools.samples.documents import encode_examples, example_documents, target_weights
from tests.support.tiny_models import encoded, tiny_tokenizer

EXAMPLE = encoded(prompt=[5, 6, 7, 8], answers=[[9, 0], [10, 11, 12, 0], [13, 0]])


def test_answers_get_a_leading_space_and_eos():
    tokenizer = tiny_tokenizer()
    prompts, answers = ["Proof: Craig is wsizko. Craig is", "A b.\n\nC is"], [["mtemfa"], ["ab", "c"]]
    first, second = encode_examples(tokenizer, prompts, answers)
    assert tokenizer.decode(first.prompt) == prompts[0] and tokenizer.decode(second.prompt) == prompts[1]
    for example, valid in ((first, answers[0]), (second, answers[1])):
        expected = [[*tokenizer.encode(f" {answer}"), tokenizer.eos_id] for answer in valid]
        assert [ids.tolist() for ids in example.answers] == expected
    assert tokenizer.decode([*first.prompt, *first.answers[0]]) == prompts[0] + " mtemfa<|endoftext|>"
    assert (first.longest, second.longest) == (len(prompts[0]) + 8, len(prompts[1]) + 4)


def test_encoding_in_one_go_or_one_by_one_is_the_same():
    tokenizer = tiny_tokenizer()
    prompts, answers = ["Ann is", "Bob is", "Cy is"], [["x"], ["y", "zz"], ["w", "v", "u"]]
    together = encode_examples(tokenizer, prompts, answers)
    alone = [encode_examples(tokenizer, [p], [a])[0] for p, a in zip(prompts, answers, strict=True)]
    for example, same in zip(together, alone, strict=True):
        assert np.array_equal(example.prompt, same.prompt)
        assert all(map(np.array_equal, example.answers, same.answers))
    assert encode_examples(tokenizer, [], []) == []


@pytest.mark.parametrize(("num_targets", "num_answer"), [(5, 2), (100, 3), (2047, 5), (3, 3), (1, 1)])
def test_target_weights_follow_the_formula(num_targets, num_answer):
    heavy = 1 + Fraction(num_targets, num_answer)
    plain = {
        "lm": [1] * num_targets,
        "answer": [0] * (num_targets - num_answer) + [1] * num_answer,
        "weighted": [1] * (num_targets - num_answer) + [heavy] * num_answer,
        "perseq": [0] * (num_targets - num_answer) + [Fraction(2048, num_answer)] * num_answer,
    }
    for loss, expected in plain.items():
        weights = target_weights(num_targets, num_answer, loss, seq_len=2048)
        assert weights.dtype == np.float32
        assert weights.tolist() == [float(np.float32(float(value))) for value in expected]


def test_the_trained_document_of_an_example():
    (document,) = example_documents(EXAMPLE, loss="weighted")
    assert document.tokens.tolist() == [5, 6, 7, 8, 9, 0]
    assert document.weights.tolist() == [1, 1, 1, 3.5, 3.5]  # 5 targets, 2 of them answer: 1 + 5/2
    assert (document.answer_targets, document.is_first_answer, document.is_synthetic) == (0, True, True)


def test_every_valid_answer_is_scored_and_one_trained():
    documents = example_documents(EXAMPLE, loss="lm", scored="any")
    assert [d.tokens.tolist() for d in documents] == [[*EXAMPLE.prompt, *answer] for answer in EXAMPLE.answers]
    assert [d.weights.tolist() for d in documents] == [[1] * 5, [0] * 7, [0] * 5]
    assert [d.answer_targets for d in documents] == [2, 4, 2]
    assert [d.is_first_answer for d in documents] == [True, False, False]


def test_scoring_the_first_answer_only():
    (document,) = example_documents(EXAMPLE, loss="lm", scored="first")
    assert (document.tokens.tolist()[4:], document.answer_targets) == ([9, 0], 2)


def test_another_answer_may_be_trained():
    documents = example_documents(EXAMPLE, loss="weighted", trained=1, scored="any")
    assert [bool(d.weights.any()) for d in documents] == [False, True, False]
    assert documents[1].weights.tolist() == [1, 1, 1] + [1 + 7 / 4] * 4
    assert [d.is_first_answer for d in documents] == [True, False, False]

    first, trained = example_documents(EXAMPLE, loss="weighted", trained=1, scored="first")
    assert (first.answer_targets, bool(first.weights.any()), first.is_first_answer) == (2, False, True)
    assert (trained.answer_targets, bool(trained.weights.any()), trained.is_first_answer) == (0, True, False)

    (only,) = example_documents(EXAMPLE, loss="weighted", trained=2)
    assert only.tokens.tolist()[4:] == [13, 0]
