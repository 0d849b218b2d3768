"""The stream: order, promotion at an exact index whatever was prefetched, errors, workers."""

import gc
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_tools.errors import UserError
from data_tools.generator import ExampleSource
from data_tools.splits import prompt_digest
from ds_train.layout import Layout
from ds_train.readers import StreamReader
from ds_train.samplers import CurriculumSampler, Source
from ds_train.state import Cursor
from ds_train.stream import RankBatch, RankBatchBuilder, Stream
from tests.ds_train.helpers import assert_same_micro_batch, tiny_tokenizer
from tests.ds_train.launching import REPOSITORY

LAYOUT = Layout(world_size=2, micro_batch=2, grad_accum=2)
CPU = torch.device("cpu")


def _reader(**changes) -> StreamReader:
    source = ExampleSource(max_input_size=48, max_lookahead=8, seed=1337, purpose="train")
    reader = StreamReader(source, tiny_tokenizer(), 4096, frozenset(), 1337, "first", "any")
    return replace(reader, **changes)


def _stream(num_workers: int, rank: int = 0, reader: StreamReader | None = None) -> Stream:
    builder = RankBatchBuilder({Source.STREAM: reader or _reader()}, LAYOUT, rank)
    return Stream(CurriculumSampler(LAYOUT.global_batch), builder, num_workers, CPU)


def _assert_equal(batch: RankBatch, other: RankBatch) -> None:
    assert (batch.plan.step, batch.plan.stage, batch.plan.next_cursor) == (
        other.plan.step,
        other.plan.stage,
        other.plan.next_cursor,
    )
    assert np.array_equal(batch.plan.indices, other.plan.indices)
    for ours, theirs in zip(batch.micro_batches, other.micro_batches, strict=True):
        assert_same_micro_batch(ours, theirs)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_change_nothing(num_workers: int) -> None:
    reference, stream = _stream(0, rank=1), _stream(num_workers, rank=1)
    for each in (reference, stream):
        each.restart(Cursor(stage=3), 0)
    for _ in range(7):
        _assert_equal(stream.next(), reference.next())


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("consumed_before", [1, 2, 5])
def test_promotion_takes_effect_at_the_exact_index(num_workers: int, consumed_before: int) -> None:
    stream = _stream(num_workers)
    stream.restart(Cursor(stage=2), 0)
    for _ in range(consumed_before):
        batch = stream.next()
    promoted = replace(batch.plan.next_cursor, stage=3)
    stream.restart(promoted, batch.plan.step)
    first = stream.next()
    expected_first = consumed_before * LAYOUT.global_batch
    assert first.plan.step == consumed_before + 1
    assert first.plan.stage == 3
    assert first.plan.indices.tolist() == list(range(expected_first, expected_first + LAYOUT.global_batch))
    fresh = _stream(0)
    fresh.restart(promoted, batch.plan.step)
    _assert_equal(first, fresh.next())
    _assert_equal(stream.next(), fresh.next())


def test_sample_can_be_regenerated_alone() -> None:
    reader = _reader()
    together = reader.read([10, 11, 12], stage=4)
    for index, sample in zip([10, 11, 12], together, strict=True):
        (alone,) = _reader().read([index], stage=4)
        for ours, theirs in zip(alone.documents, sample.documents, strict=True):
            assert np.array_equal(ours.tokens, theirs.tokens)


def test_reserved_and_too_long_candidates_are_replaced_at_the_same_index() -> None:
    reader = _reader()
    first = reader.source.example(5, 4, 0)
    reserved = _reader(reserved={prompt_digest(first.input_text)})
    (sample,) = reserved.read([5], 4)
    second = reader.source.example(5, 4, 1)
    assert reader.tokenizer.decode(sample.documents[0].tokens).startswith(second.input_text)
    assert sample.overflows == []

    lengths = {attempt: _longest(reader, 5, attempt) for attempt in range(40)}
    limit = min(lengths[0] - 1, sorted(lengths.values())[5])
    accepted = next(attempt for attempt, length in lengths.items() if length <= limit)
    (short,) = _reader(seq_len=limit).read([5], 4)
    assert [(o.index, o.attempt, o.num_tokens) for o in short.overflows] == [
        (5, attempt, lengths[attempt]) for attempt in range(accepted)
    ]
    prompt = reader.source.example(5, 4, accepted).input_text
    assert reader.tokenizer.decode(short.documents[0].tokens).startswith(prompt)


def _longest(reader: StreamReader, index: int, attempt: int) -> int:
    example = reader.source.example(index, 4, attempt)
    answer = max(len(reader.tokenizer.encode(f" {text}")) for text in example.output_texts)
    return len(reader.tokenizer.encode(example.input_text)) + answer + 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_impossible_sample_is_one_clear_error(num_workers: int) -> None:
    stream = _stream(num_workers, reader=_reader(seq_len=20))
    stream.restart(Cursor(stage=2), 0)
    with pytest.raises(
        UserError, match=r"stage 2 \(alpha 0\.25.*500 attempts.*100% were longer than seq_len 20"
    ) as error:
        stream.next()
    assert "Traceback" not in str(error.value)


def test_loading_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    stream = _stream(2)
    stream.restart(Cursor(stage=1), 0)
    stream.next()
    stream.restart(Cursor(stage=2), 1)
    stream.next()
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_of_a_forgotten_stream_end() -> None:
    """They ignore SIGTERM, which is all that they get when the garbage collector finds their stream in a cycle."""
    stream = _stream(2)
    stream.restart(Cursor(stage=3), 0)
    stream.next()
    workers = stream._batches._workers
    stream.itself = stream
    del stream
    gc.collect()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0


def test_interpreter_ends_with_workers_still_there() -> None:
    """They ignore SIGTERM, with which the interpreter would end them, and then wait for them for ever."""
    program = """
from ds_train.state import Cursor
from tests.ds_train.test_stream import _stream
stream = _stream(2)
stream.restart(Cursor(stage=3), 0)
stream.next()
"""
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True, timeout=100)
