"""Builds the extension clew._core from csrc/core and csrc/binding, with BLIS linked in statically.

Some files are compiled several times: kernels*.c for both precisions and every instruction set, op_*.c for both
precisions. `units` is that list; the C tests (tests/c/run.py) build from it too.

Environment: CC, CFLAGS, LDFLAGS as usual; CLEW_BLIS_PREFIX (where BLIS is installed); CLEW_WERROR=1 (warnings are
errors); MAX_JOBS (compilers at once).
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CORE = ROOT / "csrc" / "core"
BINDING = ROOT / "csrc" / "binding"

FLAGS = [
    *("-std=c11", "-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"),
    *("-fPIC", "-fvisibility=hidden", "-D_GNU_SOURCE"),
    *("-Wall", "-Wextra", "-Wshadow", "-Wconversion"),
]
ISA_FLAGS = {"base": ["-O2"], "v3": ["-march=x86-64-v3"], "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"]}

WARNED = "  # with warnings"
"""Behind the command of an object whose compiler complained."""

BLIS_HELP = """no BLIS library to link was found.

Install one:
    apt     sudo apt-get install libblis-serial-dev
    dnf     sudo dnf install blis-devel
    brew    brew install blis
    conda   conda install -c conda-forge blis
or set CLEW_BLIS_PREFIX to the place where one is installed (include/blis/blis.h and lib/libblis.a below it)."""


class BuildError(SystemExit):
    """Ends the build with a sentence instead of a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(f"clew: {message}")


@dataclass(frozen=True)
class Blis:
    """A BLIS to link: the folder of blis.h, and what the linker is given."""

    include: Path
    link: tuple[str, ...]


@dataclass(frozen=True)
class Unit:
    """One compilation: a source, the flags of its own, and its object's name."""

    source: Path
    name: str
    flags: tuple[str, ...] = ()


