"""The seven predictions of the specification, (a) to (g): each a function that measures and judges.

Every function takes a :class:`Laboratory`, which trains networks once and lends them out, and returns a
:class:`Prediction`: the claim, every number, and checks with the tolerance they were held to. A check that fails is
told as it is; the verdict of a prediction is that all of its checks hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..inputs import check_flags, check_seed, check_type, whole
from .closed_forms import gaussian_error
from .measures import bits_by_layer
from .network import Constrained, fit
from .patching import patch_branches
from .priors import Prior, between, check_prior, codebook, eigenvalues, flat, gaussian, sample_estimate, tree
from .programme import programme
from .specification import DEFAULT, EXPECTED

__all__ = ["PREDICTIONS", "Check", "Laboratory", "Prediction", "expected_values", "prediction_a", "prediction_b",
           "prediction_c", "prediction_d", "prediction_e", "prediction_f", "prediction_g"]  # fmt: skip

Array = NDArray[Any]
NOISE = DEFAULT.noise
AMPLITUDES = {1: (1.0,), 2: (1.0, 0.7), 3: (1.0, 0.7, 0.5), 4: (1.0, 0.7, 0.5, 0.35)}


@dataclass(frozen=True)
class Check:
    """A statement, whether it holds, the number it is about, and the bound it was held to."""

    statement: str
    holds: bool
    value: float
    bound: float


@dataclass(frozen=True)
class Prediction:
    """A claim, the numbers measured for it, and the checks that judge it."""

    key: str
    claim: str
    numbers: dict[str, Any]
    checks: list[Check]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """ "holds", or "does not hold: …" with the checks that failed."""
        failed = [check for check in self.checks if not check.holds]
        if not failed:
            return "holds"
        return "does not hold: " + "; ".join(f"{c.statement} ({c.value:.3g}, bound {c.bound:.3g})" for c in failed)

    def __repr__(self) -> str:
        held = sum(check.holds for check in self.checks)
        return f"({self.key}) {self.claim}: {self.verdict} ({held} of {len(self.checks)} checks)"

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        checks = [asdict(check) for check in self.checks]
        return {
            "key": self.key, "claim": self.claim, "verdict": self.verdict, "numbers": self.numbers, "checks": checks,
            "settings": self.settings,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Prediction:
        """The inverse of `to_json`."""
        checks = [Check(**check) for check in data["checks"]]
        return cls(data["key"], data["claim"], data["numbers"], checks, data["settings"])


def below(statement: str, value: float, bound: float) -> Check:
    """A check that a value is at most a bound."""
    return Check(statement, bool(value <= bound), float(value), float(bound))


def above(statement: str, value: float, bound: float) -> Check:
    """A check that a value is at least a bound."""
    return Check(statement, bool(value >= bound), float(value), float(bound))


@dataclass
class Laboratory:
    """Trains networks on demand and keeps them.

    quick: fewer steps, seeds and contexts (about 20 s for all predictions on two cores). seed: the first of the seeds.
    """

    quick: bool = True
    seed: int = 0
    kept: dict[tuple[Any, ...], list[Constrained]] = field(default_factory=dict, repr=False)
    values: dict[tuple[Any, ...], float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_flags(quick=self.quick)
        self.seed = check_seed(self.seed)

    @property
    def steps(self) -> int:
        """Training steps of a policy; networks with a readout of their own take more."""
        return 700 if self.quick else 2500

    @property
    def readout_steps(self) -> int:
        """Training steps of a network with a readout of its own."""
        return 2100 if self.quick else 5000

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of a policy."""
        return tuple(range(self.seed, self.seed + (2 if self.quick else 3)))

    @property
    def readout_seeds(self) -> tuple[int, ...]:
        """Seeds of a network with a readout of its own."""
        return tuple(range(self.seed, self.seed + (2 if self.quick else 5)))

    @property
    def contexts(self) -> int:
        """Contexts of one evaluation."""
        return 40_000 if self.quick else 200_000

    @property
    def settings(self) -> dict[str, Any]:
        """What a result says about how it was made."""
        return {
            "quick": self.quick, "steps": self.steps, "seeds": list(self.seeds), "contexts": self.contexts,
            "steps with a readout": self.readout_steps, "seeds with a readout": list(self.readout_seeds),
        }  # fmt: skip

    def train(
        self, prior: Prior, layers: int, *, noise: float = NOISE, heads: int = 1, routing: bool = True,
        readout: int | Literal["exact"] = "exact", name: str = "",
    ) -> list[Constrained]:  # fmt: skip
        """One network for each seed, best first by its error on fresh contexts."""
        check_prior(prior)
        key = (name or prior.name, prior.dim, noise, layers, heads, routing, readout)
        if key not in self.kept:
            exact = readout == "exact"
            many = fit(
                prior, noise, layers, heads, routing=routing, readout=readout,
                seeds=self.seeds if exact else self.readout_seeds, steps=self.steps if exact else self.readout_steps,
                rate=5e-3 if self.quick else 3e-3,
            )  # fmt: skip
            self.kept[key] = sorted(many, key=lambda network: network.error(20_000, seed=9)[0])
        return self.kept[key]

    def error(self, network: Constrained) -> float:
        """Error of a network over fresh contexts, the same for all networks of one prior."""
        return network.error(self.contexts, seed=1)[0]

    def least(self, prior: Prior, layers: int, **settings: Any) -> float:
        """Error of the best seed: the upper bound that training gives."""
        return self.error(self.train(prior, layers, **settings)[0])

    def fixed(self, prior: Prior, layers: int, noise: float = NOISE, name: str = "") -> float:
        """The non-adaptive upper bound: directions that do not depend on the context."""
        return self.least(prior, layers, noise=noise, routing=False, name=name)

    def programme(self, layers: int, adaptive: bool, noise: float = NOISE) -> float:
        """The restricted programme's value on the default tree."""
        check_flags(adaptive=adaptive)
        key = (whole(layers, "layers"), adaptive, noise)
        if key not in self.values:
            heads = (1,) * layers if adaptive else (layers,)
            self.values[key] = programme(tree(), noise, heads).value
        return self.values[key]


