"""How long a save stops training, in the real loop: pretrain of Pythia-160m on blocks of 512 tokens, one rank.

    python -m tests.benchmarks.save_stall

One run, in windows of some steps of equal work. Every other window has no save; the ones between begin in turn with a
save as one would otherwise write it (torch.save, fsync, the hash read back), with ours before training continues
(--sync_save) and with ours behind it (the default). Stall = wall time of a window − the mean of the two windows without
a save around it: so it holds whatever a save costs the steps that follow. A save that outlasts its window is waited for
inside it. Medians over the windows; the first of each kind is listed separately, since the first copy in memory is also
allocated.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch

from ds_train.checkpoints import save as checkpoint
from ds_train.checkpoints.manifest import FileEntry, file_entry
from ds_train.phases import pretrain
from tests.benchmarks.measure import build_pack, build_splits, scratch_directory
from tests.support.launching import REPOSITORY, environment

SAVE_EVERY = 200  # the shipped cadence, which the share of training time is given for
LABELS = {
    "ordinary": "as torch.save does it, before training continues",
    "sync": "ours, before training continues",
    "behind": "ours, behind training",
}
CYCLE = [kind for label in LABELS for kind in ("none", label)]
SEQ_LEN, GLOBAL_BATCH = 512, 2


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name", default="pythia-160m", help="preset (default pythia-160m)")
    parser.add_argument("--window", type=int, default=6, help="optimizer steps in a window (default 6)")
    parser.add_argument("--rounds", type=int, default=6, help="windows of each kind of save (default 6)")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)  # the run itself: scratch and output
    args = parser.parse_args(argv)
    if args.train:
        return train(Path(args.train[0]), Path(args.train[1]), args.model_name, args.window, args.rounds)
    with scratch_directory() as scratch:
        found = scratch / "windows.json"
        build_splits(scratch, SEQ_LEN)
        build_pack(scratch, SEQ_LEN, num_blocks=GLOBAL_BATCH * num_steps(args.window, args.rounds))
        command = [sys.executable, "-m", "tests.benchmarks.save_stall", *sys.argv[1:], "--train", scratch, found]
        variables = {**environment(), "OMP_NUM_THREADS": str(os.cpu_count())}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            raise SystemExit(done.stdout[-3000:])
        size = sum(path.stat().st_size for path in (scratch / "pretrain/checkpoints").glob("step_*/**/*.pt"))
        report(json.loads(found.read_text()), size, args.window)
    return 0


def num_steps(window: int, rounds: int) -> int:
    return (rounds * len(CYCLE) + 2) * window  # one window before the first save, one after the last


def ordinary_write(path: Path, value: Any, *_: Any) -> FileEntry:
    """What one would otherwise write."""
    torch.save(value, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return file_entry(path)


def train(scratch: Path, output: Path, model_name: str, window: int, rounds: int) -> int:
    """Train; ``output`` gets the windows: kind, wall time, and when its save was done, all in seconds."""
    windows: list[dict[str, Any]] = []
    save, commit, write_file = checkpoint.Checkpoints.save, checkpoint.commit, checkpoint.write_file

    def alternate(self: Any, engine: Any, state: Any, *milestones: Any) -> None:
        self.wait()
        now = time.perf_counter()
        if windows:
            windows[-1]["seconds"] = now - windows[-1]["start"]
        kind = CYCLE[len(windows) % len(CYCLE)]
        windows.append({"kind": kind, "start": now})
        if kind != "none":
            self.sync = kind != "behind"
            with mock.patch.object(checkpoint, "write_file", ordinary_write if kind == "ordinary" else write_file):
                save(self, engine, state, *milestones)
            windows[-1]["returned"] = time.perf_counter() - now

    def timed_commit(*args: Any) -> Any:
        result = commit(*args)
        windows[-1]["committed"] = time.perf_counter() - windows[-1]["start"]
        return result

    flags = f"""--model_name {model_name} --total_steps {num_steps(window, rounds)} --seq_len {SEQ_LEN}
        --mixin_percent 0 --global_batch {GLOBAL_BATCH} --micro_batch {GLOBAL_BATCH} --save_every {window}
        --keep_last 1 --log_every 1 --eval_subset_size 1 --pptrain_checkpoint none --scratch_dir {scratch}
        --tokenizer {scratch / "tokenizer"}""".split()
    with (
        mock.patch.object(checkpoint.Checkpoints, "save", alternate),
        mock.patch.object(checkpoint, "commit", timed_commit),
    ):
        try:
            pretrain.main(flags)
        finally:  # the run ends with a window that has no end
            output.write_text(json.dumps([entry for entry in windows if "seconds" in entry and entry["seconds"] > 0.1]))
    return 0


def report(windows: list[dict[str, Any]], num_bytes: int, steps: int) -> None:
    stalls: dict[str, list[float]] = {kind: [] for kind in LABELS}
    for before, window, after in zip(windows, windows[1:], windows[2:], strict=False):
        if window["kind"] != "none":
            stalls[window["kind"]].append(window["seconds"] - (before["seconds"] + after["seconds"]) / 2)
    without = [window["seconds"] for window in windows if window["kind"] == "none"]
    noise = [abs(after - before) / 2 for before, after in pairwise(without)]
    step_s = median(without) / steps
    print(f"machine                        {os.cpu_count()} cores, 1 rank, no GPU")
    print(f"checkpoint                     {num_bytes / 2**30:.2f} GiB")
    print(f"optimizer step                 {step_s:.2f} s ({GLOBAL_BATCH} × {SEQ_LEN} tokens; {steps} in a window)")
    print(f"noise                          ± {median(noise):.2f} s: half of what windows without a save differ by")
    for kind, label in LABELS.items():
        later = stalls[kind][1:]
        seen = [window for window in windows if window["kind"] == kind][1:]
        print(f"\nsave {label}")
        print(f"  stall                        {median(later):.2f} s ({', '.join(f'{s:.2f}' for s in later)})")
        print(f"  stall of the first           {stalls[kind][0]:.2f} s")
        print(f"  until training continues     {median(window['returned'] for window in seen):.2f} s")
        print(f"  until committed              {median(window['committed'] for window in seen):.2f} s")
        print(f"  share at save_every {SAVE_EVERY}      {100 * median(later) / (SAVE_EVERY * step_s):.2f} %")
    behind, ours, ordinary = (median(stalls[kind][1:]) for kind in ("behind", "sync", "ordinary"))
    print(f"\nstall behind / before          {behind / ours:.3f} of ours, {behind / ordinary:.3f} of the ordinary one")


if __name__ == "__main__":
    sys.exit(main())
