"""The reading side of the splits: what is found, checked, refused."""

import hashlib
import json
import pickle
import re
from dataclasses import replace

import pytest

from data_tools.base.errors import UserError
from data_tools.search.examples import GeneratorChoice
from data_tools.search.generator import ExampleGenerator
from data_tools.search.splits import (
    ROW_KEYS,
    SPLIT_NAMES,
    SplitFile,
    SplitMeta,
    SplitRows,
    Splits,
    find_data_dir,
    prompt_digest,
    row_line,
    split_directory,
    split_file_name,
)

SIZES = {"eval": 3, "test": 4, "mixin": 6}


def write_splits(scratch_dir, seed=1):
    """A small split directory, written by hand."""
    directory = split_directory(scratch_dir, 65, 8, seed)
    directory.mkdir(parents=True)
    files = {}
    for name, size in SIZES.items():
        source = ExampleGenerator(max_input_size=65, max_lookahead=8, seed=seed, purpose=f"split/{name}")
        content = b"".join(row_line(source.example(i, 8), alpha=1.0, stage=8, seed=seed) for i in range(size))
        (directory / split_file_name(name)).write_bytes(content)
        files[split_file_name(name)] = SplitFile(size, len(content), hashlib.sha256(content).hexdigest())
    meta = SplitMeta(65, 8, 1.0, 8, seed, "built-in", "1", files)
    (directory / "meta.json").write_text(json.dumps(meta.to_json()))
    return directory


@pytest.fixture
def directory(tmp_path):
    return write_splits(tmp_path)


def test_a_split_directory_reads_back(directory):
    splits = Splits(directory)
    assert (splits.meta.max_input_size, splits.meta.max_lookahead, splits.meta.seed) == (65, 8, 1)
    assert splits.meta.generator == GeneratorChoice()
    for name in SPLIT_NAMES:
        source = ExampleGenerator(max_input_size=65, max_lookahead=8, seed=1, purpose=f"split/{name}")
        rows = splits.rows(name)
        assert len(rows) == SIZES[name]
        assert list(rows) == [rows[number] for number in range(len(rows))]
        for number, row in enumerate(rows):
            example = source.example(number, 8)
            assert tuple(row) == ROW_KEYS
            assert (row["input_text"], row["output_texts"]) == (example.input_text, example.output_texts)
            assert (row["alpha"], row["stage"], row["seed"]) == (1.0, 8, 1)
            assert (row["lookahead"], row["num_edges"]) == (example.lookahead, example.num_edges)


def test_rows_beyond_the_last_are_no_rows(directory):
    rows = Splits(directory).rows("eval")
    for number in (3, -1):
        with pytest.raises(IndexError):
            rows[number]


def test_rows_can_be_pickled(directory):
    rows = Splits(directory).rows("mixin")
    assert list(pickle.loads(pickle.dumps(rows))) == list(rows)


def test_every_prompt_is_reserved(directory):
    splits = Splits(directory)
    prompts = [row["input_text"] for name in SPLIT_NAMES for row in splits.rows(name)]
    assert splits.reserved_digests() == {prompt_digest(prompt) for prompt in prompts}
    assert len(splits.reserved_digests()) == sum(SIZES.values())
    assert prompt_digest(prompts[0] + " ") not in splits.reserved_digests()
    assert len(prompt_digest("")) == 16


def test_fingerprint_follows_content(tmp_path):
    first, second = write_splits(tmp_path / "a"), write_splits(tmp_path / "b")
    other = write_splits(tmp_path / "c", seed=2)
    assert Splits(first).fingerprint == Splits(second).fingerprint != Splits(other).fingerprint


def test_what_version_0_1_did_not_write_is_absent_where_it_says_nothing_new(directory):
    meta = Splits(directory).meta
    assert meta.to_json().keys().isdisjoint({"generator_task", "generator_options", "generator_examples"})
    options = {"a": 1, "b": True, "c": 0.5, "d": "x", "e": -1}
    known = replace(meta, generator_task="dfs", generator_options=options, generator_examples="0" * 64)
    again = SplitMeta.from_json(json.dumps(known.to_json()).encode(), directory)
    assert again == known and repr(again.generator_options) == repr(options)
    assert known.to_json().items() > meta.to_json().items()