# ---- The table --------------------------------------------------------------------------------------------------


def expected_values(lab: Laboratory, cells: Sequence[tuple[float, int]] | None = None) -> Prediction:
    """The specification's table: trained policies reach its upper bounds, and every inequality between columns."""
    check_type(Laboratory, "a Laboratory", lab=lab)
    chosen = list(EXPECTED) if cells is None else list(cells)
    if not chosen or any(cell not in EXPECTED for cell in chosen):
        raise ConfigError(f"cells = {chosen!r:.60}: at least one of {', '.join(map(str, EXPECTED))}")
    tolerance = 0.04 if lab.quick else 0.015
    rows, checks = {}, []
    for s, layers in chosen:
        full, fixed, adaptive, normal = EXPECTED[s, layers]
        got_full = tree().full_data_error(s, lab.contexts)[0]
        got = {
            "full data": got_full,
            "non-adaptive": lab.fixed(tree(), layers, s),
            "adaptive": lab.least(tree(), layers, noise=s),
            "gaussian": lab.least(gaussian(), layers, noise=s),
            "gaussian, closed form": gaussian_error(eigenvalues(), layers, s),
        }
        rows[f"s={s:g} L={layers}"] = got | {"expected": [full, fixed, adaptive, normal]}
        where = f"s = {s:g}, L = {layers}"
        checks += [
            below(f"{where}: full data as expected", abs(got_full - full), 0.01),
            below(f"{where}: non-adaptive policy reaches its bound", got["non-adaptive"] - fixed, tolerance),
            below(f"{where}: adaptive policy reaches its bound", got["adaptive"] - adaptive, tolerance),
            below(f"{where}: Gaussian policy reaches its bound", got["gaussian"] - normal, tolerance),
            below(f"{where}: full data ≤ adaptive", got_full - got["adaptive"], 0.005),
            below(f"{where}: adaptive ≤ non-adaptive", got["adaptive"] - got["non-adaptive"], 0.005),
            below(f"{where}: Gaussian optimum ≤ Gaussian policy", got["gaussian, closed form"] - got["gaussian"], 0.01),
        ]
    claim = "trained policies reach the expected upper bounds; full data ≤ adaptive ≤ non-adaptive"
    return Prediction("table", claim, rows, checks, lab.settings | {"tolerance": tolerance})


