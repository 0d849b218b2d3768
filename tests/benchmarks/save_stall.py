"""How long a save stops training, in the real loop: pptrain at Pythia-160m shapes, alpha 0.5, one rank.

    python -m tests.benchmarks.save_stall

One run, in windows of some steps, each begun in turn by no save, by one before training goes on (--sync_save) and by
one behind it (the default). Stall = wall time of a window − its tokens × seconds per token of the windows without a
save: so it holds whatever a save costs the steps that follow. A save that outlasts its window is waited for inside it.
Medians over the windows; the first of each kind is told apart, since the first copy in memory is also allocated.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from data_tools import build_data_splits, fetch_assets
from tests.ds_train.launching import REPOSITORY, environment

SAVE_EVERY = 200  # the shipped cadence, which the share of training time is given for
KINDS = ("none", "sync", "behind")
LABELS = {"sync": "before training goes on", "behind": "behind training"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name", default="pythia-160m", help="preset (default pythia-160m)")
    parser.add_argument("--window", type=int, default=4, help="optimizer steps in a window (default 4)")
    parser.add_argument("--rounds", type=int, default=8, help="windows of each kind (default 8)")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)  # the run itself: scratch and output
    args = parser.parse_args(argv)
    if args.train:
        return train(Path(args.train[0]), Path(args.train[1]), args.model_name, args.window, args.rounds)
    with tempfile.TemporaryDirectory() as directory:
        scratch, found = Path(directory), Path(directory) / "windows.json"
        fetch_assets.main(["tokenizer", "--out", str(scratch / "tokenizer")])
        build_data_splits.main(
            f"--scratch_dir {scratch} --max_input_size 384 --max_lookahead 64 --eval_size 4 --test_size 4 "
            "--mixin_size 4".split()
        )
        command = [sys.executable, "-m", "tests.benchmarks.save_stall", *sys.argv[1:], "--train", scratch, found]
        variables = {**environment(), "OMP_NUM_THREADS": str(os.cpu_count())}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            raise SystemExit(done.stdout[-3000:])
        size = sum(path.stat().st_size for path in (scratch / "pptrain/checkpoints").glob("step_*/**/*.pt"))
        report(json.loads(found.read_text()), size, args.window)
    return 0


def train(scratch: Path, output: Path, model_name: str, window: int, rounds: int) -> int:
    """Train; ``output`` gets the windows: kind, wall time, tokens, and when its save was done, all in seconds."""
    from ds_train import checkpoint, pptrain

    windows: list[dict[str, Any]] = []
    save, commit = checkpoint.Checkpoints.save, checkpoint.commit

    def alternate(self: Any, engine: Any, state: Any) -> None:
        self.wait()
        now = time.perf_counter()
        if windows:
            windows[-1] |= {"seconds": now - windows[-1]["start"], "tokens": state.tokens - windows[-1]["before"]}
        kind = KINDS[len(windows) % len(KINDS)]
        windows.append({"kind": kind, "start": now, "before": state.tokens})
        if kind != "none":
            self.sync = kind == "sync"
            save(self, engine, state)
            windows[-1]["returned"] = time.perf_counter() - now

    def timed_commit(*args: Any) -> Any:
        result = commit(*args)
        windows[-1]["committed"] = time.perf_counter() - windows[-1]["start"]
        return result

    flags = f"""--model_name {model_name} --max_steps {(rounds * len(KINDS) + 1) * window} --start_stage 32
        --global_batch 2 --micro_batch 2 --save_every {window} --keep_last 1 --log_every 1 --eval_subset_size 1
        --scratch_dir {scratch} --tokenizer {scratch / "tokenizer"}""".split()
    with (
        mock.patch.object(checkpoint.Checkpoints, "save", alternate),
        mock.patch.object(checkpoint, "commit", timed_commit),
    ):
        try:
            pptrain.main(flags)
        finally:  # the run ends with a window that has no end
            output.write_text(json.dumps([entry for entry in windows if "seconds" in entry and entry["seconds"] > 0.1]))
    return 0


def report(windows: list[dict[str, Any]], num_bytes: int, steps: int) -> None:
    of_kind = {kind: [window for window in windows if window["kind"] == kind] for kind in KINDS}
    rate = median(window["seconds"] / window["tokens"] for window in of_kind["none"])
    step_s = median(window["seconds"] / steps for window in of_kind["none"])
    stalls = {kind: [window["seconds"] - window["tokens"] * rate for window in of_kind[kind]] for kind in KINDS}
    print(f"machine                        {os.cpu_count()} cores, 1 rank, no GPU")
    print(f"checkpoint                     {num_bytes / 2**30:.2f} GiB")
    print(f"optimizer step                 {step_s:.2f} s (2 examples at alpha 0.5; windows of {steps} steps)")
    print(f"noise: windows without a save  {min(stalls['none']):+.2f} … {max(stalls['none']):+.2f} s")
    for kind, label in LABELS.items():
        later = stalls[kind][1:]
        print(f"\nsave {label}")
        print(f"  stall                        {median(later):.2f} s ({', '.join(f'{s:.2f}' for s in later)})")
        print(f"  stall of the first           {stalls[kind][0]:.2f} s")
        print(f"  until training goes on       {median(window['returned'] for window in of_kind[kind][1:]):.2f} s")
        print(f"  until committed              {median(window['committed'] for window in of_kind[kind][1:]):.2f} s")
        print(f"  share at save_every {SAVE_EVERY}      {100 * median(later) / (SAVE_EVERY * step_s):.2f} %")
    print(f"\nstall behind / before          {median(stalls['behind'][1:]) / median(stalls['sync'][1:]):.3f}")


if __name__ == "__main__":
    sys.exit(main())
