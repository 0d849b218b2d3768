"""A trained and exported model, used by others: transformers' generate, and lm-evaluation-harness."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_tools.base.errors import UserError
from data_tools.corpus.tokenizer import load_tokenizer
from data_tools.samples.documents import EncodedExample, encode_examples, example_documents
from data_tools.search.splits import Splits, find_data_dir
from ds_train import export
from ds_train.checkpoints.manifest import choose_checkpoint
from ds_train.checkpoints.weights import find_weights, model_with_weights, saved_seq_len
from ds_train.model.causal_lm import load_model_config, prepare_config
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import pack
from tests.support import tiny
from tests.support.launching import REPOSITORY, launch

RUN = "exported_use"
pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def scratch(tiny_scratch: Path) -> Path:
    """A model that is right sometimes: answers are one of two tokens."""
    flags = "--max_steps 30 --global_batch 16 --micro_batch 16 --lr 5e-3 --mixed_precision no --num_workers 0".split()
    done = launch("ds_train/pptrain.py", *tiny.flags(tiny_scratch), *flags, "--run_name", RUN, num_ranks=1)
    assert done.returncode == 0, done.stdout[-4000:]
    export.main([str(tiny_scratch / RUN), str(tiny_scratch / "out")])
    return tiny_scratch


@pytest.fixture(scope="module")
def ours(scratch: Path) -> PackedLM:
    """The trained model as evaluate builds it from the checkpoint."""
    weights = find_weights(str(scratch / RUN))
    config = load_model_config(str(weights.description))
    how: Any = {"keep_dropout": False, "scratch": False}
    return PackedLM(
        model_with_weights(weights, prepare_config(config, seq_len=tiny.SEQ_LEN, vocab_size=64, **how))
    ).eval()


@pytest.fixture(scope="module")
def rows(scratch: Path) -> list[dict[str, Any]]:
    return list(Splits(find_data_dir(scratch)).rows("test"))


@pytest.fixture(scope="module")
def encoded(scratch: Path, rows: list[dict[str, Any]]) -> list[EncodedExample]:
    tokenizer = load_tokenizer(str(scratch / "tokenizer"))
    return encode_examples(tokenizer, [row["input_text"] for row in rows], [row["output_texts"] for row in rows])


@contextmanager
def logits_of(model: PackedLM) -> Iterator[list[torch.Tensor]]:
    """The logits of each forward within the block."""
    found: list[torch.Tensor] = []
    hook = model.causal_lm.register_forward_hook(lambda *call: found.append(call[-1].logits[0]))
    with torch.no_grad():
        yield found
    hook.remove()


def test_generation_is_right_where_evaluation_is(
    scratch: Path, ours: PackedLM, rows: list[dict[str, Any]], encoded: list[EncodedExample]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(scratch / "out")
    tokenizer = AutoTokenizer.from_pretrained(scratch / "out")
    outcomes = []
    for row, example in zip(rows, encoded, strict=True):
        prompt = tokenizer(row["input_text"], return_tensors="pt")
        assert prompt["input_ids"][0].tolist() == example.prompt.tolist()
        made = model.generate(
            **prompt, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        generated = made.sequences[0, len(example.prompt) :].tolist()
        with logits_of(ours) as found:
            right = ours(pack([example_documents(example, loss="weighted", scored="any")]))[2]
        answer_logits = found[0][len(example.prompt) - 1]  # of the only document's, or the first's, first answer token
        torch.testing.assert_close(made.logits[0][0], answer_logits, rtol=1e-4, atol=1e-4)
        assert generated[0] == answer_logits.argmax()
        is_right = any(generated[: len(answer)] == answer.tolist() for answer in example.answers)
        assert is_right == bool(right.any())
        outcomes.append(is_right)
    assert 0 < sum(outcomes) < len(outcomes), "both kinds must have been seen"


def test_the_example_in_the_readme(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(r"```python\n(.*?)```", (REPOSITORY / "ds_train" / "README.md").read_text(), re.DOTALL)
    assert code
    splits = find_data_dir(scratch)
    text = code[1].replace("/scratch/me/exported", str(scratch / "out"))
    text = text.replace("/scratch/me/data/nl_splits/mis384_look64_seed12345", str(splits))
    assert "/scratch/me" not in text
    exec(text, {})
    answer, verdict = capsys.readouterr().out.split()[-2:]
    assert answer and verdict in ("True", "False")


def test_export_tells_how_long_texts_may_be(scratch: Path) -> None:
    out = find_weights(str(scratch / "out"))
    assert saved_seq_len(out) == saved_seq_len(find_weights(str(scratch / RUN))) == tiny.SEQ_LEN
    assert AutoTokenizer.from_pretrained(out.path).model_max_length == tiny.SEQ_LEN


@pytest.mark.parametrize(("length", "expected"), [(None, None), (int(1e30), None), (1024, 1024)])
def test_directories_of_others(tmp_path: Path, length: int | None, expected: int | None) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert saved_seq_len(find_weights(str(tmp_path))) is None
    config = {} if length is None else {"model_max_length": length}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert saved_seq_len(find_weights(str(tmp_path))) == expected


def test_a_hugging_face_model_may_be_named_like_a_checkpoint(
    scratch: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    step = tmp_path / "step_00000003"
    shutil.copytree(scratch / "out", step)
    with caplog.at_level("INFO"):
        weights = find_weights(str(step))
    assert (weights.path, weights.is_checkpoint) == (step, False) and "but a Hugging Face model" in caplog.text
    config = load_model_config(str(weights.description))
    how: Any = {"keep_dropout": False, "scratch": False}
    model_with_weights(weights, prepare_config(config, seq_len=tiny.SEQ_LEN, vocab_size=64, **how))
    with pytest.raises(UserError, match=r"Hugging Face model, with weights to start from but no training state"):
        choose_checkpoint(tmp_path, "auto", str(step))
    (step / "config.json").unlink()
    with pytest.raises(UserError, match=r"it has no manifest.json"):
        find_weights(str(step))


@pytest.fixture(scope="module")
def harness(scratch: Path) -> Any:
    reason = 'lm-evaluation-harness is not installed: pip install --editable ".[harness]"'
    pytest.importorskip("lm_eval", reason=reason)
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(scratch / "out"), device="cpu", batch_size=4)


class TestHarness:
    """lm-evaluation-harness opens an export as any Hugging Face model."""

    @staticmethod
    def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        from lm_eval.api.instance import Instance

        return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]

    def test_context_is_the_trained_one(self, harness: Any) -> None:
        assert harness.max_length == tiny.SEQ_LEN

    def test_loglikelihood_is_ours(
        self, harness: Any, ours: PackedLM, rows: list[dict[str, Any]], encoded: list[EncodedExample]
    ) -> None:
        asked = [(row["input_text"], f" {row['output_texts'][0]}") for row in rows]
        found = harness.loglikelihood(self.requests("loglikelihood", asked), disable_tqdm=True)
        for (value, is_greedy), example in zip(found, encoded, strict=True):
            with logits_of(ours) as logits:
                ours(pack([example_documents(example, loss="weighted")]))
            prompt, answer = len(example.prompt), torch.from_numpy(example.answers[0][:-1])  # without EOS
            scores = logits[0][prompt - 1 : prompt - 1 + len(answer)].log_softmax(-1)
            assert value == pytest.approx(scores.gather(1, answer[:, None]).sum().item(), abs=1e-4)
            assert is_greedy == bool((scores.argmax(-1) == answer).all())
        assert len({is_greedy for _, is_greedy in found}) == 2

    def test_generate_until(self, harness: Any, scratch: Path, rows: list[dict[str, Any]]) -> None:
        model = AutoModelForCausalLM.from_pretrained(scratch / "out")
        tokenizer = AutoTokenizer.from_pretrained(scratch / "out")
        how = {"until": ["."], "max_gen_toks": 4, "do_sample": False}
        asked = [(row["input_text"], how) for row in rows[:6]]
        found = harness.generate_until(self.requests("generate_until", asked), disable_tqdm=True)
        for text, row in zip(found, rows, strict=False):
            prompt = tokenizer(row["input_text"], return_tensors="pt")
            tokens = model.generate(**prompt, max_new_tokens=4, do_sample=False)[0, prompt["input_ids"].shape[1] :]
            assert text == tokenizer.decode(tokens, skip_special_tokens=True).split(".")[0] and text
