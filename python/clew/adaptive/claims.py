"""Predictions in the form that all papers' results have: what the abstract says, and what was measured, in numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..experiment import Claim, verdict
from .predictions import Prediction

__all__ = ["claim"]

_ABSTRACT = "(only the abstract was at hand; the measure is ours) "
_SAYS = {
    "table": "no such numbers in what was at hand: the bounds are those of our own specification",
    "a": _ABSTRACT + "non-Gaussian, hierarchical structure is what depth is related to; the Gaussian is our control",
    "b": _ABSTRACT + "a non-trivial relationship between depth and non-Gaussian, hierarchical structure of the context",
    "c": _ABSTRACT + "function vectors let it infer a latent context at increasingly finer scales over its layers",
    "d": _ABSTRACT + "internal states guide what later layers do; the control that takes this away is ours",
    "e": _ABSTRACT + "constrained linear-attention transformers show adaptive inference in deep architectures",
    "f": _ABSTRACT + "internal state representations, “function vectors”, carry what was inferred of the context",
    "g": _ABSTRACT + "a deep transformer is a mean-field interacting system",
    "ordinary": _ABSTRACT + "feedforward blocks and depth implement a much richer class of in-context algorithms",
}


def _list(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _table(n: dict[str, Any]) -> str:
    over = {
        name: max(row[name] - row["expected"][place] for row in n.values())
        for place, name in ((2, "adaptive"), (1, "non-adaptive"))
    }
    name = next((name for name in n if name == "s=0.3 L=3"), next(iter(n)))
    row = n[name]
    return (
        f"over {len(n)} settings the adaptive error is at most {over['adaptive']:+.3f} above its bound, the "
        f"non-adaptive {over['non-adaptive']:+.3f}; at {name} adaptive {row['adaptive']:.3f}, non-adaptive "
        f"{row['non-adaptive']:.3f}, with all data {row['full data']:.3f}"
    )


def _a(n: dict[str, Any]) -> str:
    kinds = "; ".join(f"{name} {_list(n[name])}" for name in ("adaptive", "non-adaptive", "closed form"))
    return f"error at L = {', '.join(map(str, n['layers']))}: {kinds}"


def _b(n: dict[str, Any]) -> str:
    curves = "; ".join(f"{name} {_list(curve['errors'])}" for name, curve in n["curves"].items())
    others = ", ".join(f"{name} {gain:.3f}" for name, gain in n["controls"].items())
    return (
        f"error by depth, trees of K levels: {curves}; gain of {n['layers of the gain']} layers over as many heads "
        f"{n['gain'][0]:.3f} under the tree, {n['gain'][-1]:.3f} under the Gaussian ({others})"
    )


def _c(n: dict[str, Any]) -> str:
    rows = "; ".join(f"after layer {i}: {_list(row)}" for i, row in enumerate(n["transformer"], 1))
    return f"bits about levels 1, 2, … in the trained network's workspace {rows}"


def _d(n: dict[str, Any]) -> str:
    return (
        f"error {n['transformer']:.3f} with routing, {n['transformer without routing']:.3f} without; "
        f"one layer of as many heads {n['one layer of 3 heads']:.3f}"
    )


def _e(n: dict[str, Any]) -> str:
    least = [min(errors) for errors in n["transformer"]]
    return (
        f"least error over seeds, L = {', '.join(map(str, n['layers']))}: {_list(least)}; optimal policy "
        f"{_list(n['policy'])}; restricted programme {_list(n['programme']['adaptive'])}; all data {n['full data']:.2f}"
    )


def _f(n: dict[str, Any]) -> str:
    rows = "; ".join(f"layer {i}: " + ", ".join(f"{x:.0%}" for x in row) for i, row in enumerate(n["donor"], 1))
    return f"share with the donor's branch at levels 1, 2, … when the workspace is patched after {rows}; chance 50%"


def _g(n: dict[str, Any]) -> str:
    errors = n["errors"]
    return (
        f"fluctuation of a message ∝ N^{n['slope']:.3f}; error {errors[0]:.2f} at N = {n['N'][0]} to {errors[-1]:.3f} "
        f"at N = {n['N'][-1]}"
    )


def _ordinary(n: dict[str, Any]) -> str:
    rows = []
    for kind in dict.fromkeys(name.split(",")[0] for name in n):
        shallow, deep = (n[f"{kind}, {rest}"] for rest in ("1 layer, no MLP", "3 layers, MLP"))
        rows.append(
            f"{kind} attention {shallow['to_posterior']:.2f} with 1 layer and no MLP, {deep['to_posterior']:.2f} with "
            f"3 layers and MLPs (to {deep['algorithm']} {deep['to_algorithm']:.2f})"
        )
    return "squared distance to the tree posterior: " + "; ".join(rows)


_MEASURED: dict[str, Callable[[dict[str, Any]], str]] = {
    "table": _table, "a": _a, "b": _b, "c": _c, "d": _d, "e": _e, "f": _f, "g": _g, "ordinary": _ordinary,
}  # fmt: skip


def claim(prediction: Prediction, before: bool = False) -> Claim:
    """A prediction as a claim of paper 2; before: it was measured by the run that is stored with the package.

    >>> from clew.adaptive import stored
    >>> found = claim(stored().predictions["d"])
    >>> found.verdict, found.measured[:32]
    ('holds', 'error 0.058 with routing, 0.204 ')
    """
    failed = [check for check in prediction.checks if not check.holds]
    measured = _MEASURED[prediction.key](prediction.numbers)
    if before:
        measured = f"(in the run stored with the package) {measured}"
    if failed:
        found = "; ".join(f"{c.statement}: {c.value:.3g}, bound {c.bound:.3g}" for c in failed)
        measured += f". {len(failed)} of {len(prediction.checks)} checks fail: {found}"
    else:
        measured += f". All {len(prediction.checks)} checks hold"
    text = f"({prediction.key}) {prediction.claim}"
    return Claim(2, text, _SAYS[prediction.key], measured, verdict(not failed), prediction.key)
