"""Blocks of fresh examples: pure functions of their numbers, full, and apart from all splits."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_tools.corpus.tokenizer import load_tokenizer
from data_tools.samples.fresh_mixin import FreshMixinReader, fresh_mixin
from data_tools.samples.readers import Sample, training_source
from data_tools.search.splits import SPLIT_NAMES, Splits, find_data_dir, prompt_digest
from tests.support import tiny

SEQ_LEN = tiny.SEQ_LEN


def reader(scratch: Path, mode: str = "packed", loss: str = "lm", seed: int = 3) -> FreshMixinReader:
    splits = Splits(find_data_dir(scratch))
    tokenizer = load_tokenizer(str(scratch / "tokenizer"))
    return fresh_mixin(splits, tokenizer, seq_len=SEQ_LEN, seed=seed, mode=mode, loss=loss)


def tokens(samples: Sequence[Sample]) -> list[list[list[int]]]:
    return [[document.tokens.tolist() for document in sample.documents] for sample in samples]


@pytest.mark.parametrize("mode", ["packed", "single"])
def test_a_block_is_a_function_of_its_number(tiny_scratch: Path, mode: str) -> None:
    whole = tokens(reader(tiny_scratch, mode).read(range(40), 0))
    elsewhere = pickle.loads(pickle.dumps(reader(tiny_scratch, mode)))  # as a loader worker gets it
    for picked in ([17], [39, 2, 16], [15, 14]):
        assert tokens(elsewhere.read(picked, 0)) == [whole[block] for block in picked]
    assert tokens(reader(tiny_scratch, mode, seed=4).read([0], 0)) != whole[:1]


def test_no_example_is_one_of_a_split_or_of_pptrain_or_occurs_twice(tiny_scratch: Path) -> None:
    fresh, splits = reader(tiny_scratch), Splits(find_data_dir(tiny_scratch))
    prompts = [each.example.input_text for block in fresh.examples_of(range(160)) for each in block]
    held = {row["input_text"] for name in SPLIT_NAMES for row in splits.rows(name)}
    source = fresh.stream.source
    sizes = {"max_input_size": source.max_input_size, "max_lookahead": source.max_lookahead}
    streamed = training_source(None, **sizes, seed=source.seed)
    stream = {streamed.example(index, splits.meta.stage).input_text for index in range(300)}
    assert len({*prompts}) == len(prompts) > 200
    assert not {*prompts} & (held | stream)
    assert all(prompt_digest(prompt) in fresh.stream.reserved for prompt in held)


def test_a_reserved_prompt_is_passed_over(tiny_scratch: Path) -> None:
    fresh = reader(tiny_scratch, "single")
    ((first,),) = fresh.examples_of([5])
    reserved = {prompt_digest(first.example.input_text)}
    ((other,),) = replace(fresh, stream=replace(fresh.stream, reserved=reserved)).examples_of([5])
    assert (first.attempt, other.attempt) == (0, 1) and other.example != first.example


def test_blocks_are_full_and_hold_what_is_drawn(tiny_scratch: Path) -> None:
    fresh = reader(tiny_scratch)
    blocks = fresh.examples_of(range(48))
    sizes = [[len(each.encoded.prompt) + len(each.encoded.answers[0]) - 1 for each in block] for block in blocks]
    assert all(0 < sum(block) <= SEQ_LEN for block in sizes)
    for first in (0, 16, 32):  # of each group all but one of the examples that were drawn
        numbers = sorted(each.index for block in blocks[first : first + 16] for each in block)
        assert numbers == [*range(numbers[0], numbers[0] + len(numbers))]
    every = fresh.examples_of(range(256))
    drawn = [len(each.encoded.prompt) + len(each.encoded.answers[0]) - 1 for block in every for each in block]
    assert fresh.fill() == pytest.approx(sum(drawn) / (256 * SEQ_LEN))
    alone = reader(tiny_scratch, "single")
    assert np.mean(drawn) == pytest.approx(alone.fill() * SEQ_LEN, rel=0.1)  # not only short ones are taken
    assert fresh.fill() > 0.6 > alone.fill()


@pytest.mark.parametrize("loss", ["lm", "perseq"])
def test_weights_are_those_of_the_loss(tiny_scratch: Path, loss: str) -> None:
    for sample in reader(tiny_scratch, loss=loss).read(range(4), 0):
        for document in sample.documents:
            total = SEQ_LEN if loss == "perseq" else len(document.weights)
            assert document.weights.sum() == pytest.approx(total) and document.is_synthetic
            assert document.answer_targets == 0  # nothing is scored
