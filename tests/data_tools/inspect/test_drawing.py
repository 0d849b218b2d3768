"""The drawn graph is the problem: every edge once, the marks where they belong, lookahead as SPEC'd."""

import re
from collections import Counter, defaultdict

import pytest

from data_tools.inspect.drawing import as_dot, draw_problem, explain_lookahead
from data_tools.inspect.terminal import Terminal
from data_tools.search.generator import ExampleGenerator
from data_tools.search.prompts import ParsedPrompt, parse_prompt

WIDE = Terminal(100_000, False)
CONNECTOR = re.compile(r"(?P<margin>[ │]*)(?P<branch>[├└](?P<arrow>[⇒→]) )?(?P<names>.*)")


def problems() -> list[ParsedPrompt]:
    """Generated ones of several sizes and stages, and one whose wrong branch ends before the goal is met."""
    sources = [
        (ExampleGenerator(max_input_size=size, max_lookahead=stages[-1], seed=3, purpose="drawn"), stages)
        for size, stages in ((48, (1, 3, 8)), (96, (4, 16)), (384, (20, 64)))
    ]
    generated = [
        parse_prompt(source.example(index, stage).input_text)
        for source, stages in sources
        for stage in stages
        for index in range(40)
    ]
    edges = [("s", "a"), ("a", "b"), ("s", "x"), ("x", "y"), ("b", "c"), ("c", "g")]
    return [*generated, ParsedPrompt("Ann", edges, "s", "g", ["s"])]


PROBLEMS = problems()


def walked_on(prompt: ParsedPrompt, step: str) -> ParsedPrompt:
    """The same problem after a step, as an external generator may tell it."""
    return ParsedPrompt(prompt.name, prompt.edges, prompt.start, prompt.goal, [*prompt.path, step])


def below(prompt: ParsedPrompt, vertex: str) -> set[str]:
    """All vertices that can be reached, by walking over the edges until nothing is new."""
    found = {vertex}
    while new := {child for parent, child in prompt.edges if parent in found} - found:
        found |= new
    return found


def distances(prompt: ParsedPrompt, vertex: str) -> dict[str, int]:
    """Edges on a shortest way to each vertex that can be reached."""
    found = {vertex: 0}
    for distance in range(1, len(prompt.edges) + 1):
        new = {child for parent, child in prompt.edges if parent in found} - found.keys()
        found |= dict.fromkeys(new, distance)
    return found


def read_back(lines: list[str]) -> tuple[Counter, set[str], set[tuple[str, str]], dict[str, int]]:
    """Of a drawing without broken lines: edges, names with a check mark, edges with a double arrow, and depths."""
    edges: Counter = Counter()
    checked: set[str] = set()
    leading: set[tuple[str, str]] = set()
    parents: dict[int, str] = {}  # column of a connector → the vertex above it
    depths: dict[str, int] = {}

    def bare(name: str, parent: str | None) -> str:
        if "✓" in name:
            checked.add(name.strip("()✓★"))
        if not name.startswith("("):
            assert name.strip("✓★") not in depths, "drawn twice"
            depths[name.strip("✓★")] = 0 if parent is None else depths[parent] + 1
        return name.strip("()✓★")

    for line in lines:
        found = CONNECTOR.fullmatch(line)
        assert found
        column = len(found["margin"])
        first, *rest = re.split(r" ([⇒→]) ", found["names"])
        above = parents[column] if found["branch"] else None
        together = [bare(name, above) for name in first.split(", ")]
        if found["branch"]:
            for name in together:
                edges[above, name] += 1
                if found["arrow"] == "⇒":
                    leading.add((above, name))
            column += 3
        last = together[0]
        for arrow, marked in zip(rest[::2], rest[1::2], strict=True):
            name = bare(marked, last)
            edges[last, name] += 1
            if arrow == "⇒":
                leading.add((last, name))
            last = name
        parents[column] = last
    return edges, checked, leading, depths


def tree_lines(prompt: ParsedPrompt) -> list[str]:
    lines = list(draw_problem(prompt, WIDE))
    is_told = re.compile(r"✓ right next step|not below |✓\w+: ")
    return [line for line in lines if not is_told.match(line)]


