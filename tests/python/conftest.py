"""Settings that every test here starts from."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import clew
import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so shells start what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or tests of Ctrl-C would wait for ever


@pytest.fixture(autouse=True)
def same_number_of_threads() -> Iterator[None]:
    """A test that sets the number of threads does not change it for the next."""
    before = clew.get_num_threads()
    yield
    if clew.get_num_threads() != before:
        clew.set_num_threads(before)
