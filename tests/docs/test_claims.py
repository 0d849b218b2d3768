"""What the pages say is there, is there: files, links, modules, flags, keys, columns, exit codes."""

import argparse
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from data_tools.base import completion
from ds_train.config.json_keys import KNOWN_KEYS
from ds_train.ranks.signals import ExitCode
from tests.support.launching import REPOSITORY
from tests.support.markdown import anchors, code_words, links, name_of, pages, tables
from tests.support.runs import EVAL_FIELDS, TRAIN_FIELDS

EVERY_PAGE = pytest.mark.parametrize("page", pages(), ids=name_of)
EVERY_ROOM = pytest.mark.parametrize("room", ["data_tools", "ds_train"])
# Flags of other programs.
FOREIGN = {
    "deepspeed": "--num_gpus --hostfile --include --force_multi --master_port --quiet",
    "docker": "--file --tag --rm --gpus --ipc --user --volume --build-arg",
    "Slurm": "--nodes --ntasks-per-node --gpus-per-node --gpus-per-task --cpus-per-task --mem --time --signal --me"
    " --batch --partition --kill-on-invalid-dep",
    "Accelerate": "--num_processes",
    "pytest, ruff, pre-commit, tests/run.sh": "--renew_golden --check --all-files --fast",
    "pip": "--editable --no-build-isolation",
    "lm-evaluation-harness": "--model --model_args --tasks",
}


def _modules(room: str) -> set[str]:
    """Paths below the room, without the suffix."""
    paths = {path.relative_to(REPOSITORY / room) for path in (REPOSITORY / room).rglob("*.py")}
    return {str(path.with_suffix("")) for path in paths if path.name != "__init__.py"}


def _commands() -> Iterator[str]:
    """Every module that is a command, or holds one's flags."""
    for path in sorted(
        path for room in ("data_tools", "ds_train", "tests/benchmarks") for path in (REPOSITORY / room).rglob("*.py")
    ):
        if re.search(r"^def main\(", path.read_text(), re.MULTILINE):
            yield ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


COMMANDS = list(_commands())


@cache
def parser_of(module: str) -> argparse.ArgumentParser:
    return completion.parser_of(import_module(module).main)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)


@EVERY_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@EVERY_PAGE
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.compile(r"(?:data_tools|ds_train|ds_configs|launch|tests)/[\w./-]*\w\.(?:py|sh|json|yaml|md|example)")
    missing = [
        path
        for words in code_words(page)
        for path in named.findall(words)
        if "NAME" not in path and not (REPOSITORY / path).exists()
    ]
    assert not missing


@EVERY_PAGE
def test_lines_are_not_too_long(page: Path) -> None:
    """Tables apart, which cannot be broken."""
    assert [line for line in page.read_text().splitlines() if len(line) > 125 and not line.startswith("|")] == []


def test_readme_has_two_commands_to_set_up() -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert re.findall(r"```bash\n(.*?)```", text.split("## Set up")[1].split("\n## ")[0], re.DOTALL) == [
        "bash launch/quickstart.sh\n",
        "bash tests/run.sh\n",
    ]


@EVERY_ROOM
def test_every_module_has_its_place_in_the_rooms_table(room: str) -> None:
    """Each row of the table is a folder, then its modules, each named once."""
    named = [
        f"{folder.strip('`')}{module}".removeprefix("./")
        for folder, words in tables(REPOSITORY / room / "README.md")[-1][1:]
        for module in re.findall(r"`(\w+)`", words)
    ]
    assert sorted(named) == sorted(_modules(room))


@pytest.mark.parametrize("module", sorted({*COMMANDS} - {"tests.benchmarks.reference"}))  # which others start
def test_help_tells_every_flag(module: str) -> None:
    parser = parser_of(module)
    flags = [action for action in _actions(parser) if action.option_strings]
    silent = [action.option_strings[0] for action in flags if not (action.help or "").strip()]
    assert len(flags) > 1 and not silent
    hidden = {action.option_strings[0] for action in flags if action.help == argparse.SUPPRESS}
    assert hidden <= {"--local_rank", "--on_rank", "--train"}, "set by programs, not by people"


