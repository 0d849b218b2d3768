"""The stream: order, promotion at an exact index whatever was prefetched, errors, workers."""

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from data_tools.base.errors import UserError
from data_tools.samples.readers import StreamReader
from data_tools.samples.samplers import CurriculumSampler, Cursor, SampleKind
from data_tools.search.splits import prompt_digest
from ds_train.config.layout import Layout
from ds_train.config.trainer_flags import RunFlags
from ds_train.model.causal_lm import load_model_config
from ds_train.model.flops import training_flops
from ds_train.ranks.judge import Patience
from ds_train.ranks.world import World
from ds_train.run import assembly
from ds_train.step.stream import RankBatch, RankBatchBuilder, Stream
from tests.support.tiny_models import assert_same_micro_batch, stream_reader

LAYOUT = Layout(world_size=2, micro_batch=2, global_batch=8)
CPU = torch.device("cpu")


def _stream(num_workers: int, rank: int = 0, reader: StreamReader | None = None) -> Stream:
    stream = Stream(num_workers, CPU)
    builder = RankBatchBuilder({SampleKind.STREAM: reader or stream_reader()}, LAYOUT, rank, seq_len=256)
    stream.supply(CurriculumSampler(LAYOUT.global_batch), builder)
    return stream


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
    with _stream(0, rank=1) as reference, _stream(num_workers, rank=1) as stream:
        for each in (reference, stream):
            each.restart(Cursor(stage=3), 0)
        for _ in range(7):
            _assert_equal(stream.next(), reference.next())


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("consumed_before", [1, 2, 5])
def test_promotion_takes_effect_at_the_exact_index(num_workers: int, consumed_before: int) -> None:
    with _stream(num_workers) as stream, _stream(0) as fresh:
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
        fresh.restart(promoted, batch.plan.step)
        _assert_equal(first, fresh.next())
        _assert_equal(stream.next(), fresh.next())


def test_flops_of_pythia_tiny_are_those_counted_by_hand() -> None:
    """4 layers of 128: 4·128² in attention and 8·128² behind it, biases, two norms; a last norm; 1024 × 128 logits."""
    layer = 12 * 128**2 + (4 + 4 + 1) * 128 + 2 * 2 * 128
    multiplied = 4 * layer + 2 * 128 + 1024 * 128
    flops = training_flops(load_model_config("pythia-tiny"))
    plan = CurriculumSampler(LAYOUT.global_batch).plan(Cursor(stage=4), 1)
    samples = stream_reader().read(plan.indices.tolist(), 4)
    lengths = [len(document.tokens) - 1 for sample in samples for document in sample.documents]
    by_hand = sum(6 * multiplied * n + 6 * 4 * 128 * n**2 for n in lengths)
    builders = [RankBatchBuilder({SampleKind.STREAM: stream_reader()}, LAYOUT, rank, seq_len=256) for rank in range(2)]
    assert sum(flops.of(*map(int, builder.build(plan).computed)) for builder in builders) == by_hand


def test_sample_can_be_regenerated_alone() -> None:
    reader = stream_reader()
    together = reader.read([10, 11, 12], stage=4)
    for index, sample in zip([10, 11, 12], together, strict=True):
        (alone,) = stream_reader().read([index], stage=4)
        for ours, theirs in zip(alone.documents, sample.documents, strict=True):
            assert np.array_equal(ours.tokens, theirs.tokens)


def test_reserved_and_too_long_candidates_are_replaced_at_the_same_index() -> None:
    reader = stream_reader()
    first = reader.source.example(5, 4, 0)
    reserved = stream_reader(reserved={prompt_digest(first.input_text)})
    (sample,) = reserved.read([5], 4)
    second = reader.source.example(5, 4, 1)
    assert reader.tokenizer.decode(sample.documents[0].tokens).startswith(second.input_text)
    assert sample.overflows == []

    lengths = {attempt: _longest(reader, 5, attempt) for attempt in range(40)}
    limit = min(lengths[0] - 1, sorted(lengths.values())[5])
    accepted = next(attempt for attempt, length in lengths.items() if length <= limit)
    (short,) = stream_reader(seq_len=limit).read([5], 4)
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
    with _stream(num_workers, reader=stream_reader(seq_len=20)) as stream:
        stream.restart(Cursor(stage=2), 0)
        with pytest.raises(
            UserError, match=r"stage 2 \(alpha 0\.25.*500 attempts.*100% were longer than seq_len 20"
        ) as error:
            stream.next()
    assert "Traceback" not in str(error.value)


def test_loading_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with _stream(2) as stream:
        stream.restart(Cursor(stage=1), 0)
        stream.next()
        stream.restart(Cursor(stage=2), 1)
        stream.next()
    assert torch.equal(torch.get_rng_state(), before)


def test_plans_of_an_earlier_generation_are_skipped_unread() -> None:
    with _stream(0) as stream:
        stream.restart(Cursor(stage=1), 0)
        plan = stream.next().plan
        assert stream._dataset[1, plan] is not None
        stream.restart(Cursor(stage=2), 1)
        assert stream._dataset[1, plan] is None and stream._dataset[2, plan] is not None


def test_workers_are_forked_at_once_and_end_with_the_stream() -> None:
    with _stream(2) as stream:
        workers = stream._batches._workers
        assert all(worker.is_alive() for worker in workers)
        stream.restart(Cursor(stage=3), 0)
        assert stream._batches._workers is workers
        stream.next()
    for worker in workers:  # they ignore SIGTERM, and still had plans
        worker.join(60)
        assert worker.exitcode == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_dead_worker_is_named(number: signal.Signals) -> None:
    with _stream(2) as stream:
        stream.restart(Cursor(stage=3), 0)
        stream.next()
        assert stream.lost_worker() is None
        victim = stream._batches._workers[1]
        with pytest.raises(RuntimeError):
            os.kill(victim.pid, number)
            for _ in range(1000):
                stream.next()
        assert f"loader worker {victim.pid} was killed by {number.name}; if host memory ran out" in stream.lost_worker()


def test_workers_are_forked_before_the_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads of a process group hold the interpreter's locks at any moment; a worker forked then never starts."""
    found = {}

    def join(world: World, patience: Patience) -> None:
        found.update(workers=len(multiprocessing.active_children()), group=dist.is_initialized())
        raise UserError("no further")

    monkeypatch.setattr(assembly, "supervision", join)
    optimizer = {"type": "AdamW", "params": {"torch_adam": True}}
    engine = SimpleNamespace(overrides=[], precision="fp32", deepspeed={"optimizer": optimizer})
    flags = RunFlags(scratch_dir=".")
    model = SimpleNamespace(_attn_implementation="packed")
    inputs = SimpleNamespace(
        world=World(0, 0, 1), run_flags=flags, engine=engine, defaults={}, model_config=model, phase="pptrain",
        run_directory=Path("run"), run_name="run",
    )  # fmt: skip
    with pytest.raises(UserError, match="no further"):
        assembly.launch(assembly.CheckedRun(inputs, [], {}, 2, {}, make_setup=lambda: pytest.fail("too early")))
    assert found == {"workers": 2, "group": False}
    assert not multiprocessing.active_children()
