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


@pytest.mark.parametrize(
    ("more", "end"),
    [("", "helps. --profile_steps shows what took it."), ("on_out_of_memory(lambda: ' See /x.')", "helps. See /x.")],
)
def test_no_memory_left_is_one_message_that_names_what_helps(more: str, end: str) -> None:
    code = f"""
from ds_train.ranks.entry import on_out_of_memory, run_entry
class OutOfMemoryError(RuntimeError): pass
def main():
    {more or "pass"}
    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\\nmore")
run_entry(main)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == (
        "error: CUDA out of memory. Tried to allocate 2 GiB. Lower --micro_batch or raise --zero_stage; "
        f"ds_train.preflight {end}\n"
    )
