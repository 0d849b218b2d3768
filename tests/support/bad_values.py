"""Bad values for every field of a JSON-like value, bounded and seeded; and one that a pickle must not hold."""

import copy
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

JUNK = (
    "x", "", True, -1, 0, 1.5, 1e300, float("nan"), 10**30, 10**400, None, [], [1], {}, {"a": 1}, "../../x", "\ud800",
)  # fmt: skip
_MISSING = object()


def spoiled(value: dict[str, Any], number: int, seed: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Copies of a value, each with one field changed or gone, and what was done to it."""
    cases = [(path, junk) for path in _paths(value) for junk in (*JUNK, _MISSING)]
    for path, junk in random.Random(seed).sample(cases, min(number, len(cases))):
        changed = copy.deepcopy(value)
        place: Any = changed
        for part in path[:-1]:
            place = place[part]
        if junk is _MISSING:
            del place[path[-1]]
        else:
            place[path[-1]] = junk
        yield f"{'.'.join(map(str, path))}: {'gone' if junk is _MISSING else repr(junk)[:40]}", changed


def _paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*above, key)
        yield from _paths(below, (*above, key))


class Touching:
    """Pickled, it makes a directory as soon as it is unpickled without a restriction."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)
