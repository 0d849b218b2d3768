"""Stand-ins for generators from outside, as bad for their surroundings as the researchers' own may be.

They follow the protocol, reseed the process's global generators and keep state: a second batch of one object is not
the first. Name them as ``external_generator:StandInGenerator`` with this directory on PYTHONPATH.
"""

import os
import random
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import parent_process
from typing import Any

import numpy as np

FORMS = (
    "If {name} is {a}, then {name} is {b}.",
    "If {name} is {a}, then they are {b}.",
    "If a person is {a}, they are {b}.",
    "Everyone that is {a} is {b}.",
    "If someone is {a}, then they are {b}.",
)


@dataclass
class NLExample:
    input_text: str
    output_texts: list[str]
    labels: list[Any]


class StandInGenerator:
    """Two branches from the start; in every third example or so the second also leads to the goal."""

    def __init__(self, max_input_size: int, seed: int = 0, debug: bool = False) -> None:
        random.seed(seed)
        np.random.seed(seed)
        self.max_edges = (max_input_size - 5) // 3

    def generate_batch(self, task: str, batch_size: int, **kwargs: Any) -> list[NLExample]:
        if task != "search":
            raise ValueError(f"Unknown task: {task}")
        assert not kwargs.get("reserved_inputs"), "reserved prompts are not filtered here"
        longest = max(1, min(kwargs["max_lookahead"], int(kwargs["alpha"] * self.max_edges) // 2 - 1))
        return [self._example(random.randint(1, longest)) for _ in range(batch_size)]

    def _example(self, length: int) -> NLExample:
        ids = [int(v) for v in np.random.permutation(2 * length + 1)]
        start, right, wrong = ids[0], ids[1 : length + 1], ids[length + 1 :]
        edges = [(start, right[0]), (start, wrong[0]), *pairwise(right), *pairwise(wrong)]
        answers = [right[0]]
        if length > 1 and random.random() < 0.3:
            edges.append((wrong[-1], right[-1]))
            answers = sorted([right[0], wrong[0]])
        random.shuffle(edges)
        attributes: set[str] = set()
        while len(attributes) < len(ids):
            attributes.add("".join(random.choice("bdfgklmnprst") + random.choice("aeiou") for _ in range(4)))
        names = dict(zip(ids, sorted(attributes), strict=True))
        person = random.choice(["Craig", "Mary Lou", "Zoë"])
        facts = " ".join(random.choice(FORMS).format(name=person, a=names[a], b=names[b]) for a, b in edges)
        text = (
            f"Suppose we have the following facts: {facts} Given that {person} is {names[start]}, and we want to prove "
            f"{person} is {names[right[-1]]}.\n\nProof: {person} is {names[start]}. {person} is"
        )
        return NLExample(text, [names[v] for v in answers], answers)


class RepeatingGenerator(StandInGenerator):
    """Ignores its seed."""

    def __init__(self, max_input_size: int, seed: int) -> None:
        super().__init__(max_input_size, 0)


class NoBatchGenerator:
    def __init__(self, max_input_size: int, seed: int) -> None:
        pass


class WrongSignatureGenerator(StandInGenerator):
    def generate_batch(self, task, batch_size):
        return []


class NoSeedGenerator(StandInGenerator):
    def __init__(self, max_input_size: int) -> None:
        pass


class FieldlessGenerator(StandInGenerator):
    def generate_batch(self, task, batch_size, **kwargs):
        return [{"input_text": "Suppose"}]


class NoAnswerGenerator(StandInGenerator):
    def generate_batch(self, task, batch_size, **kwargs):
        return [NLExample("Suppose", [], [])]


class GreedyGenerator(StandInGenerator):
    """Returns two examples where one was asked for."""

    def generate_batch(self, task, batch_size, **kwargs):
        return super().generate_batch(task, 2, **kwargs)


class OtherTextGenerator(StandInGenerator):
    def generate_batch(self, task, batch_size, **kwargs):
        return [NLExample("Once upon a time", ["there"], [1])]


class FailingGenerator(StandInGenerator):
    """Fails for about one seed in twenty."""

    def generate_batch(self, task, batch_size, **kwargs):
        if random.random() < 0.05:
            raise RuntimeError("no luck")
        return super().generate_batch(task, batch_size, **kwargs)


class DyingGenerator(StandInGenerator):
    """Takes its process down."""

    def generate_batch(self, task, batch_size, **kwargs):
        os._exit(1)


class LateFailingGenerator(FailingGenerator):
    """Fails only where splits are made."""

    def generate_batch(self, task, batch_size, **kwargs):
        kind = FailingGenerator if parent_process() else StandInGenerator
        return kind.generate_batch(self, task, batch_size, **kwargs)


class LateDyingGenerator(StandInGenerator):
    """Takes the process down only where splits are made."""

    def generate_batch(self, task, batch_size, **kwargs):
        kind = DyingGenerator if parent_process() else StandInGenerator
        return kind.generate_batch(self, task, batch_size, **kwargs)


class UnseededGenerator(StandInGenerator):
    """Draws from the system's randomness."""

    def __init__(self, max_input_size: int, seed: int) -> None:
        super().__init__(max_input_size, random.SystemRandom().randrange(2**31))


class FewTextsGenerator(StandInGenerator):
    """Writes one of 300 texts, whatever the seed."""

    def __init__(self, max_input_size: int, seed: int) -> None:
        super().__init__(max_input_size, seed % 300)
