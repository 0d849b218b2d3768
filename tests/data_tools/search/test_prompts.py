"""Rendering and reading back search prompts."""

import math
import re
from collections import Counter

import pytest

from data_tools.base.errors import UserError
from data_tools.base.rng import CounterStream
from data_tools.search.prompts import (
    FIRST_NAMES,
    SENTENCE_FORMS,
    SYLLABLE_SHAPES,
    draw_attributes,
    parse_prompt,
    render_prompt,
)

DOCUMENTED = (
    "Suppose we have the following facts: If someone is mtemfa, then they are unxre. Everyone that is unxre is agseyo. "
    "If Craig is wsizko, then they are mtemfa. If Craig is wsizko, then Craig is unekwa. If Craig is noiur, then they "
    "are ijtce. If a person is unekwa, they are noiur. Given that Craig is wsizko, and we want to prove Craig is "
    "agseyo.\n\nProof: Craig is wsizko. Craig is"
)


def test_the_documented_example_is_read():
    prompt = parse_prompt(DOCUMENTED)
    assert prompt.name == "Craig"
    assert (prompt.start, prompt.goal, prompt.path) == ("wsizko", "agseyo", ["wsizko"])
    assert prompt.edges == [
        ("mtemfa", "unxre"),
        ("unxre", "agseyo"),
        ("wsizko", "mtemfa"),
        ("wsizko", "unekwa"),
        ("noiur", "ijtce"),
        ("unekwa", "noiur"),
    ]
    assert prompt.answers() == ["mtemfa"]
    assert prompt.lookahead() == 3


def test_the_documented_example_can_be_written():
    """Byte for byte: some stream draws the name and the forms it uses."""
    prompt = parse_prompt(DOCUMENTED)
    attributes = dict(enumerate(sorted({*sum(prompt.edges, ())})))
    vertex = {attribute: v for v, attribute in attributes.items()}
    edges = [(vertex[a], vertex[b]) for a, b in prompt.edges]
    forms = iter([4, 3, 1, 0, 1, 2])

    class Chosen(CounterStream):
        def choice(self, items):
            return "Craig"

        def below_many(self, bound, count):
            return [next(forms) for _ in range(count)]

    stream = Chosen(0, "test")
    start, goal = vertex["wsizko"], vertex["agseyo"]
    assert render_prompt(stream, edges, start, goal, [start], attributes) == DOCUMENTED


def test_text_reads_back_with_a_longer_path():
    attributes = dict(enumerate(draw_attributes(CounterStream(1, "test"), 6)))
    edges = [(0, 1), (1, 2), (2, 3), (1, 4), (4, 5)]
    text = render_prompt(CounterStream(2, "test"), edges, 0, 3, [0, 1], attributes)
    prompt = parse_prompt(text)
    assert prompt.name in FIRST_NAMES
    assert prompt.edges == [(attributes[a], attributes[b]) for a, b in edges]
    assert prompt.path == [attributes[0], attributes[1]]
    assert (prompt.start, prompt.goal) == (attributes[0], attributes[3])
    assert prompt.answers() == [attributes[2]]
    assert prompt.lookahead() == 2
    assert text.endswith(f"Proof: {prompt.name} is {attributes[0]}. {prompt.name} is {attributes[1]}. {prompt.name} is")


def test_lookahead_of_several_right_steps_is_the_greatest():
    """b → d and c → b → d: the step to b is settled after one level, the step to c when d is met on the second."""
    facts = "If x is a, then x is b. If x is b, then x is d. If x is a, then x is c. If x is c, then x is b."
    question = "Given that x is a, and we want to prove x is d.\n\nProof: x is a. x is"
    prompt = parse_prompt(f"Suppose we have the following facts: {facts} {question}")
    assert prompt.answers() == ["b", "c"]
    assert prompt.lookahead() == 2


def test_sentence_forms_and_names_are_uniform():
    num_edges, num_texts = 10, 600
    attributes = {v: "a" * (v + 1) for v in range(num_edges + 1)}
    edges = [(v, v + 1) for v in range(num_edges)]
    patterns = [re.compile(form.format(name=r"(?P<n>\w+)", n="n").replace("%s", "a+")) for form in SENTENCE_FORMS[2:]]
    patterns = [
        re.compile(r"If (?!someone|a person)(\w+) is a+, then \1 is a+\."),
        re.compile(r"If (?!someone|a person)(\w+) is a+, then they are a+\."),
        *patterns,
    ]
    forms, names = Counter(), Counter()
    for index in range(num_texts):
        text = render_prompt(CounterStream(3, "test", index), edges, 0, num_edges, [0], attributes)
        forms.update({k: len(pattern.findall(text)) for k, pattern in enumerate(patterns)})
        names[parse_prompt(text).name] += 1
    assert sum(forms.values()) == num_texts * num_edges
    expected = num_texts * num_edges / 5
    assert sum((forms[k] - expected) ** 2 / expected for k in range(5)) < 4 + 4 * math.sqrt(8)
    expected = num_texts / len(FIRST_NAMES)
    statistic = sum((names[name] - expected) ** 2 / expected for name in FIRST_NAMES)
    assert abs(statistic - len(FIRST_NAMES)) < 4 * math.sqrt(2 * len(FIRST_NAMES))


def test_attributes_are_two_syllables_and_unique():
    drawn = [draw_attributes(CounterStream(4, "test", index), 250) for index in range(40)]
    assert all(len(set(attributes)) == 250 for attributes in drawn)
    shapes = {a + b for a in SYLLABLE_SHAPES for b in SYLLABLE_SHAPES}
    flat = [attribute for attributes in drawn for attribute in attributes]
    seen = {re.sub("[^V]", "C", re.sub("[aeiou]", "V", attribute)) for attribute in flat}
    assert seen == shapes
    assert all(re.fullmatch("[a-z]{4,6}", attribute) for attribute in flat)
    # Syllables have 2 letters with probability 2/7 and 3 with 5/7; a letter is as likely as any of its kind.
    lengths = Counter(map(len, flat))
    assert abs(lengths[4] / len(flat) - 4 / 49) < 0.012 and abs(lengths[6] / len(flat) - 25 / 49) < 0.02
    letters = Counter("".join(flat))
    for kind in ("aeiou", "bcdfghjklmnpqrstvwxyz"):
        expected = sum(letters[letter] for letter in kind) / len(kind)
        assert all(abs(letters[letter] - expected) < 5 * math.sqrt(expected) for letter in kind)


def test_equal_attributes_are_drawn_again():
    """At this many, some pair is drawn twice in every example."""
    assert len(set(draw_attributes(CounterStream(5, "test"), 20_000))) == 20_000


@pytest.mark.parametrize(
    "text, message",
    [
        ("Once upon a time", "not a search prompt"),
        (DOCUMENTED.replace("Everyone that is", "Nobody who is"), "sentence forms .*Nobody who is unxre"),
        (
            DOCUMENTED.replace("Proof: Craig is wsizko.", "Proof: Craig was wsizko."),
            "not a step of a proof about Craig",
        ),
        (DOCUMENTED[:-8], "not a search prompt"),
    ],
)
def test_other_text_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_prompt(text)
