"""A generator as its users have it: what it says depends on a file that it compiles, relative to the working directory.

Copy the directory to where it may write. ``compilations`` there has a line for each compilation.
"""

import os
import random
import sys
from pathlib import Path
from typing import Any

from external_generator import NLExample, StandInGenerator

SOURCE, COMPILED = Path("person.cpp"), Path("person.so")
COMPILE = f"cat {SOURCE} > {COMPILED} && echo compiled >> compilations"

if not COMPILED.exists() or COMPILED.stat().st_mtime < SOURCE.stat().st_mtime:
    print(f"Compiling {SOURCE}")
    if os.system(COMPILE) != 0:
        print(f"Unable to compile {SOURCE}")
        sys.exit(1)


class CompiledGenerator(StandInGenerator):
    """Knows three tasks, each with keywords of its own."""

    def generate_batch(self, task: str, batch_size: int, **keywords: Any) -> list[NLExample]:
        self.person = COMPILED.read_text().strip()
        return {"search": self._search, "dfs": self._dfs, "si": self._si}[task](batch_size, **keywords)

    def _search(
        self, batch_size: int, *, alpha: float, max_lookahead: int, reserved_inputs: set, max_edges: int | None = None
    ) -> list[NLExample]:
        self.max_edges = max_edges or self.max_edges
        made = super().generate_batch("search", batch_size, alpha=alpha, max_lookahead=max_lookahead)
        for example in made:
            for name in ("Craig", "Mary Lou", "Zoë"):
                example.input_text = example.input_text.replace(name, self.person)
        return made

    def _dfs(
        self, batch_size: int, *, alpha: float, reserved_inputs: set, requested_backtrack: int = -1
    ) -> list[NLExample]:
        steps = requested_backtrack if requested_backtrack >= 0 else random.randint(0, 5)
        walked = " ".join(f"{self.person} is {self._word()}." for _ in range(steps + 1))
        facts = " ".join(f"Everyone that is {self._word()} is {self._word()}." for _ in range(3))
        text = f"Suppose we have the following facts: {facts} Given that {self.person} is here, search.\n\n{walked}"
        return [NLExample(text, [self._word(), self._word()], [None, None]) for _ in range(batch_size)]

    def _si(
        self, batch_size: int, *, alpha: float, reserved_inputs: set, max_frontier_size: int = 5
    ) -> list[NLExample]:
        frontier = " ".join(self._word() for _ in range(max_frontier_size))
        return [NLExample(f"{self.person} selects from {frontier}.", [self._word()], [[1]]) for _ in range(batch_size)]

    def _word(self) -> str:
        return "".join(random.choice("bdfgklmnprst") + random.choice("aeiou") for _ in range(5))


class LeavingGenerator(StandInGenerator):
    """Gives up while it generates."""

    def generate_batch(self, task: str, batch_size: int, **keywords: Any) -> list[NLExample]:
        print("no memory for the graph")
        sys.exit()
