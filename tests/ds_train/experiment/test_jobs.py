"""The grid as Slurm jobs: what waits for what, what is submitted again, and what is refused."""

import os
import re
from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from data_tools.runs.queue import JOBS_FILE, QUEUE, submitted_jobs
from ds_train.experiment import __main__, plan
from ds_train.experiment.jobs import Job, jobs_of
from tests.support.experiments import PPTRAINED, TRAINING, experiment, write

REPLAY = {"like": "A", "pptrain": {"answers": "shuffled", "curriculum": "replay", "replay_run": "A"}}


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the steps that count as done."""
    names: set[str] = set()
    monkeypatch.setattr(plan.Records, "is_done", lambda self, step: step.name in names)
    monkeypatch.setattr(plan, "spent_by", lambda run: PPTRAINED)
    return names


def shown(jobs: list[Job]) -> dict[str, tuple[list[str], list[str]]]:
    return {job.part: (job.steps, job.after) for job in jobs}


def test_what_waits_for_what(tmp_path: Path, done: set[str]) -> None:
    one = experiment(write(tmp_path, seeds=[1, 2], conditions={"A": None, "B": None, "sh": REPLAY}), tmp_path)
    jobs = shown(jobs_of(one, {}))
    runs = [f"{name}/seed_{seed}" for seed in (1, 2) for name in ("A", "B", "sh")]
    first, after = (["pptrain/seed_1", "pptrain/seed_2"], ["pptrain_sh/seed_1", "pptrain_sh/seed_2"])
    evaluated = [f"evaluate/{name}/seed_{s}" for s in (1, 2) for name in ("pptrain", "A", "B", "pptrain_sh", "sh")]
    assert jobs == {
        "data": (["splits", "pack"], []),
        "pptrain": (first, ["data"]),
        "pptrain_after_1": (after, ["data", "pptrain"]),
        "pretrain": (runs, ["data", "pptrain", "pptrain_after_1"]),
        "report": ([*evaluated, "report", "compare"], ["data", "pptrain", "pptrain_after_1", "pretrain"]),
    }


def test_only_what_is_missing(tmp_path: Path, done: set[str]) -> None:
    one = experiment(write(tmp_path, seeds=[1, 2], conditions=["A", "B"]), tmp_path)
    done |= {"splits", "pack", "pptrain/seed_1", "A/seed_1"}
    jobs = shown(jobs_of(one, {}))
    assert jobs["pptrain"] == (["pptrain/seed_2"], [])
    assert jobs["pretrain"] == (["B/seed_1", "A/seed_2", "B/seed_2"], ["pptrain"])

    # B/seed_1 trains in the queue; A/seed_2 waits there for a pre-pretraining that has failed.
    queued = {"B/seed_1": "7_0", "A/seed_2": "7_1", "B/seed_2": "7_2", "report": "8", "compare": "8"}
    jobs = shown(jobs_of(one, queued))
    assert jobs["pptrain"] == (["pptrain/seed_2"], []) and jobs["pretrain"] == (["A/seed_2"], ["pptrain"])
    assert jobs["report"][1] == ["pptrain", "7_0", "7_2", "pretrain"]

    queued["pptrain/seed_2"] = "6_0"
    last = {step.name: "8" for step in one.steps() if step.name.startswith("evaluate")}
    assert jobs_of(one, queued | last) == []
    assert list(shown(jobs_of(one, {name: task for name, task in queued.items() if task != "8"}))) == ["report"]


def test_a_finished_grid_is_not_submitted(tmp_path: Path, done: set[str]) -> None:
    one = experiment(write(tmp_path, conditions=["B", "C"]), tmp_path / "scratch")
    done |= {step.name for step in one.steps()}
    assert list(shown(jobs_of(one, {}))) == ["report"], "it was not written"
    for name in ("report", "comparison"):
        (tmp_path / "scratch" / name).mkdir(parents=True)
    assert jobs_of(one, {}) == []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for sbatch, which numbers jobs from 1 and keeps its calls, and a squeue that has them all."""
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / "sbatch").write_text(
        f'#!/bin/bash\necho "$*" >> {directory}/calls\n'
        f'[[ "$*" != *refused* ]] || {{ echo "no such partition" >&2; exit 1; }}\nwc -l < {directory}/calls\n'
    )
    (directory / "squeue").write_text(f"#!/bin/bash\ncat {directory}/queue 2>/dev/null\n")
    for program in directory.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def _submit(tmp_path: Path, *more: str) -> int:
    config = write(tmp_path, training=TRAINING, conditions=["A", "B"])
    return __main__.main([str(config), str(tmp_path / "scratch"), "--submit", *more])


