"""Which optimizers the JSON may name, and why the others are refused.

An optimizer is accepted if ZeRO's shards do not change what it computes and if it resumes bitwise. Tests run each one.
"""

import inspect
from typing import Any

from data_tools.base.command_line import did_you_mean
from data_tools.base.errors import Problems, first_line, is_number
from data_tools.base.kinds import complaint, is_of_kind

# torch.optim's that update each number by itself. DeepSpeed finds all but Adam and AdamW by exactly these names.
OF_TORCH = ("Adam", "AdamW", "SGD", "RMSprop", "NAdam", "RAdam", "Adamax", "Adadelta", "ASGD", "Rprop")
# DeepSpeed takes its own names in any case.
OF_DEEPSPEED = ("Adam", "AdamW", "Lion", "Muon")
_REFUSED = {
    "adagrad": "DeepSpeed rebuilds it without its groups of parameters",
    "adafactor": "its statistics are of whole matrices, of which a rank holds pieces: each number of ranks would train "
    "another model",
    "lamb": "its norms are of whole tensors, of which a rank holds pieces: each number of ranks would train another "
    "model",
    "lbfgs": "it evaluates the loss several times a step",
    "sparseadam": "it takes sparse gradients only, and none of these models has any",
    "muadam": "it needs a model with μP's base shapes, which none of these models has",
    "muadamw": "it needs a model with μP's base shapes, which none of these models has",
    "musgd": "it needs a model with μP's base shapes, which none of these models has",
}
_WITHOUT_USE = {"params", "maximize", "capturable", "differentiable"}
_ADAMS = ("adam", "adamw")
_OF_DEEPSPEEDS_ADAM = {"lr": 0.0, "betas": [], "eps": 0.0, "weight_decay": 0.0, "bias_correction": True}
_OF_LION = {"lr": 0.0, "betas": [], "weight_decay": 0.0}
_OF_MUON = {
    "lr": 0.0, "muon_lr": 0.0, "adam_lr": 0.0, "momentum": 0.0, "ns_method": "gram", "weight_decay": 0.0, "betas": [],
    "eps": 0.0, "torch_adam": True,
}  # fmt: skip
_SWITCH, _NOT_NEGATIVE = "true or false", "number in [0, 1e9]"
_KINDS = {
    "weight_decay": _NOT_NEGATIVE,
    "eps": _NOT_NEGATIVE,
    "muon_lr": _NOT_NEGATIVE,
    "adam_lr": _NOT_NEGATIVE,
    "momentum": "number in [0, 1)",
    "ns_method": "gram | standard",
    "torch_adam": _SWITCH,
    "adam_w_mode": _SWITCH,
    "bias_correction": _SWITCH,
}


def check_optimizer(config: dict[str, Any], problems: Problems) -> None:
    """Report an optimizer that cannot be used with the JSON's ZeRO stage and precision, and its bad parameters."""
    optimizer = config.get("optimizer", {})
    kind, params = optimizer.get("type"), optimizer.get("params", {})
    if kind is None:
        problems.add('optimizer.type is missing; set it, e.g. {"type": "AdamW", "params": {"lr": 5e-4}}.')
    elif str(kind).lower() in _REFUSED:
        problems.add(
            f"optimizer.type is {kind!r}: {_REFUSED[str(kind).lower()]}. Use AdamW, or another one of "
            f"{', '.join(_names())}."
        )
    elif not _is_known(kind):
        hint = did_you_mean(str(kind), _names(), f"; use one of {', '.join(_names())}.", cutoff=0.5)
        problems.add(f"optimizer.type is {kind!r}, which is not known here{hint}")
    else:
        _check_params(kind, params, problems)
        _check_sharding(kind, config, problems)


def needs_gpu(config: dict[str, Any]) -> str | None:
    """Why the JSON's optimizer cannot train on CPUs, None where it can."""
    optimizer = config["optimizer"]
    if optimizer["type"].lower() == "lion" and not _is_offloaded(config):
        return "optimizer.type is 'Lion', for which DeepSpeed has no kernel on CPUs unless it is offloaded; use AdamW."
    if _has_deepspeeds_adam(optimizer):
        return (
            f"optimizer.type is {optimizer['type']!r} with DeepSpeed's Adam, whose kernel for CPUs does not resume "
            "bitwise; set optimizer.params.torch_adam to true."
        )
    return None


def _names() -> list[str]:
    return list(dict.fromkeys((*OF_TORCH, *OF_DEEPSPEED)))


def _is_known(kind: Any) -> bool:
    return isinstance(kind, str) and (kind in OF_TORCH or kind.lower() in map(str.lower, OF_DEEPSPEED))


def _has_deepspeeds_adam(optimizer: dict[str, Any]) -> bool:
    """Whether DeepSpeed's own kernel updates parameters; with Muon those that are no matrices."""
    return optimizer["type"].lower() in (*_ADAMS, "muon") and not optimizer.get("params", {}).get("torch_adam", False)


def _is_offloaded(config: dict[str, Any]) -> bool:
    offload = config.get("zero_optimization", {}).get("offload_optimizer") or {}
    return isinstance(offload, dict) and offload.get("device", "none") != "none"


