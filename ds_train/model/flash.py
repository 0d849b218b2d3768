"""Flash attention from packages of its own: whether a run can use the version that it asks for.

transformers calls them. It would take code from a hub where a package is missing, so that is refused first.
"""

from dataclasses import dataclass
from importlib import import_module, metadata
from typing import NoReturn

import torch
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from data_tools.base.errors import UserError, first_line
from ds_train.model.small_config import head_sizes

_LARGEST_HEAD = 256  # of queries, keys and values
_ATTENTION_DROPOUTS = ("attention_dropout", "attn_pdrop")  # names in configurations
_REPOSITORY = "https://github.com/Dao-AILab/flash-attention"


@dataclass(frozen=True)
class _Package:
    """A package of one version of flash attention.

    Attributes:
        installation: how to get it.
        capability: oldest CUDA architecture.
    """

    distribution: str
    module: str
    installation: str
    capability: tuple[int, int]


FLASH = {
    "flash_attention_2": _Package("flash-attn", "flash_attn", "pip install flash-attn --no-build-isolation", (8, 0)),
    "flash_attention_3": _Package(
        "flash-attn-3", "flash_attn_interface", f"python setup.py install in hopper/ of {_REPOSITORY}", (9, 0)
    ),
}


def check_flash(config: PretrainedConfig, attention: str, precision: str) -> None:
    """Check what needs no GPU: that model, precision and installed packages allow a version of flash attention.

    Args:
        attention: implementation; any that is not in `FLASH` passes.

    Raises:
        UserError: with the reason.
    """
    if attention not in FLASH:
        return
    package, model_class = FLASH[attention], MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    compatible = getattr(model_class, "_compatible_flash_implementations", None) or [attention]
    if not getattr(model_class, "_supports_flash_attn", False) or attention not in compatible:
        _refuse(attention, f"transformers has none for a model of type {config.model_type}")
    if precision == "fp32":
        _refuse(attention, "it computes in half precision, not in fp32", "give --mixed_precision bf16, or ")
    if attention == "flash_attention_3" and any(getattr(config, name, 0) for name in _ATTENTION_DROPOUTS):
        _refuse(attention, "it has no dropout, which --keep_dropout leaves on", "use flash_attention_2, or ")
    if (size := max(head_sizes(config))) > _LARGEST_HEAD:
        _refuse(attention, f"heads have {size} numbers, more than {_LARGEST_HEAD}")
    try:
        metadata.version(package.distribution)
    except metadata.PackageNotFoundError:
        _refuse(attention, f"the package {package.distribution} is not installed", f"{package.installation}, or ")


def check_flash_here(attention: str, device: torch.device) -> None:
    """Check that a version of flash attention runs on this device.

    Raises:
        UserError: with the reason.
    """
    if attention not in FLASH:
        return
    package = FLASH[attention]
    if device.type != "cuda":
        _refuse(attention, f"it needs a GPU, and this rank trains on a {device.type.upper()}")
    if (found := torch.cuda.get_device_capability(device)) < package.capability:
        required, own = (".".join(map(str, numbers)) for numbers in (package.capability, found))
        _refuse(attention, f"it needs compute capability {required}, and this GPU has {own}")
    try:
        import_module(package.module)
    except Exception as error:  # built for another torch, most often
        problem = f"{package.distribution} cannot be imported ({first_line(error)})"
        _refuse(attention, problem, f"install the one for torch {torch.__version__}, or ")


def _refuse(attention: str, reason: str, cure: str = "") -> NoReturn:
    raise UserError(f"--attn_implementation {attention}: {reason}; {cure}leave the flag out.")
