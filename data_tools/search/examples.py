"""What generators make, and what they are asked for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from data_tools.base.errors import UserError

SEARCH: Final = "search"
Task = Literal["search", "dfs", "si"]
TASKS: tuple[Task, ...] = get_args(Task)
_HAVE_FLAGS = ("max_lookahead", "max_input_size", "seed", "task")
_SET_BY_US = ("self", "batch_size", "reserved_inputs", "alpha")


@dataclass(frozen=True, slots=True)
class Example:
    """One problem as text.

    Attributes:
        input_text: the prompt, without a trailing space; unique text identifies the problem.
        output_texts: every valid next word, without a leading space, in no meaningful order.
        labels: what the generator calls ``output_texts``; the built-in one gives their vertex ids.
        lookahead: breadth-first levels that must be expanded to find the next step; None for other tasks than search.
        num_edges: the number of facts; None where the text has another form than that of search.
    """

    input_text: str
    output_texts: list[str]
    labels: list[Any]
    lookahead: int | None
    num_edges: int | None


@dataclass(frozen=True)
class GeneratorChoice:
    """A generator, and what it is asked for.

    Attributes:
        name: ``package.module:ClassName``, or None for the built-in generator.
        task: one of `TASKS`.
        options: more keywords of ``generate_batch``.
    """

    name: str | None = None
    task: Task = SEARCH
    options: Mapping[str, Any] = field(default_factory=dict)

    def changed(self, name: str | None, task: Task | None, options: Sequence[str] | None) -> "GeneratorChoice":
        """This choice with the values of flags that were given; another generator or task has its own options.

        Raises:
            UserError: see `parse_options`.
        """
        new = GeneratorChoice(name or self.name, task or self.task, parse_options(options or ()))
        is_same = (new.name, new.task) == (self.name, self.task)
        return self if is_same and not options else new


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Keywords from ``key=value`` texts. A value is a number, true or false where it looks like one, else text.

    Raises:
        UserError: a text of another form, a keyword twice, or one that is set otherwise.
    """
    options: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        problem = ""
        if not separator or not key.isidentifier():
            problem = "expected key=value, e.g. max_edges=20"
        elif key in _HAVE_FLAGS:
            problem = "it has a flag; give that"
        elif key in _SET_BY_US:
            problem = "it is set by this program"
        elif key in options:
            problem = f"{key} is given twice"
        if problem:
            raise UserError(f"--generator_options {text}: {problem}.")
        options[key] = _value(value)
    return options


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if math.isfinite(number):
            return number
    return text
