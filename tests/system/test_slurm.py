"""srun and sbatch on a real Slurm: equal runs, preemption without a lost step, and who is requeued."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ds_train import audit
from tests.support.experiments import write_tiny_experiment
from tests.support.launching import REPOSITORY
from tests.support.markdown import commands
from tests.support.running import (
    finish,
    newest_checkpoint,
    running,
    script,
    steps_logged,
    steps_said,
    trainer_flags,
    variables,
    wait_for_step,
)
from tests.support.slurm import Slurm
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.launch, pytest.mark.service]
_README = REPOSITORY / "launch" / "README.md"
_HANG_S = 15
_TWO_NODES = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1"]


def _submit(slurm: Slurm, checkout: Path, *arguments: str, options: list[str], **more: str) -> tuple[str, Path]:
    """Submit the job script as it is shipped; returns the job's number and its log."""
    command = ["sbatch", "--parsable", *options, "launch/pptrain_job.sh", *arguments]
    number = slurm(*command, cwd=checkout, env=variables(**more))
    return number, checkout / "slurm" / f"{number}_pptrain.out"


def _text(log: Path) -> str:
    return log.read_text() if log.exists() else ""


def _wait_for_text(log: Path, pattern: str) -> str:
    found = wait_until(
        lambda: re.search(pattern, _text(log), re.MULTILINE), f"{pattern!r} in the log:\n{_text(log)[-3000:]}"
    )
    return found[0]


@pytest.mark.parametrize("nodes", [1, 2])
def test_srun_equals_the_deepspeed_launcher(
    nodes: int, slurm: Slurm, scratch: Path, one_node: Path, tmp_path: Path
) -> None:
    """Two tasks, on one node and on two."""
    name = f"srun_{nodes}"
    options = {"SRUN_OPTIONS": f"--nodes={nodes} --ntasks=2", "NUM_RANKS": "2", **slurm.variables}
    flags = trainer_flags(scratch, name, max_steps=len(steps_logged(one_node)))
    finish([*script("pptrain_srun"), *flags, "--num_nodes", str(nodes)], tmp_path / "output", **options)
    assert audit.main([str(one_node), str(scratch / name)]) == 0


def test_job_out_of_time_requeues_itself_and_loses_nothing(
    slurm: Slurm, scratch: Path, checkout: Path, tmp_path: Path
) -> None:
    """The time limit is brought near; Slurm signals at the next of its half-minute rounds (USR1@180)."""
    run = scratch / "job"
    flags = {"micro_batch": 1, "global_batch": 32}  # slow steps, so that the equal run need not have many
    number, log = _submit(
        slurm, checkout, *trainer_flags(scratch, run.name, **flags, max_steps=100_000), options=_TWO_NODES
    )
    wait_for_step(run, 3)
    end = datetime.now() + timedelta(seconds=200)
    slurm("scontrol", "update", f"JobId={number}", f"EndTime={end:%Y-%m-%dT%H:%M:%S}")
    _wait_for_text(log, "^requeued: preempted at step")
    stopped = max(steps_logged(run))
    assert newest_checkpoint(run) == stopped, "optimizer steps were lost"

    wait_until(lambda: slurm.job(number).state == "PENDING", "the job to be pending")
    slurm("scontrol", "update", f"JobId={number}", "TimeLimit=60")  # the short one is still the job's
    _wait_for_text(log, f"resumed from .* at step {stopped}$")
    wait_for_step(run, stopped + 10)
    (run / "STOP").touch()
    job = slurm.wait_for_end(number)
    assert (job.restarts, job.exit_code) == (1, 86), _text(log)[-3000:]
    last = newest_checkpoint(run)
    assert steps_said(_text(log)) == list(range(1, last + 1)), "a step was lost or trained twice"
    assert steps_logged(run) == list(range(1, last + 1))

    equal = trainer_flags(scratch, "uninterrupted", **flags, max_steps=last)
    finish([*script("pptrain_srun"), *equal], tmp_path / "output", SRUN_OPTIONS="-N2", **slurm.variables)
    assert audit.main([str(scratch / "uninterrupted"), str(run)]) == 0


def test_cancelled_job_saves_and_is_not_requeued(slurm: Slurm, scratch: Path, checkout: Path) -> None:
    run = scratch / "cancelled"
    number, log = _submit(slurm, checkout, *trainer_flags(scratch, run.name, max_steps=100_000), options=_TWO_NODES)
    wait_for_step(run, 5)
    slurm("scancel", number)
    job = slurm.wait_for_end(number)
    assert (job.state, job.restarts) == ("CANCELLED", 0)
    assert "exit code 85" in _text(log) and "not requeued: this job is " in _text(log)
    assert newest_checkpoint(run) == max(steps_logged(run)), "optimizer steps were lost"


