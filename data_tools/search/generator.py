"""Synthetic examples by address: the built-in generator, the generator protocol, and `ExampleGenerator`.

A generator is built from ``max_input_size`` and ``seed``; its ``generate_batch`` returns objects with ``input_text``,
``output_texts`` and ``labels``. Splits and training do not call it. They ask an `ExampleGenerator` for the example at
an address.
"""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_tools.base.errors import UserError
from data_tools.base.rng import CounterStream, hashed_seed_31bit
from data_tools.search.graphs import sample_search_graph, search_budget
from data_tools.search.prompts import draw_attributes, parse_prompt, render_prompt

TASK = "search"
BUILTIN_NAME = "built-in"
# Raise it whenever an address gives another example than before. Splits and checkpoints record it.
BUILTIN_VERSION = "1"
MAX_ATTEMPTS = 500  # at one index, before a caller that rejects examples gives up


@dataclass(frozen=True, slots=True)
class Example:
    """One search problem as text.

    Attributes:
        input_text: the prompt, without a trailing space; unique text identifies the problem.
        output_texts: every valid next word, without a leading space, in no meaningful order.
        labels: the vertex ids of ``output_texts``.
        lookahead: breadth-first levels that must be expanded to find the next step.
        num_edges: the number of facts.
    """

    input_text: str
    output_texts: list[str]
    labels: list[int]
    lookahead: int
    num_edges: int


def generate_example(
    seed: int,
    purpose: str,
    index: int,
    stage: int,
    attempt: int,
    *,
    alpha: float,
    max_input_size: int,
    max_lookahead: int,
) -> Example:
    """The built-in generator's example at an address: a pure function of its arguments.

    Raises:
        UserError: the sizes allow no graph (see :func:`data_tools.search.graphs.search_budget`).
    """
    budget = search_budget(max_input_size, alpha, max_lookahead)
    stream = CounterStream(seed, purpose, index, stage, attempt)
    graph = sample_search_graph(stream, budget)
    attributes = dict(zip(graph.vertices, draw_attributes(stream, len(graph.vertices)), strict=True))
    return Example(
        input_text=render_prompt(stream, graph.edges, graph.start, graph.goal, [graph.start], attributes),
        output_texts=[attributes[vertex] for vertex in graph.answers],
        labels=graph.answers,
        lookahead=graph.lookahead,
        num_edges=len(graph.edges),
    )


class SearchGenerator:
    """The built-in generator behind the generator protocol; its only state is the number of examples so far."""

    def __init__(self, max_input_size: int, seed: int) -> None:
        self.max_input_size = max_input_size
        self.seed = seed
        self.num_generated = 0

    def generate_batch(
        self,
        task: str,
        batch_size: int,
        *,
        reserved_inputs: Collection[str] = (),
        alpha: float,
        max_lookahead: int,
    ) -> list[Example]:
        """The next ``batch_size`` examples whose ``input_text`` is not among ``reserved_inputs``.

        Raises:
            UserError: another task than ``"search"``, sizes that allow no graph, or everything is reserved.
        """
        if task != TASK:
            raise UserError(f"unknown task {task!r}: the generator makes {TASK!r} examples")
        return [self._next_example(reserved_inputs, alpha, max_lookahead) for _ in range(batch_size)]

    def _next_example(self, reserved_inputs: Collection[str], alpha: float, max_lookahead: int) -> Example:
        for attempt in range(MAX_ATTEMPTS):
            example = generate_example(
                self.seed,
                "generate_batch",
                self.num_generated,
                stage=0,
                attempt=attempt,
                alpha=alpha,
                max_input_size=self.max_input_size,
                max_lookahead=max_lookahead,
            )
            if example.input_text not in reserved_inputs:
                self.num_generated += 1
                return example
        raise UserError(f"{MAX_ATTEMPTS} examples in a row are reserved (alpha {alpha:g}): pass fewer reserved_inputs")


