"""Lines that fit, colours only where they can be seen, pipes that close early, and a name that the library also has."""

import os
import re
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from data_tools import build_data_splits
from data_tools.inspect import __main__ as inspect_command
from data_tools.inspect.terminal import Cell, Terminal, num_columns, visible
from data_tools.inspect.token_view import View
from data_tools.samples.documents import Document, encode_examples, example_documents
from tests.support.paths import REPOSITORY, SUPPORT
from tests.support.tiny_models import tiny_tokenizer

ESCAPE = re.compile(r"\x1b\[[\d;]*m")
SCRIPTS = sorted(
    path.name for path in (REPOSITORY / "data_tools").glob("*.py") if "run_command(main)" in path.read_text()
)


@pytest.mark.parametrize("has_colour", [False, True])
@pytest.mark.parametrize("width", [20, 33, 80])
def test_lines_are_filled_and_never_wider_than_the_terminal(width, has_colour):
    terminal = Terminal(width, has_colour)
    cells = [Cell("漢字é" * (n % 2) + "word" * (n % 3) + " ", ("plain", "good", "faint")[n % 3]) for n in range(200)]
    lines = [ESCAPE.sub("", line) for line in terminal.flow(cells, first="1: ", rest="   ")]
    assert lines[0].startswith("1: ") and all(line.startswith("   ") for line in lines[1:])
    assert "".join(lines).replace(" ", "") == "1:" + "".join(cell.text for cell in cells).replace(" ", "")
    widths = [sum(2 if unicodedata.east_asian_width(c) == "W" else 1 for c in line) for line in lines]
    assert max(widths) <= width
    longest = max(num_columns(cell.text) for cell in cells)
    assert all(columns + longest > width for columns in widths[:-1])


def test_control_characters_never_reach_the_terminal():
    assert visible("a\x1b[31m\nb\t\r\x00é漢") == "a\\x1b[31m⏎b⇥␍\\x00é漢"
    lines = list(Terminal(80, False).wrapped("one \x1b]0;title\x07 two\nthree"))
    assert lines == ["one \\x1b]0;title\\x07 two", "three"]


@pytest.mark.parametrize(
    ("choice", "is_terminal", "variables", "expected"),
    [
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("auto", True, {"NO_COLOR": "1"}, False),
        ("auto", True, {"NO_COLOR": ""}, True),  # no-color.org: when present and not an empty string
        ("auto", True, {"TERM": "dumb"}, False),
        ("always", False, {"NO_COLOR": "1"}, True),  # asked for by name
        ("never", True, {}, False),
    ],
)
def test_colours_only_where_they_can_be_seen(monkeypatch, choice, is_terminal, variables, expected):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "123")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    assert Terminal.of_stdout(choice) == Terminal(123, expected)


def view(**changes) -> View:
    return View(**{"terminal": Terminal(60, False), "tokenizer": tiny_tokenizer(), "parts": ["tokens"], **changes})


def documents_of(prompt: str, answers: list[str], **how) -> list[Document]:
    (encoded,) = encode_examples(tiny_tokenizer(), [prompt], [answers])
    return example_documents(encoded, loss="weighted", scored="any", **how)


def test_tokens_stand_behind_their_weights():
    lines = list(
        view().example("title", "facts", "Ann is", ["a", "bc"], documents_of("Ann is", ["a", "bc"], trained=1))
    )
    assert lines == [
        f"── title {'─' * 51}",
        "facts",
        "",
        "10 tokens, 9 targets, sum of weights 18; the last 4 are the",
        "answer, and scored",
        "  no target │A│",
        "   weight 1 │n│n│ │i│s│",
        "weight 3.25 │ │b│c│<|endoftext|>│",
        "",
        "another right answer: the same prompt, then 3 tokens scored,",
        "not trained",
        "weight 0 │ │a│<|endoftext|>│",
        "",
    ]


def test_ids_and_colours_of_tokens():
    terminal = Terminal(200, True)
    lines = list(view(terminal=terminal, with_ids=True).example("t", "f", "A", ["b"], documents_of("A", ["b"])))
    assert lines[4:] == [
        "no target │\x1b[2mA:27│\x1b[0m",
        " weight 2 │ :53│b:2│<|endoftext|>:0│",  # all targets weigh the same: none stands out
        "",
    ]
    (heavy,) = documents_of("AA", ["b"])
    lines = list(view(terminal=terminal).example("t", "f", "AA", ["b"], [heavy]))
    assert lines[5:7] == ["      weight 1 │A│", "weight 2.33333 │\x1b[1;32m │b│<|endoftext|>│\x1b[0m"]


