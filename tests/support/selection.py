"""What of a module's parameters the tests that were selected need, so that nothing is trained for others."""

from typing import Any

import pytest


def selected(request: pytest.FixtureRequest, name: str) -> list[Any]:
    """Values of a parameter in this module's selected tests, each once, in their order; for a fixture of the module."""
    items = [item for item in request.session.items if item.path == request.path]
    return list(dict.fromkeys(_parameters(item)[name] for item in items if name in _parameters(item)))


def slow(*values: Any) -> list[Any]:
    """The values as parameters of tests of the slow tier."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def _parameters(item: pytest.Item) -> dict[str, Any]:
    call = getattr(item, "callspec", None)
    return call.params if call else {}
