"""Collects everything that is wrong with a configuration, so that one message can say it all."""

from collections.abc import Iterator
from contextlib import contextmanager

from data_tools.errors import UserError


class Problems:
    """Messages about bad input, gathered before anything expensive starts."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, message: str) -> None:
        self._messages.append(message)

    def require(self, condition: bool, message: str) -> None:
        """Add the message unless the condition holds."""
        if not condition:
            self.add(message)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Record a ``UserError`` raised inside, and go on behind the block."""
        try:
            yield
        except UserError as error:
            self.add(str(error))

    def raise_if_any(self) -> None:
        """Raise one ``UserError`` with all messages."""
        if len(self._messages) == 1:
            raise UserError(self._messages[0])
        if self._messages:
            listed = "".join(f"\n  {number}. {message}" for number, message in enumerate(self._messages, 1))
            raise UserError(f"{len(self._messages)} problems:{listed}")
