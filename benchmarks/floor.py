"""Floors: what the matrix products alone take, and what reading the weights alone takes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from clew import _core
from numpy.typing import NDArray

from .models import D_MLP, D_MODEL, D_VOCAB, N_HEADS, N_LAYERS

Array = NDArray[Any]
D_HEAD = D_MODEL // N_HEADS
QUERY_BLOCK = 64


def filled(*shape: int) -> Array:
    """A float32 array of memory that products may read: about normal, standard deviation 0.02."""
    out = _core.empty(shape, np.float32)
    pattern = np.random.default_rng(0).standard_normal(4099, dtype=np.float32) * np.float32(0.02)
    flat = out.reshape(-1)
    whole = flat.size // pattern.size * pattern.size
    flat[:whole].reshape(-1, pattern.size)[...] = pattern
    flat[whole:] = pattern[: flat.size - whole]
    return out


class Gemm:
    """Every product of a forward pass of GPT-2 124M through the engine's own GEMM, with nothing around it.

    The weights are distinct for each layer, as in the model; query, key and value are one product; attention is
    computed in blocks of queries against the keys that the block's last query sees.
    """

    def __init__(self) -> None:
        self._layers = [
            (filled(D_MODEL, 3 * D_MODEL), filled(D_MODEL, D_MODEL), filled(D_MODEL, D_MLP), filled(D_MLP, D_MODEL))
            for _ in range(N_LAYERS)
        ]
        self._unembed = filled(D_VOCAB, D_MODEL).T  # tied: the embedding's layout

    def forward(self, batch: int, pos: int, query_block: int = QUERY_BLOCK) -> Any:
        """A function that computes the products of a run of [batch, pos] tokens."""
        rows, heads = batch * pos, batch * N_HEADS
        x, y, z = filled(rows, D_MODEL), filled(rows, D_MODEL), filled(heads, pos, D_HEAD)
        q, k, v = (filled(heads, pos, D_HEAD) for _ in range(3))
        qkv, hidden, logits = filled(rows, 3 * D_MODEL), filled(rows, D_MLP), filled(rows, D_VOCAB)
        scores = filled(heads, min(query_block, pos), pos)
        product = _core.product

        def forward() -> None:
            for w_qkv, w_o, w_in, w_out in self._layers:
                product(qkv, x, w_qkv)
                for first in range(0, pos, query_block):
                    end = min(first + query_block, pos)
                    block = scores[:, : end - first, :end]
                    product(block, q[:, first:end], k[:, :end].transpose(0, 2, 1))
                    product(z[:, first:end], block, v[:, :end])
                product(y, x, w_o)
                product(hidden, x, w_in)
                product(y, hidden, w_out)
            product(logits, x, self._unembed)

        return forward


def flops(batch: int, pos: int, query_block: int = QUERY_BLOCK) -> float:
    """Floating-point operations of `Gemm.forward`."""
    rows = batch * pos
    seen = sum(
        (min(first + query_block, pos) - first) * min(first + query_block, pos) for first in range(0, pos, query_block)
    )
    dense = N_LAYERS * (4 * D_MODEL**2 + 2 * D_MODEL * D_MLP) + D_MODEL * D_VOCAB
    return 2.0 * rows * dense + 4.0 * N_LAYERS * batch * seen * D_MODEL


class Reading:
    """Reading memory once: the largest value of as many bytes as the weights have, by `threads` threads of NumPy.

    file: where the weights lie, mapped, in pages of 4 KiB; None: memory of our own, in pages as large as there are.
    """

    def __init__(self, n_bytes: int, threads: int, file: Path | None = None) -> None:
        values = filled(n_bytes // 4) if file is None else np.memmap(file, np.float32, "r", shape=(n_bytes // 4,))
        self._pieces = np.array_split(values, threads)
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self) -> float:
        return max(float(x) for x in self._pool.map(np.max, self._pieces))
