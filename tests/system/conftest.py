"""Fixtures of the system tests: a tiny scratch directory, two hosts, a Slurm."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import hosts as hosts_module
from tests.support import slurm as slurm_module
from tests.support import tiny
from tests.support.hosts import Hosts
from tests.support.launching import REPOSITORY
from tests.support.packages import require_namespaces, require_programs
from tests.support.running import ONE_NODE_STEPS, finish, script, trainer_flags
from tests.support.slurm import Slurm


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


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Two running hosts; a test that kills one switches it on again."""
    require_programs(hosts_module.PROGRAMS)
    require_namespaces()
    pair = Hosts(tmp_path_factory.mktemp("hosts"))
    try:
        pair.start()
        yield pair
    finally:
        pair.stop()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    require_programs(slurm_module.PROGRAMS)
    require_namespaces()
    started = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        started.start()
        yield started
    finally:
        started.stop()


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
