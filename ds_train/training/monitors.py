"""DeepSpeed's monitors (the JSON's tensorboard, wandb, csv_monitor, comet), kept in the run directory across resumes.

By itself DeepSpeed writes to the current directory and starts a new curve with each launch.
"""

import csv
import logging
import os
import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any

from data_tools.base.errors import Problems, file_problem
from data_tools.base.files import whole_file
from ds_train.ranks.signals import StopTraining
from ds_train.training.metrics import Row
from ds_train.training.mlflow_run import MlflowRun

logger = logging.getLogger(__name__)

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}
_WANDB_ID = "wandb_run_id"


def check_monitors(config: Mapping[str, Any], problems: Problems, *, is_main: bool) -> None:
    """Check that enabled monitors are installed and usable: DeepSpeed would only notice after the model is built.

    Args:
        is_main: rank 0, which alone sends rows.
    """
    for block, package in _PACKAGES.items():
        if config.get(block, {}).get("enabled") and find_spec(package) is None:
            problems.add(f"{block}.enabled needs the package {package}, which is not installed: pip install {package}.")
    if is_main and config.get("wandb", {}).get("enabled") and not _may_use_wandb():
        problems.add(
            "wandb.enabled (--wandb): there is no key for Weights & Biases, neither in WANDB_API_KEY nor one of "
            "`wandb login` in ~/.netrc; give one, or set WANDB_MODE=offline."
        )


def _may_use_wandb() -> bool:
    """Whether W&B needs no key or may find one. To ask W&B itself would take seconds and start a process."""
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    own = os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")
    if any(Path(directory, "settings").expanduser().exists() for directory in (own, "wandb")):  # may have key or mode
        return True
    return any(map(_has_passwords, [os.environ.get("NETRC", "~/.netrc"), "~/_netrc"]))


def _has_passwords(file: str) -> bool:
    """Whether a netrc file has any: the name of W&B's host depends on its version and on the server."""
    try:
        return bool(netrc(Path(file).expanduser()).hosts)
    except (OSError, NetrcParseError):
        return False


def place_monitors(config: dict[str, Any], run_directory: Path, run_name: str) -> None:
    """Fill in output paths: the run directory, or a directory of the run's name under the JSON's ``output_path``."""
    for block in ("tensorboard", "csv_monitor"):
        if config.get(block, {}).get("enabled"):
            is_placed = config[block].get("output_path")
            config[block].setdefault("job_name", run_name if is_placed else block)
            config[block]["output_path"] = is_placed or str(run_directory)


def join_wandb(run_directory: Path, run_name: str, is_resumed: bool) -> None:
    """Make W&B continue this directory's run, unless the environment names another. Call it on rank 0."""
    path = run_directory / _WANDB_ID
    if not (is_resumed and path.exists()):
        with whole_file(path) as file:
            file.write(uuid.uuid4().hex.encode())
    chosen = {"RUN_ID": path.read_text(), "RESUME": "allow", "NAME": run_name, "DIR": str(run_directory)}
    for name, value in chosen.items():
        os.environ.setdefault(f"WANDB_{name}", value)


class Monitors:
    """Sends the rows of our logs to an engine's monitors, and silences DeepSpeed's own events, which count samples.

    Args:
        monitor: the engine's.
        phase: prefix of the curves' names, as in ``pptrain/train/loss``.
        run_directory: where they write.
        mlflow: gets the rows as well.
    """

    def __init__(self, monitor: Any, phase: str, run_directory: Path, mlflow: MlflowRun | None = None) -> None:
        self._monitor, self._phase, self._directory, self._mlflow = monitor, phase, run_directory, mlflow
        self._has_failed = False
        self._is_enabled, monitor.enabled = monitor.enabled, False

    def rewind(self, kept: Mapping[str, int]) -> None:
        """Drop rows after the step that ``kept`` gives for each log, as the logs themselves do."""
        if self._is_enabled and self._monitor.csv_monitor:
            for kind, step in kept.items():
                self._rewind_csv(self._monitor.csv_monitor, kind, step)
        if self._is_enabled and self._monitor.tb_monitor and max(kept.values()) > 0:
            _begin_session(self._monitor.tb_monitor.summary_writer, max(kept.values()))

    def send(self, kind: str, row: Row) -> None:
        """Send the numbers of a row."""
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float) and key != "step"}
        if self._mlflow:
            self._mlflow.send(kind, row["step"], numbers, row["timestamp"])
        if self._is_enabled:
            events = [(f"{self._phase}/{kind}/{key}", value, row["step"]) for key, value in numbers.items()]
            try:
                self._monitor.write_events(events)
            except OSError as error:
                if not self._has_failed:
                    logger.warning("%s. Monitors miss rows; the logs have them", file_problem(error, self._directory))
                self._has_failed = True

    def close(self, error: BaseException | None) -> None:
        """The run has ended, by an error or a request to stop if one is given."""
        if self._mlflow:
            stopped = isinstance(error, StopTraining)
            self._mlflow.end("FINISHED" if error is None else "KILLED" if stopped else "FAILED")

    def _rewind_csv(self, monitor: Any, kind: str, step: int) -> None:
        for path in Path(monitor.log_dir).glob(f"{self._phase}_{kind}_*.csv"):
            with path.open(newline="", errors="replace") as file:
                head, *rows = list(csv.reader(file)) or [["step", path.stem]]
            with whole_file(path) as out:
                kept = [head, *(row for row in rows if len(row) == 2 and row[0].isdecimal() and int(row[0]) <= step)]
                out.write("".join(f"{','.join(row)}\r\n" for row in kept).encode())
            monitor.filenames.append(path.stem)  # so that DeepSpeed writes no second header


def _begin_session(writer: Any, step: int) -> None:
    """Make TensorBoard discard events after ``step``, as ``SummaryWriter(purge_step=…)`` would."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    writer.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step=step + 1)
