"""Building the splits: disjoint, the same for any number of workers, whole or absent."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys

import pytest

from data_tools import build_data_splits
from data_tools.base.errors import UserError
from data_tools.search.examples import GeneratorChoice
from data_tools.search.generator import BUILTIN_VERSION, ExampleGenerator
from data_tools.search.splits import SPLIT_NAMES, Splits, find_data_dir
from tests.support import foreign_files
from tests.support.paths import REPOSITORY, SUPPORT

SIZES = {"eval": 20, "test": 30, "mixin": 130}


@pytest.fixture(autouse=True)
def importable_stand_ins(monkeypatch):
    monkeypatch.syspath_prepend(str(SUPPORT))


def arguments(scratch_dir, **flags):
    flags = {
        "scratch_dir": scratch_dir,
        "max_input_size": 65,
        "max_lookahead": 8,
        **{f"{name}_size": size for name, size in SIZES.items()},
        "workers": 1,
        **flags,
    }
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


def build(scratch_dir, *more, **flags):
    build_data_splits.main([*arguments(scratch_dir, **flags), *more])
    return find_data_dir(scratch_dir)


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("scratch"))


def test_splits_are_whole_disjoint_and_described(built):
    assert built.name == "mis65_look8_seed12345" and built.parent.parts[-2:] == ("data", "nl_splits")
    assert [path.name for path in built.parent.iterdir()] == [built.name]
    assert set(contents(built)) == {"eval.jsonl", "test.jsonl", "mixin.jsonl", "meta.json"}
    splits = Splits(built)
    assert len(splits.reserved_digests()) == sum(SIZES.values()), "a prompt occurs twice"
    meta = json.loads((built / "meta.json").read_text())
    assert {key: meta[key] for key in meta if key != "files"} == {
        "max_input_size": 65,
        "max_lookahead": 8,
        "alpha": 1.0,
        "stage": 8,
        "seed": 12345,
        "generator_name": "built-in",
        "generator_version": BUILTIN_VERSION,
    }
    for name in SPLIT_NAMES:
        content = (built / f"{name}.jsonl").read_bytes()
        assert meta["files"][f"{name}.jsonl"] == {
            "num_examples": SIZES[name],
            "num_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }


def test_rows_are_the_examples_at_their_addresses(built):
    for name in SPLIT_NAMES:
        source = ExampleGenerator(max_input_size=65, max_lookahead=8, seed=12345, purpose=f"split/{name}")
        texts = [row["input_text"] for row in Splits(built).rows(name)]
        assert texts == [source.example(index, 8).input_text for index in range(SIZES[name])]


def test_the_number_of_workers_does_not_show(built, tmp_path):
    assert contents(build(tmp_path, workers=2)) == contents(built)
    assert contents(build(tmp_path / "other", seed=1)) != contents(built)


def test_a_repeated_prompt_gives_way_to_the_next_attempt(tmp_path):
    directory = build(tmp_path, generator="external_generator:FewTextsGenerator", mixin_size=60)
    splits = Splits(directory)
    assert len(splits.reserved_digests()) == 20 + 30 + 60
    source = ExampleGenerator(
        "external_generator:FewTextsGenerator", max_input_size=65, max_lookahead=8, seed=12345, purpose="split/mixin"
    )
    rows = list(splits.rows("mixin"))
    first = [source.example(index, 8, 0).input_text for index in range(60)]
    used = {row["input_text"] for name in ("eval", "test") for row in splits.rows(name)}
    num_replaced = 0
    for index, row in enumerate(rows):
        attempt = 0
        while (text := source.example(index, 8, attempt).input_text) in used:
            attempt += 1
        assert row["input_text"] == text
        used.add(text)
        num_replaced += text != first[index]
    assert num_replaced > 5


def test_external_generator(tmp_path):
    name = "external_generator:StandInGenerator"
    one = build(tmp_path / "one", generator=name)
    two = build(tmp_path / "two", generator=name, workers=2)
    assert contents(one) == contents(two)
    splits = Splits(one)
    assert splits.meta.generator.name == name
    assert splits.meta.generator_version == hashlib.sha256((SUPPORT / "external_generator.py").read_bytes()).hexdigest()
    assert any(len(row["output_texts"]) > 1 for row in splits.rows("mixin"))


def test_splits_of_another_origin_are_never_replaced(tmp_path):
    theirs = foreign_files.write_splits(tmp_path)
    before = foreign_files.files_of(tmp_path)
    for more in ([], ["--overwrite"]):
        with pytest.raises(UserError, match=r"not written by this program: .*data_tools.adopt .*another --seed"):
            build(tmp_path, *more, max_input_size=48, seed=12345)
    with pytest.raises(UserError, match=r"data_tools.adopt") as caught:
        Splits(find_data_dir(tmp_path))
    assert "overwrite" not in str(caught.value)
    (theirs / "meta.json").unlink()
    with pytest.raises(UserError, match=r"it has no meta.json of this program"):
        build(tmp_path, "--overwrite", max_input_size=48, seed=12345)
    assert before.items() >= foreign_files.files_of(tmp_path).items()


def test_task_and_options_of_a_generator_are_recorded(tmp_path, monkeypatch):
    theirs = tmp_path / "theirs"
    shutil.copytree(SUPPORT / "compiled_generator", theirs)
    monkeypatch.syspath_prepend(str(theirs))
    flags = ["--generator", "compiled_generator:CompiledGenerator", "--generator_task", "dfs"]
    directory = build(tmp_path, *flags, "--generator_options", "requested_backtrack=2", workers=2)
    assert (theirs / "compilations").read_text() == "compiled\n"
    meta = Splits(directory).meta
    assert meta.generator == GeneratorChoice(flags[1], "dfs", {"requested_backtrack": 2})
    rows = list(Splits(directory).rows("eval"))
    assert all(row["lookahead"] is None and row["num_edges"] == 3 for row in rows)
    assert all(row["input_text"].count("Ada is") == 1 + 3 for row in rows)

    first = meta.generator_examples
    (theirs / "person.cpp").write_text("Eve\n")
    (theirs / "person.so").unlink()
    build(tmp_path, *flags, "--overwrite")
    assert Splits(directory).meta.generator_examples not in (None, first)


def test_the_built_in_generator_takes_max_edges(tmp_path):
    directory = build(tmp_path, "--generator_options", "max_edges=7")
    assert max(row["num_edges"] for row in Splits(directory).rows("mixin")) == 7
    assert json.loads((directory / "meta.json").read_text())["generator_options"] == {"max_edges": 7}


def test_nothing_is_overwritten_unasked(tmp_path):
    directory = build(tmp_path, eval_size=2)
    before = contents(directory)
    with pytest.raises(UserError, match="exists; give --overwrite"):
        build(tmp_path, eval_size=3)
    assert contents(directory) == before
    build(tmp_path, "--overwrite", eval_size=3)
    assert len(Splits(directory).rows("eval")) == 3
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


@pytest.mark.parametrize(
    "generator, message",
    [
        ("LateFailingGenerator", "failed with RuntimeError: no luck"),
        ("LateDyingGenerator", "a worker process died"),
        ("RepeatingGenerator", "must give different examples for different seeds"),
    ],
)
def test_a_failed_build_leaves_nothing(tmp_path, generator, message):
    with pytest.raises(UserError, match=message):
        build(tmp_path, generator=f"external_generator:{generator}")
    assert list((tmp_path / "data" / "nl_splits").iterdir()) == []


def test_a_failed_overwrite_keeps_what_was_there(tmp_path):
    directory = build(tmp_path)
    before = contents(directory)
    with pytest.raises(UserError, match="no luck"):
        build(tmp_path, "--overwrite", generator="external_generator:LateFailingGenerator")
    assert contents(directory) == before
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


@pytest.mark.parametrize("signal_number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_build_leaves_nothing(tmp_path, signal_number, code):
    """Run as the plain script that the README shows, from elsewhere."""
    command = [sys.executable, str(REPOSITORY / "data_tools" / "build_data_splits.py")]
    process = subprocess.Popen(
        command + arguments(tmp_path, mixin_size=10**6),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )
    shown = b""
    while b"mixin: " not in shown:
        part = process.stderr.read1(1000)
        assert part, f"ended early: {shown.decode()}"
        shown += part
    parent = tmp_path / "data" / "nl_splits"
    assert len(list(parent.iterdir())) == 1 and not (parent / "mis65_look8_seed12345").exists()
    process.send_signal(signal_number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert list(parent.iterdir()) == []


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"eval_size": 0}, r"--eval_size: expected a whole number in \[1, 1e15\], got '0'"),
        ({"workers": 0}, "--workers: expected"),
        ({"max_input_size": 7}, "max_input_size is 7"),
        ({"max_lookahead": 0}, "--max_lookahead: expected"),
        ({"generator": "nowhere:Class"}, "cannot import 'nowhere'"),
        ({"generator": "external_generator:Missing"}, "has no 'Missing'"),
        ({"generator_task": "si"}, "built-in generator has no task 'si'"),
        ({"generator_options": "max_branch_size=3"}, "has no option max_branch_size, and takes max_edges"),
        ({"generator_options": "max_edges=30"}, "max_edges is 30, expected"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        build(tmp_path, **flags)
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--scratch_dir: cannot write"):
        build(tmp_path / "file")
