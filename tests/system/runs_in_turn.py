"""Many short runs inside one launched process group: a launch costs seconds, a tiny run less than two.

    deepspeed --num_gpus 2 tests/system/launched.py RUNS.json

That file imports nothing by itself, as users' commands: processes that are spawned read it again.
RUNS.json holds a list of {"phase": "pptrain" | "pretrain", "argv": […]}; each is one call of the phase's ``main``.
Optional: "code", its expected result; "error", words of the UserError it must end with; "file_bytes", the largest file
that the last rank may write, as on a full disk; "import_from", a directory for the import path; "tensors", a file for
the model's tensors before the first step, and "starts_only" where no step is to follow.
"""

import gc
import json
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import safe_get_full_fp32_param

from data_tools.base.errors import UserError
from ds_train.phases import pptrain, pretrain
from ds_train.ranks.world import world_from_env
from ds_train.run import assembly
from ds_train.step.engine import Engine, is_plain
from ds_train.training.loop import Run

MAINS = {"pptrain": pptrain.main, "pretrain": pretrain.main}


def main() -> int:
    runs_file = next(argument for argument in sys.argv[1:] if not argument.startswith("--"))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails instead of killing
    for run in json.loads(Path(runs_file).read_text()):
        sys.path[:0] = [run["import_from"]] if "import_from" in run else []
        with file_size_limit(run.get("file_bytes")):
            outcome = call(run)
        expected = run.get("error") or run.get("code", 0)
        if outcome != expected and not (isinstance(expected, str) and expected in str(outcome)):
            print(f"{run['argv']} ended with {outcome}, expected {expected}", file=sys.stderr)
            return 1
        gc.collect()  # engines hold cycles
    return 0


def call(run: dict[str, Any]) -> int | str:
    def train(assembled: Run) -> None:
        if "tensors" in run:
            tensors = whole_tensors(assembled.engine)
            if assembled.world.is_main:
                torch.save(tensors, run["tensors"])
        if not run.get("starts_only"):
            TRAIN(assembled)

    try:
        with mock.patch.object(assembly, "train", train):
            return MAINS[run["phase"]](run["argv"])
    except UserError as error:
        return str(error)


def whole_tensors(engine: Engine) -> dict[str, torch.Tensor]:
    """The model's parameters in fp32, as its optimizer holds those that are trained, by name. Collective."""
    parameters = dict(engine.module.causal_lm.named_parameters())
    with GatheredParameters(list(parameters.values())):
        tensors = {name: parameter.detach().float().clone() for name, parameter in parameters.items()}
    if not is_plain(engine):
        trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        tensors |= {name: safe_get_full_fp32_param(parameter) for name, parameter in trained.items()}
    return tensors


TRAIN = assembly.train


@contextmanager
def file_size_limit(num_bytes: int | None) -> Iterator[None]:
    """Let the last rank write no file larger than this inside the block."""
    world = world_from_env()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if num_bytes is not None and world.rank == world.size - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
