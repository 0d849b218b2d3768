"""Many short runs inside one launched process group: a launch costs seconds, a tiny run less than two.

    deepspeed --num_gpus 2 tests/ds_train/launched.py RUNS.json

RUNS.json holds a list of {"phase": "pptrain" | "pretrain", "argv": […]}; each is one call of the phase's ``main``.
"""

import gc
import json
import sys
from pathlib import Path

from ds_train import pptrain, pretrain
from ds_train.distributed import run_entry

MAINS = {"pptrain": pptrain.main, "pretrain": pretrain.main}


def main() -> int:
    runs_file = next(argument for argument in sys.argv[1:] if not argument.startswith("--"))
    for run in json.loads(Path(runs_file).read_text()):
        expected = run.get("code", 0)
        code = MAINS[run["phase"]](run["argv"])
        if code != expected:
            print(f"{run['argv']} ended with {code}, expected {expected}", file=sys.stderr)
            return 1
        gc.collect()  # engines hold cycles
    return 0


if __name__ == "__main__":
    run_entry(main)
