"""The batch job of an experiment: which steps a task of an array runs, and what is handed on."""

from pathlib import Path

import pytest

from tests.support.launching import REPOSITORY
from tests.support.programs import Programs

_JOB = ["sbatch", "launch/experiment_job.sh"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("programs") / "installation")


def test_its_settings_let_it_be_preempted_between_trainers() -> None:
    lines = (REPOSITORY / "launch" / "experiment_job.sh").read_text().splitlines()
    assert {"#SBATCH --signal=B:USR1@180", "#SBATCH --requeue", "#SBATCH --open-mode=append"} <= {*lines}


def test_a_task_of_an_array_gets_its_own_step(programs: Programs, tmp_path: Path) -> None:
    shared = ["a b.yaml", str(tmp_path / "out"), "--seeds", "1", "2", "--steps"]
    given = [*shared, "A/seed_1", "pack x", "B/seed_1", "--dry_run"]
    before = ["python", "-m", "ds_train.experiment", "--launcher"]
    assert programs.run([*_JOB, *given], {})[2] == [[*before, "bash launch/{}_srun.sh", *given]]
    own = [*shared, "pack x", "--dry_run"]
    more = {"SLURM_ARRAY_TASK_ID": "1", "LAUNCHER": "x {}"}
    code, output, calls = programs.run([*_JOB, *given], more)
    assert (code, calls) == (0, [[*before, "x {}", *own]]) and "exit code 0" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["c.yaml", "out", "--steps", "a", "b"], "task 3 of the array has none of the 2 names after --steps"),
        (["c.yaml", "--dry_run"], "give CONFIG and DIR"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, programs: Programs) -> None:
    code, output, calls = programs.run([*_JOB, *arguments], {"SLURM_ARRAY_TASK_ID": "3"})
    assert code == 1 and message in output and not calls
