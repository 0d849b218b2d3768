"""The host memory that this process may still allocate, limited by the machine and by the job that it runs in."""

import os
import sys
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP, _CGROUP_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def available_host_bytes() -> int:
    """Host memory that can still be allocated: the kernel's number, or less if a cgroup (a job) sets a limit.

    Without the kernel's files (not Linux) no limit is known.
    """
    if not _MEMINFO.exists():
        return sys.maxsize
    fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    left = [max(0, limit - used) for limit, used in _cgroup_bytes()]
    return min([int(fields["MemAvailable"].split()[0]) * 1024, *left])


def total_host_bytes() -> int:
    """Host memory of the machine, or less if a cgroup (a job) sets a limit."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for limit, _ in _cgroup_bytes())])


def _cgroup_bytes() -> list[tuple[int, int]]:
    """Limit and use of each cgroup around this process. Page cache is not in use: the kernel drops it when needed."""
    found = []
    for line in _CGROUP.read_text().splitlines() if _CGROUP.exists() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0":  # version 2
            root, files, cached = _CGROUP_ROOT, ("memory.max", "memory.current"), "inactive_file"
        elif controllers == "memory":
            files, cached = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"
            root = _CGROUP_ROOT / "memory"
        else:
            continue
        group = Path(path.lstrip("/"))
        for directory in [root / part for part in (group, *group.parents)]:
            try:
                limit, used = (int((directory / name).read_text()) for name in files)
                statistics = dict(row.split() for row in (directory / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such directory in this container; "max" is no limit
                continue
            found.append((limit, used - int(statistics.get(cached, 0))))
    return found
