"""Builds the C tests (test_*.c, each with the whole core and BLIS) and runs them.

    python tests/c/run.py [--sanitize address|thread] [--build-only] [name ...]

The closing line is "N passed, N failed"; the exit status says whether all is well.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TIMEOUT = 900

SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "die_after_fork=0:allocator_may_return_null=1:halt_on_error=1:second_deadlock_stack=1",
}
SERIAL = {"test_kernels"}
"""Programs without threads: nothing for the thread sanitizer to see."""


def rules() -> ModuleType:
    """setup.py as a module: how the core is compiled stands there, once."""
    spec = importlib.util.spec_from_file_location("clew_build", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


NEEDS = {"v3": "avx2", "v4": "avx512f"}
"""Of each instruction set, what its machines have."""


def runnable() -> set[str] | None:
    """Instruction sets that this machine may have; None where it does not say."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return None
    return {isa for isa, flag in NEEDS.items() if flag in flags}


def fixed_addresses() -> None:
    """Turns address randomisation off: older thread sanitizers fail on kernels that randomise much."""
    if sys.platform == "linux":
        ctypes.CDLL(None).personality(0x0040000)


def build(names: list[str], sanitizer: str | None) -> list[Path]:
    """Compiles the core and the programs. Without a sanitizer the core is the extension's; with one, kernels that this
    machine can't run are left out, as they take longest."""
    make = rules()
    blis = make.find_blis()
    folder = ROOT / "build" / "tests" / f"{make.flavour()}-{sanitizer or 'plain'}"
    flags = ["-g", "-O2", "-fno-omit-frame-pointer", *SANITIZERS[sanitizer]] if sanitizer else []
    units = make.units(blis, runnable() if sanitizer else None)
    core = make.compile_units(units, folder if sanitizer else make.objects_folder(), flags)
    tests = make.compile_units([make.Unit(HERE / f"{name}.c", name) for name in names], folder, flags)
    programs = []
    for name, test in zip(names, tests, strict=True):
        link = [*make.compiler(), *flags, test, *core, *blis.link, "-lm", "-lpthread"]
        subprocess.run([*link, "-o", str(folder / name)], check=True)
        programs.append(folder / name)
    return programs


def run(program: Path, sanitizer: str | None) -> tuple[int, int]:
    """How many checks of a program passed and failed; one that does not end well failed."""
    environment = {**OPTIONS, **os.environ}
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = subprocess.run(
                [str(program)],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                preexec_fn=fixed_addresses if sanitizer == "thread" else None,
            )
        except subprocess.TimeoutExpired as late:
            print(f"{program.name}: not finished after {TIMEOUT} s\n{late.stdout or ''}\n{late.stderr or ''}")
            return 0, 1
    closing = re.search(rf"^{program.name}: (\d+) passed, (\d+) failed$", result.stdout, re.MULTILINE)
    passed, failed = (int(closing[1]), int(closing[2])) if closing else (0, 0)
    if result.returncode or failed or not passed:
        print(f"{result.stdout}{result.stderr}{program.name} ended with status {result.returncode}")
        return passed, max(failed, 1)
    print(closing[0] if closing else "")
    return passed, failed


def main() -> int:
    """Builds, runs, adds up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sanitize", choices=SANITIZERS)
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    names = arguments.names or sorted(path.stem for path in HERE.glob("test_*.c"))
    if arguments.sanitize == "thread":
        names = [name for name in names if name not in SERIAL]
    programs = build(names, arguments.sanitize)
    if arguments.build_only:
        return 0
    results = [run(program, arguments.sanitize) for program in programs]
    passed, failed = sum(p for p, _ in results), sum(f for _, f in results)
    print(f"{passed} passed, {failed} failed", flush=True)
    return int(failed > 0 or passed == 0)


if __name__ == "__main__":
    sys.exit(main())
