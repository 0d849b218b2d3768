"""Commands one after another in one launched process group; after training, the engine's logits are kept.

    deepspeed --num_gpus 2 tests/system/launched_export.py COMMANDS.json

COMMANDS.json holds a list of {"command": name, "argv": […], "logits": path or nothing}.
"""

import gc
import json
import sys
from pathlib import Path

import numpy as np
import torch

from data_tools.samples.readers import c4_document
from ds_train import evaluate
from ds_train.phases import pptrain, pretrain
from ds_train.ranks.entry import run_entry
from ds_train.run import assembly
from ds_train.step.micro_batch import pack
from ds_train.training.loop import Run, train

COMMANDS = {"pptrain": pptrain.main, "pretrain": pretrain.main, "evaluate": evaluate.main}
IDS = np.arange(1, 41) % 23  # (40,) a document; the logits are those after each but its last token


def main() -> int:
    commands_file = next(argument for argument in sys.argv[1:] if not argument.startswith("--"))
    for command in json.loads(Path(commands_file).read_text()):
        assembly.train = lambda run, command=command: train_and_keep_logits(run, command.get("logits"))
        COMMANDS[command["command"]](command["argv"])
        gc.collect()  # engines hold cycles
    return 0


def train_and_keep_logits(run: Run, path: str | None) -> int:
    code = train(run)
    if path:
        logits = engine_logits(run)
        if run.world.is_main:
            torch.save(logits, path)
    return code


@torch.no_grad()
def engine_logits(run: Run) -> torch.Tensor:
    """Logits of IDS in the engine's own weights and precision; collective under ZeRO-3."""
    found = []
    hook = run.engine.module.causal_lm.register_forward_hook(lambda *call: found.append(call[-1].logits))
    run.engine.eval()
    run.engine(pack([[c4_document(IDS)]]).to(run.engine.device))
    hook.remove()
    return found[0][0]


if __name__ == "__main__":
    run_entry(main)
