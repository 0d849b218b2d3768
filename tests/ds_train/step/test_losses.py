"""Packed rows against padded ones, the loss against double precision, flags against a greedy reader."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_tools.samples.documents import Document, EncodedExample, example_documents
from data_tools.samples.readers import c4_document
from ds_train.config.layout import Layout
from ds_train.step.losses import AnswerCorrectness, PackedLM
from ds_train.step.micro_batch import C4, SYNTHETIC, divide, pack
from tests.support.packed_models import documents_of, mixed_samples, packed_logits, tiny_model
from tests.support.tiny_models import ARCHITECTURES, VOCAB_SIZE, encoded, random_example, random_ids

EVERY_MODEL = pytest.mark.parametrize("attention", ["packed", "sdpa", "eager"])
EVERY_ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny tensors are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def attention_of(model: PackedLM, name: str) -> Iterator[None]:
    config = model.causal_lm.config
    before, config._attn_implementation = config._attn_implementation, name
    yield
    config._attn_implementation = before


def padded_logits(model: PackedLM, documents: list[Document]) -> list[torch.Tensor]:
    """Logits (targets, vocab) of each document from the plain way: a padded row each, and an attention mask."""
    width = max(len(document.tokens) - 1 for document in documents)
    input_ids = torch.zeros(len(documents), width, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, document in enumerate(documents):
        length = len(document.tokens) - 1
        input_ids[row, :length] = torch.from_numpy(document.tokens[:-1])
        mask[row, :length] = 1
    with attention_of(model, "sdpa"):  # packed attention takes no masks
        logits = model.causal_lm(input_ids=input_ids, attention_mask=mask).logits
    return [logits[row, : len(document.tokens) - 1] for row, document in enumerate(documents)]


def nll_of(logits: torch.Tensor, document: Document) -> torch.Tensor:
    """Negative log-likelihood (targets,) in double precision."""
    targets = torch.from_numpy(document.tokens[1:])
    return -torch.log_softmax(logits.double(), -1)[torch.arange(len(targets)), targets]


def plain_sums(model: PackedLM, samples: list[list[Document]]) -> tuple[torch.Tensor, float, list[float]]:
    """Weighted loss sum (with a graph), sum of weights, loss sums of C4 and of synthetic documents."""
    total, weight, by_source = torch.zeros((), dtype=torch.float64), 0.0, [0.0, 0.0]
    documents = documents_of(samples)
    for document, logits in zip(documents, padded_logits(model, documents), strict=True):
        part = (nll_of(logits, document) * torch.from_numpy(document.weights).double()).sum()
        total, weight = total + part, weight + float(document.weights.sum(dtype=np.float64))
        by_source[SYNTHETIC if document.is_synthetic else C4] += float(part.detach())
    return total, weight, by_source


def gradients(model: PackedLM) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest distance of two gradients of a tensor, relative to the largest gradient norm of all."""
    scale = max(float(gradient.norm()) for gradient in other.values())
    return max(float((one[name] - other[name]).norm()) for name in other) / scale


def needed_logits(model: PackedLM, documents: list[Document]) -> torch.Tensor:
    """The logits that are needed, from padded rows."""
    parts = []
    for document, logits in zip(documents, padded_logits(model, documents), strict=True):
        needed = document.weights != 0
        needed[len(needed) - document.answer_targets :] = True
        parts.append(logits[torch.from_numpy(needed)])
    return torch.cat(parts).detach()


@EVERY_ARCHITECTURE
@EVERY_MODEL
def test_packed_rows_equal_padded_rows(architecture, attention):
    model, samples = tiny_model(architecture, attention), mixed_samples()
    assert model.causal_lm.config._attn_implementation == attention
    batch = pack(samples)
    assert batch.input_ids.shape[0] == 1
    torch.testing.assert_close(
        packed_logits(model, batch), needed_logits(model, documents_of(samples)), atol=1e-5, rtol=1e-5
    )

    expected, weight, by_source = plain_sums(model, samples)
    (expected / weight).backward()
    expected_gradients = gradients(model)
    loss_sum, source_sums, _ = model(batch)
    (loss_sum / weight).backward()
    assert loss_sum.item() == pytest.approx(expected.item(), rel=1e-6)
    assert source_sums.tolist() == pytest.approx(by_source, rel=1e-5)
    assert min(by_source) > 1  # both sources are there
    assert largest_difference(gradients(model), expected_gradients) < 1e-5


