"""The geometry of a transformer (Molina 2023, *Traveling Words*, arXiv:2309.07315)."""

from .search import Nearest, nearest

__all__ = ["Nearest", "nearest"]
