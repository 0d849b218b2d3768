"""How entry points start and end."""

import subprocess
import sys

import pytest

from tests.support.launching import environment

COMMAND = [sys.executable, "-c", "from ds_train.ranks.entry import run_entry; run_entry(lambda: 7)"]


@pytest.mark.parametrize(("variables", "code"), [({"PYTHONUTF8": "0"}, 1), ({}, 7)])
def test_ascii_is_refused_in_one_message(variables: dict[str, str], code: int) -> None:
    """Python takes UTF-8 for the C locale, unless told not to."""
    surroundings = {name: value for name, value in environment().items() if name != "PYTHONUTF8"}
    done = subprocess.run(
        COMMAND, env=surroundings | {"LC_ALL": "C"} | variables, capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert done.returncode == code
    assert ("error: Python reads text files as ASCII here" in done.stderr) == (code == 1)
    assert len(done.stderr.splitlines()) == (code == 1)
