"""The conditions that an experiment compares: built-in ones, and those that its file defines from them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

from data_tools.base.command_line import did_you_mean
from data_tools.base.errors import UserError

PPTRAIN = "pptrain"  # begins the names of directories of first phases
BASE = "B"  # what compare holds the others against
DEFAULT = ("A", "B", "C")
OF_MODEL = ("model_name", "init")  # decided by the weights of a first phase, where there is one
OF_MIXTURE = "mixin_"  # begins flags that concern mixed conditions only
CONDITION_KEYS = ("like", "title", "pptrain", "pretrain")
_TAKEN = ("comparison", "corpus", "data", "evaluations", "queue", "report", "steps", "tokenizer")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*")


@dataclass(frozen=True)
class Condition:
    """A run of pretrain, and what came before it.

    Attributes:
        name: of its directory.
        title: its name in legends and tables.
        first: its first phase: the pre-pretraining, as many tokens of C4 as that had, or none.
        is_mixed: whether it reads synthetic blocks among those of C4.
        has_total_compute: whether it trains for the compute of the pre-pretraining and the pretraining together.
        flags: phase → flags over those that all conditions share.
        pptrain_of: the condition whose own pptrain flags these are; empty for the shared ones.
    """

    name: str
    title: str
    first: Literal["pptrain", "c4", "none"] = "none"
    is_mixed: bool = False
    has_total_compute: bool = False
    flags: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    pptrain_of: str = ""

    @property
    def origin(self) -> str:
        """The condition that a value of a varied flag belongs to; otherwise its own name."""
        return self.name.partition("/")[0]

    @property
    def pptrain(self) -> str:
        """Directory of the pre-pretraining that it starts from, or that decides its size."""
        return f"{PPTRAIN}_{self.pptrain_of}" if self.pptrain_of else PPTRAIN

    @property
    def first_phase(self) -> str:
        """Directory of its first phase; empty without one."""
        return {"pptrain": self.pptrain, "c4": f"{self.pptrain}_on_c4", "none": ""}[self.first]


BUILT_IN = {
    condition.name: condition
    for condition in (
        Condition("A", "A pre-pretrained, C4 + mix", first="pptrain", is_mixed=True),
        Condition("B", "B fresh, C4 only"),
        Condition("C", "C fresh, C4 + mix", is_mixed=True),
        Condition("D", "D pre-pretrained, C4 only", first="pptrain"),
        Condition("B+", "B+ fresh, C4 only, compute of both phases of A", has_total_compute=True),
        Condition("N", "N pre-pretrained on C4, C4 + mix", first="c4", is_mixed=True),
    )
}


def read_conditions(given: Any) -> dict[str, Condition]:
    """The conditions of a file: a list of built-in names, or names and what differs.

    Raises:
        UserError: it has another form, or names what does not exist.
    """
    if given is None:
        given = list(DEFAULT)
    if isinstance(given, list):
        names = [*map(str, given)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"conditions has {twice} twice; name each condition once.")
        given = {_known(name, BUILT_IN).name: None for name in names}
    if not isinstance(given, dict) or not given:
        raise UserError(f"conditions are {given!r}, expected names, or names with what differs.")
    known = dict(BUILT_IN)
    for name, changes in given.items():
        known[str(name)] = _defined(str(name), changes or {}, known)
    return {str(name): known[str(name)] for name in given}


def chosen(conditions: Mapping[str, Condition], names: list[str] | None) -> list[Condition]:
    """All conditions of the file, or those of these names, which may also be built-in ones."""
    known = {**BUILT_IN, **conditions}
    return [_known(name, known) for name in dict.fromkeys(names or conditions)]


def read_vary(given: Any) -> dict[str, list[Any]]:
    """Flags of pretrain and the values that they take in turn.

    Raises:
        UserError: it has another form.
    """
    if not isinstance(given or {}, dict):
        raise UserError(
            f"vary is {given!r}, expected flags of pretrain with lists of values, such as lr: [1e-4, 5e-4]."
        )
    for flag, values in (given or {}).items():
        texts = [_value_name(flag, value) for value in values] if isinstance(values, list) else []
        if not texts or len({*texts}) < len(texts):
            raise UserError(f"vary: {flag} is {values!r}, expected a list of different values, such as [1e-4, 5e-4].")
    return given or {}


def variants(condition: Condition, vary: Mapping[str, list[Any]]) -> list[Condition]:
    """A condition with each combination of values; those of flags that do not concern it are left out.

    Raises:
        UserError: the condition sets the flag itself.
    """
    own = condition.flags.get("pretrain", {})
    if twice := next((flag for flag in vary if flag in own), None):
        raise UserError(
            f"condition {condition.name}: pretrain: {twice} is given, and vary has it too; keep one of them."
        )
    flags = [flag for flag in vary if _concerns(flag, condition)]
    if not flags:
        return [condition]
    found = []
    for values in product(*(vary[flag] for flag in flags)):
        name = ",".join(map(_value_name, flags, values))
        changed = {**condition.flags, "pretrain": {**own, **dict(zip(flags, values, strict=True))}}
        title = f"{condition.title}, {name.replace(',', ', ')}"
        found.append(replace(condition, name=f"{condition.name}/{name}", title=title, flags=changed))
    return found


def _concerns(flag: str, condition: Condition) -> bool:
    """Whether a flag changes the pretraining of a condition; `Trainers.pretrain` leaves out those that do not."""
    if flag in OF_MODEL:
        return not condition.first_phase
    return condition.is_mixed or not flag.startswith(OF_MIXTURE)


def _value_name(flag: str, value: Any) -> str:
    """``lr=1e-4``, as a directory's name."""
    return f"{flag}={re.sub(r'[^A-Za-z0-9+._-]', '_', str(value))}"


