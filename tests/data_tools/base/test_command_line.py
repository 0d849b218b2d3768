"""What a person sees when a command goes wrong: one message; a traceback if asked for, or for a fault of ours."""

import os
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from data_tools.base.command_line import CommandParser, HelpFormatter, did_you_mean, given_arguments, positive
from data_tools.base.errors import UserError, run_command, user_message
from ds_train import __version__
from ds_train.config.flags import parse_flags
from ds_train.config.trainer_flags import GROUPS, DataFlags, ModelFlags, OverrideFlags, RunFlags
from ds_train.phases import pptrain
from tests.support.paths import REPOSITORY

COMMANDS = """data_tools.build_data_splits data_tools.build_pretrain data_tools.fetch_assets data_tools.inspect.__main__
    data_tools.status data_tools.summarize_run data_tools.train_tokenizer ds_train.audit ds_train.evaluate
    ds_train.export ds_train.preflight""".split()


def _raise(error: BaseException) -> None:
    raise error


def _ends(error: BaseException) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: _raise(error))
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "code", "problem"),
    [
        (UserError("no such thing; give another."), 1, "error: no such thing; give another.\n"),
        (FileNotFoundError(2, "No such file or directory", "/a/b"), 1, "error: /a/b: No such file or directory\n"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device\n"),
        (ModuleNotFoundError("No module named 'x'", name="x"), 1, "error: the package x is not installed; "),
        (KeyboardInterrupt(), 130, "error: interrupted.\n"),
    ],
)
def test_one_message(error: BaseException, code: int, problem: str, capsys: pytest.CaptureFixture) -> None:
    assert _ends(error) == code
    shown = capsys.readouterr().err
    assert shown.startswith(problem) and shown.count("\n") == 1


def test_debug_adds_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["command", "--debug"])
    assert _ends(UserError("bad")) == 1
    shown = capsys.readouterr().err
    assert "in _raise" in shown and shown.endswith("error: bad\n")


def test_a_fault_of_the_program_is_not_hidden() -> None:
    assert user_message(KeyError("x")) is None
    with pytest.raises(KeyError):
        run_command(lambda: _raise(KeyError("x")))


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    code = "from data_tools.base.errors import run_command\nrun_command(lambda: [print(n) for n in range(10**6)] and 0)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 141


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_defaults_and_corrects_typos(
    name: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = import_module(name).main
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "--debug" in text
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"ds-train {__version__}\n"
    if name == "ds_train.preflight":
        return  # what it does not know is the trainer's
    with pytest.raises(UserError, match=r"unknown flag --debgu; did you mean --debug\?"):
        main(["--debgu"])


@pytest.mark.parametrize("phase", GROUPS)
def test_trainers_have_a_version(phase: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_flags(*GROUPS[phase], description="", argv=["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"ds-train {__version__}\n"


def test_flags_of_a_command_within_a_command() -> None:
    parser = CommandParser()
    inner = parser.add_subparsers(dest="what", required=True).add_parser("inner")
    inner.add_argument("--number", type=positive, default=3, help="how many")
    assert parser.parse_args(["inner"]).number == 3 and "(default: 3)" in inner.format_help()
    assert isinstance(inner, CommandParser) and inner.formatter_class is HelpFormatter
    with pytest.raises(UserError, match="unknown flag --numbre; did you mean --number"):
        parser.parse_args(["inner", "--numbre", "4"])
    with pytest.raises(UserError, match=r"expected a whole number in \[1, 1e15\], got '0'"):
        parser.parse_args(["inner", "--number", "0"])


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("--learning_rate", "; did you mean --lr?"),
        ("--per_device_train_batch_size", "; did you mean --micro_batch?"),
        ("--output_dir", "; nothing like it."),  # it stands for a flag that this command does not have
        ("--seet", "; did you mean --seed?"),
    ],
)
def test_suggestions_know_what_other_trainers_call_it(name: str, problem: str) -> None:
    assert did_you_mean(name, ["--lr", "--micro_batch", "--seed"], "; nothing like it.") == problem


def test_help_names_each_flag_once(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        pptrain.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    flags = [line.split()[0] for line in lines if line.startswith("  --")]
    names = [item.name for group in (RunFlags, ModelFlags, DataFlags, OverrideFlags) for item in fields(group)]
    assert {f"--{name}" for name in names} <= set(flags) and len(flags) == len(set(flags))
    assert not any("-" in flag[2:] for flag in flags)
    assert "  --sync_save                       write each checkpoint before training" in "\n".join(lines)
    assert lines[0].startswith("usage: deepspeed ds_train/") and len(lines) < 3 * len(flags)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_home_is_expanded_wherever_a_shell_leaves_it(home: Path) -> None:
    given = ["--scratch_dir=~/x", "~/run", "~", "--out=~", "a~/b", "--x=a~/b", "~other", "--lr=3e-4", "--text=see ~/x"]
    expanded = [f"--scratch_dir={home}/x", f"{home}/run", str(home), f"--out={home}", *given[4:]]
    assert given_arguments(given) == expanded


def test_every_parser_expands_it(home: Path) -> None:
    parser = CommandParser()
    parser.add_argument("--out", type=Path)
    assert parser.parse_args(["--out=~/x"]).out == home / "x"
    (home / "run.yaml").write_text("data_dir: ~/splits\n")
    (run, data), _ = parse_flags(RunFlags, DataFlags, description="", argv=["--scratch_dir=~/s", "--config=~/run.yaml"])
    assert (run.scratch_dir, data.data_dir) == (f"{home}/s", f"{home}/splits")


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff/x"])
def test_a_name_that_is_not_utf8_is_refused_at_once(
    name: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be found out when the run file is written, after the model is built."""
    with pytest.raises(UserError, match=r"\\udc.* is not UTF-8 here; rename it"):
        parse_flags(RunFlags, description="", argv=["--scratch_dir", os.fsdecode(name)])
    directory = tmp_path / os.fsdecode(b"caf\xe9")
    directory.mkdir()
    monkeypatch.chdir(directory)
    with pytest.raises(UserError, match="is not UTF-8"):
        CommandParser().parse_args([])
