"""Seconds that `build_data_splits` takes for its default 57,000 examples at (384, 64), on all cores, start to end.

python -m tests.benchmarks.splits
"""

import tempfile
import time

from data_tools.base.errors import run_command
from tests.benchmarks.measure import parser, print_table, rounds_table, run_python

DEFAULT_SIZES = {"eval": 2_000, "test": 5_000, "mixin": 50_000}


def main(argv: list[str] | None = None) -> None:
    command = parser(__doc__, rounds=1)
    command.add_argument("--fraction", type=float, default=1.0, help="of the default sizes (default 1)")
    args = command.parse_args(argv)
    sizes = {name: max(1, round(args.fraction * size)) for name, size in DEFAULT_SIZES.items()}
    size_flags = [part for name, size in sizes.items() for part in (f"--{name}_size", size)]
    num_examples = sum(sizes.values())
    measured = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            started = time.perf_counter()
            run_python(["data_tools/build_data_splits.py", "--scratch_dir", scratch, *size_flags])
            elapsed_s = time.perf_counter() - started
        measured.append([elapsed_s, num_examples / elapsed_s])
    columns = ["", "seconds", "examples/s"]
    print_table(f"Building splits of {num_examples:,} examples at (384, 64)", columns, rounds_table(measured))


if __name__ == "__main__":
    run_command(main)
