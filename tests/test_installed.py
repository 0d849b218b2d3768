"""A plain installation, not an editable one, holds every room and all data."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from data_tools.base.command_files import commands_of
from data_tools.base.version import VERSION
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.service
COMMANDS = [
    command.module for command in commands_of(REPOSITORY / name for name in ("data_tools", "ds_train")).values()
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``pip install`` of a wheel puts into an environment, apart from the dependencies."""
    directory = tmp_path_factory.mktemp("installed")
    copy = directory / "source"
    git = ["git", "-C", str(REPOSITORY), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in filter(None, subprocess.run(git, capture_output=True, text=True, check=True).stdout.split("\0")):
        source = REPOSITORY / name
        if source.is_file() and not name.startswith("tests/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(source.read_bytes())
    pip, quiet = [sys.executable, "-m", "pip"], ["-qq", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "wheel", *quiet, "--wheel-dir", str(directory), str(copy)], check=True)
    (wheel,) = directory.glob("*.whl")
    assert wheel.name.startswith(f"ds_train-{VERSION}-")
    subprocess.run([*pip, "install", *quiet, "--target", str(directory / "site"), str(wheel)], check=True)
    return directory / "site"


def _python(site: Path, tmp_path: Path, *arguments: str) -> str:
    """Run Python in an empty directory, where the installed packages come before the repository's."""
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{sysconfig.get_path('purelib')}"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("module", COMMANDS)
def test_commands_answer_without_loading_what_takes_seconds(module: str, site: Path, tmp_path: Path) -> None:
    code = f"""
import runpy, sys
sys.argv[1:] = ["--help"]
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
except SystemExit as exit:
    assert not exit.code, exit.code
heavy = {{"torch", "transformers", "deepspeed", "datasets"}} & set(sys.modules)
assert not heavy, heavy
"""
    assert "usage:" in _python(site, tmp_path, "-c", code)


def test_presets_and_json_are_there(site: Path, tmp_path: Path) -> None:
    code = """
import ds_train
from ds_train.config.deepspeed_json import default_json
from ds_train.model.causal_lm import load_model_config, preset_names
print(ds_train.__file__)
assert default_json("pptrain").is_file() and default_json("pretrain").is_file()
assert all(load_model_config(name).vocab_size for name in preset_names())
"""
    assert Path(_python(site, tmp_path, "-c", code).strip()).is_relative_to(site)


def test_the_program_runs_commands_and_names_files_for_launchers(site: Path, tmp_path: Path) -> None:
    def ds_train(*arguments: str) -> str:
        return _python(site, tmp_path, str(site / "bin" / "ds-train"), *arguments)

    assert ds_train("--version") == f"ds-train {VERSION}\n"
    assert {module.split(".")[1] for module in COMMANDS} <= {*ds_train().split()}
    trainer, config = (Path(ds_train("path", name).strip()) for name in ("pptrain", "pptrain_zero3.json"))
    assert trainer == site / "ds_train" / "pptrain.py" and config.is_relative_to(site)
    flags = ["--scratch_dir", "s", "--max_steps", "3", "--deepspeed_config", str(config)]
    started = [ds_train("pptrain", "--help"), _python(site, tmp_path, str(trainer), *flags, "--help")]
    assert started[0] == started[1] and started[0].startswith("usage: deepspeed ds_train/pptrain.py")


def test_pages_are_there_and_link_to_one_another(site: Path) -> None:
    for room in ("data_tools", "ds_configs", "ds_train"):
        assert (site / room / "README.md").read_bytes() == (REPOSITORY / room / "README.md").read_bytes()
    assert (site / "ds_train" / "CHANGES.md").is_file()
