"""Seconds from the launch to the first optimizer step, and from a resume to its first: a tiny model on two ranks.

    python -m tests.benchmarks.start_up

Through ``deepspeed --num_gpus 2``; a step is done when its row is in train.jsonl. One launch before the measured ones
fills the caches.
"""

import shutil
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from data_tools.base.errors import run_command
from tests.benchmarks.measure import parser, print_table, rounds_table
from tests.support import tiny
from tests.support.launching import launch, read_log

STEPS = 2  # of each launch


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__, rounds=3).parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            scratch = tiny.build_tiny_scratch(Path(directory))
        measured = [launch_and_resume(scratch) for _ in range(args.rounds + 1)][1:]
    columns = ["", "launch to step 1, s", "resume to its first step, s"]
    print_table("Start-up of pptrain, tiny model, 2 ranks", columns, rounds_table(measured))


def launch_and_resume(scratch: Path) -> list[float]:
    """Seconds to the first step of a fresh run, and of the launch that continues from its checkpoint."""
    shutil.rmtree(scratch / "pptrain", ignore_errors=True)
    return [seconds_to_first_step(scratch, first) for first in (1, STEPS + 1)]


def seconds_to_first_step(scratch: Path, first_step: int) -> float:
    flags = [*tiny.flags(scratch, precision=None), "--global_batch", "4", "--micro_batch", "2"]
    last_step = str(first_step + STEPS - 1)
    started = time.time()
    done = launch("ds_train/pptrain.py", *flags, "--max_steps", last_step, num_ranks=2, through_launcher=True)
    if done.returncode:
        raise SystemExit(done.stdout[-3000:])
    return next(row["timestamp"] for row in read_log(scratch / "pptrain") if row["step"] == first_step) - started


if __name__ == "__main__":
    run_command(main)
