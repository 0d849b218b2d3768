"""Search problems as English text, and back.

All facts are about one person. Each vertex is a made-up attribute, and each edge A→B is one sentence: who is A is B.
The prompt ends where the next vertex's name must follow.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from data_tools.base.errors import UserError
from data_tools.base.rng import CounterStream
from data_tools.search.graphs import Edge, reachable, step_lookahead

FIRST_NAMES = tuple(
    """
    Aaron Adam Alan Albert Alexander Alice Allen Amanda Amber Amy Andrea Andrew Angela Anna Anthony Arthur Ashley
    Barbara Benjamin Bernard Beth Betty Beverly Bob Brad Brandon Brenda Brian Bruce Bryan Calvin Carl Carlos Carol
    Caroline Catherine Charles Charlotte Cheryl Christina Christine Christopher Claire Colin Connie Craig Crystal
    Cynthia Daniel David Deborah Denise Dennis Derek Diana Diane Donald Donna Doris Dorothy Douglas Dylan Edgar Edward
    Eileen Elaine Eleanor Elizabeth Ellen Emily Emma Eric Erica Erin Ethan Eugene Eva Evan Evelyn Florence Frances
    Frank Fred Gabriel Gary George Gerald Gina Gloria Gordon Grace Greg Gregory Hannah Harold Harry Heather Heidi
    Helen Henry Holly Howard Hugh Ian Irene Isaac Isabel Jack Jacob Jacqueline James Jane Janet Janice Jason Jean
    Jeffrey Jennifer Jeremy Jerry Jessica Jill Joan Joanna Joel John Jonathan Jordan Joseph Joshua Joyce Juan Judith
    Julia Julian Julie Justin Karen Karl Katherine Kathleen Keith Kelly Kenneth Kevin Kimberly Kyle Larry Laura Lauren
    Lawrence Leah Leon Leonard Leslie Linda Lisa Louis Louise Lucas Lucy Luke Lynn Marcus Margaret Maria Marie Marilyn
    Mario Mark Martha Martin Mary Matthew Megan Melanie Melissa Michael Michelle Miguel Monica Nancy Natalie Nathan
    Nicholas Nicole Nina Nora Norman Oliver Olivia Oscar Owen Pamela Patricia Patrick Paul Paula Peter Philip Rachel
    Ralph Raymond Rebecca Renee Richard Robert Robin Roger Ronald Rosa Rose Ruth Ryan Samantha Samuel Sandra Sarah
    Scott Sean Sharon Simon Sophia Stanley Stephanie Stephen Steven Susan Sylvia Teresa Theodore Theresa Thomas Tiffany
    Timothy Todd Tony Tracy Tyler Valerie Vanessa Veronica Victor Victoria Vincent Virginia Walter Wanda Wayne Wendy
    William Yvonne Zachary
    """.split()
)

SENTENCE_FORMS = (
    "If {name} is %s, then {name} is %s.",
    "If {name} is %s, then they are %s.",
    "If a person is %s, they are %s.",
    "Everyone that is %s is %s.",
    "If someone is %s, then they are %s.",
)
_SENTENCES = {name: [form.format(name=name) for form in SENTENCE_FORMS] for name in FIRST_NAMES}

SYLLABLE_SHAPES = ("CV", "VC", "CVC", "CVV", "CCV", "VCV", "VCC")
_LETTERS = {"V": "aeiou", "C": "bcdfghjklmnpqrstvwxyz"}


def _syllable_table() -> list[str]:
    """All syllables, repeated so that a uniform draw is uniform over shapes, and over the letters of each shape."""
    by_shape = [
        ["".join(letters) for letters in product(*(_LETTERS[kind] for kind in shape))] for shape in SYLLABLE_SHAPES
    ]
    common_multiple = 5 * 21 * 5 * 21  # every shape's count divides it
    return [syllable for same_shape in by_shape for syllable in same_shape * (common_multiple // len(same_shape))]


_SYLLABLES = _syllable_table()


def draw_attributes(stream: CounterStream, count: int) -> list[str]:
    """Draw ``count`` different made-up attributes of two random syllables each."""
    attributes: dict[str, None] = {}
    while len(attributes) < count:
        missing = count - len(attributes)
        syllables = [_SYLLABLES[i] for i in stream.below_many(len(_SYLLABLES), 2 * missing)]
        attributes.update(dict.fromkeys(map(str.__add__, syllables[::2], syllables[1::2])))
    return list(attributes)


def render_prompt(
    stream: CounterStream,
    edges: Sequence[Edge],
    start: int,
    goal: int,
    path: Sequence[int],
    attributes: Mapping[int, str],
) -> str:
    """The prompt; the person and each sentence's form are drawn from ``stream``.

    Args:
        edges: (parent, child) in the order of the facts.
        path: the vertices walked so far, from ``start`` to the current one.
        attributes: the name of each vertex.
    """
    name = stream.choice(FIRST_NAMES)
    sentences = _SENTENCES[name]
    forms = stream.below_many(len(sentences), len(edges))
    facts = [
        sentences[form] % (attributes[parent], attributes[child])
        for form, (parent, child) in zip(forms, edges, strict=True)
    ]
    walked = " ".join([f"{name} is {attributes[vertex]}." for vertex in path])
    return (
        f"Suppose we have the following facts: {' '.join(facts)} Given that {name} is {attributes[start]}, and we want "
        f"to prove {name} is {attributes[goal]}.\n\nProof: {walked} {name} is"
    )


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A search problem read back from its text; vertices are attributes."""

    name: str
    edges: list[tuple[str, str]]
    start: str
    goal: str
    path: list[str]

    def answers(self) -> list[str]:
        """The children of the current vertex from which the goal can be reached, in the order of their edges."""
        parents = defaultdict(list)
        for parent, child in self.edges:
            parents[child].append(parent)
        leads_to_goal = reachable(parents, [self.goal])
        return [child for parent, child in self.edges if parent == self.path[-1] and child in leads_to_goal]

    def lookahead(self) -> int:
        """The greatest lookahead of a right next step: the drawn one, which no step of the problem exceeds."""
        children = defaultdict(list)
        for parent, child in self.edges:
            children[parent].append(child)
        steps = self.answers()
        return max((step_lookahead(children, self.path[-1], step, self.goal) for step in steps), default=0)