def test_find_data_dir(tmp_path):
    with pytest.raises(
        UserError, match=rf"no data splits under .*build_data_splits\.py --scratch_dir {re.escape(str(tmp_path))}"
    ):
        find_data_dir(tmp_path)
    first = write_splits(tmp_path)
    (first.parent / ".mis65_look8_seed1.abc").mkdir()  # being built
    (first.parent / ".mis65_look8_seed1.abc" / "meta.json").touch()
    (first.parent / "mis384_look64_seed1").mkdir()  # half copied
    assert find_data_dir(tmp_path) == find_data_dir(str(tmp_path)) == first
    second = write_splits(tmp_path, seed=2)
    with pytest.raises(UserError, match=r"(?s)2 data splits .*--data_dir .*seed1\n.*--data_dir .*seed2"):
        find_data_dir(tmp_path)
    assert find_data_dir(tmp_path, second) == find_data_dir(tmp_path, str(second)) == second
    with pytest.raises(UserError, match="not a directory"):
        find_data_dir(tmp_path, tmp_path / "missing")


def edit_meta(directory, change):
    value = json.loads((directory / "meta.json").read_text())
    change(value)
    (directory / "meta.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda d: (d / "meta.json").unlink(), "has no meta.json: .* half copied"),
        (lambda d: (d / "meta.json").write_text("{"), "meta.json does not describe data splits .Invalid JSON"),
        (lambda d: (d / "meta.json").write_text("[]"), "Input should be an object"),
        (lambda d: edit_meta(d, lambda m: m.pop("seed")), "seed: Field required"),
        (lambda d: edit_meta(d, lambda m: m.update(lookahead=3)), "lookahead: Unexpected keyword argument"),
        (lambda d: edit_meta(d, lambda m: m["files"].pop("test.jsonl")), "'files' names .*expected those of"),
        (
            lambda d: edit_meta(d, lambda m: m["files"]["test.jsonl"].pop("sha256")),
            r"test\.jsonl\.sha256: Field required",
        ),
        (lambda d: (d / "test.jsonl").unlink(), "test.jsonl is missing"),
        (lambda d: (d / "eval.jsonl").write_text(""), "eval.jsonl holds no examples"),
        (lambda d: (d / "mixin.jsonl").write_bytes((d / "mixin.jsonl").read_bytes()[:-10]), "has .* bytes, meta.json"),
    ],
)
def test_a_damaged_directory_is_refused(directory, spoil, message):
    spoil(directory)
    with pytest.raises(UserError, match=message):
        Splits(directory)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input_text", 3), ("input_text", " "), ("output_texts", "abc"), ("output_texts", [""]), ("output_texts", [1]),
        ("output_texts", {"a": 1}), ("lookahead", "3"), ("lookahead", 1.5), ("lookahead", 10**20), ("num_edges", -1),
    ],
)  # fmt: skip
def test_values_of_a_row_have_their_kinds(tmp_path, key, value):
    row = {"input_text": "x", "output_texts": ["y"], "alpha": 1, "stage": 1, "seed": 1, "lookahead": 0, "num_edges": 1}
    line = json.dumps(row | {key: value}).encode() + b"\n"
    (tmp_path / "eval.jsonl").write_bytes(line)
    rows = SplitRows(tmp_path / "eval.jsonl", SplitFile(1, len(line), hashlib.sha256(line).hexdigest()))
    with pytest.raises(UserError, match=f"line 1: {key} is "):
        rows[0]


def test_a_prompt_that_occurs_twice_is_refused(directory):
    """As where eval.jsonl was copied over mixin.jsonl."""
    content = (directory / "eval.jsonl").read_bytes()
    (directory / "mixin.jsonl").write_bytes(content)
    recorded = json.loads((directory / "meta.json").read_text())["files"]["eval.jsonl"]
    edit_meta(directory, lambda m: m["files"].update({"mixin.jsonl": recorded}))
    with pytest.raises(UserError, match=r"mixin\.jsonl, line 1: its prompt occurs before"):
        Splits(directory).reserved_digests()


def test_changed_content_of_the_same_size_is_refused(directory):
    path = directory / "mixin.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Suppose", b"Supposx", 1))
    with pytest.raises(UserError, match=r"mixin\.jsonl is not the file meta\.json describes"):
        Splits(directory).rows("mixin")


@pytest.mark.parametrize(
    "line, message",
    [
        (b"{\n", "line 1: not JSON"),
        (b"3\n", "line 1: input_text, output_texts, .* missing"),
        (b'{"input_text": "x", "output_texts": ["y"]}\n', "line 1: alpha, stage, .* missing"),
        (
            b'{"input_text": "x", "output_texts": [], "alpha": 1, "stage": 1, "seed": 1, "lookahead": 0, '
            b'"num_edges": 1}\n',
            r"line 1: output_texts is \[\], expected a list of texts",
        ),
    ],
)
def test_lines_that_are_no_rows_are_refused(tmp_path, line, message):
    path = tmp_path / "eval.jsonl"
    path.write_bytes(line)
    rows = SplitRows(path, SplitFile(1, len(line), hashlib.sha256(line).hexdigest()))
    with pytest.raises(UserError, match=message):
        rows[0]
