"""How a run was started: shown before it, and kept in its directory so that it can be repeated."""

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.files import whole_file, write_json
from ds_train.ds_config import EngineConfig
from ds_train.fingerprints import git_state, versions
from ds_train.ranks import World
from ds_train.run_file import RUN_FILE, as_run_file

LAUNCHES = "launches.jsonl"


@dataclass(frozen=True)
class Settings:
    """Everything a run was given.

    Attributes:
        all_flags: the parsed dataclasses.
        sources: of the flags that were given.
        engine: the resolved DeepSpeed JSON.
    """

    all_flags: Sequence[Any]
    sources: dict[str, str]
    engine: EngineConfig

    def shown(self) -> str:
        """A run file with the source of every setting, and the JSON that takes effect as a comment."""
        effective = json.dumps(self.engine.effective, indent=2).splitlines()
        parts = [*self.engine.overrides, "The DeepSpeed JSON that takes effect:", *effective]
        return self._run_file([]) + "\n" + "\n".join(f"# {part}" for part in parts)

    def record(self, run_directory: Path, world: World, step: int) -> None:
        """Write the run file, the effective JSON, and a line for this launch, which begins after ``step``."""
        launch: dict[str, Any] = {
            "timestamp": time.time(), "step": step, "ranks": world.size, "launcher": world.launcher,
            "command": shlex.join(sys.argv), "versions": versions(), "git": git_state(),
        }  # fmt: skip
        remarks = [
            f"Repeats this run: deepspeed {sys.argv[0]} --config {run_directory / RUN_FILE} --run_name NEW",
            f"Last started as: {launch['command']}",
            "with " + ", ".join(f"{name} {version}" for name, version in launch["versions"].items()),
            f"git: {launch['git'] or 'unknown'}",
        ]
        with whole_file(run_directory / RUN_FILE) as file:
            file.write(self._run_file(remarks).encode())
        write_json(run_directory / "deepspeed.json", self.engine.effective)
        with (run_directory / LAUNCHES).open("a") as lines:
            lines.write(json.dumps(launch) + "\n")

    def _run_file(self, remarks: Sequence[str]) -> str:
        return as_run_file(self.all_flags, self.engine.given, self.sources, remarks=remarks)