_PROMPT = re.compile(
    r"Suppose we have the following facts: (?P<facts>.*) "
    r"Given that (?P<name>.+) is (?P<start>\w+), and we want to prove (?P=name) is (?P<goal>\w+)\.\s+"
    r"Proof: (?P<walked>.+) (?P=name) is\s*",
    re.DOTALL,
)


def parse_prompt(text: str) -> ParsedPrompt:
    """Read back the prompt of any generator that writes this form.

    Raises:
        UserError: the text has another form.
    """
    prompt = _PROMPT.fullmatch(text)
    if prompt is None:
        raise UserError(f"not a search prompt: expected 'Suppose we have the following facts: …', got {text[:80]!r}…")
    name = prompt["name"]
    facts = _split_sentences(prompt["facts"])
    forms = [re.compile(form.format(name=re.escape(name)) % (r"(\w+)", r"(\w+)")) for form in SENTENCE_FORMS]
    edges = []
    for fact in facts:
        edge = next((match for form in forms if (match := form.fullmatch(fact))), None)
        if edge is None:
            raise UserError(f"not one of the {len(forms)} sentence forms of a search prompt: {fact!r}")
        edges.append((edge[1], edge[2]))
    path = []
    for sentence in _split_sentences(prompt["walked"]):
        step = re.fullmatch(rf"{re.escape(name)} is (\w+)\.", sentence)
        if step is None:
            raise UserError(f"not a step of a proof about {name}: {sentence!r}")
        path.append(step[1])
    return ParsedPrompt(name, edges, prompt["start"], prompt["goal"], path)


def num_facts(text: str) -> int | None:
    """The number of facts in the prompt of any task; None where it states none in the form of search."""
    facts = re.search(r"the following facts: (.+?) Given that ", text, re.DOTALL)
    return len(_split_sentences(facts[1])) if facts else None


def _split_sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) ", text)
