"""The checks before a commit, and the hosted ones, are those of tests/run.sh."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.launching import REPOSITORY
from tests.support.markdown import Command, commands

_HOOKS = ".pre-commit-config.yaml"
_BAD = {"unused.py": "import os\n", "unformatted.py": "x = [1,\n2]\n", "untyped.py": 'x: int = "a"\n'}


def _run(repository: Path, *command: str) -> subprocess.CompletedProcess:
    names = {f"GIT_{who}_{what}": "nobody" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **names, "PRE_COMMIT_HOME": str(repository / "cache"), "HOME": str(repository)}
    return subprocess.run(
        command, cwd=repository, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.service
def test_hooks_stop_a_bad_commit(tmp_path: Path) -> None:
    """As the page says to install and to run them, in a small repository with this one's settings."""
    for name in (_HOOKS, "pyproject.toml", "setup.cfg", ".gitignore"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / ".git" / "info").mkdir(parents=True)
    (tmp_path / ".git" / "info" / "exclude").write_text(".venv\ncache\n")
    for package in ("ds_train", "data_tools"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    assert _run(tmp_path, "git", "init", "-q").returncode == 0
    page = REPOSITORY / ".github" / "CONTRIBUTING.md"
    listed = [c.argv for c in commands(page) if isinstance(c, Command) and c.argv[0] == ".venv/bin/pre-commit"]
    install, run = listed
    assert _run(tmp_path, *install).returncode == 0

    for name, text in _BAD.items():
        (tmp_path / "ds_train" / name).write_text(text)
    _run(tmp_path, "git", "add", ".")
    refused = _run(tmp_path, "git", "commit", "-qm", "bad")
    assert refused.returncode != 0
    for message in ("unused.py:1:8", "1 file reformatted", "untyped.py:1: error: Incompatible types"):
        assert message in refused.stdout, refused.stdout

    for name in _BAD:
        (tmp_path / "ds_train" / name).unlink()
    _run(tmp_path, "git", "add", ".")
    for command in (run, ("git", "commit", "-qm", "good")):
        done = _run(tmp_path, *command)
        assert done.returncode == 0, done.stdout


def test_hooks_are_the_checks_of_the_test_command() -> None:
    hooks = [hook for source in yaml.safe_load((REPOSITORY / _HOOKS).read_text())["repos"] for hook in source["hooks"]]
    programs = {" ".join(hook["entry"].removeprefix(".venv/bin/").split()[:2]).split(" --")[0] for hook in hooks}
    checks = [
        line for line in (REPOSITORY / "tests" / "run.sh").read_text().splitlines() if line.startswith(("ruff", "mypy"))
    ]
    assert programs == {line.split(" --")[0].removesuffix(" .") for line in checks}


def test_hosted_checks_call_the_test_command() -> None:
    job = _workflow()["jobs"]["checks-and-tests"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
    assert "tests/run.sh" in (REPOSITORY / ".ci" / "run").read_text()


def test_hosted_checks_use_actions_by_their_commit_and_audit_files_that_exist() -> None:
    steps = [step for job in _workflow()["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert len(used) > 3 and [name for name in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", name)] == []
    (audit,) = [step["run"].split() for step in steps if "pip-audit" in step.get("run", "")]
    assert (REPOSITORY / audit[audit.index("--requirement") + 1]).is_file()


def _workflow() -> dict:
    return yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
