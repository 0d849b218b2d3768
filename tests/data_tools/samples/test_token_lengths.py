"""Lengths with Pythia's tokenizer are those of the researchers' own generator (its medians: 1348, 704, 2657)."""

from pathlib import Path

import numpy as np
import pytest

from data_tools.corpus.tokenizer import load_tokenizer
from data_tools.search.generator import ExampleGenerator

SAMPLES = 400


@pytest.mark.parametrize(
    ("max_input_size", "max_lookahead", "stage", "median", "share_above_2048"),
    [(384, 64, 64, 1348, 0.0), (384, 64, 32, 704, 0.0), (768, 128, 128, 2657, 0.75)],
)
def test_lengths_and_overflow(
    gpt_neox_tokenizer_path: Path,
    max_input_size: int,
    max_lookahead: int,
    stage: int,
    median: int,
    share_above_2048: float,
) -> None:
    tokenizer = load_tokenizer(str(gpt_neox_tokenizer_path))
    source = ExampleGenerator(max_input_size=max_input_size, max_lookahead=max_lookahead, seed=1, purpose="lengths")
    examples = [source.example(index, stage) for index in range(SAMPLES)]
    prompts = tokenizer.encode_batch([example.input_text for example in examples])
    answers = [max(map(len, tokenizer.encode_batch([f" {a}" for a in example.output_texts]))) for example in examples]
    lengths = np.array([len(prompt) + answer + 1 for prompt, answer in zip(prompts, answers, strict=True)])
    assert np.median(lengths) == pytest.approx(median, rel=0.05)
    assert (lengths > 2048).mean() == pytest.approx(share_above_2048, abs=0.07 if share_above_2048 else 0)
