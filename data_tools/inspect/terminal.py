"""Lays out text for a terminal: lines of cells that are never split, and colours where they are supported."""

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

# SGR codes. Meaning never depends on colour alone: marks and labels repeat it.
STYLES = {"plain": "", "faint": "2", "heading": "1", "good": "32", "strong": "1;32", "warning": "33"}
_SHOWN = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A piece of a line; ``style`` is one of `STYLES`."""

    text: str
    style: str = "plain"


@dataclass(frozen=True)
class Terminal:
    """The terminal that lines are for.

    Attributes:
        width: columns.
        has_colour: whether styles become escape sequences.
    """

    width: int
    has_colour: bool

    @classmethod
    def of_stdout(cls, colour: str = "auto") -> "Terminal":
        """The terminal of standard output: its width (the variable COLUMNS wins), and whether it has colours.

        Args:
            colour: ``always``, ``never``, or ``auto``: on a terminal, unless NO_COLOR is set (no-color.org).
        """
        can = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return cls(max(20, shutil.get_terminal_size().columns), colour == "always" or (colour == "auto" and can))

    def styled(self, text: str, style: str) -> str:
        code = STYLES[style]
        return f"\x1b[{code}m{text}\x1b[0m" if code and text and self.has_colour else text

    def flow(self, cells: Iterable[Cell], *, first: str = "", rest: str | None = None) -> Iterator[str]:
        """Yield lines, each with as many cells as fit.

        Args:
            cells: in order; a line ends between two of them, and spaces at its end are left out.
            first, rest: the beginning of the first line and of the others; by default ``rest`` is blank.
        """
        margin, line = first, list[Cell]()
        rest = " " * num_columns(first) if rest is None else rest
        used = num_columns(margin)
        for cell in cells:
            if line and used + num_columns(cell.text.rstrip(" ")) > self.width:
                yield margin + self._joined(line)
                margin, line, used = rest, [], num_columns(rest)
            line.append(cell)
            used += num_columns(cell.text)
        yield margin + self._joined(line)

    def _joined(self, line: list[Cell]) -> str:
        runs = [
            ("".join(cell.text for cell in run), style) for style, run in groupby(line, key=lambda cell: cell.style)
        ]
        runs[-1:] = [(text.rstrip(" "), style) for text, style in runs[-1:]]
        return "".join(self.styled(text, style) for text, style in runs)

    def wrapped(self, text: str, *, indent: str = "", style: str = "plain") -> Iterator[str]:
        """Yield a text as lines broken at spaces, keeping its line breaks; control characters become visible."""
        for paragraph in text.split("\n"):
            words = visible(paragraph).split(" ")
            yield from self.flow([Cell(f"{word} ", style) for word in words], first=indent)

    def rule(self, title: str) -> str:
        """A heading over the whole width."""
        return self.styled(f"── {title} {'─' * max(0, self.width - num_columns(title) - 4)}", "heading")


def num_columns(text: str) -> int:
    """The number of columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def visible(text: str) -> str:
    """The text with visible signs in place of control characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _SHOWN.get(c) or c.encode("unicode_escape").decode() for c in text)
