"""Programs that the system tests need, from Debian's packages."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest


@cache
def _install(packages: tuple[str, ...]) -> str:
    """Install Debian packages; returns why that failed, or nothing."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return "not root on a Debian system"
    if Path("/run/systemd/system").exists():
        return "they would start services on this machine; install them yourself"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    problem = ""
    with (Path(tempfile.gettempdir()) / "tests_install_packages.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of these tests may install some, too
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
            done = subprocess.run(["apt-get", *command], env=environment, text=True, capture_output=True)
            if done.returncode != 0:
                problem = f"apt-get {command[0]}: {done.stderr.strip()[-300:]}"
    return problem


def require_programs(programs: dict[str, str]) -> None:
    """Make sure that the programs are there, installing the packages that hold the missing ones; else skip the test.

    Args:
        programs: program → the Debian package it is in.
    """
    os.environ["PATH"] += "".join(
        f":{name}" for name in ("/usr/sbin", "/sbin") if name not in os.environ["PATH"].split(":")
    )
    packages = {package for program, package in programs.items() if shutil.which(program) is None}
    problem = _install(tuple(sorted(packages))) if packages else ""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} ({' '.join(sorted(packages))}): {problem}")


def require_namespaces() -> None:
    """Skip the test where processes cannot be put into separate namespaces."""
    done = subprocess.run(
        ["unshare", "--net", "--uts", "--pid", "--mount", "--fork", "true"], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
