"""Products of fp32 matrices in TF32: several times faster on GPUs, with 10 bits of mantissa instead of 23."""

import torch

_FAST, _EXACT = "high", "highest"  # torch's names


def use_tf32(model: torch.nn.Module) -> None:
    """Multiply fp32 matrices in TF32 from now on, except for rotary positions.

    Their frequencies would be rounded, which turns late positions by large angles, and a model that is then used in
    another precision would see other ones.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.register_forward_pre_hook(lambda *_: torch.set_float32_matmul_precision(_EXACT))
            module.register_forward_hook(lambda *_: torch.set_float32_matmul_precision(_FAST))
    torch.set_float32_matmul_precision(_FAST)
    torch.backends.cudnn.allow_tf32 = True
