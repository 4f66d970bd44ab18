"""A signal handler's own exception comes out of every long call in the core, unchanged."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import clew
import numpy as np
import pytest
from clew import geometry, mazes, regression


class Stop(Exception):
    """What the handler raises: neither KeyboardInterrupt nor one of clew's."""


@pytest.fixture
def alarm() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def _lasso() -> None:
    rng = np.random.default_rng(0)
    regression.lasso(rng.standard_normal((64, 400, 60)), rng.standard_normal((64, 400)), 1e-4)


def _dmmse() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((256, 32, 8)), rng.standard_normal((256, 32))
    regression.dmmse(X, y, rng.standard_normal((1 << 19, 8)), 0.25)


def _nearest() -> None:
    rng = np.random.default_rng(0)
    geometry.nearest(rng.standard_normal((50000, 256)), rng.standard_normal((20000, 256)), k=3)


def _mazes() -> None:
    mazes.generate(500_000, 12)


def _adaptive() -> None:
    from clew import adaptive

    adaptive.programme(adaptive.tree(), 0.3, (1, 1, 1))


def _model() -> None:
    clew.load("english").run(np.zeros((64, 250), int))


@pytest.mark.parametrize("work", [_lasso, _dmmse, _nearest, _mazes, _adaptive, _model])
def test_a_handlers_own_exception_ends_the_call(work: Callable[[], None], alarm: None) -> None:
    with pytest.raises(Stop):
        work()
