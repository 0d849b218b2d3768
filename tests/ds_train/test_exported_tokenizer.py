"""An export holds the tokenizer of training: transformers makes the same tokens, and generates what evaluate counts."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from data_tools.corpus.tokenizer import TextTokenizer, load_tokenizer
from data_tools.samples.documents import encode_examples, example_documents
from data_tools.search.generator import Example, ExampleGenerator
from ds_train.model.causal_lm import build_model
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import pack
from tests.support.published_tokenizers import KINDS, TEXTS, published

ADDED = {
    "gpt2": [], "llama3": ["<|begin_of_text|>"], "llama2": ["<s>"], "t5": ["</s>"], "bert": ["[CLS]", "[SEP]"]
}  # fmt: skip
MAX_LENGTH = 512


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind: str, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return published(kind, tmp_path_factory.mktemp("published") / kind)


@pytest.fixture(scope="module")
def out(tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    tokenizer.save(directory, max_length=MAX_LENGTH, as_trained=True)
    return directory


def test_tokens_are_those_of_training(kind: str, tokenizer: TextTokenizer, out: Path) -> None:
    assert tokenizer.added_tokens == ADDED[kind]
    exported = AutoTokenizer.from_pretrained(out)
    for text in TEXTS[:20]:
        assert exported(text)["input_ids"] == tokenizer.encode(text)
    assert (exported.eos_token_id, exported.model_max_length) == (tokenizer.eos_id, MAX_LENGTH)
    assert exported.apply_chat_template([{"role": "user", "content": "Ann is"}], tokenize=False) == "Ann is!"


def test_an_export_fits_the_packs_of_its_tokenizer(tokenizer: TextTokenizer, out: Path, tmp_path: Path) -> None:
    """Also when it has become the tokenizer of another run, and been exported again."""
    again = load_tokenizer(str(out))
    assert again.fingerprint == tokenizer.fingerprint and again.added_tokens == []
    again.save(tmp_path)
    assert load_tokenizer(str(tmp_path)).fingerprint == tokenizer.fingerprint
    tokenizer.save(tmp_path / "plain")
    plain = load_tokenizer(str(tmp_path / "plain"))
    assert (plain.fingerprint, plain.added_tokens) == (tokenizer.fingerprint, tokenizer.added_tokens)


def test_answers_continue_their_prompts(tokenizer: TextTokenizer) -> None:
    for example in examples(10):
        (encoded,) = encode_examples(tokenizer, [example.input_text], [example.output_texts])
        for answer, tokens in zip(example.output_texts, encoded.answers, strict=True):
            assert [*encoded.prompt, *tokens[:-1]] == tokenizer.encode(f"{example.input_text} {answer}")


def examples(count: int) -> list[Example]:
    source = ExampleGenerator(max_input_size=24, max_lookahead=2, seed=1, purpose="exported tokenizer")
    return [source.example(index, 1) for index in range(count)]


def test_generation_is_right_where_evaluation_is(tokenizer: TextTokenizer, out: Path) -> None:
    """Of a model that has learnt half of its examples by heart."""
    chosen = examples(6)
    encoded = encode_examples(tokenizer, [e.input_text for e in chosen], [e.output_texts for e in chosen])
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=MAX_LENGTH, eos_token_id=tokenizer.eos_id, bos_token_id=None,
        use_cache=False,
    )  # fmt: skip
    model = PackedLM(build_model(config, seed=0))
    samples = [example_documents(example, loss="answer", scored="any") for example in encoded]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(pack(samples[:3]))[0].backward()
        optimizer.step()
    model.causal_lm.save_pretrained(out)

    generating = AutoModelForCausalLM.from_pretrained(out).eval()
    exported = AutoTokenizer.from_pretrained(out)
    outcomes = []
    for example, tokens, sample in zip(chosen, encoded, samples, strict=True):
        prompt = exported(example.input_text, return_tensors="pt")
        made = generating.generate(**prompt, max_new_tokens=20, do_sample=False)[0, len(tokens.prompt) :].tolist()
        with torch.no_grad():
            counted = bool(model(pack([sample]))[2].any())
        assert counted == any(made[: len(answer)] == answer.tolist() for answer in tokens.answers)
        outcomes.append(counted)
    assert outcomes[:3] == [True] * 3 and not all(outcomes)


def test_the_export_says_what_it_leaves_out(tokenizer: TextTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    from ds_train.checkpoints.exporting import report_tokenizer

    with caplog.at_level(logging.INFO):
        report_tokenizer(tokenizer)
    assert len(caplog.messages) == bool(tokenizer.added_tokens)
    assert all(token in caplog.text for token in tokenizer.added_tokens)
