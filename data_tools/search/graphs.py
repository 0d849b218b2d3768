"""Balanced `search` graphs ("Transformers Struggle to Learn to Search", arXiv 2412.04703).

A search problem is a directed acyclic graph, a start and a goal vertex. Its difficulty is the *lookahead* of the
step to be found; graphs are drawn so that every lookahead up to the budget's maximum is equally likely.
"""

import math
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from data_tools.base.errors import UserError
from data_tools.base.kinds import complaint, is_of_kind
from data_tools.base.rng import CounterStream

V = TypeVar("V", bound=Hashable)
Children = Mapping[V, Collection[V]]
Edge = tuple[int, int]

MAX_EXTRA_VERTICES = 5
MAX_NEIGHBOURS = 3  # children, and parents, that a vertex attached at random gets at most
MAX_SHORTEST_PATHS = 64
START = 0  # before vertices get their final ids


@dataclass(frozen=True, slots=True)
class SearchBudget:
    """How large a graph may be: see :func:`search_budget`."""

    edge_budget: int
    edges_allowed: int
    vertices_allowed: int
    effective_max_lookahead: int


@dataclass(frozen=True, slots=True)
class SearchGraph:
    """One search problem. Vertex ids are in 1 … edges_allowed + 1; 0 is reserved.

    Attributes:
        vertices: every vertex once; each has at least one edge.
        edges: (parent, child) in the order in which the prompt states them.
        start, goal: the vertex the path begins at and the one it must reach.
        answers: every child of ``start`` from which the goal can be reached, ascending.
        lookahead: the drawn lookahead, which the step to one of the answers has.
    """

    vertices: list[int]
    edges: list[Edge]
    start: int
    goal: int
    answers: list[int]
    lookahead: int


