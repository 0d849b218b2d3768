"""Fixtures for all tests."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from data_tools.base.errors import UserError
from data_tools.fetch_assets import GPT_NEOX_TOKENIZER, cached_file
from tests.support import tiny


@pytest.fixture(autouse=True)
def _same_environment_for_every_test() -> Iterator[None]:
    """What a test leaves in ``os.environ`` is gone after it: a run in this process sets the launcher's variables."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def gpt_neox_tokenizer_path() -> Path:
    """Pythia's tokenizer as a ``.json`` file, downloaded once into the cache; skips where that is impossible."""
    try:
        return cached_file(GPT_NEOX_TOKENIZER)
    except UserError as error:
        pytest.skip(f"the GPT-NeoX tokenizer cannot be had: {error}")


@pytest.fixture(scope="session")
def tiny_scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scratch directory in miniature, shared by all tests; each run's directory has its own name."""
    return tiny.build_tiny_scratch(tmp_path_factory.mktemp("tiny"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put directories first whose files take minutes: left to the end, one would keep a single core busy."""
    longest = [Path(__file__).parent / name for name in ("system", "docs")]
    items.sort(key=lambda item: not any(item.path.is_relative_to(directory) for directory in longest))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--renew_golden", action="store_true", help="write the golden loss curves anew")
