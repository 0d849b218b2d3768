"""Search graphs against brute force: an all-pairs-distance lookahead and a literal, slow sampler."""

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.base.errors import UserError
from data_tools.base.rng import CounterStream
from data_tools.search.graphs import _attach, reachable, sample_search_graph, search_budget, step_lookahead

derandomized = settings(derandomize=True, deadline=None, database=None, max_examples=300)


def distances(edges, source):
    """Edges to every vertex that can be reached from ``source``, by relaxation until nothing changes."""
    distance = {source: 0}
    for _ in range(len(edges)):
        for a, b in edges:
            if a in distance and distance[a] + 1 < distance.get(b, math.inf):
                distance[b] = distance[a] + 1
    return distance


def brute_force_lookahead(edges, current, step, goal):
    """By distances alone: a vertex of level k stems from ``step`` if it is k edges away from it."""
    from_children = [distances(edges, b) for a, b in edges if a == current]
    level = {}
    for distance in from_children:
        for v, d in distance.items():
            level[v] = min(d, level.get(v, d))
    from_step = distances(edges, step)
    wrong_levels = {k for v, k in level.items() if from_step.get(v) != k}
    until_no_wrong = next(k for k in itertools.count() if k not in wrong_levels)
    return min(until_no_wrong, level.get(goal, math.inf) + 1)


def answers_by_brute_force(edges, current, goal):
    return sorted(b for a, b in edges if a == current and goal in distances(edges, b))


def sample(seed, max_input_size, alpha, max_lookahead, index=0):
    budget = search_budget(max_input_size, alpha, max_lookahead)
    return sample_search_graph(CounterStream(seed, "test", index), budget), budget