# ---- (a) to (g) -------------------------------------------------------------------------------------------------


def prediction_a(lab: Laboratory) -> Prediction:
    """(a) Under the Gaussian prior, depth gives no adaptive gain."""
    check_type(Laboratory, "a Laboratory", lab=lab)
    depths = (1, 2, 3)
    adaptive = [lab.least(gaussian(), n) for n in depths]
    fixed = [lab.fixed(gaussian(), n) for n in depths]
    optimum = [gaussian_error(eigenvalues(), n, NOISE) for n in depths]
    tolerance = 0.02 if lab.quick else 0.01
    checks = [
        below(f"L = {n}: |adaptive − non-adaptive|", abs(a - f), tolerance)
        for n, a, f in zip(depths, adaptive, fixed, strict=True)
    ]
    checks += [
        below(f"L = {n}: adaptive policy − closed form", a - o, tolerance)
        for n, a, o in zip(depths, adaptive, optimum, strict=True)
    ]
    numbers = {"layers": list(depths), "adaptive": adaptive, "non-adaptive": fixed, "closed form": optimum}
    claim = "Gaussian prior: L layers of one head do no better than one layer of L heads"
    return Prediction("a", claim, numbers, checks, lab.settings)


def prediction_b(lab: Laboratory) -> Prediction:
    """(b) Tree prior: the error falls with depth, useful depth tracks the tree's, and the gain needs the tree."""
    check_type(Laboratory, "a Laboratory", lab=lab)
    curves: dict[str, Any] = {}
    checks = []
    for depth in (1, 2, 3) if lab.quick else (1, 2, 3, 4):
        prior = tree(AMPLITUDES[depth])
        layers = list(range(1, min(prior.dim, 3 if lab.quick else 4) + 1))
        errors = [lab.least(prior, n, name=f"tree{depth}") for n in layers]
        floor = prior.full_data_error(NOISE, lab.contexts)[0]
        total = float(np.trace(prior.covariance))
        left = [(e - floor) / (total - floor) for e in errors]
        useful = next((n for n, share in zip(layers, left, strict=True) if share <= 0.05), layers[-1] + 1)
        curves[f"K={depth}"] = {"layers": layers, "errors": errors, "full data": floor, "useful depth": useful}
        for n, (first, second) in enumerate(zip(errors, errors[1:], strict=False), 1):
            checks.append(below(f"K = {depth}: error falls from L = {n}", second - first, 0.005))
        if not (lab.quick and depth == 3):
            checks.append(below(f"K = {depth}: |useful depth − K|", abs(useful - depth), 0))
    layers3 = 3
    ts = (0.0, 0.3, 1.0) if lab.quick else (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
    gains = []
    for t in ts:
        prior, name = (gaussian(), "gaussian") if t == 1 else (between(t), f"between{t}")
        gains.append(lab.fixed(prior, layers3, name=name) - lab.least(prior, layers3, name=name))
    others = {
        "flat": lab.fixed(flat(), layers3) - lab.least(flat(), layers3),
        "codebook": lab.fixed(codebook(), layers3) - lab.least(codebook(), layers3),
    }
    checks += [
        above("gain of depth under the tree, L = 3", gains[0], 0.08),
        below("gain under the Gaussian", abs(gains[-1]), 0.02 if lab.quick else 0.01),
        below("largest rise of the gain along t", float(np.diff(gains).max()), 0.01),
        below("gain under flat signs, as a share of the tree's", others["flat"] / gains[0], 0.5),
        below("gain under the codebook, as a share of the tree's", others["codebook"] / gains[0], 0.5),
    ]
    numbers = {"curves": curves, "t": list(ts), "gain": gains, "controls": others, "layers of the gain": layers3}
    claim = "tree prior: error falls with depth, useful depth is the tree's, and the gain vanishes without the tree"
    return Prediction("b", claim, numbers, checks, lab.settings)


def _ordered(bits: Array) -> list[Check]:
    gained = np.diff(np.vstack([np.zeros(bits.shape[1]), bits]), axis=0)
    last = bits.shape[1] - 1
    return [
        above("bits about level 1 after layer 1", bits[0, 0], 0.9),
        below("bits about the finest level after layer 1", bits[0, last], 0.15),
        above("bits about the finest level gained by the last layer", gained[-1, last], 0.4),
        below("finest level leads no coarser one", float((bits[:, 1:] - bits[:, :-1]).max()), 0.05),
    ]


def prediction_c(lab: Laboratory) -> Prediction:
    """(c) Coarse levels enter the workspace first, finer ones later, in the optimal policy and the trained network."""
    check_type(Laboratory, "a Laboratory", lab=lab)
    policy, network = lab.train(tree(), 3)[0], lab.train(tree(), 3, readout=64)[0]
    n = 20_000 if lab.quick else 100_000
    theory, trained = bits_by_layer(policy, n), bits_by_layer(network, n)
    numbers = {"policy": theory.tolist(), "transformer": trained.tolist()}
    checks = [Check(f"policy: {c.statement}", c.holds, c.value, c.bound) for c in _ordered(theory)]
    checks += [Check(f"transformer: {c.statement}", c.holds, c.value, c.bound) for c in _ordered(trained)]
    first = {}
    for a, s in (((1.0, 1.0, 1.0), 0.3), ((1.0, 0.7, 0.5), 0.6)):
        one = lab.train(tree(a), 1, noise=s, name=f"tree{a}")[0]
        first[f"a={a} s={s:g}"] = bits_by_layer(one, n)[0].tolist()
    numbers["first message"] = first
    claim = "bits about tree levels in p_l: coarse first, finer later, theory and trained network alike"
    return Prediction("c", claim, numbers, checks, lab.settings)


def prediction_d(lab: Laboratory) -> Prediction:
    """(d) Without routing (u_l constant; the same parameters) the gain of the tree goes."""
    check_type(Laboratory, "a Laboratory", lab=lab)
    routed = lab.least(tree(), 3, readout=64)
    constant = lab.least(tree(), 3, readout=64, routing=False)
    policy, fixed = lab.least(tree(), 3), lab.fixed(tree(), 3)
    wide = lab.least(tree(), 1, heads=3)
    checks = [
        above("constant directions / routed, transformer", constant / routed, 1.5),
        below("transformer without routing below the non-adaptive bound", fixed - constant, 0.01),
        below("|policy without routing − one layer of 3 heads|", abs(fixed - wide), 0.02),
    ]
    numbers = {
        "transformer": routed, "transformer without routing": constant, "policy": policy,
        "policy without routing": fixed,
        "one layer of 3 heads": wide,
    }  # fmt: skip
    return Prediction("d", "no routing: the tree's gain goes", numbers, checks, lab.settings)


def prediction_e(lab: Laboratory) -> Prediction:
    """(e) Trained constrained transformers follow the programme's curve; the wide control follows the non-adaptive one.

    The control has the same parameters and readout. Ordinary transformers take minutes: `ordinary.grid`, `reproduce`.
    """
    check_type(Laboratory, "a Laboratory", lab=lab)
    depths = (1, 2, 3)
    deep = [[lab.error(n) for n in lab.train(tree(), layers, readout=64)] for layers in depths]
    wide = [[lab.error(n) for n in lab.train(tree(), layers, readout=64, routing=False)] for layers in depths]
    policy = [lab.least(tree(), n) for n in depths]
    fixed = [lab.fixed(tree(), n) for n in depths]
    tops = (1, 2) if lab.quick else depths
    best = {"adaptive": [lab.programme(n, True) for n in tops], "non-adaptive": [lab.programme(n, False) for n in tops]}
    slack = 0.04 if lab.quick else 0.015
    checks = []
    for i, n in enumerate(depths):
        checks.append(below(f"L = {n}: best transformer − policy", min(deep[i]) - policy[i], slack))
        checks.append(below(f"L = {n}: best wide control − non-adaptive policy", min(wide[i]) - fixed[i], slack))
        checks.append(
            below(f"L = {n}: policy − transformer (the policy's readout is exact)", policy[i] - min(deep[i]), 0.01)
        )
    for i, n in enumerate(tops):
        checks.append(below(f"L = {n}: policy − restricted programme", policy[i] - best["adaptive"][i], slack))
    numbers: dict[str, Any] = {
        "layers": list(depths), "transformer": deep, "wide control": wide, "policy": policy,
        "non-adaptive policy": fixed,
        "programme": best, "full data": tree().full_data_error(NOISE, lab.contexts)[0],
    }  # fmt: skip
    claim = "trained constrained transformers follow the programme's curve"
    return Prediction("e", claim, numbers, checks, lab.settings)


def prediction_f(lab: Laboratory) -> Prediction:
    """(f) A patched workspace carries the branches up to its layer, and leaves finer ones near chance."""
    check_type(Laboratory, "a Laboratory", lab=lab)
    network = lab.train(tree(), 3, readout=64)[0]
    found = patch_branches(network, lab.contexts // 2)
    bits = bits_by_layer(network, 20_000)
    checks = []
    for layer in range(3):
        for level in range(3):
            share = float(found.donor[layer, level])
            if bits[layer, level] > 0.9:
                checks.append(above(f"layer {layer + 1} patched, level {level + 1}: the donor's branch", share, 0.8))
            elif bits[layer, level] < 0.05:
                statement = f"layer {layer + 1} patched, level {level + 1}: |donor's branch − chance|"
                checks.append(below(statement, abs(share - 0.5), 0.1))
        checks.append(below(f"layer {layer + 1}: random p makes level 1 the donor's", found.random[layer, 0], 0.6))
        kept = float(found.same_branch[layer, 0])
        checks.append(above(f"layer {layer + 1}: donor of the same branch keeps level 1", kept, 0.95))
    numbers = {name: np.asarray(value).tolist() for name, value in vars(found).items()} | {"bits": bits.tolist()}
    claim = "patching p_l moves the branches up to l to the donor's and leaves finer ones near chance"
    return Prediction("f", claim, numbers, checks, lab.settings)


def prediction_g(lab: Laboratory) -> Prediction:
    """(g) Mean field: messages fluctuate as N^(−1/2), and the excess loss falls with N.

    Estimates are exactly distributed for every N. The network is trained at s = σ/√256 and used at every N; the share
    of the fluctuation that the approximation N(w, s² I) leaves out is told.
    """
    check_type(Laboratory, "a Laboratory", lab=lab)
    network = lab.train(tree(), 3, readout=64)[0]
    sizes = [16, 32, 64, 128, 256, 512, 1024]
    rng = np.random.default_rng([lab.seed, 77])
    w, _ = tree().sample(lab.contexts // 2, rng)
    ideal = network.run(w).messages
    spreads, errors, bounds, approximate = [], [], [], []
    for n in sizes:
        estimate = sample_estimate(w, n, DEFAULT.sigma, rng)
        seen = network.run(estimate, w=w)
        unit = np.linalg.norm(seen.directions[:, 0], axis=1)
        spreads.append(float(((seen.messages[:, 0] - ideal[:, 0]) / unit).std()))
        assert seen.errors is not None
        errors.append(float(seen.errors.mean()))
        s = DEFAULT.sigma / n**0.5
        normal = network.run(w + s * rng.standard_normal(w.shape), w=w).errors
        assert normal is not None
        approximate.append(float(normal.mean()))
        bounds.append(tree().full_data_error(s, lab.contexts // 2)[0])
    slope = float(np.polyfit(np.log(sizes), np.log(spreads), 1)[0])
    at = sizes.index(256)
    checks = [
        below("|slope of log fluctuation against log N + ½|", abs(slope + 0.5), 0.02),
        below("largest rise of the error with N", float(np.diff(errors).max()), 0.005),
        below("full data − network, largest over N", float(np.max(np.array(bounds) - errors)), 0.01),
        below(
            "N = 256: |error on examples − error of N(w, s² I)| / error", abs(errors[at] / approximate[at] - 1), 0.25
        ),
    ]
    numbers = {
        "N": sizes, "fluctuation": spreads, "slope": slope, "errors": errors, "normal approximation": approximate,
        "full data": bounds,
    }  # fmt: skip
    claim = "messages fluctuate as N^(−1/2); the excess loss falls with N"
    return Prediction("g", claim, numbers, checks, lab.settings)


PREDICTIONS: dict[str, Callable[[Laboratory], Prediction]] = {
    "a": prediction_a, "b": prediction_b, "c": prediction_c, "d": prediction_d, "e": prediction_e, "f": prediction_f,
    "g": prediction_g,
}  # fmt: skip
"""The predictions by letter."""