@lru_cache(maxsize=4096)
def search_budget(max_input_size: int, alpha: float, max_lookahead: int, max_edges: int | None = None) -> SearchBudget:
    """The size limits for ``max_input_size`` symbolic tokens at difficulty ``alpha`` in (0, 1].

    An example takes 3 tokens per edge, 4 for the query and one per vertex of the path walked so far, which is at
    least the start: E = floor((max_input_size - 5) / 3) edges fit (or ``max_edges``); floor(alpha E) are allowed.

    Raises:
        UserError: a value is out of range, or not a single edge is allowed.
    """
    if not 0 < alpha <= 1:
        raise UserError(f"alpha is {alpha}: expected 0 < alpha <= 1 (alpha = stage / max_lookahead)")
    if max_lookahead < 1:
        raise UserError(f"max_lookahead is {max_lookahead}: expected at least 1")
    edge_budget = (max_input_size - 5) // 3
    if edge_budget < 1:
        raise UserError(f"max_input_size is {max_input_size}: expected at least 8, the size of a single edge")
    if max_edges is not None:
        if not is_of_kind(max_edges, kind := f"whole number in [1, {edge_budget}]"):
            raise UserError(complaint("max_edges", max_edges, kind))
        edge_budget = int(max_edges)
    # alpha is a fraction stage / max_lookahead in floating point: 29/100 of 100 edges are 29, not 28.999….
    edges_allowed = math.floor(alpha * edge_budget + 1e-9)
    if edges_allowed < 1:
        raise UserError(
            f"alpha {alpha:g} allows no edge: floor(alpha · {edge_budget}) < 1 at max_input_size {max_input_size}; "
            f"give --start_stage {math.ceil(max_lookahead / edge_budget)} of {max_lookahead}, or build splits with a "
            "larger max_input_size (6 × max_lookahead fits every stage)"
        )
    return SearchBudget(
        edge_budget=edge_budget,
        edges_allowed=edges_allowed,
        vertices_allowed=max(4, edges_allowed),
        effective_max_lookahead=min((edge_budget - 1) // 2, edges_allowed // 2, max_lookahead),
    )


def sample_search_graph(stream: CounterStream, budget: SearchBudget) -> SearchGraph:
    """Draw one problem: a lookahead, uniform over 0 … maximum, then graphs until one has exactly that lookahead.

    The path walked so far is always the start alone. The branch that ends in the goal has max(1, lookahead) edges, so
    no shortest path is longer. The lookahead of a step is at most the distance from its origin to the goal. Hence of
    all (shortest path, position) pairs only position 0 can have the drawn lookahead, and edges ≤ edges_allowed
    implies 3 · edges + 4 + 1 ≤ max_input_size.
    """
    lookahead = stream.below(budget.effective_max_lookahead + 1)
    while (drawn := _draw_graph(stream, budget, lookahead)) is None:
        pass
    num_vertices, edges, answers = drawn

    # Neither ids nor the order of facts may reveal how the graph was built.
    ids = list(range(1, budget.edges_allowed + 2))
    stream.shuffle(ids)
    facts = [(ids[parent], ids[child]) for parent, child in edges]
    stream.shuffle(facts)
    return SearchGraph(
        vertices=ids[:num_vertices],
        edges=facts,
        start=ids[START],
        goal=ids[max(1, lookahead)],
        answers=sorted(ids[v] for v in answers),
        lookahead=lookahead,
    )


def step_lookahead(children: Children, current: V, step: V, goal: V) -> int:
    """The lookahead of the step ``current`` → ``step`` towards ``goal``.

    It is the number of breadth-first levels, starting with the children of ``current``, that must be expanded until
    every frontier vertex descends from ``step``. If the goal is met while level k is expanded, it is k + 1.
    """
    for num_expanded, (right, wrong) in enumerate(frontiers(children, current, step)):
        if not wrong:
            break
        if goal in right or goal in wrong:
            return num_expanded + 1
    return num_expanded


def frontiers(children: Children, current: V, step: V) -> Iterator[tuple[set[V], set[V]]]:
    """Yield the breadth-first levels below ``current``, each as the descendants of ``step`` and the other vertices.

    The first level holds the children of ``current``. A vertex is on the first level that reaches it; one reached on
    the same level from ``step`` and from another child counts for ``step``. Only the last level has no others.
    """
    right, wrong = {step}, set(children[current]) - {step}
    seen = right | wrong
    while wrong:
        yield right, wrong
        right = {child for v in right for child in children[v]} - seen
        wrong = {child for v in wrong for child in children[v]} - seen - right
        seen |= right
        seen |= wrong
    yield right, wrong


def reachable(neighbours: Children, sources: Iterable[V]) -> set[V]:
    """``sources`` and every vertex that can be reached from them (with parents as neighbours: their ancestors)."""
    found = set(sources)
    stack = list(found)
    while stack:
        for v in neighbours[stack.pop()]:
            if v not in found:
                found.add(v)
                stack.append(v)
    return found


def _draw_graph(
    stream: CounterStream, budget: SearchBudget, lookahead: int
) -> tuple[int, list[Edge], list[int]] | None:
    """The number of vertices, the edges and the valid answers, or None where the draw is rejected.

    Vertex 0 is the start; vertices 1 … max(1, lookahead) are the branch that ends in the goal.
    """
    # Draw the number of branches and of vertices.
    num_branches = 0
    if lookahead:
        num_branches = 2 + stream.below(max(2, (budget.edges_allowed - 1) // lookahead) - 1)
    num_least = max(2, 1 + lookahead * num_branches)
    num_vertices = 1 + lookahead * num_branches + stream.below(MAX_EXTRA_VERTICES + 1)
    num_vertices = max(min(num_vertices, budget.vertices_allowed, budget.edges_allowed + 1), num_least)

    # Divide the vertices: the branch to the goal, others as long or one longer, and a chain into the start. What is
    # left is attached at random.
    branch_lengths = [max(1, lookahead)]
    num_left = num_vertices - num_least
    for _ in range(num_branches - 1):
        longer = stream.below(2) if num_left else 0
        branch_lengths.append(lookahead + longer)
        num_left -= longer
    chain_length = stream.below(num_left + 1)
    num_left -= chain_length
    first_attached = num_vertices - num_left
    neighbour_counts = [_draw_neighbour_counts(stream, v) for v in range(first_attached, num_vertices)]
    # Only a vertex without children is certain to get its parents: descendants cannot become parents.
    least_num_edges = first_attached - 1 + sum(c or p for c, p in neighbour_counts)
    if least_num_edges > budget.edges_allowed:
        return None

    # Draw the edges. Attached vertices may shorten paths: reject a graph without the drawn lookahead.
    edges = _tree_edges(branch_lengths, chain_length)
    if not neighbour_counts:
        return num_vertices, edges, [1]  # branches that never meet have the lookahead they were built for
    adjacency = _attach(stream, edges, first_attached, neighbour_counts, budget.edges_allowed)
    if adjacency is None:
        return None
    children, parents = adjacency
    goal = max(1, lookahead)
    num_paths, first_steps = _shortest_paths(children, parents, goal)
    if num_paths > MAX_SHORTEST_PATHS:
        return None
    if all(step_lookahead(children, START, step, goal) != lookahead for step in first_steps):
        return None
    leads_to_goal = reachable(parents, [goal])
    return num_vertices, edges, [v for v in children[START] if v in leads_to_goal]


def _draw_neighbour_counts(stream: CounterStream, num_before: int) -> tuple[int, int]:
    """Numbers of children and parents for a vertex attached to ``num_before`` others: 0-3 each, but not 0 and 0."""
    num_children = stream.below(MAX_NEIGHBOURS + 1)
    num_parents = stream.below(MAX_NEIGHBOURS + 1) if num_children else 1 + stream.below(MAX_NEIGHBOURS)
    return min(num_children, num_before), min(num_parents, num_before)


def _tree_edges(branch_lengths: list[int], chain_length: int) -> list[Edge]:
    """Edges of the branches from the start, numbered one after the other, then of a chain that leads into the start."""
    edges: list[Edge] = []
    first = START + 1
    for length in branch_lengths:
        end = first + length
        edges.append((START, first))
        edges.extend(zip(range(first, end - 1), range(first + 1, end), strict=True))
        first = end
    if chain_length:
        end = first + chain_length
        edges.append((first, START))
        edges.extend(zip(range(first + 1, end), range(first, end - 1), strict=True))
    return edges


def _attach(
    stream: CounterStream, edges: list[Edge], first: int, neighbour_counts: list[tuple[int, int]], max_edges: int
) -> tuple[dict[int, list[int]], dict[int, list[int]]] | None:
    """Attach vertices ``first``, ``first + 1``, … at random and add their edges to ``edges``; never makes a cycle.

    Returns:
        children and parents of every vertex, or None as soon as there are more than ``max_edges`` edges.
    """
    end = first + len(neighbour_counts)
    children: dict[int, list[int]] = {v: [] for v in range(end)}
    parents: dict[int, list[int]] = {v: [] for v in range(end)}
    # Urns hold a vertex once, and twice more for each edge: a draw is proportional to 0.5 + degree.
    in_degree_urn = list(range(first))
    out_degree_urn = list(range(first))

    def add(new_edges: list[Edge]) -> None:
        for parent, child in new_edges:
            children[parent].append(child)
            parents[child].append(parent)
            out_degree_urn.extend((parent, parent))
            in_degree_urn.extend((child, child))

    add(edges)
    for vertex, (num_children, num_parents) in enumerate(neighbour_counts, first):
        new_children = _draw_distinct(stream, in_degree_urn, num_children, set())
        descendants = reachable(children, new_children)
        num_parents = min(num_parents, vertex - len(descendants))
        new_parents = _draw_distinct(stream, out_degree_urn, num_parents, descendants)
        new_edges = [(vertex, child) for child in new_children] + [(parent, vertex) for parent in new_parents]
        edges.extend(new_edges)
        if len(edges) > max_edges:
            return None
        add(new_edges)
        in_degree_urn.append(vertex)
        out_degree_urn.append(vertex)
    return children, parents


def _draw_distinct(stream: CounterStream, urn: list[int], count: int, excluded: set[int]) -> list[int]:
    """Draw ``count`` different vertices from the urn, none of them ``excluded``; each drawn one joins ``excluded``."""
    drawn: list[int] = []
    while len(drawn) < count:
        vertex = stream.choice(urn)
        if vertex not in excluded:
            excluded.add(vertex)
            drawn.append(vertex)
    return drawn


def _shortest_paths(children: Children[int], parents: Children[int], goal: int) -> tuple[int, set[int]]:
    """The number of shortest paths from the start to the goal, and their first steps."""
    seen = {goal}
    layer = {goal: 1}  # vertices at one distance from the goal: number of shortest paths from there
    nearer = layer
    while START not in layer:
        nearer, layer = layer, {}
        for vertex, num_paths in nearer.items():
            for parent in parents[vertex]:
                if parent not in seen:
                    layer[parent] = layer.get(parent, 0) + num_paths
        seen.update(layer)
    return layer[START], nearer.keys() & children[START]
