"""Memory that a job leaves to its processes."""

from pathlib import Path

import pytest

from ds_train.checkpoints import host_memory
from ds_train.checkpoints.host_memory import available_host_bytes, total_host_bytes


@pytest.mark.parametrize(
    ("line", "directory", "names"),
    [
        ("0::/job/step", "job", ("memory.max", "memory.current", "inactive_file")),
        ("4:memory:/job", "memory/job", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
        ("0::/outside/of/the/container", ".", ("memory.max", "memory.current", "inactive_file")),
    ],
)
def test_the_limit_of_a_job_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, directory: str, names: tuple[str, str, str]
) -> None:
    monkeypatch.setattr(host_memory, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(host_memory, "_CGROUP_ROOT", tmp_path / "sys")
    (tmp_path / "cgroup").write_text(f"1:cpu:/\n{line}\n")
    before, machine = available_host_bytes(), total_host_bytes()
    group = tmp_path / "sys" / directory
    group.mkdir(parents=True)
    limit, used, cached = names
    (group / limit).write_text("5000\n")
    (group / used).write_text("4000\n")
    (group / "memory.stat").write_text(f"anon 7\n{cached} 300\n")
    assert available_host_bytes() == 1300
    assert total_host_bytes() == 5000 < before < machine
    (group / limit).write_text("max\n")
    assert available_host_bytes() > before / 2
