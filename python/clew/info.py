"""What this installation is, and the trained models inside it."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np

from . import _core

__version__: str = _core.build_info()["version"]


def bundled() -> list[str]:
    """Names of the trained models inside the package; `clew.load(name)` loads one.

    >>> "stories260K" in bundled()
    True
    """
    from .loaders import bundled as names

    return names()


def show_config() -> dict[str, str]:
    """Prints and returns versions, the extension, its kernels, BLIS's kernel family and the number of threads."""
    build = _core.build_info()
    facts = {
        "clew": build["version"],
        "extension": str(Path(_core.__file__).name),
        "kernels": build["kernels"],
        "BLIS": build.get("blis_version", ""),
        "BLIS kernels": build["blis_kernels"],
        "threads": str(_core.get_num_threads()),
        "NumPy": np.__version__,
        "Python": sys.version.split()[0],
        "machine": platform.machine(),
    }
    for name, value in facts.items():
        print(f"{name:<13} {value}")
    return facts
