"""Documents, loss weights and packed micro-batches, against plain lists and loops."""

import pickle
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch

from data_tools.samples.documents import Document, encode_examples, example_documents, target_weights
from data_tools.samples.readers import Overflow, Sample, c4_document
from data_tools.samples.samplers import Cursor, MixinShare, MixtureSampler, SampleKind
from ds_train.config.layout import Layout
from ds_train.step.micro_batch import C4, SYNTHETIC, pack
from ds_train.step.stream import RankBatchBuilder
from tests.support.tiny_models import assert_same_micro_batch, encoded, random_example, random_ids, tiny_tokenizer

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


def random_samples(seed: int) -> list[list[Document]]:
    """Samples of every kind: scored or not, with several answers, weights of zero, C4."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(int(rng.integers(1, 6))):
        kind = rng.integers(5)
        if kind == 0:
            samples.append([c4_document(np.array(random_ids(rng, int(rng.integers(2, 30))), np.int64))])
            continue
        example = random_example(rng, num_answers=int(rng.integers(1, 4)))
        samples.append(
            example_documents(
                example,
                loss=("lm", "answer", "weighted")[rng.integers(3)],
                trained=int(rng.integers(len(example.answers))),
                scored=(None, "first", "any")[rng.integers(3)],
            )
        )
    return samples


@dataclass
class ExpectedTarget:
    """One target that needs logits, found by walking over the documents."""

    row_position: int
    position: int
    context: int
    target: int
    weight: float
    is_synthetic: bool
    scored_document: int | None


def expected_targets(samples: list[list[Document]]) -> list[ExpectedTarget]:
    found, row_position, num_scored = [], 0, 0
    for document in (document for sample in samples for document in sample):
        num_targets = len(document.tokens) - 1
        for n in range(num_targets):
            in_answer = n >= num_targets - document.answer_targets
            if document.weights[n] or in_answer:
                scored = num_scored if in_answer else None
                context, target = int(document.tokens[n]), int(document.tokens[n + 1])
                weight = float(document.weights[n])
                found.append(
                    ExpectedTarget(row_position, n, context, target, weight, document.is_synthetic, scored)
                )  # fmt: skip
            row_position += 1
        num_scored += document.answer_targets > 0
    return found


@pytest.mark.parametrize("seed", range(60))
def test_packing_agrees_with_walking_over_the_documents(seed):
    samples = random_samples(seed)
    documents = [document for sample in samples for document in sample]
    batch = pack(samples, first_example=10)
    expected = expected_targets(samples)

    inputs = [token for document in documents for token in document.tokens[:-1].tolist()]
    assert batch.input_ids.flatten().tolist() == inputs  # nothing but the documents: no padding, no last token
    positions = [n for document in documents for n in range(len(document.tokens) - 1)]
    assert batch.position_ids.flatten().tolist() == positions

    assert batch.targets.tolist() == [e.target for e in expected]
    assert batch.weights.tolist() == [e.weight for e in expected]
    assert batch.is_synthetic.tolist() == [e.is_synthetic for e in expected]
    where = list(range(len(inputs))) if batch.logit_positions is None else batch.logit_positions.tolist()
    assert where == [e.row_position for e in expected]  # exactly the needed logits, none for zero-weight prompts
    assert [inputs[at] for at in where] == [e.context for e in expected]
    assert [positions[at] for at in where] == [e.position for e in expected]

    scored = [(n, e.scored_document) for n, e in enumerate(expected) if e.scored_document is not None]
    assert batch.answer_targets.tolist() == [n for n, _ in scored]
    assert batch.answer_document.tolist() == [document for _, document in scored]
    owners = [10 + n for n, sample in enumerate(samples) for document in sample if document.answer_targets]
    assert batch.document_example.tolist() == owners
    first = [document.is_first_answer for document in documents if document.answer_targets]
    assert batch.document_is_first.tolist() == first


def test_dtypes_of_a_micro_batch():
    for seed in range(5):
        batch = pack(random_samples(seed))
        for name in ("input_ids", "position_ids", "targets", "answer_targets", "answer_document", "document_example"):
            assert getattr(batch, name).dtype == torch.int64, name
        assert batch.weights.dtype == torch.float32
        assert batch.is_synthetic.dtype == batch.document_is_first.dtype == torch.bool


def test_moving_a_micro_batch_keeps_it():
    batch = pack(random_samples(3))
    assert_same_micro_batch(batch.to(torch.device("cpu")), batch)
    assert_same_micro_batch(pickle.loads(pickle.dumps(batch)), batch)


def c4_sample(first: int, length: int = 9) -> list[Document]:
    return [c4_document(np.arange(first, first + length, dtype=np.int64))]


def test_equal_c4_blocks_are_stacked_not_joined():
    batch = pack([c4_sample(0), c4_sample(20), c4_sample(40)])
    assert batch.input_ids.tolist() == [list(range(start, start + 8)) for start in (0, 20, 40)]
    assert batch.position_ids.tolist() == [list(range(8))] * 3
    assert batch.logit_positions is None
    assert batch.targets.tolist() == [n for start in (0, 20, 40) for n in range(start + 1, start + 9)]
    assert not batch.is_synthetic.any() and batch.weights.eq(1).all()
    assert len(batch.document_example) == len(batch.answer_targets) == 0


def test_unequal_documents_are_joined_in_one_row():
    batch = pack([c4_sample(0), c4_sample(20, 5)])
    assert batch.input_ids.tolist() == [[*range(8), *range(20, 24)]]
    assert batch.position_ids.tolist() == [[*range(8), *range(4)]]


def test_a_block_of_seq_len_plus_one_tokens_is_one_document():
    block = np.arange(2049) % 60
    document = c4_document(block)
    batch = pack([[document]])
    assert batch.input_ids.shape == (1, 2048)
    assert batch.input_ids[0].tolist() == block[:-1].tolist() and batch.targets.tolist() == block[1:].tolist()


class ExamplesByIndex:
    """A reader of examples and C4 blocks that depend on their index only."""

    def __init__(self, kind: str, loss: str = "lm", scored: str | None = None) -> None:
        self.kind, self.loss, self.scored = kind, loss, scored

    def read(self, indices, stage):
        return [self.sample(index) for index in indices]

    def sample(self, index: int) -> Sample:
        rng = np.random.default_rng([index, self.kind == "c4"])
        if self.kind == "c4":
            return Sample([c4_document(np.array(random_ids(rng, 33), np.int64))])
        example = random_example(rng, num_answers=1 + index % 3)
        documents = example_documents(example, loss=self.loss, seq_len=32, scored=self.scored)
        return Sample(documents, [Overflow(index, 0, 99)] if index % 5 == 0 else [])


def rank_batches(layout: Layout, loss: str, scored: str | None = None):
    share = MixinShare(0.5, 0.5, "constant", 10)
    sampler = MixtureSampler(layout.global_batch, 3, share, num_c4_blocks=100, num_mixin_blocks=50, mixin_fill=0.5)
    plan = sampler.plan(Cursor(), 1)
    readers = {SampleKind.C4: ExamplesByIndex("c4"), SampleKind.MIXIN: ExamplesByIndex("mixin", loss, scored)}
    return plan, [RankBatchBuilder(readers, layout, rank).build(plan) for rank in range(layout.world_size)]


@pytest.mark.parametrize("layout", [Layout(1, 24, 1), Layout(2, 3, 4), Layout(8, 1, 3), Layout(24, 1, 1)], ids=str)
@pytest.mark.parametrize("loss", ["lm", "answer", "weighted", "perseq"])
def test_rank_batches_add_up_to_the_global_batch(layout, loss):
    plan, batches = rank_batches(layout, loss, scored="any")
    kinds = {SampleKind.C4: ExamplesByIndex("c4"), SampleKind.MIXIN: ExamplesByIndex("mixin", loss, "any")}
    samples = [kinds[SampleKind(s)].sample(i) for s, i in zip(plan.sources, plan.indices, strict=True)]
    whole = expected_targets([sample.documents for sample in samples])

    parts = [micro_batch for batch in batches for micro_batch in batch.micro_batches]
    assert all(len(batch.micro_batches) == layout.grad_accum for batch in batches)
    assert torch.cat([part.targets for part in parts]).tolist() == [e.target for e in whole]
    assert torch.cat([part.weights for part in parts]).tolist() == [e.weight for e in whole]

    weights = sum(batch.weights for batch in batches)
    for kind, is_synthetic in ((C4, False), (SYNTHETIC, True)):
        assert weights[kind] == pytest.approx(sum(e.weight for e in whole if e.is_synthetic == is_synthetic), rel=1e-12)
    overflows = [overflow for batch in batches for overflow in batch.overflows]
    assert overflows == [overflow for sample in samples for overflow in sample.overflows]
    assert sum(batch.num_examples for batch in batches) == layout.global_batch
    for batch in batches:
        named = torch.cat([part.document_example for part in batch.micro_batches]).tolist()
        assert named == sorted(named) and all(0 <= number < batch.num_examples for number in named)


@pytest.mark.parametrize("loss", ["lm", "answer", "weighted", "perseq"])
def test_real_tokens_do_not_depend_on_the_loss(loss):
    """The prompt of a synthetic example is read, also where only its answer is trained; scored copies do not count."""
    plan, (batch,) = rank_batches(Layout(1, 24, 1), loss, scored="any")
    examples = [i for s, i in zip(plan.sources, plan.indices, strict=True) if s == SampleKind.MIXIN]
    reader = ExamplesByIndex("mixin")
    real = sum(len(reader.sample(index).documents[0].tokens) - 1 for index in examples)
    assert batch.tokens.tolist() == [32 * (24 - len(examples)), real]
