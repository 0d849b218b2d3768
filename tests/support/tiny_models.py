"""A tokenizer of single characters, models of a few thousand weights, random documents."""

import string
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, PretrainedConfig, Qwen3Config

from data_tools.corpus.tokenizer import TextTokenizer
from data_tools.samples.documents import EncodedExample
from data_tools.samples.readers import StreamReader
from data_tools.search.generator import ExampleGenerator
from ds_train.step.micro_batch import MicroBatch

ARCHITECTURES = ("gpt_neox", "llama", "gpt2")
VOCAB_SIZE = 64
EOS = "<|endoftext|>"


def tiny_tokenizer() -> TextTokenizer:
    """Every character is a token (``Ġ`` stands for a space); the EOS id is 0, as in Pythia."""
    alphabet = [EOS, *string.ascii_letters, *"Ġ.,:'Ċ"]
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([EOS])
    return TextTokenizer(backend, EOS, "tiny")


def stream_reader(**changes: Any) -> StreamReader:
    """Samples of the stream at miniature sizes, in characters."""
    source = ExampleGenerator(max_input_size=48, max_lookahead=8, seed=1337, purpose="train")
    reader = StreamReader(source, tiny_tokenizer(), 4096, frozenset(), 1337, "first", "any")
    return replace(reader, **changes)


def tiny_config(architecture: str, *, attention: str = "sdpa", positions: int = 256) -> PretrainedConfig:
    """Two layers of width 32, without dropout, and with weights large enough that tokens matter to one another."""
    common = {"vocab_size": VOCAB_SIZE, "use_cache": False, "initializer_range": 0.3}
    heads = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    config: PretrainedConfig
    if architecture == "gpt_neox":
        config = GPTNeoXConfig(max_position_embeddings=positions, **heads, **common)
    elif architecture == "llama":
        config = LlamaConfig(max_position_embeddings=positions, num_key_value_heads=2, **heads, **common)
    elif architecture == "qwen3":  # heads that are wider together than the model
        own = {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}
        config = Qwen3Config(max_position_embeddings=positions, **own, **heads, **common)
    else:
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = GPT2Config(n_positions=positions, n_layer=2, n_embd=32, n_head=4, n_inner=64, **no_dropout, **common)
    config._attn_implementation = attention
    return config


def random_ids(rng: np.random.Generator, count: int) -> list[int]:
    """Token ids other than EOS (0)."""
    return rng.integers(1, VOCAB_SIZE, count).tolist()


def random_example(rng: np.random.Generator, num_answers: int = 1, longest_prompt: int = 24) -> EncodedExample:
    """An example of random tokens: a prompt of 1 … longest_prompt, answers of 1 … 4 and EOS."""
    answers = [[*random_ids(rng, int(rng.integers(1, 5))), 0] for _ in range(num_answers)]
    return encoded(random_ids(rng, int(rng.integers(1, longest_prompt + 1))), answers)


def encoded(prompt: list[int], answers: list[list[int]]) -> EncodedExample:
    """An example from plain lists."""
    return EncodedExample(np.array(prompt, np.int64), [np.array(answer, np.int64) for answer in answers])


def assert_same_micro_batch(batch: MicroBatch, other: MicroBatch) -> None:
    ours, theirs = batch.tensors(), other.tensors()
    assert ours.keys() == theirs.keys() and batch.lengths == other.lengths
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
