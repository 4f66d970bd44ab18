"""The extension as a file: how large it is, what it needs, what it shows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clew import _core

FILE = Path(_core.__file__)


def read_elf(*options: str) -> str:
    if sys.platform != "linux" or shutil.which("readelf") is None:
        pytest.skip("no readelf here")
    return subprocess.run(["readelf", "-W", *options, str(FILE)], capture_output=True, text=True, check=True).stdout


def test_it_is_small() -> None:
    assert FILE.stat().st_size <= 12e6


def test_it_needs_the_c_library_and_nothing_else() -> None:
    lines = [line for line in read_elf("--dynamic").splitlines() if "(NEEDED)" in line]
    needed = {line.split("[")[1].split("]")[0].split(".so")[0] for line in lines}
    assert needed and needed <= {"libc", "libm", "libpthread", "ld-linux-x86-64", "ld-linux-aarch64"}


def test_it_shows_its_entry_and_what_threadpoolctl_looks_for() -> None:
    rows = [line.split() for line in read_elf("--dyn-syms").splitlines()]
    shown = [row[7] for row in rows if len(row) == 8 and row[4] in ("GLOBAL", "WEAK") and row[6] != "UND"]
    assert sorted(shown) == ["PyInit__core", "clew_thread_pool"]
