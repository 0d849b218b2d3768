"""The command, run within the tests' process."""

import pytest

from data_tools.inspect import __main__ as inspect_command


@pytest.fixture
def shown(capsys, monkeypatch):
    """Runs the command and gives its output."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> str:
        inspect_command.main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run
