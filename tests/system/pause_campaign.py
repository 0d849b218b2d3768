"""Stop ranks and loader workers (SIGSTOP) at random instants: a lost one is named, and a pause of all changes nothing.

python -m tests.system.pause_campaign --pauses 20 --stops 20
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from data_tools.base.rng import CounterStream
from ds_train.ranks.judge import Patience
from ds_train.run import assembly
from tests.support import tiny
from tests.support.rank_server import import_everything
from tests.system.fault_campaign import comparable, finish, fork_ranks, wait

PHASE, NUM_RANKS = "pretrain", 2
# Less than users have, so that a try takes seconds.
PATIENCE = Patience(stalled_s=8, long_s=8, silent_s=4, suspect_s=2, pause_s=1, grace_s=4, beat_s=0.2)


class Campaign:
    """Runs of one kind that are disturbed, each at an instant of its own; `results` counts how they ended.

    Args:
        seconds: that an undisturbed run takes.
        reference: what it leaves.
    """

    def __init__(self, scratch: Path, seconds: float, reference: dict[str, Any], seed: int) -> None:
        self._scratch, self._seconds, self._reference = scratch, seconds, reference
        self._draws = CounterStream(seed, "pauses")
        self._number = 0

    def run(self, count: int, disturb: Callable[[list[int]], str | None]) -> Counter:
        """Disturb some runs, resume those that ended early, and compare all with the undisturbed one.

        Args:
            disturb: is given the process ids of the ranks; returns what a message must say, None if all must be well.
        """
        results: Counter = Counter()
        for _ in range(count):
            self._number += 1
            name = f"disturbed{self._number}"
            ranks = fork_ranks(self._scratch, PHASE, name, NUM_RANKS)
            time.sleep(self._draw(self._seconds))
            expected = disturb(ranks)
            results[self._outcome(name, ranks, expected)] += 1
            finish(self._scratch, PHASE, name, NUM_RANKS)
            is_equal = comparable(self._scratch / name) == self._reference
            results["equal" if is_equal else "DIFFERENT"] += 1
        return results

    def _outcome(self, name: str, ranks: list[int], expected: str | None) -> str:
        codes = {os.waitstatus_to_exitcode(status) for status in wait(ranks)} - {-signal.SIGKILL}
        words = (self._scratch / f"{name}.log").read_text()
        if codes == {0}:
            return "ended well"
        if expected and codes == {87} and expected in words:
            return "named"
        if expected and "waiting for" in words and "error: " not in words:
            return "had not met"
        print(f"{name}: codes {codes}, expected {expected}\n{words[-3000:]}", file=sys.stderr)
        return "WRONG"

    def _draw(self, most: float) -> float:
        return self._draws.below(1_000) / 1_000 * most

    def pause_all(self, ranks: list[int]) -> None:
        """Stop and continue all ranks one after the other, as Slurm suspends and resumes a job's nodes."""
        for number, spread_s in ((signal.SIGSTOP, 0.8 * PATIENCE.silent_s), (signal.SIGCONT, 1.5 * PATIENCE.grace_s)):
            order = list(ranks)
            self._draws.shuffle(order)
            os.kill(order[0], number)
            time.sleep(self._draw(spread_s))
            os.kill(order[1], number)
            if number == signal.SIGSTOP:
                time.sleep(1.5 * PATIENCE.stalled_s)

    def stop_one(self, ranks: list[int]) -> str:
        rank = self._draws.below(NUM_RANKS)
        os.kill(ranks[rank], signal.SIGSTOP)
        return f"rank {rank} ({os.uname().nodename}) gives no sign of life"

    def stop_worker(self, ranks: list[int]) -> str:
        rank = self._draws.below(NUM_RANKS)
        children = Path(f"/proc/{ranks[rank]}/task/{ranks[rank]}/children")
        for child in children.read_text().split() if children.exists() else ():
            os.kill(int(child), signal.SIGSTOP)
        return f"rank {rank} ({os.uname().nodename}) does not arrive: in "


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pauses", type=int, default=20, help="pauses of all ranks")
    parser.add_argument("--stops", type=int, default=20, help="stops of one rank")
    parser.add_argument("--workers", type=int, default=10, help="stops of a rank's loader worker")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    import_everything()
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(assembly, "Patience", lambda stalled_s: PATIENCE),
    ):
        scratch = tiny.build_tiny_scratch(Path(directory))
        finish(scratch, PHASE, "first", NUM_RANKS)  # leaves fingerprints of the data, which others find
        started = time.perf_counter()
        finish(scratch, PHASE, "reference", NUM_RANKS)
        seconds = time.perf_counter() - started
        campaign = Campaign(scratch, seconds, comparable(scratch / "reference"), args.seed)
        results = {
            "pauses": campaign.run(args.pauses, campaign.pause_all),
            "stops": campaign.run(args.stops, campaign.stop_one),
            "workers": campaign.run(args.workers, campaign.stop_worker),
        }
    print(json.dumps(results, indent=1))
    return int(any(word.isupper() for counts in results.values() for key in counts for word in key.split()))


if __name__ == "__main__":
    sys.exit(main())