@derandomized
@given(st.integers(8, 130), st.integers(1, 20), st.integers(0, 10**6), st.data())
def test_a_graph_is_what_the_budget_and_the_drawn_lookahead_say(max_input_size, max_lookahead, seed, data):
    edge_budget = (max_input_size - 5) // 3
    least_stage = max(1, math.ceil(max_lookahead / edge_budget))
    stage = data.draw(st.integers(least_stage, max_lookahead))
    graph, budget = sample(seed, max_input_size, stage / max_lookahead, max_lookahead)

    assert budget.edges_allowed == stage * edge_budget // max_lookahead
    assert budget.vertices_allowed == max(4, budget.edges_allowed)
    assert budget.effective_max_lookahead == min((edge_budget - 1) // 2, budget.edges_allowed // 2, max_lookahead)

    assert len(graph.edges) <= budget.edges_allowed
    assert 3 * len(graph.edges) + 4 + 1 <= max_input_size
    assert len(set(graph.edges)) == len(graph.edges)
    vertices = set(itertools.chain(*graph.edges))
    assert vertices == set(graph.vertices) and len(graph.vertices) == len(vertices)
    assert min(vertices) >= 1 and max(vertices) <= budget.edges_allowed + 1
    assert len(vertices) <= max(budget.vertices_allowed, 1 + 2 * budget.effective_max_lookahead)
    assert not any(a in distances(graph.edges, b) for a, b in graph.edges), "a cycle"

    assert graph.lookahead <= budget.effective_max_lookahead
    assert graph.answers == answers_by_brute_force(graph.edges, graph.start, graph.goal)
    lookaheads = [brute_force_lookahead(graph.edges, graph.start, step, graph.goal) for step in graph.answers]
    assert max(lookaheads) == graph.lookahead


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_full_size_graphs_have_the_drawn_lookahead(alpha):
    for index in range(40):
        graph, budget = sample(7, 384, alpha, 64, index)
        lookaheads = [brute_force_lookahead(graph.edges, graph.start, step, graph.goal) for step in graph.answers]
        assert max(lookaheads) == graph.lookahead
        assert len(graph.edges) <= budget.edges_allowed


@derandomized
@given(st.integers(2, 14), st.integers(0, 10**6))
def test_step_lookahead_agrees_with_brute_force_on_any_dag(num_vertices, seed):
    rng = random.Random(seed)
    pairs = list(itertools.combinations(range(num_vertices), 2))
    edges = rng.sample(pairs, rng.randint(1, len(pairs)))
    children = {v: [b for a, b in edges if a == v] for v in range(num_vertices)}
    current, step = rng.choice(edges)
    goal = rng.randrange(num_vertices)
    assert step_lookahead(children, current, step, goal) == brute_force_lookahead(edges, current, step, goal)


def test_lookahead_of_the_two_branches_of_three():
    children = {0: [1, 4], 1: [2], 2: [3], 3: [], 4: [5], 5: [6], 6: []}
    assert step_lookahead(children, 0, 1, goal=3) == 3  # the goal is met on the third level
    assert step_lookahead(children, 1, 2, goal=3) == 0  # an only child
    assert step_lookahead({**children, 5: []}, 0, 1, goal=3) == 2  # the wrong branch ends first
    assert step_lookahead({**children, 5: [2]}, 0, 1, goal=3) == 2  # … or runs into what was seen
    assert step_lookahead({**children, 4: [2]}, 0, 1, goal=3) == 1  # both reach 2 at once: it counts as right


def test_reachable():
    assert reachable({0: [1], 1: [2], 2: [], 3: [0]}, [1]) == {1, 2}


def chi_square(counts, expected):
    return sum((counts[k] - e) ** 2 / e for k, e in expected.items())


@pytest.mark.parametrize("alpha, maximum", [(1.0, 62), (0.25, 15), (1 / 64, 0)])
def test_lookahead_is_uniform(alpha, maximum):
    num_samples = 60 * (maximum + 1)
    counts = Counter(sample(3, 384, alpha, 64, index)[0].lookahead for index in range(num_samples))
    assert set(counts) == set(range(maximum + 1))
    expected = dict.fromkeys(range(maximum + 1), num_samples / (maximum + 1))
    assert chi_square(counts, expected) < maximum + 4 * math.sqrt(2 * maximum) + 1e-9


def test_vertex_ids_and_edge_order_are_random():
    num_samples = 4000
    graphs = [sample(5, 50, 1.0, 4, index)[0] for index in range(num_samples)]  # 15 edges, 16 ids
    for ids in ([g.start for g in graphs], [g.goal for g in graphs]):
        assert chi_square(Counter(ids), dict.fromkeys(range(1, 17), num_samples / 16)) < 15 + 4 * math.sqrt(30)
    firsts = Counter(g.edges[0][0] == g.start for g in graphs)
    of_start = sum(sum(a == g.start for a, _ in g.edges) / len(g.edges) for g in graphs) / num_samples
    assert abs(firsts[True] / num_samples - of_start) < 0.03  # any edge can be stated first


def test_neighbours_are_chosen_in_proportion_to_half_plus_degree():
    edges = [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
    num_samples = 4000
    children, parents = Counter(), Counter()
    for index in range(num_samples):
        attached = _attach(CounterStream(6, "test", index), list(edges), 4, [(1, 0)], 9)
        children[attached[0][4][0]] += 1
        attached = _attach(CounterStream(7, "test", index), list(edges), 4, [(0, 1)], 9)
        parents[attached[1][4][0]] += 1
    in_degrees, out_degrees = {0: 0, 1: 1, 2: 1, 3: 3}, {0: 3, 1: 1, 2: 1, 3: 0}
    for counts, degrees in ((children, in_degrees), (parents, out_degrees)):
        expected = {v: num_samples * (0.5 + degree) / (4 * 0.5 + 5) for v, degree in degrees.items()}
        assert chi_square(counts, expected) < 3 + 4 * math.sqrt(6)


def literal_sample(rng, budget, max_input_size):
    """The definition word for word: enumerate shortest paths, try every (path, position). Slow."""
    lookahead = rng.randint(0, budget.effective_max_lookahead)
    allowed = budget.edges_allowed
    while True:
        branches = rng.randint(2, max(2, (allowed - 1) // lookahead)) if lookahead else 0
        size = min(lookahead * branches + 1 + rng.randint(0, 5), budget.vertices_allowed, allowed + 1)
        size = max(size, 2, 1 + lookahead * branches)
        edges = [(0, 1)] + [(i, i + 1) for i in range(1, lookahead)]
        used = max(2, 1 + lookahead)
        for branch in range(branches - 1):
            least_for_others = (branches - 2 - branch) * lookahead
            length = lookahead + (rng.randint(0, 1) if size - used - lookahead - least_for_others > 0 else 0)
            edges += [(0 if i == 0 else used + i - 1, used + i) for i in range(length)]
            used += length
        chain = [0, *range(used, used + rng.randint(0, size - used))]
        edges += [(v, last) for last, v in itertools.pairwise(chain)]
        used += len(chain) - 1
        for v in range(used, size):
            num_children = rng.randint(0, 3)
            num_parents = rng.randint(0 if num_children else 1, 3)
            in_degrees, out_degrees = Counter(b for _, b in edges), Counter(a for a, _ in edges)
            children = weighted_without_replacement(rng, {u: 0.5 + in_degrees[u] for u in range(v)}, num_children)
            edges += [(v, child) for child in children]
            below = distances(edges, v)
            weights = {u: 0.5 + out_degrees[u] for u in range(v) if u not in below}
            edges += [(parent, v) for parent in weighted_without_replacement(rng, weights, num_parents)]
        goal = max(1, lookahead)
        paths = shortest_paths(edges, goal)
        if len(edges) > allowed or len(paths) > 64:
            continue
        for path, position in [(p, i) for p in paths for i in range(len(p) - 1)]:
            if brute_force_lookahead(edges, path[position], path[position + 1], goal) == lookahead:
                if 3 * len(edges) + 4 + position + 1 <= max_input_size:
                    return edges, goal, lookahead, position
                break


def weighted_without_replacement(rng, weights, count):
    chosen = []
    while weights and len(chosen) < count:
        chosen += rng.choices(list(weights), list(weights.values()))
        weights = {v: w for v, w in weights.items() if v not in chosen}
    return chosen


def shortest_paths(edges, goal):
    paths = [[0]]
    while paths and paths[0][-1] != goal and not any(path[-1] == goal for path in paths):
        paths = [[*path, b] for path in paths for a, b in edges if a == path[-1]]
    return [path for path in paths if path[-1] == goal]


def shape(edges, start, goal, lookahead):
    """What two samplers are compared by: features that no renumbering changes."""
    answers = answers_by_brute_force(edges, start, goal)
    return {
        "edges": len(edges),
        "vertices": len(set(itertools.chain(*edges))),
        "children of start": sum(a == start for a, _ in edges),
        "parents of start": sum(b == start for _, b in edges),
        "children of goal": sum(a == goal for a, _ in edges),
        "parents of goal": sum(b == goal for _, b in edges),
        "answers": len(answers),
        "ancestors of start": sum(start in distances(edges, v) for v in {a for a, _ in edges}),
        "largest in-degree": max(Counter(b for _, b in edges).values()),
        "largest out-degree": max(Counter(a for a, _ in edges).values()),
        "edges at lookahead": (lookahead, len(edges)),
        "branches at lookahead": (lookahead, sum(a == start for a, _ in edges)),
    }


@pytest.mark.parametrize("max_input_size, stage", [(23, 5), (35, 5), (65, 4)])
def test_graphs_are_distributed_as_the_definition_says(max_input_size, stage):
    num_samples = 4000
    budget = search_budget(max_input_size, stage / 5, 5)
    rng = random.Random(5)
    ours, literal = [], []
    for index in range(num_samples):
        graph = sample_search_graph(CounterStream(99, "test", index), budget)
        ours.append(shape(graph.edges, graph.start, graph.goal, graph.lookahead))
        edges, goal, lookahead, position = literal_sample(rng, budget, max_input_size)
        assert position == 0, "the path walked so far is always the start alone"
        literal.append(shape(edges, 0, goal, lookahead))
    for feature in ours[0]:
        a, b = (Counter(row[feature] for row in rows) for rows in (ours, literal))
        common = [key for key in a.keys() | b.keys() if a[key] + b[key] >= 20]
        statistic = sum((a[key] - b[key]) ** 2 / (a[key] + b[key]) for key in common)
        assert statistic < len(common) + 4 * math.sqrt(2 * len(common)), (feature, a, b)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((384, 0.0, 64), "alpha is 0.0"),
        ((384, 1.5, 64), "alpha is 1.5"),
        ((384, 1.0, 0), "max_lookahead is 0"),
        ((7, 1.0, 4), "max_input_size is 7: expected at least 8"),
        ((96, 1 / 64, 64), r"floor\(alpha · 30\) < 1 .* --start_stage 3 of 64"),
    ],
)
def test_impossible_budgets_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        search_budget(*arguments)


def test_budget_of_the_documented_sizes():
    budget = search_budget(384, 1.0, 64)
    assert (budget.edge_budget, budget.edges_allowed, budget.effective_max_lookahead) == (126, 126, 62)
    assert search_budget(384, 1 / 64, 64).edges_allowed == 1
    # A fraction that floating point puts just below a whole number of edges.
    assert search_budget(305, 29 / 100, 100).edges_allowed == 29
