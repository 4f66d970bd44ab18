"""What training went through: the loss of every step, and held-out losses."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LoadError
from ..loaders.safetensors import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STEP = ("step", "loss", "lr", "norm")
_HELD = ("step", "loss")


@dataclass
class Curve:
    """Losses of training, in the order of the steps; the first is 1.

    >>> curve = Curve(rows=[(1, 3.5, 0.1, 0.9), (2, 3.25, 0.1, 0.8)], held_out=[(2, 3.4)])
    >>> curve.losses.tolist(), curve.best
    ([3.5, 3.25], (2, 3.4))
    """

    rows: list[tuple[int, float, float, float]] = field(default_factory=list)
    """(step, mean loss of its batch, learning rate, norm of the gradient before clipping)"""
    held_out: list[tuple[int, float]] = field(default_factory=list)
    """(steps done, mean loss of the held-out data)"""

    def __repr__(self) -> str:
        if not self.rows:
            return "Curve of 0 steps"
        n, (best, loss) = len(self.held_out), self.best or (0, 0.0)
        held = f"; {n} held-out losses, least {loss:.4g} at step {best}" if n else ""
        return f"Curve of {len(self.rows)} steps: loss {self.rows[0][1]:.4g} first, {self.rows[-1][1]:.4g} last{held}"

    @property
    def losses(self) -> NDArray[np.float64]:
        """Loss of each step, float64 [steps]."""
        return np.array([row[1] for row in self.rows])

    @property
    def best(self) -> tuple[int, float] | None:
        """(steps done, loss) of the least held-out loss, the first of equal ones; None where nothing was held out."""
        return min(self.held_out, key=lambda row: row[1], default=None)

    def cut(self, steps: int) -> None:
        """Forgets what lies behind so many steps."""
        self.rows = [row for row in self.rows if row[0] <= steps]
        self.held_out = [row for row in self.held_out if row[0] <= steps]

    def save(self, path: str | os.PathLike[str]) -> None:
        """JSON lines, replacing the file at once: {"step", "loss", "lr", "norm"} and {"step", "held_out"}.

        Raises OSError; the file is then as it was.
        """
        lines: list[tuple[int, int, dict[str, Any]]] = []
        lines += [(row[0], 0, dict(zip(_STEP, row, strict=True))) for row in self.rows]
        lines += [(step, 1, {"step": step, "held_out": loss}) for step, loss in self.held_out]
        lines.sort(key=lambda line: line[:2])
        with replacing(path) as file:
            for _, _, line in lines:
                file.write(json.dumps(line).encode() + b"\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Curve:
        """What :meth:`save` wrote. Raises LoadError naming the line."""
        curve = cls()
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LoadError(f"{path}: {error}") from error
        for number, line in enumerate(text.splitlines(), 1):
            try:
                entry = json.loads(line)
                if "held_out" in entry:
                    curve.held_out.append((int(entry["step"]), float(entry["held_out"])))
                else:
                    curve.rows.append(
                        (int(entry["step"]), float(entry["loss"]), float(entry["lr"]), float(entry["norm"]))
                    )
            except (ValueError, KeyError, TypeError) as error:
                raise LoadError(f"{path}: line {number} is none of a loss curve: {error!r}") from None
        return curve

    def plot(self, **options: Any) -> Figure:
        """A figure of it: :func:`clew.plot.loss_curve`, which takes the options. Needs matplotlib."""
        from ..plot import loss_curve

        return loss_curve(self, **options)

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """As float64 arrays, for checkpoints."""
        return {
            "curve/steps": np.array(self.rows, np.float64).reshape(-1, len(_STEP)),
            "curve/held_out": np.array(self.held_out, np.float64).reshape(-1, len(_HELD)),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Curve:
        """What :meth:`arrays` gave."""
        rows = [(int(r[0]), float(r[1]), float(r[2]), float(r[3])) for r in arrays["curve/steps"]]
        return cls(rows, [(int(r[0]), float(r[1])) for r in arrays["curve/held_out"]])
