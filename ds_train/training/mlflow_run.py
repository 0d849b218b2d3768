"""The rows of a run's logs in MLflow (``--mlflow EXPERIMENT``), which DeepSpeed's monitors do not know.

Another thread sends them, so that a slow server does not hold up training.
"""

import os
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from data_tools.base.errors import Problems
from data_tools.base.files import whole_file
from ds_train.training.errands import Errands

_RUN_ID = "mlflow_run_id"
_SERVER = "MLFLOW_TRACKING_URI"  # MLflow's own variable
_LAST_WAIT_S = 30.0
# A number that each row of a log has: what MLflow has of it tells which rows it has.
_ALWAYS = {"train": "lr", "eval": "num_examples"}


def check_mlflow(experiment: str | None, problems: Problems) -> None:
    """Check that MLflow is installed where it is asked for."""
    if experiment is not None and find_spec("mlflow") is None:
        problems.add("--mlflow needs the package mlflow, which is not installed: pip install mlflow.")


class MlflowRun:
    """One run in MLflow, also over resumes of ours.

    Args:
        phase: prefix of the metrics' names, as in ``pptrain/train/loss``.
    """

    def __init__(self, experiment: str, phase: str, run_directory: Path, run_name: str) -> None:
        self._experiment, self._phase, self._name = experiment, phase, run_name
        self._directory = run_directory
        self._errands = Errands("--mlflow")
        self._client: Any = None
        self._id = ""
        self._last: dict[str, int] = {}  # step of the last row that MLflow has, by log

    def begin(self, step: int) -> None:
        """Open the run: a new one before the first step, else the one of the former launches, if there is any."""
        self._errands.add(partial(self._open, step))

    def send(self, kind: str, step: int, numbers: Mapping[str, float], timestamp: float) -> None:
        """Send the numbers of a row. Rows that MLflow has from before a resume are equal, and not sent again."""
        self._errands.add(partial(self._send, kind, step, dict(numbers), int(1000 * timestamp)))

    def end(self, status: str) -> None:
        """Set MLflow's status (FINISHED, KILLED, FAILED), and wait until all is sent, but not long."""
        self._errands.add(lambda: self._client.set_terminated(self._id, status))
        self._errands.wait(_LAST_WAIT_S)

    def _open(self, step: int) -> None:
        mlflow: Any = import_module("mlflow")  # takes seconds
        here = f"sqlite:///{(self._directory / 'mlflow.db').absolute()}"  # MLflow refuses plain files by now
        client = mlflow.MlflowClient(tracking_uri=os.environ.get(_SERVER) or here)
        path = self._directory / _RUN_ID
        if step and path.exists():
            self._id = path.read_text().strip()
            client.update_run(self._id, status="RUNNING")
            for kind, column in _ALWAYS.items():
                history = client.get_metric_history(self._id, self._key(kind, column))
                self._last[kind] = max((metric.step for metric in history), default=-1)
        else:
            found = client.get_experiment_by_name(self._experiment)
            number = found.experiment_id if found else client.create_experiment(self._experiment)
            self._id = client.create_run(number, run_name=self._name).info.run_id
            with whole_file(path) as file:
                file.write(self._id.encode())
        self._client = client

    def _send(self, kind: str, step: int, numbers: Mapping[str, float], milliseconds: int) -> None:
        if self._client is not None and step > self._last.get(kind, -1):  # None: not opened, of which a warning told
            metric = import_module("mlflow.entities").Metric
            rows = [metric(self._key(kind, name), value, milliseconds, step) for name, value in numbers.items()]
            self._client.log_batch(self._id, metrics=rows)

    def _key(self, kind: str, column: str) -> str:
        return f"{self._phase}/{kind}/{column}"
