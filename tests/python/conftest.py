"""Settings that every test here starts from."""

from __future__ import annotations

from collections.abc import Iterator

import clew
import pytest


@pytest.fixture(autouse=True)
def same_number_of_threads() -> Iterator[None]:
    """A test that sets the number of threads does not change it for the next."""
    before = clew.get_num_threads()
    yield
    if clew.get_num_threads() != before:
        clew.set_num_threads(before)