def params_of(kind: str, *, torch_adam: bool = True) -> dict[str, Any]:
    """The parameters that an accepted optimizer takes, with a value of each one's kind."""
    if kind.lower() == "lion":
        return _OF_LION
    if kind.lower() == "muon":
        return _OF_MUON
    if kind.lower() in _ADAMS and not torch_adam:
        return _OF_DEEPSPEEDS_ADAM | {"torch_adam": True, "adam_w_mode": True}
    import torch

    is_adam = kind.lower() in _ADAMS
    signature = inspect.signature(torch.optim.AdamW if is_adam else getattr(torch.optim, kind))
    of_torch = {name: entry.default for name, entry in signature.parameters.items() if name not in _WITHOUT_USE}
    return of_torch | ({"torch_adam": True, "adam_w_mode": True} if is_adam else {})


def _check_params(kind: str, params: dict[str, Any], problems: Problems) -> None:
    """Report parameters that the optimizer does not take, and values of the wrong kind."""
    before = len(problems)
    allowed = params_of(kind, torch_adam=params.get("torch_adam", False) is not False)
    for key in sorted(set(params) - set(allowed)):
        hint = did_you_mean(key, allowed, f"; {kind} takes {', '.join(sorted(allowed))}.")
        problems.add(f"DeepSpeed JSON key 'optimizer.params.{key}' is not known{hint}")
    for key in sorted(set(params) & set(allowed) - {"lr", "betas", "etas", "step_sizes"}):
        default = allowed[key]
        is_switch = default is None or isinstance(default, bool)
        value_kind = _KINDS.get(key) or (_SWITCH if is_switch else "number")
        if not is_of_kind(params[key], value_kind):
            problems.add(complaint(f"optimizer.params.{key}", params[key], value_kind))
    for key, low, high in (("betas", 0, 1), ("etas", 0, 10), ("step_sizes", 0, 1e9)):
        value = params.get(key)
        if value is not None and not _is_pair(value, f"number in [{low}, {high})"):
            problems.add(f"optimizer.params.{key} is {value!r}, expected two numbers in [{low}, {high:g}).")
    if kind.lower() == "adamw" and params.get("adam_w_mode") is False:
        problems.add("optimizer.params.adam_w_mode is false, which AdamW does not read; give the type Adam instead.")
    if len(problems) == before and _is_of_torch(kind, params):
        _check_by_torch(kind, params, problems)


def _is_of_torch(kind: str, params: dict[str, Any]) -> bool:
    return params.get("torch_adam", False) if kind.lower() in _ADAMS else kind in OF_TORCH


def _check_by_torch(kind: str, params: dict[str, Any], problems: Problems) -> None:
    """Report what torch itself refuses, such as values that exclude one another."""
    import torch

    optimizer_class = torch.optim.AdamW if kind.lower() in _ADAMS else getattr(torch.optim, kind)
    given = {name: value for name, value in params.items() if name not in ("lr", "torch_adam", "adam_w_mode")}
    try:
        optimizer_class([torch.zeros(1, requires_grad=True)], **given)
    except (ValueError, TypeError, RuntimeError) as error:
        problems.add(f"optimizer.params cannot be used with {kind}: {first_line(error)}.")


def _is_pair(value: Any, kind: str) -> bool:
    return isinstance(value, list) and [is_of_kind(each, kind) for each in value] == [True, True]


def _check_sharding(kind: str, config: dict[str, Any], problems: Problems) -> None:
    """Report an optimizer that DeepSpeed would refuse or run wrongly at the JSON's stage and precision."""
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if _has_deepspeeds_adam(config["optimizer"]) and _is_offloaded(config):
        problems.add(
            "zero_optimization.offload_optimizer with DeepSpeed's Adam does not resume bitwise: its kernel for CPUs "
            "multiplies its bias correction up from step to step. Set optimizer.params.torch_adam and fused to true."
        )
    is_listed = kind.lower() in map(str.lower, OF_DEEPSPEED)
    if stage and not is_listed and config.get("zero_allow_untested_optimizer") is not True:
        problems.add(
            f"optimizer.type is {kind!r}: DeepSpeed shards an optimizer that is not on its own list (Adam, Lion, Muon) "
            "only where zero_allow_untested_optimizer is true; set it. The tests of this program run it."
        )
    if kind.lower() == "muon":
        _check_muon(config, stage, problems)


def _check_muon(config: dict[str, Any], stage: Any, problems: Problems) -> None:
    """Report where DeepSpeed's Muon does not compute what it computes elsewhere."""
    is_bf16 = bool(config.get("bf16", {}).get("enabled"))
    clipping = config.get("gradient_clipping", 0)
    if config.get("fp16", {}).get("enabled") or _is_offloaded(config) or (is_bf16 and stage == 2):
        problems.add(
            "optimizer.type is 'Muon', whose gradients DeepSpeed adds up in half precision with ZeRO 2, fp16 or "
            "offloading; use bf16 with zero_optimization.stage 1."
        )
    elif stage and not (is_bf16 and stage == 1) and is_number(clipping) and clipping > 0:
        problems.add(
            "optimizer.type is 'Muon': but for ZeRO 1 in bf16, DeepSpeed's ZeRO clips the finished update instead of "
            "the gradient. Use zero_optimization.stage 1 with bf16, stage 0 in fp32, or gradient_clipping 0."
        )
    elif stage == 3 and config["zero_optimization"].get("reduce_scatter", True):
        problems.add("optimizer.type is 'Muon', which needs zero_optimization.reduce_scatter false with ZeRO 3.")
