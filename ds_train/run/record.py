"""The settings of a launch: printed by --print_config, and recorded in the run directory to repeat the run."""

import json
import logging
import shlex
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from data_tools.base.errors import UserError, file_problem
from data_tools.base.files import append, whole_file, write_json
from data_tools.base.records import read_record
from ds_train.checkpoints.manifest import set_aside
from ds_train.checkpoints.state import INITIAL_WEIGHTS, InitialWeights, TrainState
from ds_train.config.batch import AUTO
from ds_train.config.deepspeed_json import EngineConfig
from ds_train.config.run_file import RUN_FILE, as_run_file
from ds_train.model.causal_lm import is_preset
from ds_train.ranks.signals import ExitCode
from ds_train.ranks.world import World
from ds_train.run.fingerprints import git_state, versions

logger = logging.getLogger(__name__)

LAUNCHES = "launches.jsonl"
EXITS = "exits.jsonl"
_WORDS = ("latest", "none")  # values of pptrain_checkpoint that are no paths


@dataclass(frozen=True)
class _Launch:
    """What is read of a line of `LAUNCHES`."""

    initial_weights: InitialWeights | None = None


@dataclass(frozen=True)
class LaunchRecord:
    """All settings of a launch.

    Attributes:
        all_flags: the parsed flag dataclasses.
        sources: where each given flag comes from.
        engine: the resolved DeepSpeed JSON.
        defaults: the values of flags that are not given, as far as they follow from the phase and its data.
    """

    all_flags: Sequence[Any]
    sources: dict[str, str]
    engine: EngineConfig
    defaults: dict[str, Any] = field(default_factory=dict)

    def shown(self) -> str:
        """A run file with the source of every setting, and the JSON in effect as a comment."""
        effective = json.dumps(self.engine.effective, indent=2).splitlines()
        parts = [*self.engine.overrides, "The DeepSpeed JSON in effect:", *effective]
        return self._run_file([], in_full=True).lstrip() + "\n" + "\n".join(f"# {part}" for part in parts)

    def record(self, run_directory: Path, world: World, state: TrainState, num_parameters: int) -> None:
        """Write the run file, the JSON in effect, and a line for this launch, which starts with this state."""
        weights = state.initial_weights
        launch: dict[str, Any] = {
            "timestamp": time.time(), "step": state.step, "ranks": world.size, "launcher": world.launcher,
            "command": shlex.join(sys.argv), "versions": versions(), "git": git_state(),
            "defaults": {name: str(value) for name, value in self.defaults.items()}, "parameters": num_parameters,
            **({INITIAL_WEIGHTS: asdict(weights)} if weights else {}),
            **({"branched_from": asdict(state.branched_from)} if state.branched_from else {}),
        }  # fmt: skip
        run_file = (run_directory / RUN_FILE).absolute()
        remarks = [
            f"Repeats this run: deepspeed {sys.argv[0]} --config {run_file} --run_name NEW",
            f"Last started as: {launch['command']}",
            "with " + ", ".join(f"{name} {version}" for name, version in launch["versions"].items()),
            f"git: {launch['git'] or 'unknown'}",
            f"Started from {weights or 'weights that were not recorded'}",
        ]
        with whole_file(run_file) as file:
            file.write(self._run_file(remarks, weights=weights).encode())
        write_json(run_directory / "deepspeed.json", self.engine.effective)
        append(run_directory / LAUNCHES, f"{json.dumps(launch)}\n".encode())

    def _run_file(self, remarks: Sequence[str], in_full: bool = False, weights: InitialWeights | None = None) -> str:
        """The run file.

        Args:
            in_full: with a value for each flag that has one, although it is not given.
            weights: those that the run started from, in place of what the flag would find today.
        """
        flags, sources = [_with_absolute_paths(group) for group in self.all_flags], self.sources
        flags = [_with_micro_batch(group, self.engine.layout.micro_batch) for group in flags]
        if weights:
            flags = [_with_weights(group, weights) for group in flags]
        if in_full:
            json_name = sources.get("deepspeed_config", "default JSON")
            effective = self.engine.flag_values()
            sources = dict.fromkeys(effective, json_name) | sources
            flags = [_filled(group, effective | self.defaults) for group in flags]
        return as_run_file(flags, self.engine.given, sources, remarks=remarks, json_path=self.engine.path)


