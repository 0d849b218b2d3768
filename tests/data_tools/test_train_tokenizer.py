"""Training a small tokenizer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from data_tools.corpus.tokenizer import load_tokenizer
from data_tools.train_tokenizer import main, train_bpe
from tests.support import packing
from tests.support.paths import REPOSITORY


def test_same_bytes_whatever_the_number_of_threads(tmp_path: Path) -> None:
    corpus = packing.write_corpus(tmp_path / "corpus", packing.make_documents(300))
    contents = []
    for threads in ("1", "2"):
        out = tmp_path / threads
        command = [sys.executable, "-m", "data_tools.train_tokenizer", "--corpus", str(corpus), "--out", str(out)]
        environment = {**os.environ, "RAYON_NUM_THREADS": threads}
        subprocess.run([*command, "--vocab_size", "400"], check=True, cwd=REPOSITORY, env=environment, timeout=120)
        contents.append(packing.bytes_of(out))
    assert contents[0] == contents[1]
    tokenizer = load_tokenizer(str(tmp_path / "1"))
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.eos_token) == (400, 0, "<|endoftext|>")
    for text in ("any bytes: \x00 é 漢 😀", " leading and trailing "):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_learns_from_the_prompts_of_a_split(tmp_path: Path) -> None:
    corpus = packing.write_corpus(tmp_path / "corpus", ["aa bb"])
    rows = [{"input_text": "zyxw zyxw", "output_texts": ["a"]}] * 5 + [{"input_text": "qrst", "output_texts": ["a"]}]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--corpus", str(corpus), "--out", str(tmp_path / "out"), "--vocab_size", "270"]
    main([*arguments, "--extra", str(tmp_path / "eval.jsonl"), "--extra_rows", "5"])
    tokenizer = load_tokenizer(str(tmp_path / "out"))
    assert len(tokenizer.encode("zyxw")) == 1 and len(tokenizer.encode("qrst")) == 4
    with pytest.raises(UserError, match=r"--extra .*tokenizer.json: expected the rows of a data split"):
        main([*arguments, "--extra", str(tmp_path / "out" / "tokenizer.json")])


def test_too_small_a_vocabulary() -> None:
    with pytest.raises(UserError, match="vocab_size 256 is too small"):
        train_bpe(iter(["a"]), 256)
