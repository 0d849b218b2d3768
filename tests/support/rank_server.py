"""A process that has imported everything, and forks the ranks of training runs: imports take longer than tiny runs.

    python tests/support/rank_server.py

Reads one job a line from standard input, as JSON: {"script", "arguments", "environment" (a list, one for each rank),
"outputs" (a file for each rank), "timeout_s", "killed_last": a rank or null}. Answers with two lines: the process group
of the job, and the list of exit codes.

Ranks are treated as the ``deepspeed`` launcher treats them: the first one that fails ends the others by SIGTERM, and
by SIGKILL half a minute later. A rank that is ``killed_last`` changes that: all are left alone, and this one is killed
when the others have ended. After the time-out each rank writes down where its threads are, and dies.
"""

import atexit
import gc
import importlib
import json
import math
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

GRACE_S = 30.0


def main() -> None:
    import_everything()
    for line in sys.stdin:
        group = os.fork()
        if group == 0:
            os.setsid()
            job = json.loads(line)
            print(json.dumps(run(job)), flush=True)
            os._exit(0)
        print(group, flush=True)
        os.waitpid(group, 0)


def import_everything() -> None:
    """What training loads; nothing of it may start a thread, which a fork would lose."""
    for module in (
        "ds_train.evaluate",
        "ds_train.phases.pptrain",
        "ds_train.phases.pretrain",
        "ds_train.phases.scores",
        "deepspeed.runtime.zero.muon.muon_optimizer",  # by every engine, with much of torch's compiler: seconds
    ):
        importlib.import_module(module)
    assert len(list(Path("/proc/self/task").iterdir())) == 1
    gc.freeze()


def run(job: dict[str, Any]) -> list[int]:
    """Fork the ranks of a job and wait for them; returns their exit codes, negative for signals."""
    ranks = {fork(job, rank): rank for rank in range(len(job["outputs"]))}
    codes: dict[int, int] = {}
    kill_at, abort_at = math.inf, time.monotonic() + job["timeout_s"]
    while len(codes) < len(ranks):
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            codes[ranks[process]] = os.waitstatus_to_exitcode(status)
        alive = [process for process, rank in ranks.items() if rank not in codes]
        if job["killed_last"] is not None:
            if [ranks[process] for process in alive] == [job["killed_last"]]:
                os.kill(alive[0], signal.SIGKILL)
        elif any(codes.values()) and kill_at == math.inf:
            kill_at = time.monotonic() + GRACE_S
            end(alive, signal.SIGTERM)
        if time.monotonic() > kill_at:
            end(alive, signal.SIGKILL)
        if time.monotonic() > abort_at:
            end(alive, signal.SIGABRT)
        time.sleep(0.01)
    return [codes[rank] for rank in sorted(codes)]


def end(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        os.kill(process, number)


def fork(job: dict[str, Any], rank: int) -> int:
    """Fork one rank, which runs the script as ``python SCRIPT ARGUMENTS`` would; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(job["outputs"][rank], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.clear()
        os.environ.update(job["environment"][rank])
        sys.argv = [job["script"], *job["arguments"]]
        sys.path.insert(0, str(Path(job["script"]).resolve().parent))
        runpy.run_path(job["script"], run_name="__main__")
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
