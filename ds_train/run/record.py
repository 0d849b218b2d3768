"""The settings of a launch: printed by --print_config, and recorded in the run directory to repeat the run."""

import json
import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from data_tools.base.errors import file_problem
from data_tools.base.files import append, whole_file, write_json
from ds_train.checkpoints.manifest import set_aside
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

    def record(self, run_directory: Path, world: World, step: int) -> None:
        """Write the run file, the JSON in effect, and a line for this launch, which starts after ``step``."""
        launch: dict[str, Any] = {
            "timestamp": time.time(), "step": step, "ranks": world.size, "launcher": world.launcher,
            "command": shlex.join(sys.argv), "versions": versions(), "git": git_state(),
            "defaults": {name: str(value) for name, value in self.defaults.items()},
        }  # fmt: skip
        run_file = (run_directory / RUN_FILE).absolute()
        remarks = [
            f"Repeats this run: deepspeed {sys.argv[0]} --config {run_file} --run_name NEW",
            f"Last started as: {launch['command']}",
            "with " + ", ".join(f"{name} {version}" for name, version in launch["versions"].items()),
            f"git: {launch['git'] or 'unknown'}",
        ]
        with whole_file(run_file) as file:
            file.write(self._run_file(remarks).encode())
        write_json(run_directory / "deepspeed.json", self.engine.effective)
        append(run_directory / LAUNCHES, f"{json.dumps(launch)}\n".encode())

    def _run_file(self, remarks: Sequence[str], in_full: bool = False) -> str:
        """The run file; ``in_full`` with a value for each flag that has one, although it is not given."""
        flags, sources = [_with_absolute_paths(group) for group in self.all_flags], self.sources
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


def record_exit(run_directory: Path, step: int, code: ExitCode) -> None:
    """Add a line for the end of a launch, after ``step``. A launch that is killed leaves none."""
    row = {"timestamp": time.time(), "step": step, "exit_code": int(code), "meaning": code.name.lower()}
    try:
        append(run_directory / EXITS, f"{json.dumps(row)}\n".encode())
    except OSError as error:  # the launch ends all the same
        logger.warning("the exit code is not recorded: %s", file_problem(error, run_directory / EXITS))


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
