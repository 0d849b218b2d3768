"""The parts of a model that each of its parameters belongs to, for any architecture."""

import re
from collections import defaultdict
from collections.abc import Collection

from transformers import PreTrainedModel

PARTS = ("blocks", "attention", "mlp", "norms", "embeddings", "head")
_NORM = re.compile("(Layer|RMS|Group)Norm")  # in the name of a class
# In the names of a block's modules, or else in those of their classes.
_ATTENTION = re.compile("attn|attention|mamba|conv|lstm|temporal", re.IGNORECASE)
_MLP = re.compile(r"mlp|ffn|feed_?forward|moe|expert|^fc\d|^intermediate$|^output$", re.IGNORECASE)


def parts_of(model: PreTrainedModel) -> dict[str, frozenset[str]]:
    """The parts that each parameter belongs to, by its name; every one belongs to some.

    ``blocks`` are the repeated layers, with their norms, and whatever else is between embeddings and head. In a block,
    ``attention`` is what mixes tokens (also convolutions and state spaces), and ``mlp`` what treats each by itself.
    ``norms`` are in blocks and outside; only those of a head of several layers belong to the ``head``. A tied parameter
    is listed once, under its first name, with the parts of all its places.
    """
    embeddings = model.get_input_embeddings()
    base = next(name for name, module in model.named_children() if embeddings in module.modules())
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    parts: dict[str, set[str]] = defaultdict(set)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        is_in_base = name.startswith(f"{base}.")
        parts[first_names[id(parameter)]] |= _parts_in_base(model, name) if is_in_base else {"head"}
    return {name: frozenset(found) for name, found in parts.items()}


def without_decay(model: PreTrainedModel, kinds: Collection[str]) -> set[str]:
    """Names of the parameters of these kinds: parts, and ``biases``, which are in all parts."""
    if not kinds:
        return set()
    biases = {name for name, _ in model.named_parameters() if "bias" in name.rsplit(".", 1)[-1]}
    chosen = {name for name, parts in parts_of(model).items() if not parts.isdisjoint(kinds)}
    return chosen | biases if "biases" in kinds else chosen


def _parts_in_base(model: PreTrainedModel, name: str) -> set[str]:
    """The parts of a parameter of the model below its head, by the outermost module around it that shows them."""
    *path, leaf = name.split(".")
    classes = [type(model.get_submodule(".".join(path[:depth]))).__name__ for depth in range(1, len(path) + 1)]
    norms = {"norms"} if _NORM.search(classes[-1]) else set()
    for depth, attribute in enumerate(path):
        if attribute.isdigit():
            inside = slice(depth + 1, None)
            return {"blocks"} | (norms or _kind([*path[inside], leaf]) or _kind(classes[inside]))
        if "Embedding" in classes[depth]:
            return norms or {"embeddings"}
    return norms or {"blocks"}


def _kind(names: list[str]) -> set[str]:
    """Attention or mlp, by the outermost of these names that shows it; empty if none does."""
    for name in names:
        if _ATTENTION.search(name):
            return {"attention"}
        if _MLP.search(name):
            return {"mlp"}
    return set()
