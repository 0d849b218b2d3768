"""Full tensors by name: what is put into an engine of any ZeRO stage is what its optimizer holds."""

import json
from pathlib import Path

import pytest

from tests.support.launching import launch


@pytest.mark.launch
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_tensors_that_no_number_of_ranks_divides_come_back_whole(num_ranks: int, tmp_path: Path) -> None:
    out = tmp_path / "differing.json"
    done = launch("tests/system/launched_full_state.py", str(out), num_ranks=num_ranks)
    assert done.returncode == 0, done.stdout[-3000:]
    assert json.loads(out.read_text()) == []