@pytest.mark.parametrize("number", range(0, len(PROBLEMS), 7))
def test_a_drawing_read_back_is_the_problem(number):
    for prompt in PROBLEMS[number : number + 7]:
        for walk in (prompt, walked_on(prompt, prompt.answers()[0])):
            if walk.path[-1] == walk.goal:
                continue
            edges, checked, leading, depths = read_back(tree_lines(walk))
            assert edges == Counter(prompt.edges)
            assert checked == set(walk.answers())
            current = walk.path[-1]
            assert {v: depths[v] for v in below(prompt, current)} == distances(prompt, current)
            assert depths.keys() == {v for edge in prompt.edges for v in edge}
            on_way = {v for v in below(prompt, current) if prompt.goal in below(prompt, v)}
            assert leading == {e for e in prompt.edges if set(e) <= on_way and e[0] != prompt.goal}
            marked = {n.strip("()✓") for line in tree_lines(walk) for n in re.findall(r"[(✓]*★\w+", line)}
            assert marked == {f"★{prompt.goal}"}


def lookahead_as_specified(prompt: ParsedPrompt, step: str) -> tuple[int, list[tuple[int, int]]]:
    """Level by level, each frontier vertex carrying the children it stems from; and the sizes of expanded levels."""
    children = defaultdict(set)
    for parent, child in prompt.edges:
        children[parent].add(child)
    frontier = {child: {child} for child in children[prompt.path[-1]]}
    seen, sizes, level = set(frontier), [], 0
    while any(step not in stems for stems in frontier.values()):
        num_right = sum(step in stems for stems in frontier.values())
        sizes.append((num_right, len(frontier) - num_right))
        if prompt.goal in frontier:
            return level + 1, sizes  # the goal is met while expanding this level, counted from 0
        level += 1
        following = defaultdict(set)
        for vertex, stems in frontier.items():
            for child in children[vertex] - seen:
                following[child] |= stems
        seen |= set(following)
        frontier = following
    return level, sizes


def test_lookahead_is_as_specified_and_so_are_the_levels():
    reasons = Counter()
    for prompt in PROBLEMS:
        for step in prompt.answers():
            expected, sizes = lookahead_as_specified(prompt, step)
            explanation = explain_lookahead(prompt, step)
            assert explanation.startswith(f"lookahead {expected}"), explanation
            levels = []
            for first, last, right, wrong in re.findall(
                r"level (\d+)(?: … (\d+))?: (\d+) from it, (\d+) not", explanation
            ):
                levels += [(int(right), int(wrong))] * (int(last or first) - int(first) + 1)
            assert levels == sizes, explanation
            reasons[re.sub(r".*; |\d+|,.*", "", explanation)] += 1
        assert max(lookahead_as_specified(prompt, step)[0] for step in prompt.answers()) == prompt.lookahead()
    assert len(reasons) == 3, reasons  # one way only; the goal met; all others ended


def test_the_example_of_the_specification():
    """SPEC 5.2: two branches of three vertices."""
    prompt = parse_prompt(
        "Suppose we have the following facts: If someone is mtemfa, then they are unxre. Everyone that is unxre is "
        "agseyo. If Craig is wsizko, then they are mtemfa. If Craig is wsizko, then Craig is unekwa. If Craig is "
        "noiur, then they are ijtce. If a person is unekwa, they are noiur. Given that Craig is wsizko, and we want to "
        "prove Craig is agseyo.\n\nProof: Craig is wsizko. Craig is"
    )
    assert list(draw_problem(prompt, Terminal(80, False))) == [
        "✓ right next step   ★ goal   ⇒ leads to the goal   (…) drawn elsewhere",
        "wsizko",
        "├⇒ ✓mtemfa ⇒ unxre ⇒ ★agseyo",
        "└→ unekwa → noiur → ijtce",
        "✓mtemfa: lookahead 3 (level 1 … 3: 1 from it, 1 not; the goal is on level 3)",
    ]
    coloured = list(draw_problem(prompt, Terminal(80, True)))
    assert coloured[2] == "├⇒ \x1b[1;32m✓mtemfa ⇒ \x1b[0m\x1b[32munxre ⇒ \x1b[0m\x1b[1;32m★agseyo\x1b[0m"
    assert coloured[3] == "└→ unekwa → noiur → ijtce"


def test_a_drawing_fits_its_width():
    for prompt in PROBLEMS[::5]:
        for width in (40, 80, 200):
            assert max(map(len, draw_problem(prompt, Terminal(width, False)))) <= width


def test_graphviz_gets_every_edge():
    for prompt in PROBLEMS[::20]:
        dot = as_dot(prompt)
        assert re.findall(r'"(\w+)" -> "(\w+)"', dot) == prompt.edges
        assert dot.startswith("digraph {") and dot.endswith("}") and dot.count("doublecircle") == 1
        filled = re.findall(r'"(\w+)" \[style=filled', dot)
        assert filled == list(dict.fromkeys(prompt.answers()))
