"""How long a save stops training, in the real loop: pptrain at Pythia-160m shapes, alpha 0.5, one rank.

    python -m tests.benchmarks.save_stall

Stall = median wall time of the steps that end with a save − median of those that do not.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

from data_tools import build_data_splits, fetch_assets
from tests.ds_train.launching import REPOSITORY, environment, read_log

SAVE_EVERY = 200  # the shipped cadence, which the share of training time is given for


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name", default="pythia-160m", help="preset (default pythia-160m)")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps; every third one saves (default 12)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        fetch_assets.main(["tokenizer", "--out", str(scratch / "tokenizer")])
        build_data_splits.main(
            f"--scratch_dir {scratch} --max_input_size 384 --max_lookahead 64 --eval_size 4 --test_size 4 "
            "--mixin_size 4".split()
        )
        output = train(scratch, args.model_name, args.steps)
        rows = read_log(scratch / "pptrain")
        size = sum(path.stat().st_size for path in (scratch / "pptrain/checkpoints").glob("step_*/**/*.pt"))
    # A row is written before its step's save: the wait for a save shows in the interval that follows it.
    intervals = [(a["step"], b["timestamp"] - a["timestamp"]) for a, b in pairwise(rows[1:])]
    saving = [seconds for step, seconds in intervals if step % 3 == 0]
    plain = [seconds for step, seconds in intervals if step % 3]
    step_s, stall_s = median(plain), median(saving) - median(plain)
    reported = [float(seconds) for seconds in re.findall(r"saved step \d+ in ([\d.]+) s", output)]
    print(f"machine                        {os.cpu_count()} cores, 1 rank, no GPU")
    print(f"checkpoint                     {size / 2**30:.2f} GiB")
    print(f"optimizer step                 {step_s:.2f} s (median of {len(plain)}; 4 examples at alpha 0.5)")
    print(f"stall of a save                {stall_s:.2f} s (median of {len(saving)})")
    print(f"save by its own report         {median(reported):.2f} s")
    print(f"share at save_every {SAVE_EVERY}        {100 * stall_s / (SAVE_EVERY * step_s + stall_s):.2f} %")
    return 0


def train(scratch: Path, model_name: str, steps: int) -> str:
    flags = f"""--model_name {model_name} --max_steps {steps} --start_stage 32 --global_batch 4 --micro_batch 2
        --save_every 3 --keep_last 1 --log_every 1 --eval_subset_size 1""".split()
    variables = {**environment(), "OMP_NUM_THREADS": str(os.cpu_count())}
    done = subprocess.run(
        [sys.executable, "ds_train/pptrain.py", "--scratch_dir", scratch, "--tokenizer", scratch / "tokenizer", *flags],
        cwd=REPOSITORY, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stdout[-3000:])
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
