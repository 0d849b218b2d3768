"""Fixtures of the training tests."""

from pathlib import Path

import pytest

from tests.ds_train import tiny


@pytest.fixture(scope="session")
def tiny_scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scratch directory in miniature, shared by all tests; runs go into directories of their own names."""
    return tiny.build_tiny_scratch(tmp_path_factory.mktemp("tiny"))