def version() -> str:
    """CLEW_VERSION of clew.h, the only place where the version stands."""
    found = re.search(r'^#define CLEW_VERSION "([^"]+)"', (CORE / "clew.h").read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise BuildError("csrc/core/clew.h defines no CLEW_VERSION")
    return found[1]


# ---- BLIS -----------------------------------------------------------------------------------------------------------


def uses_openmp(library: Path) -> bool:
    """Is this a BLIS with OpenMP threads? It hangs in a forked child."""
    content = library.read_bytes()
    return b"GOMP_parallel" in content or b"__kmpc_fork_call" in content


def blis_at(includes: Sequence[Path], libraries: Sequence[Path]) -> Blis | None:
    """The BLIS whose header and library lie in these folders; a static library before a shared one."""
    include = next((path for path in includes if (path / "blis.h").is_file()), None)
    for name in ("libblis.a", "libblis.so", "libblis.dylib"):
        for folder in libraries:
            library = folder / name
            if include is None or not library.is_file() or uses_openmp(library):
                continue
            if name.endswith(".a"):
                return Blis(include, (str(library),))
            print(f"clew: {folder} holds no static BLIS: the extension will need {library}", file=sys.stderr)
            return Blis(include, (str(library), f"-Wl,-rpath,{folder}"))
    return None


def blis_below(prefix: Path) -> Blis | None:
    """The BLIS installed under a prefix."""
    return blis_at([prefix / "include" / "blis", prefix / "include"], [prefix / "lib", prefix / "lib64"])


def blis_of_pkg_config() -> Blis | None:
    """The BLIS that pkg-config knows."""
    if not shutil.which("pkg-config"):
        return None

    def ask(variable: str) -> list[Path]:
        answer = subprocess.run(["pkg-config", f"--variable={variable}", "blis"], capture_output=True, text=True)
        return [Path(answer.stdout.strip())] if answer.returncode == 0 and answer.stdout.strip() else []

    includes = ask("includedir")
    return blis_at([*(path / "blis" for path in includes), *includes], ask("libdir"))


def candidates() -> Iterator[Blis | None]:
    """Places where BLIS may be, best first."""
    yield blis_of_pkg_config()
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    yield blis_at(  # Debian
        [Path("/usr/include", multiarch, "blis-serial")], [Path("/usr/lib", multiarch, "blis-serial")]
    )
    prefixes = [os.environ.get("CONDA_PREFIX"), sys.prefix, "/usr/local", "/opt/homebrew", "/opt/local", "/usr"]
    for prefix in filter(None, prefixes):
        yield blis_below(Path(prefix))


def find_blis() -> Blis:
    """The BLIS to build with; ends the build, saying how to install one, when there is none."""
    prefix = os.environ.get("CLEW_BLIS_PREFIX")
    if prefix:
        found = blis_below(Path(prefix))
        if found is None:
            raise BuildError(
                f"CLEW_BLIS_PREFIX={prefix} has no include/blis/blis.h or include/blis.h with a libblis.a or shared "
                "libblis in lib or lib64 (one with OpenMP threads does not count: it hangs in forked processes)"
            )
        return found
    found = next(filter(None, candidates()), None)
    if found is None:
        raise BuildError(BLIS_HELP)
    return found


# ---- Compiling ------------------------------------------------------------------------------------------------------


def isas() -> dict[str, list[str]]:
    """Instruction sets that kernels are compiled for, and their flags. Where there are several, the oldest is for
    machines that hardly exist: small, not fast."""
    return ISA_FLAGS if platform.machine().lower() in ("x86_64", "amd64") else {"base": []}


def units(blis: Blis, known: Collection[str] | None = None) -> list[Unit]:
    """What the core is compiled from. known: instruction sets to compile kernels for; None: all."""
    found = []
    sets = {isa: flags for isa, flags in isas().items() if known is None or isa in known or isa == "base"}
    for source in sorted(CORE.glob("*.c")):
        stem = source.stem
        if stem.startswith("kernels"):
            for real in ("float", "double"):
                for isa, flags in sets.items():
                    # nothing is thrown through kernels, and tables of unwinding are 8 % of them
                    own = (f"-DREAL={real}", f"-DISA={isa}", "-fno-asynchronous-unwind-tables", *flags)
                    found.append(Unit(source, f"{stem}_{real}_{isa}", own))
        elif stem.startswith("op_"):
            found += [Unit(source, f"{stem}_{real}", (f"-DREAL={real}",)) for real in ("float", "double")]
        elif stem == "dispatch":
            found.append(Unit(source, stem, tuple(f"-DCLEW_ISA_{isa.upper()}" for isa in sets if isa != "base")))
        elif stem == "blas":
            found.append(Unit(source, stem, ("-isystem", str(blis.include))))
        else:
            found.append(Unit(source, stem))
    return found


def binding_units() -> list[Unit]:
    """What the binding is compiled from."""
    import numpy

    includes = (sysconfig.get_path("include"), sysconfig.get_path("platinclude"), numpy.get_include())
    flags = [flag for include in dict.fromkeys(includes) for flag in ("-isystem", include)]
    return [Unit(source, source.stem, tuple(flags)) for source in sorted(BINDING.glob("*.c"))]


def compiler() -> list[str]:
    """The C compiler's command."""
    return shlex.split(os.environ.get("CC") or "") or ["cc" if shutil.which("cc") else "gcc"]


def flavour() -> str:
    """Names folders of objects, so that builds with different compilers do not undo each other."""
    return "-".join(Path(part).name for part in compiler())


def objects_folder() -> Path:
    """Where the extension's objects are kept; the C tests link those of the core."""
    return ROOT / "build" / "objects" / f"{flavour()}-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"


def strict() -> bool:
    """Are warnings errors?"""
    return os.environ.get("CLEW_WERROR") == "1"


def compile_units(found: Sequence[Unit], folder: Path, extra: Sequence[str] = ()) -> list[str]:
    """Compiles what is out of date, several at once; the objects, in the order of the units.

    An object is up to date when it is newer than its source, every header and list of csrc, and its command is the
    same; where warnings are errors, it must have been compiled without one too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    common = [
        *FLAGS,
        f"-I{CORE}",
        *extra,
        *shlex.split(os.environ.get("CFLAGS") or ""),
    ]
    headers = [path for pattern in ("*.h", "*.def") for path in (ROOT / "csrc").rglob(pattern)]
    newest = max(path.stat().st_mtime for path in headers)

    def build(unit: Unit) -> str:
        target, record = folder / f"{unit.name}.o", folder / f"{unit.name}.cmd"
        command = [*compiler(), *common, *unit.flags, "-c", str(unit.source), "-o", str(target)]
        line = shlex.join(command)
        if (
            target.is_file()
            and record.is_file()
            and target.stat().st_mtime > max(newest, unit.source.stat().st_mtime)
            and record.read_text(encoding="utf-8") in ([line] if strict() else [line, line + WARNED])
        ):
            return str(target)
        target.unlink(missing_ok=True)
        result = subprocess.run([*command, *(["-Werror"] if strict() else [])], capture_output=True, text=True)
        if result.stdout or result.stderr:
            print(f"{unit.source.name} [{unit.name}]\n{result.stdout}{result.stderr}", file=sys.stderr, end="")
        if result.returncode:
            raise BuildError(f"{unit.source.relative_to(ROOT)} does not compile ({line})")
        record.write_text(line + (WARNED if result.stdout or result.stderr else ""), encoding="utf-8")
        return str(target)

    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(max(jobs, 1)) as pool:
        return list(pool.map(build, found))


class BuildCore(build_ext):
    """build_ext that compiles by `units`, and keeps its objects in build/ so that a second build is quick."""

    def build_extension(self, ext: Extension) -> None:
        """Compiles and links clew._core."""
        blis = find_blis()
        objects = compile_units([*units(blis), *binding_units()], objects_folder())
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if sys.platform == "darwin":
            shape = ["-bundle", "-undefined", "dynamic_lookup", "-Wl,-x"]
        else:
            shape = ["-shared", "-Wl,--exclude-libs,ALL", "-Wl,--gc-sections", "-Wl,-z,noseparate-code", "-Wl,-s"]
        extra = shlex.split(os.environ.get("LDFLAGS") or "")
        command = [*compiler(), *shape, *objects, *blis.link, *extra, "-lm", "-lpthread", "-o", str(target)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise BuildError(f"the extension does not link ({shlex.join(command)})\n{result.stderr}")


if __name__ == "__main__":
    sources = [str(path.relative_to(ROOT)) for folder in (CORE, BINDING) for path in sorted(folder.glob("*.c"))]
    setup(version=version(), ext_modules=[Extension("clew._core", sources)], cmdclass={"build_ext": BuildCore})