def _filled(flags: Any, values: Mapping[str, Any]) -> Any:
    """The flags with these values where they have none."""
    empty = [item.name for item in fields(flags) if getattr(flags, item.name) is None and item.name in values]
    return replace(flags, **{name: values[name] for name in empty})


def _with_micro_batch(flags: Any, size: int) -> Any:
    """The flags with the micro batch that was chosen, where it was to be chosen."""
    return replace(flags, micro_batch=size) if getattr(flags, "micro_batch", None) == AUTO else flags


def _with_weights(flags: Any, weights: InitialWeights) -> Any:
    """The flags with the path of these weights in the flag that names them, where there is one."""
    has_flag = any(item.name == "pptrain_checkpoint" for item in fields(flags))
    return replace(flags, pptrain_checkpoint=weights.path or "none") if has_flag else flags


def record_exit(run_directory: Path, step: int, code: ExitCode) -> None:
    """Add a line for the end of a launch, after ``step``. A launch that is killed leaves none."""
    row = {"timestamp": time.time(), "step": step, "exit_code": int(code), "meaning": code.name.lower()}
    try:
        append(run_directory / EXITS, f"{json.dumps(row)}\n".encode())
    except OSError as error:  # the launch ends all the same
        logger.warning("the exit code is not recorded: %s", file_problem(error, run_directory / EXITS))


def note_other_weights(recorded: InitialWeights | None, place: str | None) -> None:
    """Note on a resume that a fresh start would have other weights today, at ``place``; None: no flag names them."""
    if recorded and place is not None and place != recorded.path:
        logger.info(
            "this run started from %s and keeps that; --pptrain_checkpoint is %s today",
            recorded, place or "none",
        )  # fmt: skip


def refuse_other_weights(run_directory: Path, weights: InitialWeights, accepted: Collection[str]) -> None:
    """Refuse a fresh start in the directory of a run that started from weights of another content.

    Raises:
        UserError: it did, and the change is not accepted.
    """
    recorded = _recorded_weights(run_directory)
    if recorded is None or recorded.is_same(weights):
        return
    if INITIAL_WEIGHTS not in accepted:
        raise UserError(
            f"{run_directory} is the directory of a run that started from {recorded}, and this start is from "
            f"{weights}. Start another run with --run_name, or give --accept_change {INITIAL_WEIGHTS}."
        )
    logger.warning("--accept_change %s: %s, formerly %s", INITIAL_WEIGHTS, weights, recorded)


def _recorded_weights(run_directory: Path) -> InitialWeights | None:
    """Those of the newest launch that recorded them; None if none did."""
    path = run_directory / LAUNCHES
    for line in reversed(path.read_bytes().splitlines() if path.exists() else []):
        with suppress(ValueError):  # torn by a kill
            if weights := read_record(_Launch, line).initial_weights:
                return weights
    return None


def set_foreign_logs_aside(run_directory: Path) -> None:
    """Move logs that no launch recorded: another program wrote them, and a fresh start would drop their rows."""
    has_logs = any((run_directory / "logs").glob("*.jsonl"))
    if has_logs and not (run_directory / LAUNCHES).exists():
        set_aside(run_directory, after_step=-1)


def _with_absolute_paths(flags: Any) -> Any:
    """The flags with absolute paths for files that exist, so that they mean the same from any directory."""
    names = [item.name for item in fields(flags) if item.metadata["is_path"]]
    given = {name: getattr(flags, name) for name in names if getattr(flags, name)}
    paths = {name: Path(value) for name, value in given.items() if value not in _WORDS and not is_preset(value)}
    found = {name: str(path.absolute()) for name, path in paths.items() if path.exists()}
    return replace(flags, **found)