@EVERY_ARCHITECTURE
@EVERY_MODEL
def test_stacked_blocks_equal_single_ones(architecture, attention):
    model, rng = tiny_model(architecture, attention), np.random.default_rng(2)
    samples = [[c4_document(np.array(random_ids(rng, 33), np.int64))] for _ in range(3)]
    batch = pack(samples)
    assert batch.input_ids.shape == (3, 32)
    expected, weight, _ = plain_sums(model, samples)
    (expected / weight).backward()
    expected_gradients = gradients(model)
    loss_sum, source_sums, is_right = model(batch)
    (loss_sum / weight).backward()
    assert loss_sum.item() == pytest.approx(expected.item(), rel=1e-6)
    assert source_sums.tolist() == pytest.approx([expected.item(), 0])
    assert is_right.shape == (0,)
    assert largest_difference(gradients(model), expected_gradients) < 1e-5


@EVERY_ARCHITECTURE
@EVERY_MODEL
def test_documents_are_isolated_by_where_they_begin(architecture, attention):
    """Without the restarts the very same row gives other logits: the tests above would notice leakage."""
    model, samples = tiny_model(architecture, attention), mixed_samples()
    batch = pack(samples)
    length = batch.input_ids.shape[1]
    one = {"cu_seq_lens": torch.tensor([0, length], dtype=torch.int32), "lengths": (length,)}
    leaking = replace(batch, **(one if attention == "packed" else {"position_ids": torch.arange(length)[None]}))
    assert (packed_logits(model, leaking) - packed_logits(model, batch)).abs().max() > 0.1


