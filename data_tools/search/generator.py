"""Synthetic examples by address: the built-in generator, the generator protocol, and `ExampleGenerator`.

A generator is built from ``max_input_size`` and ``seed``; its ``generate_batch`` returns objects with ``input_text``,
``output_texts`` and ``labels``. Splits and training do not call it. They ask an `ExampleGenerator` for the example at
an address.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from data_tools.base.errors import UserError
from data_tools.base.processes import worker_processes
from data_tools.base.rng import CounterStream, hashed_seed_31bit
from data_tools.search.examples import SEARCH, Example, GeneratorChoice
from data_tools.search.external import external_example, module_directory, probe
from data_tools.search.graphs import SearchBudget, sample_search_graph, search_budget
from data_tools.search.prompts import draw_attributes, render_prompt

T = TypeVar("T")

BUILTIN_NAME = "built-in"
# Raise it whenever an address gives another example than before. Splits and checkpoints record it.
BUILTIN_VERSION = "1"
BUILTIN_OPTIONS = ("max_edges",)
MAX_ATTEMPTS = 500  # at one index, before a caller that rejects examples gives up
_PROBED_PER_STAGE = 16


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
    max_edges: int | None = None,
) -> Example:
    """The built-in generator's example at an address: a pure function of its arguments.

    Raises:
        UserError: the sizes allow no graph (see :func:`data_tools.search.graphs.search_budget`).
    """
    budget = search_budget(max_input_size, alpha, max_lookahead, max_edges)
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
        max_edges: int | None = None,
    ) -> list[Example]:
        """The next ``batch_size`` examples whose ``input_text`` is not among ``reserved_inputs``.

        Raises:
            UserError: another task than ``"search"``, sizes that allow no graph, or everything is reserved.
        """
        if task != SEARCH:
            raise UserError(f"unknown task {task!r}: the generator makes {SEARCH!r} examples")
        sizes = {"max_lookahead": max_lookahead, "max_edges": max_edges}
        return [self._next_example(reserved_inputs, alpha, sizes) for _ in range(batch_size)]

    def _next_example(self, reserved_inputs: Collection[str], alpha: float, sizes: dict[str, Any]) -> Example:
        for attempt in range(MAX_ATTEMPTS):
            example = generate_example(
                self.seed,
                "generate_batch",
                self.num_generated,
                stage=0,
                attempt=attempt,
                alpha=alpha,
                max_input_size=self.max_input_size,
                **sizes,
            )
            if example.input_text not in reserved_inputs:
                self.num_generated += 1
                return example
        raise UserError(f"{MAX_ATTEMPTS} examples in a row are reserved (alpha {alpha:g}): pass fewer reserved_inputs")


@dataclass(frozen=True)
class GeneratorIdentity:
    """What tells whether a generator gives the same examples as another time.

    Attributes:
        version: of the built-in generator, or the hash of an external one's file.
        examples: hash of some examples of an external one, which may depend on more than this file.
    """

    version: str
    examples: str | None


class ExampleGenerator:
    """Gives splits and training the example at an address (index, stage, attempt).

    Holds names and numbers only, so it can be pickled or inherited by worker processes.

    Args:
        generator: ``"package.module:ClassName"`` of an external generator, None for the built-in one, or a choice with
            task and options.
        max_input_size, max_lookahead: sizes of the problems; stage s means alpha = s / max_lookahead.
        seed, purpose: of the stream of examples; equal seeds with different purposes are unrelated.

    Raises:
        UserError: no such generator, a task or option that the built-in one lacks, or sizes that allow no graph.

    An external generator may reseed the process's global random generators and keep state. So every example comes from
    a new object, and **must be requested in a worker process**, never where training draws numbers.
    """

    def __init__(
        self,
        generator: GeneratorChoice | str | None = None,
        *,
        max_input_size: int,
        max_lookahead: int,
        seed: int,
        purpose: str,
    ) -> None:
        self.choice = generator if isinstance(generator, GeneratorChoice) else GeneratorChoice(generator)
        self.is_external = self.choice.name is not None
        self.name = self.choice.name or BUILTIN_NAME
        self.max_input_size = max_input_size
        self.max_lookahead = max_lookahead
        self.seed = seed
        self.purpose = purpose
        if self.is_external:
            module_directory(self.name)
        else:
            _check_builtin(self.choice)
        self.budget(1.0)

    def budget(self, alpha: float) -> SearchBudget:
        """The sizes of graphs at a difficulty; an external generator with options may have others."""
        max_edges = None if self.is_external else self.choice.options.get("max_edges")
        return search_budget(self.max_input_size, alpha, self.max_lookahead, max_edges)

    def longest_lookahead(self, stage: int) -> int | None:
        """The lookahead of the hardest problems at a stage; None for other tasks than search."""
        return self.budget(stage / self.max_lookahead).effective_max_lookahead if self.choice.task == SEARCH else None

    def described_sizes(self) -> str:
        """The largest problems in words."""
        longest = self.longest_lookahead(self.max_lookahead)
        lookahead = "" if longest is None else f", lookahead 0 … {longest}"
        return f"up to {self.budget(1.0).edges_allowed} edges{lookahead}"

    def spread_stages(self) -> list[int]:
        """The first stage that allows an edge, the last one, and three between."""
        first = -(-self.max_lookahead // self.budget(1.0).edge_budget)
        return [max(first, self.max_lookahead * quarter // 4) for quarter in range(5)]

    def identity(self) -> GeneratorIdentity:
        """The generator's identity. The first call compiles an external one that has to be, so make it in one process.

        Raises:
            UserError: the external generator cannot be imported, does not follow the protocol, or fails.
        """
        if not self.is_external:
            return GeneratorIdentity(BUILTIN_VERSION, None)
        addresses = [
            self._arguments(hashed_seed_31bit(0, "probe", index, stage, 0), stage)
            for stage in self.spread_stages()
            for index in range(_PROBED_PER_STAGE)
        ]
        return GeneratorIdentity(*probe(self.choice, addresses))

    def example(self, index: int, stage: int, attempt: int = 0) -> Example:
        """The example at an address: a pure function of the arguments and of the constructor's.

        Raises:
            UserError: a stage outside 1 … max_lookahead or too low for one edge, or a fault of the external generator.
        """
        if not 1 <= stage <= self.max_lookahead:
            raise UserError(f"stage is {stage}: expected 1 … {self.max_lookahead} (max_lookahead)")
        alpha = stage / self.max_lookahead
        if self.is_external:
            self.budget(alpha)
            seed = hashed_seed_31bit(self.seed, self.purpose, index, stage, attempt)
            return external_example(self.choice, **self._arguments(seed, stage))
        return generate_example(
            self.seed,
            self.purpose,
            index,
            stage,
            attempt,
            alpha=alpha,
            max_input_size=self.max_input_size,
            max_lookahead=self.max_lookahead,
            **self.choice.options,
        )

    def call_apart(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that requests examples, in a worker process if the generator is an external one."""
        if not self.is_external:
            return function(*arguments)
        with worker_processes(1) as workers:
            return workers.submit(function, *arguments).result()

    def _arguments(self, seed: int, stage: int) -> dict[str, Any]:
        return {
            "max_input_size": self.max_input_size,
            "max_lookahead": self.max_lookahead,
            "alpha": stage / self.max_lookahead,
            "seed": seed,
        }


def _check_builtin(choice: GeneratorChoice) -> None:
    """Refuse a task and options that the built-in generator lacks."""
    if choice.task != SEARCH:
        raise UserError(f"the built-in generator has no task {choice.task!r}, only {SEARCH!r}; give --generator")
    if unknown := sorted(choice.options.keys() - set(BUILTIN_OPTIONS)):
        raise UserError(
            f"the built-in generator has no option {', '.join(unknown)}, and takes {', '.join(BUILTIN_OPTIONS)}. "
            "Leave it out of --generator_options, or give --generator"
        )
