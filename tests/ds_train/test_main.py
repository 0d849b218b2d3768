"""``ds-train``: the list of all commands, and each of them by its name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from ds_train import __main__ as ds_train_main
from ds_train import __version__
from tests.support.paths import REPOSITORY
from tests.support.source_code import SOURCES


def _run(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def _modules_with_main() -> set[str]:
    """Names of the modules that have a ``main`` and are no part of a room, as tests know them."""
    mains = [name for name, source in SOURCES.items() if re.search(r"^def main\(", source, re.MULTILINE)]
    return {
        name.removesuffix(".__main__").split(".")[1] for name in mains if name.removesuffix(".__main__").count(".") == 1
    }


def test_each_command_has_a_line(capsys: pytest.CaptureFixture) -> None:
    assert ds_train_main.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.startswith("  ")}
    assert lines[0].startswith(f"ds-train {__version__}")
    assert {*listed} - {*ds_train_main._OWN} == _modules_with_main() - {"__main__"}
    assert all(purpose.endswith((".", "?")) for purpose in listed.values())
    assert listed["status"] == "Show what runs are doing: a line for each."


def test_the_list_loads_nothing_that_takes_long() -> None:
    code = """
import sys
from ds_train.__main__ import main
main([])
print({"torch", "numpy", "deepspeed", "transformers", "yaml", "ds_train.config.flags"} & {*sys.modules})
"""
    assert _run("-c", code).stdout.splitlines()[-1] == "set()"


def test_a_command_is_the_one_that_its_module_is(tmp_path: Path) -> None:
    helped = _run("-m", "ds_train", "inspect", "split", "--help", cwd=tmp_path)
    assert helped.returncode == 0 and helped.stdout.startswith("usage: ds-train inspect split ")
    wrong = _run("-m", "ds_train", "pptrain", "--scratch", "x")
    assert (
        wrong.returncode == 1
        and wrong.stderr == "error: unknown flag --scratch; did you mean --scratch_dir? See --help.\n"
    )
    debugged = _run("-m", "ds_train", "status", str(tmp_path / "nowhere"), "--debug")
    assert debugged.returncode == 1 and debugged.stderr.startswith("Traceback")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("pptrain", "ds_train/pptrain.py"),
        ("evaluate", "ds_train/evaluate.py"),
        ("build_pretrain", "data_tools/build_pretrain.py"),
        ("pptrain_zero2.json", "ds_configs/pptrain_zero2.json"),
        ("experiments/small.yaml", "ds_configs/experiments/small.yaml"),
    ],
)
def test_paths_for_launchers(name: str, file: str, capsys: pytest.CaptureFixture) -> None:
    assert ds_train_main.main(["path", name]) == 0
    assert capsys.readouterr().out == f"{REPOSITORY / file}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pptrian"], "there is no command 'pptrian'; did you mean pptrain?"),
        (["xyz"], "there is no command 'xyz'; `ds-train` lists them."),
        (["path", "pptrain_zero4.json"], "there is no 'pptrain_zero4.json'; did you mean pptrain_zero[23].json?"),
        (["path", "audit"], "audit is not started as a file; run `ds-train audit` or `python -m ds_train.audit`."),
        (["--bad"], "unknown flag --bad"),
    ],
)
def test_what_does_not_exist_is_one_message(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        ds_train_main.main(arguments)
