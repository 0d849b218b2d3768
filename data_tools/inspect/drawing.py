"""Draws a search problem as text, or in the language of Graphviz.

The drawing is a tree of chains. It starts at the current vertex and shows each vertex at the end of a shortest path to
it, then the vertices that cannot be reached. An edge to a vertex that is drawn elsewhere ends in parentheses.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby, islice, pairwise

from data_tools.inspect.terminal import Cell, Terminal
from data_tools.search.graphs import frontiers, reachable, step_lookahead
from data_tools.search.prompts import ParsedPrompt

_LEGEND = ("✓ right next step   ", "★ goal   ", "⇒ leads to the goal   ", "(…) drawn elsewhere")


def draw_problem(prompt: ParsedPrompt, terminal: Terminal) -> Iterator[str]:
    """Yield lines: the tree below the current vertex, the rest, and each right next step's lookahead, explained."""
    drawing = _Drawing(prompt)
    yield from terminal.flow(Cell(mark, "faint") for mark in _LEGEND)
    yield from drawing.tree(drawing.current, terminal)
    rest = [v for v in drawing.roots_first if v not in drawing.owner]
    if rest:
        yield f"not below {drawing.current}:"
        drawing.attach(rest)
        for vertex in rest:
            if drawing.owner[vertex] is None:
                yield from drawing.tree(vertex, terminal, "  ", "  ")
    for step in prompt.answers():
        yield from terminal.wrapped(f"✓{step}: {explain_lookahead(prompt, step)}")


def explain_lookahead(prompt: ParsedPrompt, step: str) -> str:
    """The lookahead of a right next step, and the number of vertices on each level that must be expanded."""
    children = _children(prompt)
    current = prompt.path[-1]
    lookahead = step_lookahead(children, current, step, prompt.goal)
    if not lookahead:
        return "lookahead 0, there is no other step"
    levels = list(islice(frontiers(children, current, step), lookahead))
    described = []
    first = 1
    for (num_right, num_wrong), same in groupby((len(right), len(wrong)) for right, wrong in levels):
        last = first + len(list(same)) - 1
        described.append(
            f"level {first if first == last else f'{first} … {last}'}: {num_right} from it, {num_wrong} not"
        )
        first = last + 1
    is_met = any(prompt.goal in part for part in levels[-1])
    end = f"the goal is on level {lookahead}" if is_met else f"all of level {lookahead + 1} is from it"
    return f"lookahead {lookahead} ({'; '.join([*described, end])})"


def as_dot(prompt: ParsedPrompt) -> str:
    """The problem for Graphviz (``dot -Tsvg``)."""
    drawing = _Drawing(prompt)
    looks = {vertex: ["style=filled", "fillcolor=palegreen"] for vertex in drawing.answers}
    looks.setdefault(prompt.goal, []).append("shape=doublecircle")
    looks.setdefault(drawing.current, []).append("shape=box")
    lines = [f'  "{vertex}" [{", ".join(look)}];' for vertex, look in looks.items()]
    for parent, child in prompt.edges:
        lines.append(f'  "{parent}" -> "{child}"{" [color=green]" if drawing.leads(parent, child) else ""};')
    return "\n".join(["digraph {", "  rankdir=LR;", *lines, "}"])


def _children(prompt: ParsedPrompt) -> dict[str, list[str]]:
    children: dict[str, list[str]] = defaultdict(list)
    for parent, child in dict.fromkeys(prompt.edges):  # a fact may be repeated
        children[parent].append(child)
    return children