@EVERY_ARCHITECTURE
def test_a_document_does_not_feel_its_neighbours(architecture):
    model, samples = tiny_model(architecture), mixed_samples()
    others = mixed_samples(seed=9)
    before = packed_logits(model, pack(samples))
    for middle in range(len(samples)):
        changed = [sample if n == middle else others[n] for n, sample in enumerate(samples)]
        start = sum(len(pack([sample]).targets) for sample in changed[:middle])
        first = sum(len(pack([sample]).targets) for sample in samples[:middle])
        count = len(pack([samples[middle]]).targets)
        after = packed_logits(model, pack(changed))[start : start + count]
        torch.testing.assert_close(after, before[first : first + count], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", [Layout(1, 2, 8), Layout(2, 2, 8), Layout(3, 1, 8), Layout(8, 1, 8)], ids=str)
def test_gradient_is_that_of_the_whole_batch_in_every_layout(layout):
    """DeepSpeed's arithmetic: mean over ranks of the sum over forwards, of loss sum × ranks / weight."""
    model, samples = tiny_model("gpt_neox"), mixed_samples()
    expected, weight, _ = plain_sums(model, samples)
    (expected / weight).backward()
    expected_gradients = gradients(model)

    scale = layout.world_size / weight
    loss, means = 0.0, []
    for rank in range(layout.world_size):
        mine = samples[layout.rank_slice(rank)]
        for first in range(0, len(mine), layout.micro_batch):
            batch = pack(mine[first : first + layout.micro_batch])
            loss_sum, _, _ = model(batch)
            (loss_sum * scale / layout.world_size).backward()
            loss += loss_sum.item() / weight
            means.append(loss_sum.item() / batch.weights.sum().item())
    assert loss == pytest.approx(expected.item() / weight, rel=1e-6)
    assert abs(np.mean(means) - loss) > 1e-3  # the micro-batches are uneven, so this is not the same
    assert largest_difference(gradients(model), expected_gradients) < 1e-5


def test_perseq_is_the_mean_of_the_means_of_sequences():
    model, rng = tiny_model("gpt_neox"), np.random.default_rng(6)
    examples = [random_example(rng) for _ in range(5)]
    block = c4_document(np.array(random_ids(rng, 41), np.int64))
    documents = [block, *(d for e in examples for d in example_documents(e, loss="perseq", seq_len=40))]
    nlls = [
        nll_of(logits, document).detach()
        for logits, document in zip(padded_logits(model, documents), documents, strict=True)
    ]
    means = [nlls[0].mean(), *(n[-len(e.answers[0]) :].mean() for n, e in zip(nlls[1:], examples, strict=True))]
    batch = pack([[document] for document in documents])
    loss_sum, _, _ = model(batch)
    assert (loss_sum / batch.weights.sum()).item() == pytest.approx(float(np.mean(means)), rel=1e-5)


def greedy_answer(model: PackedLM, prompt: list[int], length: int) -> list[int]:
    """The most likely next token, ``length`` times."""
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(int(model.causal_lm(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def examples_with_some_right_answers(model: PackedLM) -> list[EncodedExample]:
    rng = np.random.default_rng(4)
    examples = []
    for number in range(24):
        prompt = random_ids(rng, int(rng.integers(1, 20)))
        right = greedy_answer(model, prompt, int(rng.integers(1, 4)))
        spoilt = [[*right[:at], (right[at] + 1) % VOCAB_SIZE, *right[at + 1 :]] for at in range(len(right))]
        wrong = spoilt[number % len(spoilt)]
        examples.append(
            encoded(
                prompt,
                ([right], [wrong], [wrong, right], [right, wrong], [wrong, spoilt[0], right], [wrong, spoilt[-1]])[
                    number % 6
                ],
            )
        )  # fmt: skip
    return examples


@pytest.mark.parametrize("micro_batch", [1, 3, 24])
@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt2"])
def test_flags_agree_with_a_greedy_reader(architecture, micro_batch):
    model = tiny_model(architecture).eval()
    examples = examples_with_some_right_answers(model)
    is_right = [[greedy_answer(model, e.prompt, len(a)) == a.tolist() for a in e.answers] for e in examples]
    by_any, by_first = [any(flags) for flags in is_right], [flags[0] for flags in is_right]
    assert by_any != by_first and 0 < sum(by_first) < sum(by_any) < len(examples)

    samples = [
        example_documents(e, loss="weighted", trained=n % len(e.answers), scored="any") for n, e in enumerate(examples)
    ]
    flags = AnswerCorrectness.none(len(examples), torch.device("cpu"))
    for first in range(0, len(samples), micro_batch):
        batch = pack(samples[first : first + micro_batch], range(first, min(first + micro_batch, len(samples))))
        flags.add(batch, model(batch)[2])
    assert (flags.by_any.tolist(), flags.by_first.tolist()) == (by_any, by_first)

    only_first = AnswerCorrectness.none(len(examples), torch.device("cpu"))
    batch = pack([example_documents(e, loss="weighted", scored="first") for e in examples])
    only_first.add(batch, model(batch)[2])
    assert only_first.by_any.tolist() == only_first.by_first.tolist() == by_first


def test_scored_copies_leave_loss_and_gradient_alone():
    model = tiny_model("gpt_neox")
    rng = np.random.default_rng(6)
    examples = [random_example(rng, num_answers=3) for _ in range(4)]
    results = []
    for scored in (None, "first", "any"):
        loss_sum, _, _ = model(pack([example_documents(e, loss="weighted", scored=scored) for e in examples]))
        loss_sum.backward()
        results.append((loss_sum.item(), gradients(model)))
    for loss, found in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        assert largest_difference(found, results[0][1]) < 1e-5


def test_prompts_without_weight_get_no_logits():
    model, rng = tiny_model("gpt_neox"), np.random.default_rng(7)
    examples = [random_example(rng, longest_prompt=60) for _ in range(5)]
    batch = pack([example_documents(example, loss="answer") for example in examples])
    num_answer_tokens = sum(len(example.answers[0]) for example in examples)
    assert packed_logits(model, batch).shape == (num_answer_tokens, VOCAB_SIZE)
    assert batch.input_ids.shape[1] == sum(len(e.prompt) + len(e.answers[0]) - 1 for e in examples)


@pytest.mark.parametrize("one_document_a_row", [False, True])
def test_documents_of_a_masked_block_are_read_as_if_alone(one_document_a_row: bool) -> None:
    """All targets stay; a block is in one micro-batch, and in one row where the model keeps documents apart."""
    rng = np.random.default_rng(3)
    model = tiny_model("gpt_neox", "packed")
    model.one_document_a_row = one_document_a_row
    blocks = np.array([random_ids(rng, 33) for _ in range(3)], np.int64).clip(min=1)
    blocks[0, [0, 9, 10, 31]] = blocks[1, [20, 32]] = 0  # the end of a document; nothing follows the last of each
    samples = [[c4_document(block, eos_id=0)] for block in blocks]
    assert [document.lengths for (document,) in samples] == [(1, 9, 1, 21), (21, 11), (32,)]
    split = [document.split() for (document,) in samples]
    assert [len(documents) for documents in split] == [4, 2, 1]
    parts = divide(samples, 64, one_document_a_row=one_document_a_row)
    assert len(parts) == 2 or one_document_a_row
    for batch in (part.pack() for part in parts):
        assert batch.cu_seq_lens.diff().tolist() == [*batch.lengths]
    found = sum(float(model(part.pack())[1].sum()) for part in parts)
    expected, weight, _ = plain_sums(model, split)
    assert weight == 96 and found == pytest.approx(expected.item(), rel=1e-6)
    joined = sum(float(model(part.pack())[1].sum()) for part in divide([[c4_document(b)] for b in blocks], 64))
    assert abs(joined - found) > 1e-3
