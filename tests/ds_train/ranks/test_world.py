"""Who this process is, by the variables of every launcher; and where the ranks meet."""

import os
from pathlib import Path

import pytest
import torch

from data_tools.base.errors import UserError
from ds_train.ranks.collectives import device_of
from ds_train.ranks.world import World, check_num_ranks, rendezvous, world_from_env

DEEPSPEED = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}
HYDRA = {"PMI_RANK": "6", "MPI_LOCALRANKID": "2", "PMI_SIZE": "8"}
BATCH_SCRIPT = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = {**BATCH_SCRIPT, "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "7", "SLURM_LOCALID": "3",
        "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[03-04]"}  # fmt: skip

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, World(0, 0, 1)),
        (DEEPSPEED, World(5, 1, 8, "deepspeed or torchrun")),
        (OPEN_MPI, World(3, 3, 4, "Open MPI")),
        (HYDRA, World(6, 2, 8, "MPICH or Intel MPI")),
        (STEP, World(7, 3, 8, "srun")),
        (BATCH_SCRIPT, World(0, 0, 1)),  # its own process is no task
        ({**STEP, **DEEPSPEED}, World(5, 1, 8, "deepspeed or torchrun")),  # a launcher that srun started
        ({**STEP, **OPEN_MPI}, World(3, 3, 4, "Open MPI")),
    ],
)
def test_every_launcher(environ: dict[str, str], expected: World) -> None:
    assert world_from_env(environ) == expected


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"RANK": "1"}, ["LOCAL_RANK is not set"]),
        ({**DEEPSPEED, "WORLD_SIZE": "many"}, ["WORLD_SIZE is many", "expected a number"]),
        ({**DEEPSPEED, "RANK": "8"}, ["RANK=8", "WORLD_SIZE=8", "below the size"]),
        ({**STEP, "SLURM_PROCID": "-1"}, ["srun set SLURM_PROCID=-1"]),
    ],
)
def test_variables_that_make_no_sense(environ: dict[str, str], words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        world_from_env(environ)
    assert all(word in str(raised.value) for word in words), raised.value


def test_number_of_ranks_is_what_was_asked_for() -> None:
    check_num_ranks(World(0, 0, 4), None)
    check_num_ranks(World(0, 0, 4), 4)
    with pytest.raises(UserError, match=r"--num_ranks 16, but no launcher started 1\. Check the hostfile"):
        check_num_ranks(World(0, 0, 1, "no launcher"), 16)


def test_rendezvous_of_a_given_address_and_of_one_process() -> None:
    world = world_from_env(DEEPSPEED)
    assert rendezvous(world, {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29501"}) == ("10.0.0.1", 29501)
    assert rendezvous(World(0, 0, 1), {}) is None


def test_jobs_of_deepspeed_on_one_machine_do_not_meet_at_its_default_port(monkeypatch: pytest.MonkeyPatch) -> None:
    world, found = World(1, 1, 8, "deepspeed or torchrun"), []
    default = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for number in (4_711, 4_712):  # of the process that started the ranks of a job
        monkeypatch.setattr(os, "getppid", lambda number=number: number)
        found.append(rendezvous(world, {**default, "LOCAL_SIZE": "8"}))
    assert found == [("127.0.0.1", 19_711), ("127.0.0.1", 19_712)]
    # A port that was chosen stays, and so does that of several nodes, which know no common process.
    assert rendezvous(world, {**default, "LOCAL_SIZE": "8", "MASTER_PORT": "29501"}) == ("127.0.0.1", 29_501)
    assert rendezvous(world, {**default, "LOCAL_SIZE": "4"}) == ("127.0.0.1", 29_500)
    assert rendezvous(world, default) == ("127.0.0.1", 29_500)


def test_a_port_that_is_no_number_is_refused() -> None:
    world = World(1, 1, 8)
    with pytest.raises(UserError, match="MASTER_PORT is x"):
        rendezvous(world, {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "x"})


def test_mpi_on_one_node_and_on_several() -> None:
    world = world_from_env(OPEN_MPI)
    assert rendezvous(world, {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}) == ("127.0.0.1", 15_000)
    with pytest.raises(UserError, match="MASTER_ADDR is not set, and Open MPI started ranks on several nodes"):
        rendezvous(world, {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"})


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that answers as Slurm's does."""
    program = tmp_path / "scontrol"
    program.write_text(
        """#!/bin/sh
case "$*" in
    "show hostnames gpu[03-04]") printf 'gpu03\\ngpu04\\n' ;;
    "show node gpu03") printf 'NodeName=gpu03 Arch=x86_64\\n   NodeAddr=10.1.0.3 NodeHostName=gpu03\\n' ;;
    *) exit 1 ;;
esac
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("scontrol")
def test_under_srun_the_first_node_and_a_port_of_the_step() -> None:
    world = world_from_env(STEP)
    address, port = rendezvous(world, STEP) or ("", 0)
    assert address == "10.1.0.3" and 15_000 <= port < 30_000
    _, next_step = rendezvous(world, {**STEP, "SLURM_STEP_ID": "3"}) or ("", 0)
    _, next_job = rendezvous(world, {**STEP, "SLURM_JOB_ID": "78"}) or ("", 0)
    assert len({port, next_step, next_job}) == 3
    assert rendezvous(world, {**STEP, "SLURM_STEP_NUM_NODES": "1"}) == ("127.0.0.1", port)
    assert rendezvous(world, {**STEP, "MASTER_ADDR": "here"}) == ("here", port)


@pytest.mark.usefixtures("scontrol")
def test_a_node_list_that_scontrol_does_not_know() -> None:
    with pytest.raises(UserError, match=r"first node of gpu\[5\].*export MASTER_ADDR"):
        rendezvous(world_from_env(STEP), {**STEP, "SLURM_STEP_NODELIST": "gpu[5]"})


@pytest.mark.parametrize(
    ("named", "num_gpus", "expected"),
    [
        (None, 0, CPU),
        (None, 2, torch.device("cuda", 1)),
        ("cuda", 2, torch.device("cuda", 1)),
        ("cpu", 2, CPU),  # DeepSpeed's own variable: it would leave the GPUs alone, too
        ("cuda", 0, "DS_ACCELERATOR is cuda, but torch sees no GPU"),
        ("xpu", 0, "DS_ACCELERATOR is 'xpu', expected cuda or cpu"),
        ("", 2, "DS_ACCELERATOR is '', expected cuda or cpu"),
    ],
)
def test_ranks_train_on_gpus_unless_ds_accelerator_is_cpu(named, num_gpus, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    if named is not None:
        monkeypatch.setenv("DS_ACCELERATOR", named)
    if isinstance(expected, torch.device):
        assert device_of(World(5, 1, 8, "deepspeed or torchrun")) == expected
    else:
        with pytest.raises(UserError, match=expected):
            device_of(World(5, 1, 8))
