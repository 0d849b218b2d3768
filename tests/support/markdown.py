"""The project's pages, and what they hold: commands, code, links, words in code type."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.launching import REPOSITORY

ROOMS = ("data_tools", "ds_train", "ds_configs", "launch", "tests", ".github")
# In running text a command is what starts one of our files or modules: no program's name alone, no pattern with a {}.
_STARTS_OURS = re.compile(
    r"""(?:[A-Z_]+=(?:"[^"]*"|'[^']*'|\S+)\s)*(?:python|bash|deepspeed|sbatch|srun|accelerate)\s(?:.*\s)?"""
    r"""(?:-m\s\S|[\w./-]+\.(?:py|sh)\b).*"""
)
_ASSIGNMENT = re.compile(r"([A-Z_]+)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command of a page, as it stands there.

    Attributes:
        page: relative to the repository.
        line: of the page, from 1.
        argv: words, without the comment.
        variables: assigned in front of it.
    """

    page: str
    line: int
    argv: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {shlex.join(self.argv)}"


@dataclass(frozen=True)
class Code:
    """A block of Python."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line} python"


@dataclass(frozen=True)
class _Block:
    language: str  # empty: running text
    line: int
    text: str


def pages() -> list[Path]:
    """All pages, the README first."""
    return [REPOSITORY / "README.md", *(page for room in ROOMS for page in sorted((REPOSITORY / room).rglob("*.md")))]


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def commands(page: Path) -> list[Command | Code]:
    """What a page tells its reader to run, in order."""
    found: list[Command | Code] = []
    for block in _blocks(page):
        if block.language == "bash":
            found += _lines(name_of(page), block)
        elif block.language == "python":
            found.append(Code(name_of(page), block.line, block.text))
        elif not block.language:
            found += [
                _command(name_of(page), line, words) for line, words in _spans(block) if _STARTS_OURS.fullmatch(words)
            ]
    return found


def code_words(page: Path) -> list[str]:
    """Everything in code type: spans of running text and lines of blocks."""
    words = []
    for block in _blocks(page):
        words += block.text.splitlines() if block.language else [text for _, text in _spans(block)]
    return words


def tables(page: Path) -> list[list[list[str]]]:
    """The tables of a page: rows of cells, the head first."""
    found: list[list[list[str]]] = [[]]
    for line in page.read_text().splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if set("".join(cells)) - set("-:"):
                found[-1].append(cells)
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures."""
    text = "\n".join(block.text for block in _blocks(page) if not block.language)
    return re.findall(r"""(?:\]\(|src=")([^)"\s]+)[)"]""", text)


def anchors(page: Path) -> set[str]:
    """What links can name of a page, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _blocks(page: Path) -> Iterator[_Block]:
    language, first, lines = "", 1, list[str]()
    for number, line in enumerate([*page.read_text().splitlines(), None], 1):
        if line is None or line.startswith("```"):
            yield _Block(language, first, "\n".join(lines))
            language = "" if line is None or language else line[3:] or "text"
            first, lines = number + 1, []
        else:
            lines.append(line)


def _spans(block: _Block) -> Iterator[tuple[int, str]]:
    for match in re.finditer(r"`([^`]+)`", block.text):
        yield block.line + block.text[: match.start()].count("\n"), " ".join(match[1].split())


def _lines(page: str, block: _Block) -> Iterator[Command]:
    """The commands of a shell block: a line each, or several where a line ends with a backslash."""
    joined, first = "", 0
    for number, line in enumerate(block.text.splitlines(), block.line):
        first = first if joined else number
        joined += line
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        if shlex.split(joined, comments=True):
            yield _command(page, first, joined)
        joined = ""


def _command(page: str, line: int, text: str) -> Command:
    words = shlex.split(text, comments=True)
    variables = {}
    while assigned := _ASSIGNMENT.fullmatch(words[0]):
        variables[assigned[1]] = assigned[2]
        del words[0]
    return Command(page, line, tuple(words), variables)