def test_a_line_begins_after_each_end_of_a_document():
    tokens = np.array([1, 2, 0, 3, 0, 0, 4])
    lines = list(view(parts=["text", "tokens"]).block("t", "f", Document(tokens, np.ones(6, np.float32))))
    assert lines[3:] == [
        "document 1: tokens 0 … 2", "ab<|endoftext|>", "",
        "document 2: tokens 3 … 4", "c<|endoftext|>", "",
        "document 3: tokens 5 … 5", "<|endoftext|>", "",
        "document 4: tokens 6 … 6, continues in the next block", "d", "",
        "7 tokens, 6 targets, sum of weights 6",
        "no target │a│",
        " weight 1 │b│<|endoftext|>│",
        "          │c│<|endoftext|>│",
        "          │<|endoftext|>│",
        "          │d│",
        "",
    ]  # fmt: skip


def test_a_text_that_its_tokens_do_not_give_back_is_pointed_out():
    same = "\n".join(view(parts=["text"]).example("t", "f", "Ann is", ["a"], documents_of("Ann is", ["a"])))
    assert "another text" not in same and "Right answers: a" in same
    lossy = "\n".join(view(parts=["text"]).example("t", "f", "Änn is", ["a"], documents_of("Änn is", ["a"])))
    assert "another text:\nnn is a<|endoftext|>" in lossy


def test_graphs_alone_for_graphviz(tiny_scratch, capsys):
    where = ["--scratch_dir", str(tiny_scratch), "--split", "mixin", "--count", "3"]
    inspect_command.main(["split", *where, "--dot"])  # the default tokenizer is not asked for
    assert re.fullmatch(r"(digraph \{\n(  .*;\n)+\}\n){3}", capsys.readouterr().out)


def run(*command: object, **how) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, **how)


def test_a_reader_that_has_seen_enough_is_no_error(tiny_scratch):
    command = (
        f"{sys.executable} -m data_tools.inspect split --scratch_dir {tiny_scratch} --split mixin --count 150 "
        "--show text graph | head -n 1; echo ${PIPESTATUS[0]}"
    )
    done = run("bash", "-c", command, cwd=REPOSITORY)
    assert re.fullmatch(r"── mixin 0 of 150 .*\n141\n", done.stdout) and done.stderr == ""


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_command_starts_as_a_file_beside_a_module_called_inspect(name, tmp_path):
    """Python looks for modules beside a script first; the library's own ``inspect`` must be found all the same."""
    done = run(sys.executable, REPOSITORY / "data_tools" / name, "--help", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr


def test_python_works_in_the_directory_of_a_module_called_inspect():
    check = (
        "import dataclasses, inspect, sys, data_tools.inspect; assert inspect is sys.modules['inspect']; "
        "print(inspect.signature(dataclasses.field).parameters['kw_only'].name, inspect.__name__)"
    )
    done = run(sys.executable, "-c", check, cwd=REPOSITORY / "data_tools")
    assert done.stdout == "kw_only inspect\n", done.stderr


def test_problems_of_other_tasks_are_shown_without_lookahead_and_graph(tiny_scratch, tmp_path, monkeypatch, capsys):
    shutil.copytree(SUPPORT / "compiled_generator", tmp_path / "theirs")
    for directory in (SUPPORT, tmp_path / "theirs"):
        monkeypatch.syspath_prepend(str(directory))
    dfs = "--generator compiled_generator:CompiledGenerator --generator_task dfs".split()
    sizes = "--max_input_size 48 --max_lookahead 8 --eval_size 2 --test_size 2 --mixin_size 2 --workers 1".split()
    build_data_splits.main(["--scratch_dir", str(tmp_path), *sizes, *dfs])
    where = ["--scratch_dir", str(tmp_path), "--tokenizer", str(tiny_scratch / "tokenizer")]
    for command in ("split", "stream"):
        capsys.readouterr()
        inspect_command.main([command, *where, "--count", "1"])
        output = capsys.readouterr().out
        assert output.splitlines()[1].startswith("3 edges, ") and "no search prompt, so no graph is drawn" in output
