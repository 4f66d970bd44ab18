"""The engine of clew, compiled. Not a public interface: `clew.load`, `Model.run` and the rest stand on it."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, TypedDict, final

from numpy.typing import DTypeLike, NDArray

class _BuildInfo(TypedDict, total=False):
    version: str
    kernels: str
    blis_kernels: str
    blis_version: str

def empty(shape: tuple[int, ...], dtype: DTypeLike, /) -> NDArray[Any]:
    """A writable array in a slab; its values are whatever the memory held. At most 8 axes."""

def map_file(path: str | bytes | PathLike[str] | PathLike[bytes], slack: int = 0, /) -> NDArray[Any]:
    """A read-only uint8 array [bytes] over the mapped file, with `slack` readable bytes behind it."""

def in_slab(array: object, /) -> bool:
    """Does the array's memory lie in a slab?"""

def idle_bytes() -> int:
    """Bytes kept for reuse."""

def set_idle_limit(bytes: int, /) -> None:
    """How many bytes of released memory are kept for reuse (1 GiB)."""

def trim() -> None:
    """Gives idle memory back to the system."""

def first_bad(array: NDArray[Any], /) -> int:
    """Flat index of the first NaN or infinity of a float32 or float64 array with one to three axes; -1: none."""

def copy_finite(out: NDArray[Any], array: NDArray[Any], /) -> int:
    """The same of a contiguous array that it copies to another one, as far as its values are finite."""

