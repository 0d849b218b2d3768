"""Which commands there are, as their files show it: nothing is imported."""

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_HAS_MAIN = re.compile(r"^def main\(", re.MULTILINE)
_MAY_BE_A_FILE = "__package__ in (None, "  # how such a command finds the project


@dataclass(frozen=True)
class Command:
    """A module that people start.

    Attributes:
        module: as ``python -m`` takes it.
        purpose: the first sentence of its docstring.
        file: its source.
        starts_as_file: whether ``python FILE``, and so ``deepspeed FILE``, starts it too.
    """

    module: str
    purpose: str
    file: Path
    starts_as_file: bool


def commands_of(packages: Iterable[Path]) -> dict[str, Command]:
    """The commands in these directories of packages, by name.

    A command is a module with a function ``main``, or a package whose ``__main__`` has one.
    """
    found = {}
    for package in packages:
        for file in sorted((*package.glob("[a-z]*.py"), *package.glob("[a-z]*/__main__.py"))):
            source = file.read_text(encoding="utf-8")
            if _HAS_MAIN.search(source):
                name = file.parent.name if file.stem == "__main__" else file.stem
                text = ast.get_docstring(ast.parse(source)) or ""
                purpose = " ".join(text.split("\n\n")[0].split())
                found[name] = Command(f"{package.name}.{name}", purpose, file, _MAY_BE_A_FILE in source)
    return found
