"""A checkpoint of any layout in an engine of any other: every tensor is bitwise what was saved."""

import json
from pathlib import Path

import pytest

from tests.support.launching import free_port, launch


@pytest.mark.launch
def test_every_layout_loads_what_every_other_saved_bit_by_bit(tmp_path: Path) -> None:
    ports = [str(free_port()) for _ in range(3)]
    done = launch("tests/system/launched_partitions.py", str(tmp_path), *ports, num_ranks=6)
    assert done.returncode == 0, done.stdout[-5000:]
    for size in (1, 2, 3):
        assert json.loads((tmp_path / f"differing_{size}.json").read_text()) == []
