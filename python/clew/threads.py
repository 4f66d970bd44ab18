"""The engine's thread pool, made visible to threadpoolctl where that package is installed."""

from __future__ import annotations

from . import _core
from ._core import get_num_threads
from .errors import ConfigError

__all__ = ["get_num_threads", "register", "set_num_threads"]


def set_num_threads(n: int) -> None:
    """Sets how many threads runs use, 1 to 256. Results are the same bits for any number.

    Raises ConfigError for another number.
    """
    if isinstance(n, bool):
        raise ConfigError(f"set_num_threads({n}): expected a whole number")
    try:
        _core.set_num_threads(n)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error) if isinstance(error, ValueError) else f"set_num_threads({n!r}): {error}") from None


def register() -> bool:
    """Tells threadpoolctl about the pool: `threadpool_info()` lists it, `threadpool_limits(n)` limits it.

    Returns whether threadpoolctl is installed. Done when clew is imported.
    """
    try:
        import threadpoolctl
    except ImportError:
        return False

    class ClewController(threadpoolctl.LibController):  # type: ignore[misc]
        """The pool behind the extension; found by the extension's file name."""

        user_api = "clew"
        internal_api = "clew"
        filename_prefixes = ("_core.",)
        check_symbols = ("clew_thread_pool",)  # other packages' extensions may be called _core too

        def get_num_threads(self) -> int:
            return get_num_threads()

        def set_num_threads(self, num_threads: int) -> None:
            set_num_threads(num_threads)

        def get_version(self) -> str:
            return str(_core.build_info()["version"])

        def set_additional_attributes(self) -> None:
            self.kernels = _core.build_info()["kernels"]

    threadpoolctl.register(ClewController)
    return True
