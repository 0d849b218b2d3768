"""Check a launch before submitting it: does it start, does it fit, how long will it take?

python -m ds_train.preflight pretrain --nodes 1 8 --gpus_per_node 8 --scratch_dir DIR …  (the trainer's own flags)

Runs the trainer's own checks for the given numbers of nodes, on a login node, without a process group or a model. Each
combination of --nodes and --deepspeed_config is a column. The exit code is 0 if all of them would start, else 1.

    srun python ds_train/preflight.py pretrain --scratch_dir DIR --probe

measures instead, in a job, with one process per device: each node's GPUs, an all-reduce, and writing to DIR. It marks
the slowest.
"""

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # launched as a file: import the project, not the modules beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_tools.base.command_line import CommandParser, given_arguments, of_kind, positive
from data_tools.base.errors import UserError, run_command
from data_tools.base.text_table import aligned
from ds_train.config.flags import parse_flags
from ds_train.config.trainer_flags import GROUPS
from ds_train.ranks.entry import run_entry
from ds_train.ranks.world import world_from_env


def main(argv: list[str] | None = None) -> int:
    options, trainer_flags = _parse(argv)
    if options.probe:
        return _probe(options.phase, trainer_flags)
    from ds_train.phases.launch_check import Launch, report  # takes seconds

    warnings = _collect_warnings()
    launches = [
        Launch(nodes, options.gpus_per_node, config, math.inf if options.cpu else options.gpu_memory_gb)
        for config in options.deepspeed_config or [None]
        for nodes in options.nodes
    ]
    columns: list[tuple[str, dict[str, str]]] = []
    problems: dict[str, list[str]] = {}  # message → launches; most concern all of them
    for launch in launches:
        found: list[str] = []
        try:
            columns.append((launch.title, report(options.phase, launch, trainer_flags, found)))
        except UserError as error:
            found.append(str(error))
        for message in found:
            problems.setdefault(message, []).append(launch.title)
    if columns:
        print(table(columns))
    for message in warnings:
        print(f"\nwarning: {message}")
    for message, titles in problems.items():
        print(f"\nproblem ({', '.join(titles)}): {message}")
    print(f"\n{'would not start' if problems else 'would start'}")
    return 1 if problems else 0


def _probe(phase: str, trainer_flags: list[str]) -> int:
    """Measure the nodes of this job; rank 0 shows the result."""
    (run, *_), _ = parse_flags(*GROUPS[phase], description=__doc__ or "", argv=trainer_flags)
    from ds_train.phases.node_probe import probe  # takes seconds

    world = world_from_env()
    result = probe(world, Path(run.scratch_dir))
    if world.is_main:
        print(result)
    return 0


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = CommandParser(
        description=__doc__,
        epilog="All other flags are the trainer's: see `pptrain.py --help`, `pretrain.py --help`.",
    )
    parser.add_argument("phase", choices=GROUPS)
    parser.add_argument("--nodes", type=positive, nargs="+", default=[1], help="numbers of nodes to check (default: 1)")
    parser.add_argument("--gpus_per_node", type=positive, default=8, help="ranks on each node (default: 8)")
    parser.add_argument(
        "--gpu_memory_gb", type=of_kind("number in (0, 1e6]"), default=80.0, help="memory of a GPU in GiB (default: 80)"
    )
    parser.add_argument("--cpu", action="store_true", help="the ranks train on CPUs")
    parser.add_argument("--deepspeed_config", nargs="+", help="DeepSpeed JSON files (default: the phase's)")
    parser.add_argument("--probe", action="store_true", help="in a job: measure its nodes, and mark the slowest")
    options, trainer_flags = parser.parse_known_args(given_arguments(argv))
    return options, trainer_flags


def _collect_warnings() -> dict[str, None]:
    """Collect the warnings of the checks, each once: every column repeats them."""
    messages: dict[str, None] = {}

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages[record.getMessage()] = None

    logging.basicConfig(handlers=[Collector(logging.WARNING)], force=True)
    return messages


def table(columns: list[tuple[str, dict[str, str]]]) -> str:
    """Columns as aligned text, titles first; a cell is empty where a column lacks the row."""
    names = list(dict.fromkeys(name for _, rows in columns for name in rows))
    lines = [["", *(title for title, _ in columns)]]
    lines += [[name, *(rows.get(name, "") for _, rows in columns)] for name in names]
    return aligned(lines)


if __name__ == "__main__":
    run_entry(main) if "--probe" in sys.argv else run_command(main)
