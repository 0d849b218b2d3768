"""Packed micro-batches, against plain lists and loops."""

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from data_tools.samples.documents import Document, example_documents
from data_tools.samples.readers import Overflow, Sample, c4_document
from data_tools.samples.samplers import Cursor, MixinShare, MixtureSampler, SampleKind
from ds_train.config.layout import Layout
from ds_train.step.micro_batch import C4, SYNTHETIC, fill, idle_micro_batch, pack
from ds_train.step.stream import RankBatchBuilder
from tests.support.packed_models import tiny_model
from tests.support.tiny_models import (
    assert_same_micro_batch,
    random_example,
    random_ids,
)


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
    batch = pack(samples, range(10, 10 + len(samples)))
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


SEQ_LEN = 32  # of the C4 blocks


def rank_batches(layout: Layout, loss: str, scored: str | None = None, **how: bool):
    share = MixinShare(0.5, 0.5, "constant", 10)
    sampler = MixtureSampler(layout.global_batch, 3, share, num_c4_blocks=100, num_mixin_blocks=50, mixin_fill=0.5)
    plan = sampler.plan(Cursor(), 1)
    readers = {SampleKind.C4: ExamplesByIndex("c4"), SampleKind.MIXIN: ExamplesByIndex("mixin", loss, scored)}
    return plan, [
        RankBatchBuilder(readers, layout, rank, SEQ_LEN, **how).build(plan) for rank in range(layout.world_size)
    ]


@pytest.mark.parametrize("layout", [Layout(1, 24, 24), Layout(2, 3, 24), Layout(7, 1, 24), Layout(24, 1, 24)], ids=str)
@pytest.mark.parametrize("loss", ["lm", "answer", "weighted", "perseq"])
def test_rank_batches_add_up_to_the_global_batch(layout, loss):
    plan, batches = rank_batches(layout, loss, scored="any")
    kinds = {SampleKind.C4: ExamplesByIndex("c4"), SampleKind.MIXIN: ExamplesByIndex("mixin", loss, "any")}
    samples = [kinds[SampleKind(s)].sample(i) for s, i in zip(plan.sources, plan.indices, strict=True)]
    whole = expected_targets([sample.documents for sample in samples])

    parts = [micro_batch for batch in batches for micro_batch in batch.micro_batches]
    targets, weights = (torch.cat([getattr(part, name) for part in parts]).tolist() for name in ("targets", "weights"))
    assert sorted(zip(targets, weights, strict=True)) == sorted((e.target, e.weight) for e in whole)

    weights = sum(batch.weights for batch in batches)
    for kind, is_synthetic in ((C4, False), (SYNTHETIC, True)):
        assert weights[kind] == pytest.approx(sum(e.weight for e in whole if e.is_synthetic == is_synthetic), rel=1e-12)
    overflows = [overflow for batch in batches for overflow in batch.overflows]
    assert overflows == [overflow for sample in samples for overflow in sample.overflows]
    assert sum(batch.num_examples for batch in batches) == layout.global_batch
    for rank, batch in enumerate(batches):
        first = layout.rank_slice(rank).start
        for part, positions in zip(batch.micro_batches, batch.positions, strict=True):
            assert part.input_ids.numel() <= layout.micro_batch * SEQ_LEN
            assert {first + number for number in part.document_example.tolist()} <= set(positions)
        assert {n for positions in batch.positions for n in positions} == {first + n for n in range(batch.num_examples)}


def test_fewer_forwards_than_samples_would_take():
    _, (batch,) = rank_batches(Layout(1, 2, 24), "lm")
    num_tokens = sum(part.input_ids.numel() for part in batch.micro_batches)
    assert num_tokens / (2 * SEQ_LEN) <= len(batch.micro_batches) < 12


def test_padding_counts_where_a_document_gets_its_own_row():
    _, (batch,) = rank_batches(Layout(1, 2, 24), "lm", scored="any", one_document_a_row=True)
    areas = [len(part.lengths) * max(part.lengths) for part in batch.micro_batches]
    assert max(areas) <= 2 * SEQ_LEN and max(len(part.lengths) for part in batch.micro_batches) > 2


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("one_document_a_row", [False, True])
def test_filling_keeps_every_document_once_and_leaves_little_room(seed, one_document_a_row):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 100, size=rng.integers(1, 60)).tolist()
    filled = fill(lengths, 200, one_document_a_row=one_document_a_row)
    assert sorted(n for numbers in filled for n in numbers) == list(range(len(lengths)))
    taken = [
        len(numbers) * max(lengths[n] for n in numbers) if one_document_a_row else sum(lengths[n] for n in numbers)
        for numbers in filled
    ]
    assert max(taken) <= 200 and all(numbers == sorted(numbers) for numbers in filled)
    if not one_document_a_row:  # any two would not fit into one, so at least half of all rooms is used
        assert len(filled) <= 2 * sum(lengths) / 200 + 1
    assert fill([300, 5], 200, one_document_a_row=one_document_a_row) == [[0], [1]]


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt2"])
def test_an_idle_micro_batch_has_no_effect(architecture):
    model = tiny_model(architecture)
    loss_sum, source_sums, is_right = model(idle_micro_batch())
    loss_sum.backward()
    assert loss_sum.item() == 0 and source_sums.tolist() == [0, 0] and len(is_right) == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("loss", ["lm", "answer", "weighted", "perseq"])
def test_real_tokens_do_not_depend_on_the_loss(loss):
    """The prompt of a synthetic example is read, also where only its answer is trained; scored copies do not count."""
    plan, (batch,) = rank_batches(Layout(1, 24, 24), loss, scored="any")
    examples = [i for s, i in zip(plan.sources, plan.indices, strict=True) if s == SampleKind.MIXIN]
    reader = ExamplesByIndex("mixin")
    real = sum(len(reader.sample(index).documents[0].tokens) - 1 for index in examples)
    assert batch.tokens.tolist() == [32 * (24 - len(examples)), real]
