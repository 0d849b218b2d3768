"""Fixtures of the system tests: a tiny scratch directory, two hosts, a Slurm."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support import hosts as hosts_module
from tests.support import slurm as slurm_module
from tests.support import tiny
from tests.support.hosts import Hosts
from tests.support.launching import REPOSITORY
from tests.support.packages import require_namespaces, require_programs
from tests.support.running import ONE_NODE_STEPS, finish, script, trainer_flags
from tests.support.slurm import Slurm

System = TypeVar("System", Hosts, Slurm)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scratch directory in miniature; each test's runs have their own names."""
    return tiny.build_tiny_scratch(tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="session")
def one_node(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that others must equal: two ranks on one node through the `deepspeed` launcher, without a hostfile."""
    log = tmp_path_factory.mktemp("one_node") / "output"
    flags = trainer_flags(scratch, "one_node", max_steps=ONE_NODE_STEPS)
    finish([*script("pptrain_hostfile"), *flags], log, NUM_RANKS="2")
    return scratch / "one_node"


def _running(system: System, programs: dict[str, str]) -> Iterator[System]:
    """A system that is started, and stopped at the end; its programs are installed if need be."""
    require_programs(programs)
    require_namespaces()
    try:
        system.start()
        yield system
    finally:
        system.stop()


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Two running hosts; a test that kills one switches it on again."""
    yield from _running(Hosts(tmp_path_factory.mktemp("hosts")), hosts_module.PROGRAMS)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    yield from _running(Slurm(tmp_path_factory.mktemp("slurm")), slurm_module.PROGRAMS)


@pytest.fixture
def slurm(cluster: Slurm) -> Iterator[Slurm]:
    """A running Slurm of two nodes, without jobs."""
    yield cluster
    cluster.cancel_all()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory to submit jobs in, that looks like the repository but has its own `slurm` directory."""
    for name in ("launch", "ds_train", "ds_configs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "slurm").mkdir()
    return tmp_path
