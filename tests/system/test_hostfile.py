"""Two hosts through `deepspeed --hostfile`, OpenSSH and pdsh: equal to one node, and whole after losing a host."""

import re
from pathlib import Path

import pytest

from ds_train import audit
from tests.support.hosts import NAMES, Hosts
from tests.support.running import (
    ONE_NODE_STEPS,
    finish,
    newest_checkpoint,
    running,
    script,
    steps_logged,
    trainer_flags,
    wait_for_step,
)
from tests.support.waiting import wait_until

_LOST = NAMES[1]
pytestmark = [pytest.mark.launch, pytest.mark.service]


def _command(hosts: Hosts, scratch: Path, run_name: str, **flags: object) -> list[str]:
    """Start the script on the first host; a shell there takes the variables, which nsenter keeps."""
    return hosts.command(NAMES[0], [*script("pptrain_hostfile"), *trainer_flags(scratch, run_name, **flags)])


def test_two_nodes_equal_one(hosts: Hosts, scratch: Path, one_node: Path, tmp_path: Path) -> None:
    command = _command(hosts, scratch, "two_nodes", max_steps=ONE_NODE_STEPS)
    printed = finish(command, tmp_path / "output", HOSTFILE=str(hosts.hostfile))
    assert all(f"{name}: " in printed for name in NAMES), "not both hosts spoke"
    assert audit.main([str(one_node), str(scratch / "two_nodes")]) == 0
    assert steps_logged(scratch / "two_nodes") == list(range(1, ONE_NODE_STEPS + 1))


def test_lost_node_ends_the_other_and_comes_back(hosts: Hosts, scratch: Path, one_node: Path, tmp_path: Path) -> None:
    run, log = scratch / "lost_node", tmp_path / "output"
    command = _command(hosts, scratch, run.name, max_steps=ONE_NODE_STEPS, save_every=20)
    try:
        with running(command, log, HOSTFILE=str(hosts.hostfile)) as process:
            wait_for_step(run, 25, process)
            hosts.kill_one(_LOST)
            code = process.wait(90)
        assert code not in (0, 85, 86), log.read_text()[-3000:]
        assert f"error: rank 0: rank 1 ({_LOST}) gives no sign of life" in log.read_text()
        assert hosts.run(NAMES[0], ["pgrep", "-f", "pptrain.py"]) != 0, "the other rank still runs"
    finally:
        hosts.start_one(_LOST)
    checkpoint = newest_checkpoint(run)
    assert 20 <= checkpoint < ONE_NODE_STEPS
    printed = finish(command, log, HOSTFILE=str(hosts.hostfile))
    assert f"resumed from {run}/checkpoints/step_{checkpoint:08d} at step {checkpoint}" in printed
    assert audit.main([str(one_node), str(run)]) == 0
    assert steps_logged(run) == list(range(1, ONE_NODE_STEPS + 1))


def test_stop_file_reaches_all_nodes(hosts: Hosts, scratch: Path, tmp_path: Path) -> None:
    run, log = scratch / "stopped", tmp_path / "output"
    with running(_command(hosts, scratch, run.name, max_steps=100_000), log, HOSTFILE=str(hosts.hostfile)) as process:
        wait_for_step(run, 5, process)
        (run / "STOP").touch()
        assert process.wait(60) == 86, log.read_text()[-3000:]
    assert newest_checkpoint(run) == max(steps_logged(run)), "optimizer steps were lost"
    assert not (run / "STOP").exists()


@pytest.mark.slow
def test_silent_node_ends_the_other(hosts: Hosts, scratch: Path, tmp_path: Path) -> None:
    """A host that vanishes without closing its connections: only the watchdog can tell."""
    run, log = scratch / "silent_node", tmp_path / "output"
    command = _command(hosts, scratch, run.name, max_steps=100_000, save_every=20, hang_timeout_s=15)
    try:
        with running(command, log, HOSTFILE=str(hosts.hostfile)) as process:
            wait_for_step(run, 25, process)
            hosts.cut_off(_LOST)
            # The one or the other, as its last heartbeat was from within a step or from before it.
            named = rf"error: rank 0: .*rank 1 \({_LOST}\) (gives no sign of life|does not arrive)"
            wait_until(lambda: re.search(named, log.read_text()), "the watchdog's message", 90)
            assert process.wait(200) not in (0, 85, 86)  # ssh to the lost host gives up after two minutes
    finally:
        hosts.kill_one(_LOST)
        hosts.start_one(_LOST)
    assert newest_checkpoint(run) >= 20


def test_one_node_hostfile_runs_on_that_node(hosts: Hosts, scratch: Path, tmp_path: Path) -> None:
    """DeepSpeed alone would train on the launching node."""
    (tmp_path / "hostfile").write_text(f"{_LOST} slots=1\n")
    command = _command(hosts, scratch, "other node's $HOME (2)", max_steps=1, micro_batch=8)
    printed = finish(command, tmp_path / "output", HOSTFILE=str(tmp_path / "hostfile"))
    assert f"{_LOST}: " in printed and f"{NAMES[0]}: " not in printed
    assert steps_logged(scratch / "other node's $HOME (2)") == [1], "the name went through two shells"
