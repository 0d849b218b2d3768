"""Completion in a real bash: what a tab proposes."""

import argparse
import shutil
import subprocess
from pathlib import Path

import pytest

from data_tools.base.command_files import commands_of
from data_tools.base.command_line import CommandParser
from data_tools.base.completion import Words, parser_of, script
from ds_train import __main__ as ds_train_main
from tests.support.paths import REPOSITORY

COMMANDS = commands_of(REPOSITORY / name for name in ("ds_train", "data_tools"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "ds-train"
    path.write_text(ds_train_main.completion("bash", COMMANDS))
    return path


def _proposed(file: Path, *words: str) -> list[str]:
    """What bash proposes where the last word is being written."""
    code = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _ds_train; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", code, "bash", str(file), *words], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "proposed"),
    [
        ("ds-train pp", "pptrain"),
        ("ds-train inspect s", "split stream shards"),
        ("ds-train inspect split --sp", "--split"),
        ("/bin/ds-train inspect split --split ", "eval test mixin"),
        ("ds-train pptrain --init = s", "scratch"),  # bash parts words at =
        ("ds-train pptrain --init =", "scratch pretrained"),
        ("ds-train preflight --nodes 1 pptrain --curr_t", "--curr_threshold"),
        ("ds-train path pptrain_z", "pptrain_zero2.json pptrain_zero3.json"),
        ("ds-train schema ", "run experiment"),
        ("ds-train pptrain --scratch_dir ", ""),  # files are bash's own
        ("deepspeed --num_gpus 2 ds_train/pptrain.py --acc", "--accept_change --accuracy"),
        ("deepspeed --num", ""),
    ],
)
def test_a_tab_proposes_what_fits(line: str, proposed: str, file: Path) -> None:
    assert _proposed(file, *line.split(" ")) == proposed.split()


def test_the_file_of_a_launcher_may_be_printed_by_the_program(file: Path) -> None:
    assert _proposed(file, "deepspeed", '"$(ds-train path pretrain)"', "--mixin_lo") == ["--mixin_loss"]


def test_every_command_and_no_hidden_flag_is_proposed(file: Path) -> None:
    assert {*COMMANDS} <= {*_proposed(file, "ds-train", "")}
    flags = _proposed(file, "ds-train", "evaluate", "--")
    assert "--tasks" in flags and "--local_rank" not in flags


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck here")
def test_the_script_is_clean(file: Path) -> None:
    done = subprocess.run(["shellcheck", "--shell=bash", str(file)], capture_output=True, text=True)
    assert done.stdout == ""


def test_zsh_reads_the_same_with_its_own_module() -> None:
    words = Words()
    words.add("", CommandParser(prog="x"))
    assert script("zsh", words, []) == f"autoload -Uz bashcompinit && bashcompinit\n{script('bash', words, [])}"


def test_a_parser_is_had_without_running_its_command(capsys: pytest.CaptureFixture) -> None:
    def main(argv: list[str]) -> None:
        parser = CommandParser()
        parser.add_argument("--number", help="how many")
        parser.parse_args(argv)
        raise AssertionError

    print_help = argparse.ArgumentParser.print_help
    assert "--number" in parser_of(main)._option_string_actions
    assert argparse.ArgumentParser.print_help is print_help and capsys.readouterr().out == ""