class ExampleGenerator:
    """Gives splits and training the example at an address (index, stage, attempt).

    Holds names and numbers only, so it can be pickled or inherited by worker processes.

    Args:
        generator: None for the built-in generator, or ``"package.module:ClassName"`` of an external one.
        max_input_size, max_lookahead: sizes of the problems; stage s means alpha = s / max_lookahead.
        seed, purpose: of the stream of examples; equal seeds with different purposes are unrelated.

    Raises:
        UserError: the generator cannot be imported or does not follow the protocol, or the sizes allow no graph.

    An external generator may reseed the process's global random generators and keep state. So every example comes from
    a new object, and **must be requested in a worker process**, never where training draws numbers.
    """

    def __init__(
        self, generator: str | None = None, *, max_input_size: int, max_lookahead: int, seed: int, purpose: str
    ) -> None:
        search_budget(max_input_size, 1.0, max_lookahead)
        self.is_external = generator is not None
        self.name = generator or BUILTIN_NAME
        self.version = BUILTIN_VERSION if generator is None else _file_hash(generator)
        self.max_input_size = max_input_size
        self.max_lookahead = max_lookahead
        self.seed = seed
        self.purpose = purpose

    def example(self, index: int, stage: int, attempt: int = 0) -> Example:
        """The example at an address: a pure function of the arguments and of the constructor's.

        Raises:
            UserError: a stage outside 1 … max_lookahead or too low for one edge, or a fault of the external generator.
        """
        if not 1 <= stage <= self.max_lookahead:
            raise UserError(f"stage is {stage}: expected 1 … {self.max_lookahead} (max_lookahead)")
        alpha = stage / self.max_lookahead
        if self.is_external:
            return self._external_example(index, stage, attempt, alpha)
        return generate_example(
            self.seed,
            self.purpose,
            index,
            stage,
            attempt,
            alpha=alpha,
            max_input_size=self.max_input_size,
            max_lookahead=self.max_lookahead,
        )

    def _external_example(self, index: int, stage: int, attempt: int, alpha: float) -> Example:
        search_budget(self.max_input_size, alpha, self.max_lookahead)
        generator_class = load_generator_class(self.name)
        seed = hashed_seed_31bit(self.seed, self.purpose, index, stage, attempt)
        try:
            generator = generator_class(max_input_size=self.max_input_size, seed=seed)
            batch = generator.generate_batch(
                TASK, 1, reserved_inputs=set(), alpha=alpha, max_lookahead=self.max_lookahead
            )
        except Exception as error:
            raise UserError(
                f"generator {self.name} failed with {type(error).__name__}: {error} "
                f"(seed {seed}, alpha {alpha:g}, max_input_size {self.max_input_size})"
            ) from error
        return _example_of_batch(batch, self.name)


@lru_cache(maxsize=8)
def load_generator_class(name: str) -> Any:
    """Import ``package.module:ClassName`` and check that its signatures follow the protocol.

    Raises:
        UserError: it cannot be imported, or its signatures do not take the protocol's arguments.
    """
    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name:
        raise UserError(f"generator {name!r}: expected package.module:ClassName")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(
            f"generator {name}: cannot import {module_name!r} ({type(error).__name__}: {error}); "
            "its directory must be on PYTHONPATH"
        ) from error
    generator_class = getattr(module, class_name, None)
    if generator_class is None:
        raise UserError(f"generator {name}: module {module_name!r} has no {class_name!r}")
    _check_call(name, generator_class, "(max_input_size, seed)", max_input_size=8, seed=0)
    generate_batch = getattr(generator_class, "generate_batch", None)
    signature = ".generate_batch(task, batch_size, *, reserved_inputs, alpha, max_lookahead)"
    kwargs = {"reserved_inputs": set(), "alpha": 1.0, "max_lookahead": 1}
    _check_call(name, generate_batch, signature, None, TASK, 1, **kwargs)
    return generator_class


def _check_call(name: str, function: Any, expected: str, *args: Any, **kwargs: Any) -> None:
    """Raise a UserError unless ``function`` takes these arguments. Compiled functions without a signature pass."""
    problem = "it is not callable"
    if callable(function):
        try:
            inspect.signature(function).bind(*args, **kwargs)
            return
        except TypeError as error:
            problem = str(error)
        except ValueError:  # no signature to be had
            return
    raise UserError(f"generator {name} does not follow the protocol: expected {name}{expected}, but {problem}")


def _file_hash(name: str) -> str:
    """sha256 of the file that defines the external generator's class."""
    module = sys.modules.get(load_generator_class(name).__module__)
    path = getattr(module, "__file__", None)
    if path is None:
        raise UserError(f"generator {name} has no file, so its version cannot be recorded: put it in a module file")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _example_of_batch(batch: Any, name: str) -> Example:
    """The single example of an external generator's batch, with lookahead and edges read from its text."""
    if not isinstance(batch, (list, tuple)) or len(batch) != 1:
        raise UserError(f"generator {name} was asked for a list of 1 example and returned {batch!r:.200}")
    missing = [field for field in ("input_text", "output_texts", "labels") if not hasattr(batch[0], field)]
    if missing:
        raise UserError(f"generator {name} returned an object without {', '.join(missing)}: {batch[0]!r:.200}")
    input_text, output_texts = batch[0].input_text, batch[0].output_texts
    are_texts = isinstance(output_texts, (list, tuple)) and all(isinstance(text, str) for text in output_texts)
    if not isinstance(input_text, str) or not output_texts or not are_texts:
        raise UserError(
            f"generator {name} returned input_text {input_text!r:.80} and output_texts {output_texts!r:.80}: "
            "expected a string and a list of at least one string"
        )
    try:
        prompt = parse_prompt(input_text)
    except UserError as error:
        raise UserError(f"generator {name} wrote a text that cannot be read back: {error}") from error
    return Example(
        input_text=input_text.rstrip(),
        output_texts=[text.strip() for text in output_texts],
        labels=[int(label) for label in batch[0].labels],
        lookahead=prompt.lookahead(),
        num_edges=len(prompt.edges),
    )
