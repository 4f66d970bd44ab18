"""The model that the pytest-benchmark suites share."""

from __future__ import annotations

import os
from pathlib import Path

import clew
import pytest

os.environ.setdefault("CLEW_NUM_THREADS", str(clew.get_num_threads()))

from . import models  # noqa: E402


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of GPT-2 124M with random weights."""
    path = tmp_path_factory.mktemp("gpt2")
    models.write(path)
    return path


@pytest.fixture(scope="session")
def model(directory: Path) -> clew.Model:
    """The model, mapped."""
    return clew.load(directory)
