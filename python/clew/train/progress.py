"""What training shows: a bar where tqdm is installed, else a line now and then."""

from __future__ import annotations

import time
from typing import Any

_LINE_EVERY = 5.0
"""Seconds between lines."""


class Progress:
    """Shows steps as they are done."""

    def __init__(self, how: bool | str, done: int, steps: int) -> None:
        self._lines = bool(how)
        self._steps = steps
        self._bar: Any = None
        self._last = -_LINE_EVERY
        self._seconds, self._tokens = 0.0, 0
        if how is True:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True)

    def line(self, text: str) -> None:
        """A line of its own."""
        if text and self._bar is not None:
            self._bar.write(text)
        elif text and self._lines:
            print(text, flush=True)

    def step(self, number: int, loss: float, rate: float, norm: float, seconds: float, tokens: int) -> None:
        """A step is done."""
        self._seconds, self._tokens = self._seconds + seconds, self._tokens + tokens
        speed = self._tokens / max(self._seconds, 1e-9)
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {speed:.0f} tokens/s", refresh=False)
            self._bar.update(1)
        elif self._lines and (time.monotonic() - self._last >= _LINE_EVERY or number == self._steps):
            self._last = time.monotonic()
            print(
                f"step {number}/{self._steps}: loss {loss:.4f}, lr {rate:.2e}, norm {norm:.3g}, {speed:.0f} tokens/s",
                flush=True,
            )

    def close(self) -> None:
        """Nothing more comes."""
        if self._bar is not None:
            self._bar.close()
