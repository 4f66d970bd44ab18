"""What the papers' modules refuse, and that the message names what came."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import clew
import numpy as np
import pytest
from clew import adaptive, geometry, mazes, regression
from clew.errors import ConfigError, ShapeError, TokenError

X = np.ones((1, 3, 2))
TOK = mazes.Tokenizer(grid=6)
SOLVER = clew.load("maze-6x6")
MS = mazes.generate(1, grid=6, seed=0)
ROWS = np.eye(4)
CASES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: regression.fit_predict(X, X[..., 0], X, []), ConfigError, "no method []"),  # type: ignore[arg-type]
    (lambda: mazes.generate(1, start=[[1, 2], [3]]), ShapeError, "generate: start cannot be read as an array"),
    (lambda: mazes.solve(None, MS), ConfigError, "model: a Model"),  # type: ignore[arg-type]
    (lambda: mazes.solve(SOLVER, 3), ConfigError, "a sequence of mazes, not int"),  # type: ignore[arg-type]
    (lambda: mazes.solve(SOLVER, MS, tokenizer="zz"), ConfigError, "a Tokenizer of mazes, not str"),  # type: ignore[arg-type]
    (lambda: mazes.solve(SOLVER, MS, max_cells="3"), ConfigError, "max_cells = '3'"),  # type: ignore[arg-type]
    (lambda: mazes.evaluate(SOLVER, MS, seed=-1), ConfigError, "seed = -1"),
    (lambda: TOK.encode(None), TokenError, "not NoneType"),  # type: ignore[arg-type]
    (lambda: TOK.encode([[]]), TokenError, "token 0, [], is not"),  # type: ignore[list-item]
    (lambda: TOK.decode([[1, 2], [3]]), ShapeError, "ids cannot be read as an array"),
    (lambda: TOK.cells_of(1.5), TokenError, "cells_of takes ids, not float64 []"),
    (lambda: geometry.nearest(ROWS, [[1, 2], [3]]), ShapeError, "nearest: vectors cannot be read"),
    (lambda: geometry.nearest(ROWS, ROWS, metric=[]), ConfigError, "metric = []"),  # type: ignore[arg-type]
    (lambda: geometry.fit_projection("zz"), ShapeError, "rows must be real numbers, not <U2"),
    (lambda: geometry.fit_projection(ROWS * np.nan), ConfigError, "rows hold NaN or infinity"),
    (lambda: geometry.fit_projection(ROWS, max_rows=-1), ConfigError, "max_rows = -1"),
    (lambda: adaptive.fit(None, 0.3, 1), ConfigError, "prior: one or a sequence of them, not NoneType"),  # type: ignore[arg-type]
    (lambda: adaptive.fit([[]], 0.3, 1), ConfigError, "prior: a Prior, such as tree() gives, not list"),  # type: ignore[list-item]
    (lambda: adaptive.fit(adaptive.tree(), None, 1), ConfigError, "noise = None"),  # type: ignore[arg-type]
    (lambda: adaptive.fit(adaptive.tree(), 0.3, 1, steps=1.5), ConfigError, "steps = 1.5"),  # type: ignore[arg-type]
    (lambda: adaptive.fit(adaptive.tree(), 0.3, 1, batch=10**30), ConfigError, "below 2³¹"),
    (lambda: adaptive.fit(adaptive.tree(), 0.3, 1, seeds="z"), ConfigError, "seeds: one or a sequence"),  # type: ignore[arg-type]
    (lambda: adaptive.programme(adaptive.tree(), 0.3, "z"), ConfigError, "a layer's number = 'z'"),  # type: ignore[arg-type]
    (lambda: adaptive.programme(None, 0.3, [1]), ConfigError, "not NoneType"),  # type: ignore[arg-type]
    (lambda: adaptive.programme(adaptive.tree(), 0.3, [1], "zz"), ShapeError, "directions must be real numbers"),
    (lambda: adaptive.tree("zz"), ShapeError, "amplitudes must be real numbers"),  # type: ignore[arg-type]
    (lambda: adaptive.between(None), ConfigError, "None"),  # type: ignore[arg-type]
    (lambda: adaptive.noiseless_error([1.0, 2.0], 1.5), ConfigError, "messages = 1.5"),  # type: ignore[arg-type]
    (lambda: adaptive.node_directions(None), ConfigError, "depth = None"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_what_came_is_named(number: int) -> None:
    call, error, message = CASES[number]
    with pytest.raises(error, match=re.escape(message)):
        call()