def sample(
    logits: NDArray[Any],
    streams: NDArray[Any],
    steps: NDArray[Any],
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    /,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """A token for each row of logits [rows, …, vocab], int32, and its log-probability, float64."""

def product(out: NDArray[Any], a: NDArray[Any], b: NDArray[Any], /) -> None:
    """out [(batch,) m, n] = a [(batch,) m, k] @ b [(batch,) k, n] through the engine's own GEMM; all in slab memory."""

def nearest(
    vectors: NDArray[Any], rows: NDArray[Any], k: int, metrics: tuple[int, ...], /
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Ids, int32 [metric, n, k], of the k rows [m, d] nearest to each of the vectors [n, d], and scores, float64.

    Both in slab memory, of one dtype. metrics: 0 dot product, 1 cosine, 2 Euclidean distance; they share the products.
    Best first.
    """

def histogram(counts: NDArray[Any], rows: NDArray[Any], edges: NDArray[Any], /) -> None:
    """Adds rows [n, d] to counts, int64 [d, bins + 3]: below, in each bin, above, NaN; edges: float64 [bins + 1].

    Here and below rows are float32 or float64, and all arrays are contiguous. Interrupted, it has counted some.
    """

def top_k(values: NDArray[Any], where: NDArray[Any], rows: NDArray[Any], at: NDArray[Any], /) -> None:
    """Puts rows [n, d] that are greater, or equal and earlier, in the place of values, float64 [d, k].

    where: int64 [d, k, 2]; at: where rows are, int64 [n, 2] or [n, d, 2]. A column is a heap, its least first: any
    ascending order, to begin with -inf at 2⁶³ − 1. Interrupted, it has put some.
    """

def centre(centred: NDArray[Any], mean: NDArray[Any], rows: NDArray[Any], /) -> None:
    """rows [n, d] less their mean to the first n rows of centred, float64 [n or more, d].

    mean: float64 [2, d], the mean and what rounding left of it.
    """

def adamw(
    parameters: list[NDArray[Any]],
    gradients: list[NDArray[Any]],
    m: list[NDArray[Any]],
    v: list[NDArray[Any]],
    decay: list[bool],
    step: NDArray[Any],
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    scale: float,
    /,
) -> None:
    """One step of AdamW in place on contiguous arrays of one dtype; gradients are multiplied by `scale` first.

    step: int64 [1], counted up by the same call.
    """

def global_norm(arrays: list[NDArray[Any]], /) -> float:
    """Euclidean norm of all values of contiguous arrays, added up in double; the same bits for any thread count."""

def accumulate(sums: list[NDArray[Any]], arrays: list[NDArray[Any]], factor: float, total: NDArray[Any], /) -> None:
    """sums += factor · arrays, and total += factor (float64 [1]) in the same call."""

def adaptive_parameters(shape: tuple[int, int, int, int, int, int, bool, bool], /) -> int:
    """Parameters of one constrained transformer: (dim, layers, heads, width, readout, points, routing, orthonormal)."""

def adaptive_pass(
    shape: tuple[int, int, int, int, int, int, bool, bool],
    parameters: NDArray[Any],
    centres: NDArray[Any] | None,
    spread: NDArray[Any] | None,
    variance: float,
    n: int,
    w: NDArray[Any] | None,
    estimate: NDArray[Any] | None,
    x: NDArray[Any] | None,
    y: NDArray[Any] | None,
    start: int,
    prediction: NDArray[Any] | None,
    messages: NDArray[Any] | None,
    directions: NDArray[Any] | None,
    losses: NDArray[Any] | None,
    gradient: NDArray[Any] | None,
    /,
) -> None:
    """n contexts through a constrained transformer, into prediction, messages, directions, losses and gradient."""

def adaptive_train(
    shape: tuple[int, int, int, int, int, int, bool, bool],
    parameters: NDArray[Any],
    m: NDArray[Any],
    v: NDArray[Any],
    centres: NDArray[Any],
    spread: NDArray[Any],
    noise: NDArray[Any],
    seeds: NDArray[Any],
    losses: NDArray[Any],
    batch: int,
    first_step: int,
    horizon: int,
    rate: float,
    last_rate: float,
    /,
) -> None:
    """Trains constrained transformers side by side, in place; losses [steps, models] says how many steps."""

def programme_values(
    values: NDArray[Any],
    first: NDArray[Any],
    halved: NDArray[Any],
    centres: NDArray[Any],
    probabilities: NDArray[Any],
    directions: NDArray[Any],
    heads: NDArray[Any],
    spread: float,
    noise: float,
    step: float,
    reach: float,
    /,
) -> None:
    """values [n] = least expected posterior variance when the first layer asks the actions first [n, heads[0]]."""

def reg_stream(
    settings: tuple[Any, ...],
    X: NDArray[Any],
    y: NDArray[Any],
    first: int,
    last: int,
    yhat: NDArray[Any] | None,
    w: NDArray[Any] | None,
    variance: NDArray[Any] | None,
    covariance: NDArray[Any] | None,
    /,
) -> None:
    """Fills estimates from prefixes first … last of X [batch, n, d] (in slab memory), y [batch, n], one row each.

    settings: (kind, steps, lam, noise_var, alpha, tol, momentum, rates, gammas, matrices, mean, max_iterations).
    """

def reg_state(settings: tuple[Any, ...], batch: int, d: int, dtype: DTypeLike, /) -> NDArray[Any]:
    """The state of a stream of `batch` sequences before their first example; copy it to keep it."""

def reg_update(state: NDArray[Any], settings: tuple[Any, ...], x: NDArray[Any], y: NDArray[Any], /) -> None:
    """Takes one more example for each sequence, x [batch, d], y [batch], into the state."""

def reg_weights(
    state: NDArray[Any], settings: tuple[Any, ...], w: NDArray[Any], covariance: NDArray[Any] | None, /
) -> None:
    """Fills w [batch, d] with the estimates from the examples so far, covariance [batch, d, d] with the posterior's."""

def reg_compare(
    kind: int,
    out: NDArray[Any],
    X: NDArray[Any],
    y: NDArray[Any],
    queries: NDArray[Any],
    first: int,
    step: int,
    a: float,
    b: float,
    /,
) -> None:
    """Fills out [batch, m] with predictions for queries that are compared with the examples they see.

    kind: 0 Nadaraya–Watson (a: scale), 1 nearest neighbours (a: k), 2 kernel ridge (a: gamma, b: lam). Query i sees
    examples 0 … min(first + i · step, n) − 1: (0, 1) with queries = X, or (n, 0).
    """

def reg_dmmse(
    yhat: NDArray[Any] | None,
    w: NDArray[Any] | None,
    evidence: NDArray[Any] | None,
    X: NDArray[Any],
    y: NDArray[Any],
    tasks: NDArray[Any],
    log_prior: NDArray[Any] | None,
    first: int,
    last: int,
    noise_var: float,
    /,
) -> None:
    """Fills the posterior means over tasks [n_tasks, d], and log evidence (float64), of prefixes first … last."""

_Mazes = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
"""(grids [n], edges [n, E, 2, 2], n_edges [n], ends [n, 2, 2], path [n, P, 2], n_path [n]): uint8, counts int32."""

def maze_generate(
    batch: _Mazes,
    first: int,
    kind: int,
    grid: int,
    p: float,
    allowed_start: NDArray[Any] | None,
    allowed_target: NDArray[Any] | None,
    dead_end_start: bool,
    dead_end_target: bool,
    distinct: bool,
    part: int,
    test_below: int,
    seed: int,
    /,
) -> None:
    """Fills a batch with the mazes `first`, `first` + 1, … of a seed."""

def maze_hashes(batch: _Mazes, /) -> NDArray[Any]:
    """A number for each maze's walls, uint64 [n]."""

def maze_paths(batch: _Mazes, /) -> None:
    """Writes each maze's shortest path into the batch."""

def maze_distances(batch: _Mazes, /) -> NDArray[Any]:
    """Steps between all cells, int16 [n, cells, cells]; -1: no way."""

def maze_guess(
    batch: _Mazes,
    specials: NDArray[Any],
    cells: NDArray[Any],
    mazes: NDArray[Any],
    said: NDArray[Any],
    lengths: NDArray[Any],
    most: NDArray[Any],
    /,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """How walks in some of the mazes probably go on: tokens [sum of most] and how many each has, int32."""

def maze_tokens(
    batch: _Mazes, specials: NDArray[Any], cells: NDArray[Any], with_path: bool, /
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Tokens of all mazes, one after the other, and how many each has, int32."""

def sites() -> list[tuple[str, str, str, bool]]:
    """(name, axes, meaning, layered) of every capture site, in order of computation."""

def weights() -> list[tuple[str, str, bool]]:
    """(name, axes, layered) of every weight."""

def set_num_threads(n: int, /) -> None:
    """Threads for the next run, 1 to 256; ValueError otherwise."""

def get_num_threads() -> int:
    """Threads that a run uses."""

def build_info() -> _BuildInfo:
    """Version, kernels and BLIS's kernel family."""

@final
class Model:
    """A checked configuration with its weights."""

    def __new__(cls, config: dict[str, Any], weights: list[tuple[int, int, NDArray[Any]]]) -> Model: ...
    def has_site(self, site: int, /) -> bool:
        """Does this model compute the site?"""
    @property
    def n_packed(self) -> int:
        """Number of weights that the engine holds copies of, because it cannot multiply their layout in place."""

@final
class Plan:
    """A compiled request."""

    def __new__(
        cls,
        model: Model,
        lengths: NDArray[Any],
        capture: NDArray[Any],
        positions: NDArray[Any] | None,
        start_layer: int,
        stop_layer: int,
        from_embeddings: bool,
        logits: int,
        edits: Sequence[tuple[Any, ...]] = (),
        past: NDArray[Any] | None = None,
        past_seq: NDArray[Any] | None = None,
        append: bool = False,
        wrt: NDArray[Any] | None = None,
        weights: bool = False,
        objective: int = 0,
        recompute: bool = False,
        last: NDArray[Any] | None = None,
    ) -> Plan: ...
    def trim(self) -> None:
        """Gives back the memory that weight gradients keep between runs."""
    @property
    def keep_bytes(self) -> int:
        """Bytes of what the caller gets."""
    @property
    def scratch_bytes(self) -> int:
        """Bytes that a run needs besides."""
    @property
    def flops(self) -> float:
        """Floating-point operations of the products, causal."""
    @property
    def outputs(self) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
        """(site, layers, shape of one layer) of every output."""
    @property
    def steps(self) -> list[str]:
        """A line about each step."""
    def run(
        self,
        tokens: NDArray[Any] | None,
        embeddings: NDArray[Any] | None,
        calls: Sequence[Callable[..., Any]] = (),
        cache: tuple[list[NDArray[Any]], list[NDArray[Any]]] | None = None,
        targets: NDArray[Any] | None = None,
        weights: NDArray[Any] | None = None,
        /,
    ) -> Any:
        """Computes without the GIL: a list of (site, layers, read-only view) of every output.

        With an objective: (that list, its value, list of (weight, layer, gradient)); gradients by sites have the number
        of all sites added to theirs.
        """
