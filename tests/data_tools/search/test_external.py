"""External generators: run in their own directory, compiled once, explained, known by what they give."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from data_tools.search.examples import GeneratorChoice
from data_tools.search.generator import ExampleGenerator
from data_tools.search.prompts import parse_prompt
from tests.support.paths import REPOSITORY, SUPPORT

COMPILED = "compiled_generator:CompiledGenerator"
STAND_IN = "external_generator:StandInGenerator"


@pytest.fixture
def generator_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the compiled generator, on the import path and not yet compiled; tests work elsewhere."""
    directory = tmp_path / "their files"
    shutil.copytree(SUPPORT / "compiled_generator", directory, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(str(SUPPORT))
    monkeypatch.syspath_prepend(str(directory))
    return directory


def source(generator: GeneratorChoice | str | None) -> ExampleGenerator:
    return ExampleGenerator(generator, max_input_size=65, max_lookahead=8, seed=1, purpose="train")


EXAMPLE = """
import os, sys
from data_tools.search.examples import GeneratorChoice
from data_tools.search.generator import ExampleGenerator
source = ExampleGenerator({choice!r}, max_input_size=65, max_lookahead=8, seed=1, purpose="train")
for index in (0, 1):
    example = source.example(index, 8)
print(repr(example))
print(os.getcwd())
"""


def example_elsewhere(choice: GeneratorChoice) -> tuple[str, str]:
    """Example 1 of stage 8 as a new process of this program gives it, and that process's directory after it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLE.format(choice=choice)],
        cwd="/", env=environment, text=True, capture_output=True, check=True,
    )  # fmt: skip
    return tuple(done.stdout.splitlines()[-2:])


def test_it_is_compiled_in_its_directory_before_any_worker_needs_it(
    generator_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "compiled_generator", raising=False)
    random.seed(0)
    before = Path.cwd(), random.getstate()
    source(COMPILED).identity()
    assert (Path.cwd(), random.getstate()) == before, "it ran in another process"
    assert "compiled_generator" not in sys.modules
    example, directory = example_elsewhere(GeneratorChoice(COMPILED))
    assert "Ada" in example and directory == "/"
    assert (generator_directory / "compilations").read_text() == "compiled\n"


def test_any_change_of_what_it_gives_shows(generator_directory: Path) -> None:
    first = source(COMPILED).identity()
    assert source(COMPILED).identity() == first
    (generator_directory / "person.cpp").write_text("Eve\n")
    (generator_directory / "person.so").unlink()
    edited = source(COMPILED).identity()
    assert edited.version == first.version and edited.examples != first.examples
    assert source(GeneratorChoice(COMPILED, "dfs")).identity().examples != edited.examples
    assert source(GeneratorChoice(COMPILED, options={"max_edges": 5})).identity().examples != edited.examples


def test_an_exit_is_one_message_with_what_was_printed(generator_directory: Path) -> None:
    (generator_directory / "person.cpp").unlink()
    (generator_directory / "person.cpp").mkdir()
    with pytest.raises(UserError) as raised:
        source(COMPILED).identity()
    message = str(raised.value)
    assert f"generator {COMPILED} cannot import 'compiled_generator': sys.exit(1)" in message
    assert str(generator_directory) in message and "Unable to compile person.cpp" in message
    assert "Is a directory" in message, "the compiler's own words"


def test_an_exit_while_it_generates_is_one_message(generator_directory: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)LeavingGenerator failed with sys.exit\(None\).*no memory for the graph"):
        source("compiled_generator:LeavingGenerator").identity()


def test_the_end_of_its_process_is_one_message(generator_directory: Path) -> None:
    with pytest.raises(UserError, match=r"DyingGenerator ended its process \(exit code 1\)"):
        source("external_generator:DyingGenerator").identity()


def test_a_generator_that_does_not_follow_its_seed_is_refused(generator_directory: Path) -> None:
    with pytest.raises(UserError, match="UnseededGenerator gives other examples when the same seed is given again"):
        source("external_generator:UnseededGenerator").identity()


def test_modules_of_packages_run_in_their_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "theirs" / "graphs"
    shutil.copytree(SUPPORT / "compiled_generator", package)
    monkeypatch.syspath_prepend(str(SUPPORT))
    monkeypatch.syspath_prepend(str(tmp_path))
    source("theirs.graphs.compiled_generator:CompiledGenerator").identity()
    assert (package / "person.so").exists()
    with pytest.raises(UserError, match=r"cannot import 'theirs.graphs.missing'; its directory must be on PYTHONPATH"):
        source("theirs.graphs.missing:Generator")


def test_its_other_tasks_have_no_lookahead(generator_directory: Path) -> None:
    dfs, _ = example_elsewhere(GeneratorChoice(COMPILED, "dfs", {"requested_backtrack": 2}))
    assert "lookahead=None, num_edges=3" in dfs and dfs.count("Ada is") == 1 + 3
    si, _ = example_elsewhere(GeneratorChoice(COMPILED, "si", {"max_frontier_size": 7}))
    assert "lookahead=None, num_edges=None" in si and len(si.split(".")[0].split()) == 3 + 7


def test_keywords_that_it_does_not_know_are_named(generator_directory: Path) -> None:
    with pytest.raises(UserError, match=r"failed with TypeError: .*'requested_backtrack'"):
        source(GeneratorChoice(COMPILED, "si", {"requested_backtrack": 2})).identity()


def test_the_built_in_generator_takes_what_it_implements() -> None:
    few = source(GeneratorChoice(None, options={"max_edges": 6}))
    assert max(few.example(index, 8).num_edges or 0 for index in range(50)) == 6
    assert few.budget(0.5).edges_allowed == 3 and source(None).budget(1.0).edges_allowed == 20
    for value in (21, 0, 2.5, "six", True):
        with pytest.raises(UserError, match=r"max_edges is .* expected a whole number in \[1, 20\]"):
            source(GeneratorChoice(None, options={"max_edges": value}))
    with pytest.raises(
        UserError,
        match=r"built-in generator has no option distance_from_start, max_prefix_vertices, and takes max_edges",
    ):
        source(GeneratorChoice(None, options={"max_edges": 6, "distance_from_start": 1, "max_prefix_vertices": 2}))
    with pytest.raises(UserError, match="built-in generator has no task 'dfs'"):
        source(GeneratorChoice(None, "dfs"))


def test_options_are_read() -> None:
    texts = ["max_edges=20", "distance_from_start=-1", "rate=0.5", "show_backtracking=True", "sample_type=a=b", "x=nan"]
    found = GeneratorChoice().changed("m:C", None, texts)
    assert found.options == {
        "max_edges": 20, "distance_from_start": -1, "rate": 0.5, "show_backtracking": True, "sample_type": "a=b",
        "x": "nan",
    }  # fmt: skip


@pytest.mark.parametrize(
    "texts, message",
    [
        (["max_edges"], "--generator_options max_edges: expected key=value"),
        (["max-edges=2"], "expected key=value"),
        (["max_lookahead=3"], "--generator_options max_lookahead=3: it has a flag"),
        (["reserved_inputs=3"], "set by this program"),
        (["max_edges=3", "max_edges=4"], "max_edges is given twice"),
    ],
)
def test_bad_options_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GeneratorChoice().changed(None, None, texts)


def test_another_generator_or_task_has_its_own_options() -> None:
    splits = GeneratorChoice("m:C", "dfs", {"requested_backtrack": 2})
    assert splits.changed(None, None, None) == splits.changed("m:C", "dfs", None) == splits
    assert splits.changed(None, "si", None) == GeneratorChoice("m:C", "si")
    assert splits.changed("m:D", None, None) == GeneratorChoice("m:D", "dfs")
    assert splits.changed(None, None, ["a=1"]) == GeneratorChoice("m:C", "dfs", {"a": 1})


def test_the_texts_of_the_copy_are_those_of_search(generator_directory: Path) -> None:
    """The stand-in of these tests is a generator that would be accepted."""
    example, _ = example_elsewhere(GeneratorChoice(COMPILED))
    text = eval(example.split("input_text=")[1].split(", output_texts=")[0])
    assert parse_prompt(text).name == "Ada"
