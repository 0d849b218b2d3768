"""A plain installation, not an editable one, holds every room and all data."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.service
COMMANDS = [
    "data_tools.build_data_splits", "data_tools.build_pretrain", "data_tools.compare", "data_tools.fetch_assets",
    "data_tools.inspect", "data_tools.plot_run", "data_tools.status", "data_tools.summarize_run",
    "data_tools.train_tokenizer",
    "ds_train.audit", "ds_train.experiment", "ds_train.export", "ds_train.preflight", "ds_train.pptrain",
    "ds_train.pretrain",
]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``pip install .`` puts into an environment, apart from the dependencies."""
    directory = tmp_path_factory.mktemp("installed")
    copy = directory / "source"
    git = ["git", "-C", str(REPOSITORY), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in filter(None, subprocess.run(git, capture_output=True, text=True, check=True).stdout.split("\0")):
        source = REPOSITORY / name
        if source.is_file() and not name.startswith("tests/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(source.read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--target", str(directory / "site"), str(copy)], check=True)
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
