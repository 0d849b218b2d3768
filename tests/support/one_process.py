"""Run many commands in one process: to import torch and DeepSpeed takes longer than what they do here.

    python tests/support/one_process.py JOBS.json RESULTS.json

JOBS holds a list of {"module": name, "args": […]} or {"code": Python}, RESULTS one of {"code": number, "output": text}.
A module is run through its ``main``, and as ``python -m`` would run it where it has none. "launcher" holds the options
that ``deepspeed`` would have been given.
"""

import gc
import importlib
import io
import json
import runpy
import signal
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

_LONGEST_S = 1800  # a command that waits forever ends here; all kinds of models take minutes


def main(jobs_file: str, results_file: str) -> None:
    results = []
    for job in json.loads(Path(jobs_file).read_text()):
        signal.alarm(_LONGEST_S)
        output = io.StringIO()
        with redirect_stdout(output), redirect_stderr(output):
            code = outcome(job)
        results.append({"code": code, "output": output.getvalue()})
        Path(results_file).write_text(json.dumps(results))
        gc.collect()  # engines hold cycles


def outcome(job: dict[str, Any]) -> int:
    """The exit code that a separate process would end with."""
    try:
        if "code" in job:
            exec(compile(job["code"], "page", "exec"), {"__name__": "__main__"})
            return 0
        if "launcher" in job:
            from deepspeed.launcher.runner import parse_args

            parse_args([*job["launcher"], "script.py"])
        return call(job["module"], job["args"]) or 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # UserError as well: its message is in the output
        traceback.print_exc()
        return 1


def call(module: str, args: list[str]) -> int | None:
    sys.argv = [f"{module.replace('.', '/')}.py", *args]
    run = getattr(importlib.import_module(module), "main", None)
    if run is None:
        runpy.run_module(module, run_name="__main__")
        return 0
    return run(args)


if __name__ == "__main__":  # not in the processes that commands spawn
    main(*sys.argv[1:])
