"""The grid of an experiment as Slurm jobs that depend on each other, and what of it is not submitted yet."""

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ds_train
from data_tools.base.errors import UserError
from data_tools.base.files import exclusive
from data_tools.base.text_table import pluralize
from data_tools.runs.queue import QUEUE, SubmittedJob, add_job, job_name, squeue, submitted_jobs
from ds_train.experiment.plan import Experiment
from ds_train.experiment.steps import Step, all_needs

_SCRIPT = Path("launch") / "experiment_job.sh"
_DATA, _PPTRAIN, _PRETRAIN, _REPORT = "data", "pptrain", "pretrain", "report"


@dataclass(frozen=True)
class Job:
    """A job to submit.

    Attributes:
        part: its name.
        steps: what it is for; it also makes what they need.
        is_array: whether each step is a task.
        after: what must have succeeded before: names of other parts, and tasks in the queue.
    """

    part: str
    steps: list[str]
    is_array: bool
    after: list[str]


@dataclass(frozen=True)
class Submission:
    """How jobs are submitted.

    Attributes:
        arguments: of ds_train.experiment: CONFIG, DIR, and flags.
        parallel: tasks of an array that run at the same time; None for all.
        options: of sbatch, for all jobs.
        data_options: of sbatch, for the job that makes the data, after the others.
    """

    arguments: Sequence[str]
    parallel: int | None
    options: Sequence[str]
    data_options: Sequence[str]

    def command(self, job: Job, directory: Path, numbers: Mapping[str, str]) -> list[str]:
        """The command that submits a job.

        Args:
            numbers: of the jobs that were submitted, by part.
        """
        log = f"%{'A_%a' if job.is_array else 'j'}_{job.part}.out"
        command = ["sbatch", "--parsable", f"--job-name={job_name(directory, job.part)}"]
        command.append(f"--output={directory / QUEUE / log}")
        if job.is_array:
            limit = f"%{self.parallel}" if self.parallel else ""
            command.append(f"--array=0-{len(job.steps) - 1}{limit}")
        if job.after:
            # A job that requeues itself has not failed. What depends on one that has failed is cancelled.
            command.append(f"--dependency=afterok:{':'.join(numbers.get(one, one) for one in job.after)}")
            command.append("--kill-on-invalid-dep=yes")
        command += [*self.options, *(self.data_options if job.part == _DATA else ())]
        only = [] if job.part == _REPORT else ["--steps", *job.steps]
        return [*command, str(_SCRIPT), *self.arguments, *only]


def jobs_of(experiment: Experiment, queued: Mapping[str, str]) -> list[Job]:
    """The jobs that are missing, in order: of steps that are neither done nor in the queue.

    Args:
        queued: step → the task in the queue that it is of.
    """
    steps = experiment.steps()
    done = {step.name for step in steps if not step.always_run and experiment.records.is_done(step)}
    jobs: list[Job] = []
    made_by: dict[str, str] = {}  # step → the part or the task that makes it
    for part, of_part in _parts(experiment, steps).items():
        missing: list[str] = []
        after: dict[str, None] = {}
        for step in of_part:
            if step.name in done:
                continue
            before = {made_by[need.name]: None for need in all_needs(step) if need.name in made_by}
            # A task in the queue is lost if what it waits for was not: that has failed, or has changed.
            if step.name in queued and not {job.part for job in jobs} & {*before}:
                made_by[step.name] = queued[step.name]
                continue
            missing.append(step.name)
            after |= before
        if missing:
            made_by |= dict.fromkeys(missing, part)
            jobs.append(Job(part, missing, part != _DATA, [one for one in after if one != part]))
    last = [step for step in steps if step.name.startswith("evaluate/") or step.always_run]
    is_made = all(step.product.exists() if step.always_run else step.name in done for step in last)
    if jobs or not (is_made or {step.name for step in last} <= {*queued}):
        jobs.append(Job(_REPORT, [step.name for step in last], False, list(dict.fromkeys(made_by.values()))))
    return jobs


