"""Kill training at every file operation of a save, and at random instants; resume; compare with an undisturbed run.

    python -m tests.system.fault_campaign --operations all --kills 200

Processes are forked from one that has imported everything, so that a try costs about two seconds. "Killed" is always
SIGKILL: nothing is flushed, no handler runs.
"""

import argparse
import hashlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from data_tools.base.rng import CounterStream
from ds_train.checkpoints.manifest import choose_checkpoint, defect_of, step_directories
from ds_train.phases import pptrain, pretrain
from tests.support import tiny
from tests.support.comparing import comparable as without_clock
from tests.support.launching import read_log
from tests.support.rank_server import import_everything

SAVE_EVERY = 3
WATCHED = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
RANKS = {"pptrain": 1, "pretrain": 2}
HANG_S = 120
GRACE_S = 3  # for the peers of a rank that failed


def arguments(scratch: Path, phase: str, name: str) -> list[str]:
    return [
        *tiny.flags(scratch), *tiny.SHORT_FLAGS[phase], "--micro_batch", "4",
        "--save_every", str(SAVE_EVERY), "--keep_last", "2", "--num_workers", "1", "--run_name", name,
    ]  # fmt: skip


class KillAtOperation:
    """Counts file operations under a directory and kills this process right before the chosen one."""

    def __init__(self, directory: Path, number: int | None) -> None:
        self.directory, self.number, self.count = str(directory), number, 0
        sync = os.fsync
        sys.addaudithook(lambda event, args: self.operation(args[0]) if event in WATCHED and args else None)
        os.fsync = lambda descriptor: (self.operation(self.directory), sync(descriptor))[1]

    def operation(self, path: Any) -> None:
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(self.directory):
            return
        self.count += 1
        if self.count == self.number:
            os.kill(os.getpid(), signal.SIGKILL)


def fork_ranks(scratch: Path, phase: str, name: str, ranks: int, operation: int | None = None) -> list[int]:
    """Start a run's ranks; returns their process ids. ``operation``: where rank 0 kills itself, see above."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.environ.update(
            {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_PORT": str(port)}
        )
        log = os.open(scratch / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            hook = KillAtOperation(scratch / name / "checkpoints", operation) if rank == 0 else None
            code = {"pptrain": pptrain.main, "pretrain": pretrain.main}[phase](arguments(scratch, phase, name))
            if hook and operation is None:
                (scratch / f"{name}.operations").write_text(str(hook.count))
        except BaseException as error:  # a peer of a killed rank fails in its next collective
            print(f"rank {rank}: {error!r}", flush=True)
        finally:
            os._exit(code)
    return children


def wait(children: list[int]) -> list[int]:
    """Exit statuses; once one has failed the others get a while and are then killed, as launchers do."""
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + HANG_S
    while len(statuses) < len(children):
        for child in set(children) - set(statuses):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                statuses[child] = status
                if status:
                    deadline = min(deadline, time.monotonic() + GRACE_S)
        if time.monotonic() > deadline:
            for child in set(children) - set(statuses):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [statuses[child] for child in children]


def comparable(run: Path) -> dict[str, Any]:
    """Everything a run leaves that must not depend on kills: logs without timings, last checkpoint's tensors."""
    logs = {name: without_clock(read_log(run, name)) for name in ("train", "eval")}
    newest = step_directories(run / "checkpoints")[0]
    tensors = {
        path.name: _tensors(torch.load(path, weights_only=False, map_location="cpu")) for path in newest.glob("*.pt")
    }
    return {"logs": logs, "step": newest.name, "tensors": tensors}


def _tensors(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        content = value.contiguous().flatten().view(torch.uint8).numpy()
        return str(value.dtype), tuple(value.shape), hashlib.sha256(content).hexdigest()
    if isinstance(value, dict):
        return {str(key): _tensors(item) for key, item in value.items() if key not in ("versions", "ds_config")}
    return [_tensors(item) for item in value] if isinstance(value, list | tuple) else None


def finish(scratch: Path, phase: str, name: str, ranks: int) -> None:
    statuses = wait(fork_ranks(scratch, phase, name, ranks))
    if any(statuses):
        raise SystemExit(
            f"{name}: the resumed run failed, see its log:\n{(scratch / f'{name}.log').read_text()[-3000:]}"
        )


def outcome(scratch: Path, name: str, reference: dict[str, Any]) -> str:
    run = scratch / name
    if any(defect_of(path) for path in step_directories(run / "checkpoints")):
        return "DAMAGED CHECKPOINT"
    return "equal" if comparable(run) == reference else "DIFFERENT"


def operations_campaign(scratch: Path, phase: str, limit: int | None, seed: int, reference: dict) -> Counter:
    """Kill once before each file operation of all saves (or a seeded choice of a number of them), then resume."""
    total = int((scratch / f"{phase}_reference.operations").read_text())
    numbers = list(range(1, total + 1))
    if limit is not None:
        CounterStream(seed, "operations").shuffle(numbers)
        numbers = sorted(numbers[:limit])
    results: Counter = Counter()
    for number in numbers:
        name = f"{phase}_operation{number}"
        statuses = wait(fork_ranks(scratch, phase, name, RANKS[phase], operation=number))
        killed = os.WIFSIGNALED(statuses[0])
        choose_checkpoint(scratch / name / "checkpoints", "auto")  # raises if a kill left only damaged ones
        finish(scratch, phase, name, RANKS[phase])
        results[f"{'killed' if killed else 'NOT KILLED'}, {outcome(scratch, name, reference)}"] += 1
    return results


def kills_campaign(scratch: Path, phase: str, kills: int, seed: int, reference: dict, seconds: float) -> Counter:
    """Kill a random rank, or all, at random instants; each run is resumed until it ends."""
    draws = CounterStream(seed, f"kills {phase}")
    results: Counter = Counter()
    done, number, ranks = 0, 0, RANKS[phase]
    while done < kills:
        number += 1
        name = f"{phase}_kills{number}"
        for _ in range(6):  # so often at most is one run killed
            children = fork_ranks(scratch, phase, name, ranks)
            time.sleep(draws.below(1_000) / 1_000 * seconds * 1.1)
            doomed = children if draws.below(3) == 0 else [children[draws.below(ranks)]]
            for child in doomed:
                if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    os.kill(child, signal.SIGKILL)
            if not any(wait(children)):
                break
            done += 1
            results["kill"] += 1
        finish(scratch, phase, name, ranks)
        results[f"run {outcome(scratch, name, reference)}"] += 1
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", default="all", help="'all', or a number of file operations chosen at random")
    parser.add_argument("--kills", type=int, default=200, help="kills at random instants, shared by both phases")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    import_everything()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        scratch = tiny.build_tiny_scratch(Path(directory))
        results: dict[str, Counter] = {}
        for phase, ranks in RANKS.items():
            finish(scratch, phase, f"{phase}_first", ranks)  # leaves fingerprints of the data, which others find
            started = time.perf_counter()
            finish(scratch, phase, f"{phase}_reference", ranks)
            seconds = time.perf_counter() - started
            reference = comparable(scratch / f"{phase}_reference")
            limit = None if args.operations == "all" else int(args.operations)
            results[f"{phase} operations"] = operations_campaign(scratch, phase, limit, args.seed, reference)
            results[f"{phase} kills"] = kills_campaign(
                scratch, phase, args.kills // len(RANKS), args.seed, reference, seconds
            )
    print(json.dumps(results, indent=1))
    bad = [key for counts in results.values() for key in counts if any(word.isupper() for word in key.split())]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