class _Drawing:
    """The vertices of a problem, each drawn under one other.

    Attributes:
        current: the vertex whose next step is to be found.
        answers: the right next steps.
        roots_first: all vertices, those without a parent first.
        owner: the vertex under which each one is drawn, None for one at the top.
    """

    def __init__(self, prompt: ParsedPrompt) -> None:
        self.current = prompt.path[-1]
        self.answers = dict.fromkeys(prompt.answers())
        self._goal = prompt.goal
        self._children = _children(prompt)
        parents: dict[str, list[str]] = defaultdict(list)
        for parent, child in prompt.edges:
            parents[child].append(parent)
        self._on_way = reachable(parents, [prompt.goal]) & reachable(self._children, [self.current])
        vertices = dict.fromkeys(vertex for edge in prompt.edges for vertex in edge)
        self.roots_first = sorted(vertices, key=lambda vertex: bool(parents[vertex]))
        self.owner: dict[str, str | None] = {}
        self.attach([self.current])

    def attach(self, roots: Iterable[str]) -> None:
        """Attach all vertices that each root reaches, level by level, unless they are already attached."""
        for root in roots:
            pending = [] if root in self.owner else [root]
            self.owner.setdefault(root, None)
            for vertex in pending:  # which grows
                for child in self._children[vertex]:
                    if child not in self.owner:
                        self.owner[child] = vertex
                        pending.append(child)

    def leads(self, parent: str, child: str) -> bool:
        """Whether an edge is part of a path from the current vertex to the goal."""
        return parent in self._on_way and child in self._on_way

    def tree(self, vertex: str, terminal: Terminal, first: str = "", rest: str = "") -> Iterator[str]:
        """Yield the lines of a vertex and all under it; the first begins with ``first``, the others with ``rest``."""
        chain = self._chain(vertex)
        names = [self._name(v, parent) for v, parent in zip(chain, [self.owner[vertex], *chain], strict=False)]
        arrows = [*(f" {self._arrow(*edge)} " for edge in pairwise(chain)), ""]
        cells = [Cell(name.text + arrow, name.style) for name, arrow in zip(names, arrows, strict=True)]
        groups = self._branches(chain)
        yield from terminal.flow(cells, first=first, rest=f"{rest}{'│' if groups else ' '} ")
        for number, group in enumerate(groups, 1):
            is_last = number == len(groups)
            lead = f"{rest}{'└' if is_last else '├'}{self._arrow(chain[-1], group[0])} "
            margin = f"{rest}{' ' if is_last else '│'}  "
            if self._is_end(group[0], chain[-1]):
                names = [self._name(v, chain[-1]) for v in group]
                commas = [*[", "] * (len(group) - 1), ""]
                cells = [Cell(name.text + comma, name.style) for name, comma in zip(names, commas, strict=True)]
                yield from terminal.flow(cells, first=lead, rest=margin)
            else:
                yield from self.tree(group[0], terminal, lead, margin)

    def _chain(self, vertex: str) -> list[str]:
        """A vertex, its only child, that one's only child …; the last may be drawn elsewhere."""
        chain = [vertex]
        while len(self._children[chain[-1]]) == 1:
            chain += self._children[chain[-1]]
            if self.owner[chain[-1]] != chain[-2]:
                break
        return chain

    def _branches(self, chain: list[str]) -> list[list[str]]:
        """The children of a chain's last vertex, those on a path to the goal first; ends are grouped on one line."""
        vertex = chain[-1]
        if len(chain) > 1 and self._is_end(vertex, chain[-2]):
            return []
        children = self._children[vertex]
        ends = [child for child in children if self._is_end(child, vertex)]
        groups = [[child] for child in children if child not in ends]
        groups += [[end for end in ends if self.leads(vertex, end) is leads] for leads in (True, False)]
        return sorted(filter(None, groups), key=lambda group: not self.leads(vertex, group[0]))

    def _is_end(self, child: str, parent: str) -> bool:
        """Whether nothing is drawn below a vertex under this parent."""
        return self.owner[child] != parent or not self._children[child]

    def _arrow(self, parent: str, child: str) -> str:
        return "⇒" if self.leads(parent, child) else "→"

    def _name(self, vertex: str, parent: str | None) -> Cell:
        """A vertex with its marks, as seen from one of its parents."""
        mark = "✓" if parent == self.current and vertex in self.answers else ""
        text = f"{mark}{'★' if vertex == self._goal else ''}{vertex}"
        if self.owner[vertex] != parent:
            return Cell(f"({text})", "faint")
        return Cell(text, "strong" if text != vertex else "good" if vertex in self._on_way else "plain")
