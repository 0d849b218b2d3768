"""MLflow gets each row once, in one run over resumes; a stand-in has the few calls of its client that are used."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from data_tools.base.errors import Problems
from ds_train.ranks.signals import ExitCode, StopTraining
from ds_train.training import mlflow_run
from ds_train.training.mlflow_run import MlflowRun, check_mlflow
from ds_train.training.monitors import Monitors


class Server:
    """What MLflow keeps, by run."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: list[str] = []
        self.places: list[str] = []
        self.is_down = False

    def client(self, tracking_uri: str) -> SimpleNamespace:
        self.places.append(tracking_uri)
        return SimpleNamespace(
            get_experiment_by_name=lambda name: (
                SimpleNamespace(experiment_id=name) if name in self.experiments else None
            ),
            create_experiment=lambda name: self.experiments.append(name) or name,
            create_run=self._create_run,
            update_run=lambda run, status: self.runs[run].update(status=status),
            set_terminated=lambda run, status: self.runs[run].update(status=status),
            get_metric_history=lambda run, key: [metric for metric in self.runs[run]["rows"] if metric.key == key],
            log_batch=self._log_batch,
        )

    def _create_run(self, experiment: str, run_name: str) -> SimpleNamespace:
        name = f"run {len(self.runs)}"
        self.runs[name] = {"name": run_name, "experiment": experiment, "status": "RUNNING", "rows": []}
        return SimpleNamespace(info=SimpleNamespace(run_id=name))

    def _log_batch(self, run: str, metrics: list[Any]) -> None:
        if self.is_down:
            raise ConnectionError("no server")
        self.runs[run]["rows"] += metrics


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found, entities = Server(), ModuleType("mlflow.entities")
    module: Any = ModuleType("mlflow")
    module.MlflowClient = found.client
    entities.Metric = lambda key, value, timestamp, step: SimpleNamespace(  # type: ignore[attr-defined]
        key=key, value=value, timestamp=timestamp, step=step
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return found


def _train(directory: Path, first: int, last: int, error: BaseException | None = None) -> None:
    """What the loop sends of these steps: a row each, and an evaluation of every other one."""
    run = MlflowRun("search", "pptrain", directory, "A/seed_1")
    run.begin(first - 1)
    monitors = Monitors(SimpleNamespace(enabled=False), "pptrain", directory, run)
    for step in range(first, last + 1):
        row = {"step": step, "lr": 0.1, "loss": 1 / step, "ledger": "text", "stage_acc": None, "timestamp": 1e9 + step}
        monitors.send("train", row)
        if step % 2 == 0:
            monitors.send("eval", {"step": step, "num_examples": 8, "heldout_loss": 0.5, "timestamp": 1e9 + step})
    monitors.close(error)


def _curve(server: Server, run: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in server.runs[run]["rows"] if metric.key == key]


def test_a_resumed_run_continues_and_repeats_no_row(server: Server, tmp_path: Path) -> None:
    _train(tmp_path, 1, 5, StopTraining(ExitCode.PREEMPTED, "a signal"))
    assert server.runs["run 0"]["status"] == "KILLED"
    _train(tmp_path, 4, 7)  # from the checkpoint after step 3
    assert [*server.runs] == ["run 0"] and server.runs["run 0"]["status"] == "FINISHED"
    assert (server.runs["run 0"]["name"], server.runs["run 0"]["experiment"]) == ("A/seed_1", "search")
    assert _curve(server, "run 0", "pptrain/train/loss") == [(step, 1 / step) for step in range(1, 8)]
    assert _curve(server, "run 0", "pptrain/eval/heldout_loss") == [(2, 0.5), (4, 0.5), (6, 0.5)]
    keys = {metric.key for metric in server.runs["run 0"]["rows"]}
    assert not keys & {"pptrain/train/step", "pptrain/train/ledger", "pptrain/train/stage_acc"}
    assert server.runs["run 0"]["rows"][0].timestamp == 1_000_000_001_000, "milliseconds"


def test_a_fresh_start_is_another_run_of_the_same_experiment(server: Server, tmp_path: Path) -> None:
    _train(tmp_path, 1, 2, ValueError())
    _train(tmp_path, 1, 2)
    assert [run["status"] for run in server.runs.values()] == ["FAILED", "FINISHED"]
    assert server.experiments == ["search"]


def test_it_is_kept_in_the_run_directory_unless_a_server_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _train(tmp_path, 1, 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    _train(tmp_path, 1, 1)
    assert server.places == [f"sqlite:///{tmp_path}/mlflow.db", "https://mlflow.example.org"]


def test_a_server_that_is_down_is_one_warning(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.is_down = True
    _train(tmp_path, 1, 9)
    (message,) = caplog.messages
    assert message.startswith("--mlflow: ConnectionError: no server. Training continues")
    assert server.runs["run 0"]["status"] == "FINISHED"


def test_a_missing_package_is_refused_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_run, "find_spec", lambda name: None)
    problems = Problems()
    check_mlflow(None, problems)
    assert len(problems) == 0
    check_mlflow("search", problems)
    assert problems._messages == ["--mlflow needs the package mlflow, which is not installed: pip install mlflow."]
