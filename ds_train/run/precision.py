"""How exactly a run computes, where its DeepSpeed JSON does not say it all."""

import logging
import os

import torch

from ds_train.config.deepspeed_json import default_json
from ds_train.model.compilation import compile_layers
from ds_train.model.tf32 import use_tf32
from ds_train.ranks.collectives import is_emulated
from ds_train.run.inputs import CommonInputs
from ds_train.step.engine import Engine

logger = logging.getLogger(__name__)


def set_precision(inputs: CommonInputs, device: torch.device) -> None:
    """Keep torch from rounding what is in fp32, and warn of a device that the precision is not for."""
    torch.backends.cudnn.allow_tf32 = False  # torch's default would round convolutions
    if is_emulated(inputs.engine.precision, device):
        logger.warning(
            "this CPU has no %s arithmetic and emulates it: a step may take minutes. Train in fp32: --mixed_precision "
            "no, or --deepspeed_config %s, which also has a small batch",
            inputs.engine.precision,
            default_json(f"{inputs.phase}_cpu"),
        )
    if inputs.run_flags.tf32 and device.type == "cpu":
        logger.warning("--tf32 has no effect on CPUs, which multiply in fp32: losses will differ from those on GPUs")


def repeat_exactly() -> None:
    """Use kernels that give the same bits each time, on GPUs, too. Call it before the first product on a GPU.

    Torch chooses them itself, also for the backward of its own flash attention, and refuses operations without one.
    cuBLAS wants a workspace of a fixed size, and the package flash-attn to be asked.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"  # read by transformers
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nobody reads it


def choose_kernels(inputs: CommonInputs, engine: Engine) -> None:
    """Use TF32 and compiled layers if the run wants them: after the probe, which compares documents to more bits."""
    if inputs.run_flags.tf32 and engine.device.type == "cuda":
        use_tf32(engine.module)
    if inputs.run_flags.compile:
        compile_layers(engine.module.causal_lm, engine.device)
