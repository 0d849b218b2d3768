"""Tables and counts of things, as text."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def pluralize(number: int, thing: str) -> str:
    """``1 rank``, ``2 ranks``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def round_up(number: int) -> int:
    """To two digits, followed by zeros."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit
