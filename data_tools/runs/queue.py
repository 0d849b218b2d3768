"""The jobs of an experiment in a Slurm queue: what was submitted, and what squeue says of it now."""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_tools.base.errors import UserError
from data_tools.base.files import append

QUEUE = "queue"  # directory in that of an experiment, with the logs of its jobs
JOBS_FILE = "jobs.jsonl"
_TIMEOUT_S = 5.0
_FIELDS = "%i|%j|%T|%M|%R"
NEVER = "DependencyNeverSatisfied"  # Slurm is about to cancel the job


@dataclass(frozen=True)
class SubmittedJob:
    """A job as it was submitted.

    Attributes:
        job: Slurm's number.
        part: of the experiment, such as pretrain.
        steps: names of the steps that it is for.
        is_array: whether it has a task for each step.
    """

    job: str
    part: str
    steps: list[str]
    is_array: bool

    @property
    def tasks(self) -> dict[str, list[str]]:
        """Slurm's name of each task → its steps."""
        if not self.is_array:
            return {self.job: self.steps}
        return {f"{self.job}_{number}": [step] for number, step in enumerate(self.steps)}


@dataclass(frozen=True)
class QueuedTask:
    """What squeue says of a task: its state, such as RUNNING, how long it has run, and its nodes or why it waits."""

    state: str
    elapsed: str
    where: str

    @property
    def is_lost(self) -> bool:
        """Whether it waits for a job that has failed."""
        return NEVER in self.where


def add_job(experiment: Path, job: SubmittedJob) -> None:
    """Record a job in the directory of its experiment."""
    append(experiment / QUEUE / JOBS_FILE, json.dumps(asdict(job)).encode() + b"\n")


def submitted_jobs(experiment: Path) -> list[SubmittedJob]:
    """All jobs that were ever submitted for an experiment, the oldest first; damaged lines are left out."""
    try:
        lines = (experiment / QUEUE / JOBS_FILE).read_bytes().splitlines()
    except OSError:
        return []
    return [job for line in lines if (job := _job(line))]


def _job(line: bytes) -> SubmittedJob | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match row:
        case {"job": str(job), "part": str(part), "steps": list(steps), "is_array": bool(is_array)}:
            return SubmittedJob(job, part, [str(step) for step in steps], is_array)
    return None


def job_name(experiment: Path, part: str) -> str:
    """The name that Slurm shows for a job."""
    return f"{experiment.name}-{part}"


def squeue(jobs: Mapping[str, str]) -> dict[str, QueuedTask]:
    """The tasks of jobs that Slurm has in its queue or runs, by Slurm's name for them.

    Args:
        jobs: number → name; a job of another name has the number of ours on another cluster.

    Raises:
        UserError: there is no Slurm here, or it does not answer.
    """
    if not jobs:
        return {}
    command = ["squeue", "--noheader", "--array", f"--jobs={','.join(jobs)}", f"--format={_FIELDS}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise UserError("there is no squeue here; run this where Slurm's commands are.") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"squeue does not answer ({error}); try again later.") from None
    if done.returncode and "Invalid job id" not in done.stderr:  # what it says of a single job that is long gone
        raise UserError(f"squeue failed: {done.stderr.strip()}")
    rows = [row for line in done.stdout.splitlines() if len(row := line.split("|", 4)) == 5]
    return {task: QueuedTask(*rest) for task, name, *rest in rows if jobs.get(task.partition("_")[0]) == name}


def queue_table(directories: Sequence[Path]) -> list[list[str]]:
    """A heading and a row for each task in the queue, of the experiments that are, or are right below, directories.

    Empty without such a task, without Slurm, or if it does not answer within seconds.
    """
    places = [place for given in directories for place in (given, *given.glob("*")) if (place / QUEUE).is_dir()]
    found: dict[str, SubmittedJob] = {}
    names: dict[str, str] = {}
    for place in dict.fromkeys(map(Path.resolve, places)):
        for job in submitted_jobs(place):
            found[job.job], names[job.job] = job, job_name(place, job.part)
    if not found or not shutil.which("squeue"):
        return []
    try:
        tasks = squeue(names)
    except UserError:
        return []
    rows = [
        [name, job.part, _shown(steps), task.state, task.elapsed, task.where]
        for job in found.values()
        for name, steps in job.tasks.items()
        if (task := tasks.get(name))
    ]
    return [["job", "part", "steps", "state", "time", "nodes or reason"], *rows] if rows else []


def _shown(steps: Sequence[str]) -> str:
    return steps[0] if len(steps) == 1 else f"{steps[0]} … {steps[-1]}" if steps else ""