def test_submission(tmp_path: Path, programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--parallel",
        "2",
        "--sbatch=--time=9:00 --nodes=2",
        "--sbatch_data=--partition=cpu",
        "--launcher",
        "go {}",
    )
    assert _submit(tmp_path, *options) == 0
    output = capsys.readouterr().out
    assert "submitted 3: pretrain, 2 tasks, after 1, 2" in output
    calls = (programs / "calls").read_text().splitlines()
    scratch = tmp_path / "scratch"
    script = (
        f"launch/experiment_job.sh {tmp_path}/config.yaml {scratch} --conditions A B --seeds 1337 --launcher go {{}}"
    )
    common = "--kill-on-invalid-dep=yes --time=9:00 --nodes=2"
    assert calls == [
        f"--parsable --job-name=scratch-data --output={scratch}/queue/%j_data.out --time=9:00 --nodes=2 "
        f"--partition=cpu {script} --steps splits pack",
        f"--parsable --job-name=scratch-pptrain --output={scratch}/queue/%A_%a_pptrain.out --array=0-0%2 "
        f"--dependency=afterok:1 {common} {script} --steps pptrain/seed_1337",
        f"--parsable --job-name=scratch-pretrain --output={scratch}/queue/%A_%a_pretrain.out --array=0-1%2 "
        f"--dependency=afterok:1:2 {common} {script} --steps A/seed_1337 B/seed_1337",
        f"--parsable --job-name=scratch-report --output={scratch}/queue/%j_report.out --dependency=afterok:1:2:3 "
        f"{common} {script}",
    ]
    assert [job.part for job in submitted_jobs(scratch)] == ["data", "pptrain", "pretrain", "report"]

    parts = {"1": "data", "2_0": "pptrain", "3_0": "pretrain", "3_1": "pretrain", "4": "report"}

    def answer(state: str, *tasks: str) -> None:
        (programs / "queue").write_text("".join(f"{task}|scratch-{parts[task]}|{state}\n" for task in tasks))

    answer("PENDING|0:00|(Dependency)", *parts)
    assert _submit(tmp_path) == 0
    assert "nothing to submit: the rest is in the queue (1, 2_0, 3_0, 3_1, 4)" in capsys.readouterr().out

    # The pre-pretraining has failed: Slurm is about to cancel what waits for it.
    answer("PENDING|0:00|(DependencyNeverSatisfied)", "3_0", "3_1", "4")
    assert _submit(tmp_path) == 0
    assert len((programs / "calls").read_text().splitlines()) == 8
    with pytest.raises(UserError, match="sbatch failed: no such partition"):
        _submit(tmp_path, "--sbatch=--partition=refused")


def test_a_dry_run_needs_no_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _submit(tmp_path, "--dry_run") == 0
    output = capsys.readouterr().out
    assert re.search(r"^# job pretrain: an array of 2 tasks, after data, pptrain$", output, re.MULTILINE)
    assert "'--dependency=afterok:<data>:<pptrain>' --kill-on-invalid-dep=yes" in output and "still to run" in output
    assert not (tmp_path / "scratch").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "scratch" / QUEUE).mkdir(parents=True)
    row = '{"job": "1", "part": "data", "steps": [], "is_array": false}'
    (tmp_path / "scratch" / QUEUE / JOBS_FILE).write_text(f"{row}\n")
    assert _submit(tmp_path, "--dry_run") == 0
    assert "Note: there is no squeue here" in capsys.readouterr().out
    with pytest.raises(UserError, match="there is no squeue here"):
        _submit(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--parallel", "2"], "--parallel is for --submit"),
        (["--sbatch=--nodes=2"], "--sbatch is for --submit"),
        (["--submit", "--clean"], "leave --clean out"),
        (["--submit", "--steps", "pack"], "leave --steps out"),
        (["--dry_run", "--steps", "A/seed_1338"], r"there is no step 'A/seed_1338'; did you mean A/seed_1337\?"),
    ],
)
def test_flags_that_do_not_fit(flags: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        __main__.main([str(write(tmp_path, training=TRAINING)), str(tmp_path / "scratch"), *flags])


def test_some_steps_with_what_they_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, training=TRAINING)
    assert __main__.main([str(config), str(tmp_path / "scratch"), "--dry_run", "--steps", "A/seed_1337"]) == 0
    titles = re.findall(r"^# (.*)", capsys.readouterr().out, re.MULTILINE)
    assert titles == ["splits", "pack", "pre-pretraining, seed 1337", "pretrain A pre-pretrained, C4 + mix, seed 1337"]