def _parts(experiment: Experiment, steps: Sequence[Step]) -> dict[str, list[Step]]:
    """Part → its steps. First phases that need others follow these. Packs of certain lengths are made with the runs."""
    last = {f"{condition.name}/seed_{seed}" for condition in experiment.conditions for seed in experiment.seeds}
    first: dict[str, list[Step]] = {}
    for step in steps:
        if step.run and step.name not in last:
            depth = len({need.name for need in all_needs(step) if need.run})
            first.setdefault(f"{_PPTRAIN}_after_{depth}" if depth else _PPTRAIN, []).append(step)
    second = [step for step in steps if step.name in last]
    return {_DATA: experiment.data(), **dict(sorted(first.items())), _PRETRAIN: second}


def submit(experiment: Experiment, submission: Submission) -> None:
    """Submit what is missing, and record it in DIR/queue; shows a line for each job.

    Raises:
        UserError: there is no Slurm, it refuses a job, or another process is submitting.
    """
    repository = _repository()
    with exclusive(experiment.directory / QUEUE / ".submitting", "wait until it has submitted its jobs"):
        queued = _queued(experiment.directory)
        numbers: dict[str, str] = {}
        for job in jobs_of(experiment, queued):
            command = submission.command(job, experiment.directory, numbers)
            numbers[job.part] = _sbatch(command, repository)
            add_job(experiment.directory, SubmittedJob(numbers[job.part], job.part, job.steps, job.is_array))
            after = ", ".join(numbers.get(one, one) for one in job.after)
            what = pluralize(len(job.steps), "task") if job.is_array else pluralize(len(job.steps), "step")
            print(f"submitted {numbers[job.part]}: {job.part}, {what}{f', after {after}' if after else ''}")
    if not numbers:
        tasks = ", ".join(dict.fromkeys(queued.values()))
        print(f"nothing to submit: {f'the rest is in the queue ({tasks})' if tasks else 'all steps are done'}")
        return
    print(f"logs are in {experiment.directory / QUEUE}; watch: python -m data_tools.status {experiment.directory}")


def show(experiment: Experiment, submission: Submission) -> None:
    """Print the jobs that `submit` would submit, with their commands; <PART> stands for the number of a job."""
    try:
        queued = _queued(experiment.directory)
    except UserError as error:
        queued = {}
        print(f"\nNote: {error} What is in the queue is not known, and is shown as if it were not there.")
    jobs = jobs_of(experiment, queued)
    if not jobs:
        print("\nnothing to submit")
    numbers = {job.part: f"<{job.part}>" for job in jobs}
    for job in jobs:
        after = f", after {', '.join(job.after)}" if job.after else ""
        what = f"an array of {pluralize(len(job.steps), 'task')}" if job.is_array else pluralize(len(job.steps), "step")
        print(
            f"\n# job {job.part}: {what}{after}\n{shlex.join(submission.command(job, experiment.directory, numbers))}"
        )


def _queued(directory: Path) -> dict[str, str]:
    """Step → task in the queue, of all that were submitted before; none of those that Slurm is about to cancel."""
    jobs = submitted_jobs(directory)
    tasks = squeue({job.job: job_name(directory, job.part) for job in jobs})
    return {
        step: name
        for job in jobs
        for name, steps in job.tasks.items()
        if name in tasks and not tasks[name].is_lost
        for step in steps
    }


def _repository() -> Path:
    repository = Path(str(ds_train.__file__)).parents[1]
    if not (repository / _SCRIPT).is_file():
        raise UserError(f"--submit needs {_SCRIPT}, which {repository} does not have; run it in the repository.")
    return repository


def _sbatch(command: Sequence[str], repository: Path) -> str:
    """Submit a job; returns its number."""
    try:
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("there is no sbatch here; submit where Slurm's commands are.") from None
    if done.returncode:
        raise UserError(
            f"sbatch failed: {done.stderr.strip()}\n{shlex.join(command)}\nThe jobs above are submitted; the same "
            "command submits the others."
        )
    return done.stdout.strip().split(";")[0]  # a cluster's name may follow
