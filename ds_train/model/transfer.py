"""What a run takes over from the weights that it starts from, and what it never trains."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from data_tools.base.errors import Problems
from data_tools.base.text_table import pluralize
from ds_train.model.parts import PARTS, parts_of

logger = logging.getLogger(__name__)

ALL = "all"


@dataclass(frozen=True)
class Transfer:
    """Which parts of a model are transferred, and which are frozen.

    Attributes:
        copied: parts that get the weights of the run before; the others keep their fresh ones.
        mean_embeddings: each row of the token embeddings becomes the mean of the transferred rows.
        frozen: parts that are never trained.
    """

    copied: tuple[str, ...] = (ALL,)
    mean_embeddings: bool = False
    frozen: tuple[str, ...] = ()

    @classmethod
    def of_flags(cls, copied: Iterable[str] | None, embeddings: str, frozen: Iterable[str] | None) -> "Transfer":
        """From lists of parts in any order; None where there is no list."""
        return cls(_in_order(copied or (ALL,)), embeddings == "mean", _in_order(frozen or ()))

    @property
    def fingerprints(self) -> dict[str, str]:
        """What a resume must agree with."""
        mean = " with mean embeddings" if self.mean_embeddings else ""
        return {"transfer": " ".join(self.copied) + mean, "freeze": " ".join(self.frozen) or "nothing"}

    def check(self, model: PreTrainedModel, problems: Problems, *, has_weights: bool) -> None:
        """Check the choice against a model, which may be on the meta device.

        Args:
            has_weights: whether the run starts from weights.
        """
        if not has_weights and (self.copied != (ALL,) or self.mean_embeddings):
            problems.add("--transfer and --embeddings need weights to start from, and there are none; leave them out.")
        if self.mean_embeddings and not _is_in(frozenset(["embeddings"]), self.copied):
            problems.add("--embeddings mean: --transfer leaves the embeddings out; add them there.")
        parts = parts_of(model)
        present = frozenset().union(*parts.values())
        for flag, chosen in (("transfer", self.copied), ("freeze", self.frozen)):
            for part in (part for part in chosen if part not in {ALL, *present}):
                known = ", ".join(_in_order(present))
                problems.add(f"--{flag} {part}: a model of type {model.config.model_type} has only {known}.")
            others = sorted({re.sub(r"\.\d+\.", ".*.", name) for name, of in parts.items() if of == {"blocks"}})
            if others and {"attention", "mlp"} & {*chosen} and not _is_in(frozenset(["blocks"]), chosen):
                logger.warning("--%s: neither attention nor mlp, but of the blocks: %s", flag, ", ".join(others))
        if all(_is_in(of, self.frozen) for of in parts.values()):
            problems.add(f"--freeze {' '.join(self.frozen)} leaves nothing to train; freeze less.")

    @torch.no_grad()
    def initial_model(self, source: PreTrainedModel, fresh: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """A model to start from, with weights of the source and of a fresh model of the same configuration."""
        model = source
        if ALL not in self.copied:
            model, weights = fresh(), dict(source.named_parameters())
            for name, parameter in _chosen(model, self.copied):
                parameter.copy_(weights[name])
        if self.mean_embeddings:
            rows = model.get_input_embeddings().weight
            rows.copy_(rows.double().mean(0).expand_as(rows))  # in fp32 it would depend on the number of threads
        return model

    def freeze(self, model: PreTrainedModel) -> None:
        for _, parameter in _chosen(model, self.frozen):
            parameter.requires_grad_(False)

    def describe(self, model: PreTrainedModel) -> dict[str, str]:
        """How many tensors and parameters are copied, fresh and frozen, by part, in words."""
        copied, frozen = dict(_chosen(model, self.copied)), dict(_chosen(model, self.frozen))
        fresh = {name: parameter for name, parameter in model.named_parameters() if name not in copied}
        parts = parts_of(model)
        return {"copied": _counts(copied, parts), "fresh": _counts(fresh, parts), "frozen": _counts(frozen, parts)}


AS_IT_IS = Transfer()  # everything is transferred and trained


def _in_order(parts: Iterable[str]) -> tuple[str, ...]:
    """Each part once, in the order of `PARTS`; all of them are ``all``."""
    return (ALL,) if ALL in (given := {*parts}) else tuple(part for part in PARTS if part in given)


def _is_in(parts: frozenset[str], chosen: Collection[str]) -> bool:
    return ALL in chosen or not parts.isdisjoint(chosen)


def _chosen(model: PreTrainedModel, chosen: Collection[str]) -> list[tuple[str, nn.Parameter]]:
    """The parameters that belong to a chosen part, tied ones once."""
    parameters = dict(model.named_parameters())
    return [(name, parameters[name]) for name, parts in parts_of(model).items() if _is_in(parts, chosen)]


def _counts(parameters: dict[str, nn.Parameter], parts: dict[str, frozenset[str]]) -> str:
    if not parameters:
        return "nothing"
    labels = Counter(" and ".join(_in_order(parts[name] - {"blocks"})) or "other" for name in parameters)
    num_parameters = sum(parameter.numel() for parameter in parameters.values())
    by_part = ", ".join(f"{number} {label}" for label, number in labels.items())
    return f"{pluralize(len(parameters), 'tensor')} ({by_part}), {num_parameters:,} parameters"