def _known(name: str, known: Mapping[str, Condition]) -> Condition:
    if name not in known:
        hint = did_you_mean(name, known, f"; there are {', '.join(known)}.")
        raise UserError(f"there is no condition {name}{hint}")
    return known[name]


def _defined(name: str, changes: Any, known: Mapping[str, Condition]) -> Condition:
    """A condition from its lines in the file."""
    if not isinstance(changes, dict):
        raise UserError(f"condition {name} is {changes!r}, expected {', '.join(CONDITION_KEYS)}.")
    if unknown := next((key for key in changes if key not in CONDITION_KEYS), None):
        hint = did_you_mean(unknown, CONDITION_KEYS, f"; expected {', '.join(CONDITION_KEYS)}.")
        raise UserError(f"condition {name}: {unknown!r} is nothing that a condition has{hint}")
    if not _NAME.fullmatch(name) or name.startswith(PPTRAIN) or name in _TAKEN:
        raise UserError(
            f"condition {name!r} has no name for its directory; take letters, digits and + . _ -, neither {PPTRAIN} at "
            f"the beginning nor {', '.join(_TAKEN)}."
        )
    if "like" not in changes and name not in BUILT_IN:
        raise UserError(f"condition {name}: like is missing; name the condition that it differs from.")
    base = _known(str(changes.get("like", name)), known)
    title = str(changes.get("title", base.title if name == base.name else f"{name} (like {base.name})"))
    own: dict[str, dict[str, Any]] = {}
    for phase in ("pptrain", "pretrain"):
        if not isinstance(changes.get(phase) or {}, dict):
            raise UserError(f"condition {name}: {phase} is {changes[phase]!r}, expected flags, one per line.")
        own[phase] = {**base.flags.get(phase, {}), **(changes.get(phase) or {})}
    if changes.get("pptrain") and base.first == "none" and not base.has_total_compute:
        raise UserError(f"condition {name}: pptrain is given, but {base.name} starts from random weights.")
    if not base.is_mixed and (mixin := [flag for flag in own["pretrain"] if flag.startswith(OF_MIXTURE)]):
        raise UserError(f"condition {name}: {mixin[0]} is given, but {base.name} reads C4 only; make it like A or C.")
    return replace(
        base, name=name, title=title, flags=own, pptrain_of=name if changes.get("pptrain") else base.pptrain_of
    )
