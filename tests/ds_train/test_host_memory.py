"""Freed memory is kept: what is allocated next touches no new pages."""

import subprocess
import sys

import pytest

from tests.ds_train.launching import REPOSITORY

_PROGRAM = """
import resource, sys, torch
from ds_train.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(1 << 24)
before = faults()
for _ in range(10):
    torch.ones(1 << 24)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc's malloc has the settings")
def test_a_freed_tensor_leaves_its_pages_to_the_next_one() -> None:
    def faults(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, how],
            cwd=REPOSITORY,
            check=True,
            timeout=100,
            text=True,
            capture_output=True,
        )
        return int(done.stdout)

    assert faults("keep") < 100 < 10_000 < faults("leave")  # 64 MiB are 16,384 pages