@EVERY_PAGE
def test_flags_that_are_named_exist(page: Path) -> None:
    known = {flag for module in COMMANDS for action in _actions(parser_of(module)) for flag in action.option_strings}
    known |= set(" ".join(FOREIGN.values()).split())
    named = {flag for words in code_words(page) for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", words)}
    assert sorted(named - known) == []


def test_options_of_benchmarks_are_as_documented() -> None:
    rows = tables(REPOSITORY / "tests" / "benchmarks" / "README.md")[0][1:]
    name = ""
    for row in rows:
        name = row[0].strip("`") or name  # a further row of the same benchmark leaves it out
        parser_of(f"tests.benchmarks.{name}").parse_args(shlex.split(row[2].strip("`")))
    shared = {"measure", "reference", "test_benchmarks"}
    files = {path.stem for path in (REPOSITORY / "tests" / "benchmarks").glob("*.py")}
    assert {row[0].strip("`") for row in rows} - {""} == files - shared


def test_run_directory_tables_columns_are_those_of_the_logs() -> None:
    columns = next(table for table in tables(REPOSITORY / "ds_train" / "README.md") if table[0][0] == "column")
    documented: dict[str, set[str]] = {}
    for names, kinds, _ in columns[1:]:
        for kind in _logs_named(kinds):
            documented.setdefault(kind, set()).update(re.findall(r"`(\w+)`", names))
    assert documented == {
        **{f"train of {phase}": fields | {"mfu", "hfu"} for phase, fields in TRAIN_FIELDS.items()},
        **{f"eval of {phase}": fields for phase, fields in EVAL_FIELDS.items()},
    }


def _logs_named(words: str) -> Iterator[str]:
    """``all``, ``train``, ``eval of pptrain`` … → the logs that are meant."""
    for log in ("train", "eval"):
        for phase in ("pptrain", "pretrain"):
            if words in ("all", log, f"{log} of {phase}"):
                yield f"{log} of {phase}"


def _leaves(block: dict, prefix: str = "") -> Iterator[str]:
    for key, value in block.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")


def test_keys_of_the_shipped_json_are_explained_and_exist() -> None:
    table = next(table for table in tables(REPOSITORY / "ds_configs" / "README.md") if table[0][0] == "key")
    documented = {key for row in table[1:] for key in re.findall(r"`([\w.]+)`", row[0])}
    assert {key.split(".")[0] for key in documented} <= KNOWN_KEYS
    explained = " ".join(" ".join(row) for row in table)
    for path in (REPOSITORY / "ds_configs").glob("*.json"):
        for key in _leaves(json.loads(path.read_text())):
            parent, _, name = key.rpartition(".")
            assert (
                f"`{key}`" in explained
                or any(f"{key}." in other for other in documented)
                or (f"`{parent}`" in explained and name in explained)
            ), f"{path.name}: {key}"


def test_exit_codes_are_documented() -> None:
    table = next(table for table in tables(REPOSITORY / "launch" / "README.md") if table[0][0] == "exit code")
    documented = {int(number) for row in table[1:] for number in re.findall(r"\d+", row[0])}
    assert documented >= {int(code) for code in ExitCode}


def test_variables_of_the_scripts_are_those_documented() -> None:
    table = next(table for table in tables(REPOSITORY / "launch" / "README.md") if table[0][0] == "variable")
    documented = {name for row in table[1:] for name in re.findall(r"`([A-Z_]+)`", row[0])}
    scripts = "".join(path.read_text() for path in (REPOSITORY / "launch").glob("*.sh"))
    read = set(re.findall(r"\$\{([A-Z_]+)(?=[:+-])", scripts))
    of_others = {"BASH_SOURCE", "HOME", "SLURM_ARRAY_TASK_ID", "SLURM_CPUS_PER_TASK", "SLURM_NTASKS",
                 "SLURM_RESTART_COUNT", "SLURM_SUBMIT_DIR", "SRUN_CPUS_PER_TASK", "PYTHONWARNINGS",
                 "TOKENIZERS_PARALLELISM", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"}  # fmt: skip
    assert read - of_others == documented


def test_trainers_take_what_the_users_earlier_tool_took() -> None:
    """Each flag in the left columns of the page for those who come from it."""
    of_flags = [
        table for table in tables(REPOSITORY / "ds_train" / "FROM_ACCELERATE.md") if table[0][0].endswith("before")
    ]
    before = {flag for table in of_flags for row in table[1:] for flag in re.findall(r"`(--\w+)`", row[0])}
    trainers = [parser_of(f"ds_train.phases.{phase}") for phase in ("pptrain", "pretrain")]
    now = {flag for parser in trainers for action in _actions(parser) for flag in action.option_strings}
    assert len(before) > 15 and before <= now