def _process_of_rank(job: str, rank: int) -> int:
    """The trainer of a job's rank, found among all processes of the machine."""
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            environment = (directory / "environ").read_bytes().split(b"\0")
            command = (directory / "cmdline").read_bytes().split(b"\0")
            is_rank = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode()} <= set(environment)
            parent = int((directory / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if (
                is_rank
                and command[0].endswith(b"python")
                and b"slurmstepd" in Path(f"/proc/{parent}/cmdline").read_bytes()
            ):
                return int(directory.name)
    raise AssertionError(f"no process of rank {rank}")


def test_lost_rank_is_named_and_the_job_resumes(slurm: Slurm, scratch: Path, checkout: Path) -> None:
    """A rank killed as the kernel kills one when memory is short: the other notices, and the job starts again."""
    run = scratch / "lost_rank"
    flags = trainer_flags(scratch, run.name, max_steps=100_000, save_every=5)
    number, log = _submit(slurm, checkout, *flags, options=_TWO_NODES)
    wait_for_step(run, 12)
    os.kill(_process_of_rank(number, 1), signal.SIGKILL)
    _wait_for_text(log, "^requeued: a rank died or hung; restart 1 of at most 3 at step")
    assert re.search(r"error: rank 0: rank 1 \(\S+\) gives no sign of life", _text(log))
    _wait_for_text(log, "resumed from ")
    (run / "STOP").touch()
    job = slurm.wait_for_end(number)
    assert (job.restarts, job.exit_code) == (1, 86)


@pytest.mark.slow
def test_a_job_that_was_suspended_continues(slurm: Slurm, scratch: Path, checkout: Path) -> None:
    """Suspended for longer than a hang may last: no rank takes the others, or itself, for dead."""
    run = scratch / "suspended"
    slow_steps = {"micro_batch": 1, "global_batch": 4096}  # some seconds each: the watch looks within one
    flags = trainer_flags(scratch, run.name, max_steps=100_000, hang_timeout_s=_HANG_S, **slow_steps)
    number, log = _submit(slurm, checkout, *flags, options=_TWO_NODES)
    wait_for_step(run, 1)
    time.sleep(2.5)  # into the next step, which has reported its progress at its beginning
    slurm("scontrol", "suspend", number)
    wait_until(lambda: slurm.job(number).state == "SUSPENDED", "the job to be suspended")
    before = max(steps_logged(run))
    time.sleep(2.5 * _HANG_S)  # what is tested is that time passes
    assert max(steps_logged(run)) <= before + 1, "it was not suspended"
    slurm("scontrol", "resume", number)
    wait_for_step(run, before + 2)
    (run / "STOP").touch()
    job = slurm.wait_for_end(number)
    assert (job.restarts, job.exit_code) == (0, 86), _text(log)[-3000:]


@pytest.mark.slow
def test_a_plain_start_inside_a_step_of_two_tasks(slurm: Slurm, scratch: Path, tmp_path: Path) -> None:
    """As after `srun --pty bash`: one process where Slurm's variables name two. It says so, and a signal ends it."""
    trainer = [sys.executable, "ds_train/pptrain.py", *trainer_flags(scratch, "alone", max_steps=10)]
    alone = f"[ $SLURM_PROCID = 1 ] && exec sleep 300; exec {shlex.join(trainer)}"
    command = ["srun", "--kill-on-bad-exit=1", "--nodes=2", "--ntasks=2", "bash", "-c", alone]
    log = tmp_path / "output"
    with running(command, log, **slurm.variables) as process:
        _wait_for_text(log, "waiting for 1 of 2 ranks .1.; srun set SLURM_")
        started = time.monotonic()
        os.kill(_process_of_rank(slurm("squeue", "-h", "-o", "%i"), 0), signal.SIGTERM)
        process.wait(60)
    assert "stopped before training began, waiting for 1 of 2 ranks (1): received SIGTERM" in log.read_text()
    assert time.monotonic() - started < 30 and not (scratch / "alone").exists()


def _put_trainer(checkout: Path, text: str) -> None:
    """Another program in the place of pptrain.py."""
    (checkout / "ds_train").unlink()
    (checkout / "ds_train").mkdir()
    (checkout / "ds_train" / "pptrain.py").write_text(text)


@pytest.fixture
def stub_checkout(checkout: Path) -> Path:
    """A checkout whose trainer saves checkpoints and leaves as its arguments say, for each start of the job."""
    _put_trainer(
        checkout,
        "import os, pathlib, sys\n"
        "values = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "plan = values['--plan'].split(',')\n"
        "code, step = plan[min(int(os.environ.get('SLURM_RESTART_COUNT', 0)), len(plan) - 1)].split('@')\n"
        "run = pathlib.Path(values['--scratch_dir'], values['--run_name'])\n"
        "(run / 'checkpoints' / f'step_{int(step):08d}').mkdir(parents=True, exist_ok=True)\n"
        "sys.exit(int(code))\n",
    )
    return checkout


def test_who_is_requeued(slurm: Slurm, stub_checkout: Path) -> None:
    """Exit code and newest checkpoint of each start → how often the job is started again."""
    expected = {
        "0@10": ("COMPLETED", 0, 0),
        "1@10": ("FAILED", 0, 1),
        "86@10": ("FAILED", 0, 86),
        "85@10,0@20": ("COMPLETED", 1, 0),
        "87@10": ("FAILED", 1, 87),
        "87@10,87@20,87@20": ("FAILED", 2, 87),
    }
    jobs = {}
    for plan in expected:
        arguments = ["--scratch_dir", str(stub_checkout / plan), "--run_name", "r", "--plan", plan]
        options = [*_TWO_NODES, "--gpus-per-node=1"]  # all at the same time
        jobs[plan], _ = _submit(slurm, stub_checkout, *arguments, options=options, MAX_RESTARTS="1")
    ended = {plan: slurm.wait_for_end(number) for plan, number in jobs.items()}
    assert {plan: (job.state, job.restarts, job.exit_code) for plan, job in ended.items()} == expected


def test_commands_of_the_readme(slurm: Slurm, checkout: Path) -> None:
    """The page's lines for watching and stopping, as they stand there, on a job whose trainer waits for a signal."""
    _put_trainer(
        checkout,
        "import signal, sys\n"
        "asked = {signal.SIGUSR1, signal.SIGTERM}\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, asked)\n"
        "print('waits', flush=True)\n"
        "signal.sigwait(asked)\n"
        "sys.exit(85)\n",
    )
    number, log = _submit(slurm, checkout, "--scratch_dir", str(checkout), options=_TWO_NODES)
    lines = {command.argv: [word.replace("JOB", number) for word in command.argv] for command in commands(_README)}

    def line(*beginning: str) -> list[str]:
        return next(words for argv, words in lines.items() if argv[: len(beginning)] == beginning)

    _wait_for_text(log, r"^waits$(?:\n.*)*?\nwaits$")  # both: a signal before that would kill
    assert number in slurm(*line("squeue")).split()
    assert f"JobId={number} " in slurm(*line("scontrol", "show"))
    with subprocess.Popen(line("tail"), cwd=checkout, text=True, stdout=subprocess.PIPE) as following:
        assert following.stdout and any(text == "waits\n" for text in following.stdout)
        following.kill()
    slurm(*line("scancel", "--signal=USR1"))
    _wait_for_text(log, "^requeued: preempted")
    wait_until(lambda: slurm.job(number).state == "PENDING", "the job to be pending")
    slurm(*line("scontrol", "update"))
    _wait_for_text(log, r"(?s)^waits.*^waits")
    slurm(*line("scancel", "JOB"))
    assert slurm.wait_for_end(number).state == "CANCELLED"
    assert "SLURM_NTASKS=8" in slurm(*line("salloc"), "env")


@pytest.mark.slow
def test_the_grid_of_an_experiment_in_the_queue(slurm: Slurm, scratch: Path, tmp_path: Path) -> None:
    """Two runs on two nodes, one of them preempted: as the same grid without Slurm. Then nothing is left to submit."""
    flags = {"total_steps": 50, "micro_batch": 1, "eval_every": 25}
    config = write_tiny_experiment(tmp_path / "tiny.yaml", scratch, pretrain=flags, conditions=["B", "C"], seeds=[1])
    alone, queued = tmp_path / "alone", tmp_path / "queued"
    program = [sys.executable, "-m", "ds_train.experiment", str(config)]
    submission = [*program, str(queued), "--submit", "--sbatch=--nodes=1 --ntasks-per-node=1 --exclusive"]

    def submit() -> str:
        return slurm(*submission, cwd=REPOSITORY, env=variables())

    jobs = {part: number for number, part in re.findall(r"^submitted (\d+): (\w+)", submit(), re.MULTILINE)}
    assert [*jobs] == ["data", "pretrain", "report"]
    wait_for_step(queued / "B" / "seed_1", 3)
    slurm("scontrol", "requeue", f"{jobs['pretrain']}_0")
    table = slurm(sys.executable, "-m", "data_tools.status", str(queued), cwd=REPOSITORY, env=variables())
    assert re.search(rf"^{jobs['report']} +report +evaluate/.* PENDING .*\(Dependency\)$", table, re.MULTILINE), table
    assert "nothing to submit: the rest is in the queue" in submit()
    finish([*program, str(alone), "--steps", "evaluate/B/seed_1"], tmp_path / "alone.log")
    assert slurm.wait_for_end(jobs["report"], 240).state == "COMPLETED"
    assert slurm.job(f"{jobs['pretrain']}_0").restarts == 1
    assert "resumed from " in _text(queued / "queue" / f"{jobs['pretrain']}_0_pretrain.out")
    assert audit.main([str(alone / "B" / "seed_1"), str(queued / "B" / "seed_1")]) == 0
    results = [json.loads((grid / "evaluations" / "B_seed_1.json").read_text()) for grid in (alone, queued)]
    assert results[0]["c4_loss"] == results[1]["c4_loss"] and results[0]["loss"] == results[1]["loss"]
    report = _text(queued / "queue" / f"{jobs['report']}_report.out")
    assert re.search("^C fresh, C4 [+] mix ", report, re.MULTILINE) and "C is " in report
    assert "nothing to submit: all steps are done" in submit()
