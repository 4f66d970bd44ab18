"""What clew.regression and clew.adaptive refuse: the message names what came, and nothing large is touched before."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import clew
import numpy as np
import pytest
from clew import adaptive, regression
from clew.adaptive import function_vectors as fv
from clew.adaptive import ordinary
from clew.errors import ConfigError, ShapeError, TokenError
from clew.regression import constructed, learners, tasks

Case = tuple[Callable[[], Any], type[Exception], str]
NAN, BIG = np.nan, 10**12
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 5, 3))
Y = X[..., 0]
RAGGED = [[1.0, 2.0], [3.0]]
DENSE = tasks.dense(3)
PROMPTS = DENSE.sample(6, 5)
GD, NEWTON = constructed.gd(3, 2, 0.1), constructed.newton_schulz(3, 2)
LEARNER = learners.train(DENSE, 4, "linear", n_layers=1, steps=2, batch=4)
TREE = adaptive.tree()
NET, POLICY = adaptive.Constrained(TREE, 0.3, 2, readout=8), adaptive.Constrained(TREE, 0.3, 2)
W = np.zeros((4, 7))
MODEL = clew.Model.from_config(clew.ModelConfig(n_layers=2, d_model=8, n_heads=2, n_ctx=32, d_vocab=12))
ONE = fv.Task("x + 1", [(i, i + 1) for i in range(8)])
IDS = fv.Template((), (), ())
SHOTS = fv.make_prompts(MODEL, ONE, 2, 4, template=IDS)
MEANS = np.zeros((2, 2, 4))
ORDINARY = ordinary.ordinary_model("linear", 1, False, 7, 40)

ESTIMATORS: list[Case] = [
    (lambda: regression.nadaraya_watson(X, Y, "1"), ConfigError, "scale = '1' is no number"),
    (lambda: regression.ridge(X, Y, True), ConfigError, "lam = True is no number"),
    (lambda: regression.ridge(X, Y, "1"), ConfigError, "lam = '1' is no number"),
    (lambda: regression.gd(X, Y, 10**30, 0.1), ConfigError, f"steps = {10**30}: at most 2147483647"),
    (lambda: regression.gd(X, Y, BIG, 0.1), ConfigError, "steps = 1000000000000: at most"),
    (lambda: regression.newton_schulz(X, Y, BIG), ConfigError, "steps = 1000000000000: at most 65536"),
    (lambda: regression.lasso(X, Y, 0.1, max_iter=10**30), ConfigError, "max_iter = 1"),
    (lambda: regression.bayes(X, Y, 1.0, 1.0, weights=3), ConfigError, "weights = 3: True or False"),
    (lambda: regression.bayes(X, Y, 1.0, 1.0, covariance="z"), ConfigError, "covariance = 'z': True or False"),
    (lambda: regression.dmmse(X, Y, np.eye(3), 1.0, weights=None), ConfigError, "weights = None: True or False"),
    (lambda: regression.mixture(X, Y, np.eye(3), 1.0, 1.0, posterior="z"), ConfigError, "posterior = 'z'"),
    (lambda: regression.tree(X, Y, [1.0, 0.5], 1.0, weights=2), ConfigError, "weights = 2: True or False"),
    (lambda: regression.tree(X, Y, None, 1.0), ShapeError, "amplitudes must be real numbers, not object"),
    (lambda: regression.tree_leaves(RAGGED), ShapeError, "amplitudes cannot be read as an array"),
    (lambda: regression.tree_leaves([1.0] * 17), ShapeError, "amplitudes [17]: finite numbers [K]"),
    (lambda: regression.Online("ols", 10**30), ConfigError, "d = 1"),
    (lambda: regression.Online("knn", 3, k=2, batch=BIG), ConfigError, "batch = 1000000000000: at most"),
    (lambda: regression.Online("knn", 10**8, k=2, batch=10**8), MemoryError, "80000000000000000 bytes"),
    (lambda: regression.Online("ols", 10**6), MemoryError, "bytes for the state of 1 sequences"),
    (lambda: regression.Online("ols", 3, dtype="z"), ConfigError, "dtype z: must be float32 or float64"),
    (lambda: regression.Online("ols", 3, dtype=None), ConfigError, "dtype None: must be float32 or float64"),
    (lambda: regression.gdd, AttributeError, "nearest: gd"),
]

SETTINGS: list[Case] = [
    (lambda: DENSE.sample(BIG, BIG), MemoryError, f"dense: X [{BIG}, {BIG}, 3]: {8 * 3 * BIG * BIG} bytes"),
    (lambda: DENSE.sample(10**30, 4), ConfigError, "batch = 1"),
    (lambda: tasks.dense(10**30), ConfigError, "dense: d = 1"),
    (lambda: tasks.skewed(10**8), MemoryError, "skewed: cov [100000000, 100000000]: 80000000000000000 bytes"),
    (lambda: tasks.skewed(3, 1e6), ConfigError, "the least of 3 eigenvalues is 0 in float64"),
    (lambda: tasks.scaled(3, 1e308).sample(2, 3), ConfigError, "scaled: X is beyond the range of float64"),
    (lambda: tasks.uniform(3, 1e308), ConfigError, "the width of (−half, half) is beyond float64"),
    (lambda: tasks.uniform(3, -1), ConfigError, "half = -1"),
    (lambda: tasks.correlated([]), ShapeError, "float64 [0], expected variances [d]"),
    (lambda: tasks.correlated(None), ShapeError, "object [], expected variances [d]"),
    (lambda: tasks.mixture(3, 10**15), MemoryError, "mixture: tasks [1000000000000000, 3]: 24000000000000000 bytes"),
    (lambda: tasks.mixture(3, None, seed=-1), ConfigError, "seed = -1"),
    (lambda: tasks.tree_contexts(None), ShapeError, "tree_contexts: amplitudes []: one number for each level"),
    (lambda: tasks.tree_contexts(np.ones((2, 2))), ShapeError, "tree_contexts: amplitudes [2, 2]"),
    (lambda: tasks.Curriculum(dims=None), ConfigError, "dims = None, must be (first, last, increment)"),
    (
        lambda: tasks.interleaved(None),
        ConfigError,
        "prompts: Prompts, such as a setting's sample() gives, not NoneType",
    ),
    (lambda: tasks.joined(X), ConfigError, "prompts: Prompts"),
    (lambda: tasks.joined(tasks.Prompts(X * NAN, Y, Y)), ConfigError, "X[0, 0, 0] is nan"),
    (lambda: tasks.joined(tasks.Prompts(X, Y, Y, Xq=X[:1])), ShapeError, "Xq: [1, 5, 3] with X [2, 5, 3]"),
    (lambda: tasks.joined(tasks.Prompts(X, Y, Y, Xq=X, fq=Y[:1])), ShapeError, "fq: [1, 5] with X [2, 5, 3]"),
    (lambda: tasks.interleaved(PROMPTS, garg="z"), ConfigError, "garg = 'z': True or False"),
    (lambda: tasks.Stream(None, 3), ConfigError, "setting: a Setting, such as dense(d=5), not NoneType"),
    (lambda: tasks.Stream(DENSE, 3, curriculum=3), ConfigError, "curriculum: a Curriculum or None, not int"),
    (lambda: tasks.Stream(DENSE, 3).batch(-1, 2), ConfigError, "step = -1"),
    (lambda: tasks.Setting("s", 3, None, None), ConfigError, "inputs: a Gaussian or Uniform"),
    (lambda: tasks.Setting("s", 3, tasks.Gaussian(), None), ConfigError, "target: a Target"),
    (
        lambda: tasks.Setting("s", 3, tasks.Gaussian(np.eye(2)), tasks.GaussianWeights()),
        ShapeError,
        "cov of inputs [2, 2], expected [3, 3]",
    ),
    (
        lambda: tasks.Setting("s", 3, tasks.Gaussian(), tasks.FiniteTasks(np.zeros((2, 4)))),
        ShapeError,
        "tasks [2, 4], expected [M, 3]",
    ),
    (lambda: tasks.FiniteTasks(np.zeros((0, 3))), ShapeError, "tasks: float64 [0, 3]"),
    (
        lambda: tasks.Setting("s", 4, tasks.Gaussian(), tasks.TreeContexts((1.0, 0.5))),
        ShapeError,
        "d = 4, such a tree has 3 nodes",
    ),
    (
        lambda: tasks.Setting("s", 3, tasks.Gaussian(), tasks.GaussianWeights(), quadrants="z"),
        ConfigError,
        "quadrants = 'z'",
    ),
]

CONSTRUCTIONS: list[Case] = [
    (lambda: constructed.gd(3, 2, 0.1, dtype="z"), ShapeError, "dtype z: a model computes in float32 or float64"),
    (lambda: constructed.ridge(3, 1.0, dtype=None), ShapeError, "dtype None: a model computes in"),
    (lambda: constructed.ridge(3, 1.0, dtype="int32"), ShapeError, "dtype int32: a model computes in"),
    (lambda: constructed.attention(np.zeros((0, 1))), ShapeError, "gamma: [0, 1], expected [d, d + 1]"),
    (lambda: constructed.ahn_optimum([], 3), ShapeError, "cov: float64 [0]"),
    (lambda: constructed.gd(BIG, 2, 0.1), ConfigError, "d_model = 1000000000001, at most"),
    (lambda: constructed.iterates(None, X), ConfigError, "construction: a Construction, such as"),
    (lambda: constructed.iterates(NEWTON, 3.0), ShapeError, "X: float64 [], expected real numbers [batch, n, 3]"),
    (lambda: GD.fit_predict(X, Y, X * NAN), ConfigError, "Xq[0, 0, 0] is nan"),
    (lambda: GD.predict(X * 1e200, Y), ConfigError, "predictions are beyond the range of float64: rescale X and y"),
    (lambda: NEWTON.predict(X * 1e200, Y), ConfigError, "whose square is beyond float64: rescale X"),
    (lambda: GD.predict(rag(), Y), ShapeError, "X cannot be read as an array"),
]

LEARNERS: list[Case] = [
    (lambda: learners.train(None, 4), ConfigError, "setting: a Setting, such as tasks.dense(d=5), not NoneType"),
    (lambda: learners.train(DENSE, 4, width=0), ConfigError, "width = 0"),
    (lambda: learners.train(DENSE, 4, lr="z"), ConfigError, "lr = 'z': expected a finite number"),
    (lambda: learners.train(DENSE, 4, zzz=3), ConfigError, "train does not take zzz"),
    (lambda: learners.train(DENSE, 4, seed="z"), ConfigError, "seed = 'z'"),
    (lambda: learners.architecture("gpt2", 0, 4, 1), ConfigError, "d = 0"),
    (lambda: learners.architecture("linear", 3, None, 1), ConfigError, "n = None"),
    (lambda: learners.initial(None), ConfigError, "config: a ModelConfig"),
    (lambda: learners.initial(LEARNER.model.config, seed=-1), ConfigError, "seed = -1"),
    (lambda: LEARNER.predict(X * NAN, Y), ConfigError, "X[0, 0, 0] is nan"),
    (lambda: LEARNER.predict(X * 1e300, Y), ConfigError, "beyond the range of float32: rescale X and y"),
    (lambda: LEARNER.fit_last(X[..., :2], Y), ShapeError, "X: [2, 5, 2] for a learner of d = 3"),
    (lambda: LEARNER.sensitivity(X, Y * NAN), ConfigError, "y[0, 0] is nan"),
    (lambda: learners.attention_features(None), ConfigError, "prompts: Prompts"),
    (lambda: learners.compare(None, PROMPTS, {"ols": regression.ols}), ConfigError, "learner: a Learner, such as"),
    (lambda: learners.compare(LEARNER, None, {"ols": regression.ols}), ConfigError, "prompts: Prompts"),
    (
        lambda: learners.compare(LEARNER, DENSE.sample(1, 4), {"ols": regression.ols}),
        ConfigError,
        "1 prompts, at least 2",
    ),
    (lambda: learners.compare(LEARNER, PROMPTS, {"a": 3}), ConfigError, "solver a: a function of (X, y), not int"),
    (
        lambda: learners.compare(LEARNER, PROMPTS, {"a": lambda x, y: y * NAN}),
        ConfigError,
        "solver a: predictions[0, 0] is nan",
    ),
    (lambda: learners.by_layer(LEARNER, PROMPTS, [3]), ConfigError, "solvers: a mapping"),
    (lambda: learners.gradient_steps(LEARNER, PROMPTS, rates=[]), ShapeError, "rates [0]"),
    (lambda: learners.gradient_steps(LEARNER, PROMPTS, rates=[NAN]), ConfigError, "rates[0] is nan"),
    (lambda: learners.likeness(LEARNER, PROMPTS, np.full((6, 3), NAN)), ConfigError, "weights[0, 0] is nan"),
    (lambda: learners.likeness(LEARNER, PROMPTS, "z"), ShapeError, "weights must be real numbers"),
    (lambda: learners.second_moments(X[0]), ShapeError, "X [5, 3]: [batch, n, d]"),
    (lambda: learners.second_moments(X, 9), ConfigError, "position = 9: there are 5 examples"),
    (lambda: learners.second_moments(X, None), ConfigError, "position = None"),
    (lambda: learners.probe(LEARNER, PROMPTS, {}), ConfigError, "targets is empty"),
    (lambda: learners.probe(LEARNER, PROMPTS, {"w": PROMPTS.w}, position=9), ConfigError, "position = 9"),
    (lambda: learners.probe(LEARNER, PROMPTS, {"w": "z"}), ShapeError, "target w must be real numbers"),
    (lambda: learners.diversity(()), ConfigError, "at least one of each"),
    (lambda: learners.diversity((2,), seeds=-1), ConfigError, "seeds: whole numbers, not int"),
    (lambda: learners.diversity((2,), seeds=(-1,)), ConfigError, "seed = -1"),
    (lambda: learners.diversity((2,), prompts=1), ConfigError, "prompts = 1: at least 2"),
    (lambda: learners.diversity((2,), done=3), ConfigError, "done: a function of a row, not int"),
]

PRIORS: list[Case] = [
    (lambda: adaptive.tree(scatter=1e200), ConfigError, "scatter = 1e+200: its square is beyond the range"),
    (lambda: adaptive.tree(scatter=True), ConfigError, "scatter = True, must not be negative"),
    (lambda: adaptive.tree((1e200,)), ConfigError, "amplitude = 1e+200: its square"),
    (lambda: adaptive.codebook(seed=-1), ConfigError, "seed = -1"),
    (lambda: adaptive.codebook(seed="z"), ConfigError, "seed = 'z'"),
    (lambda: adaptive.Prior("z", "a", "b"), ShapeError, "Prior: centres must be real numbers"),
    (lambda: adaptive.Prior(None, np.eye(3), np.zeros(3)), ConfigError, "name: a name, not NoneType"),
    (
        lambda: adaptive.Prior("z", np.eye(3), np.zeros(3), np.ones((3, 2))),
        ShapeError,
        "branches [3, 2] with centres [3, 3]",
    ),
    (lambda: adaptive.Prior("z", np.eye(2), np.zeros(2), [[3], [1]]), ConfigError, "branches must be signs"),
    (lambda: TREE.sample(-1), ConfigError, "n = -1: contexts, at least 1"),
    (lambda: TREE.sample(None), ConfigError, "n = None"),
    (lambda: TREE.sample(10**30), MemoryError, f"contexts [{10**30}, 7]: {56 * 10**30} bytes"),
    (lambda: TREE.sample(3, "z"), ConfigError, "seed = 'z'"),
    (lambda: TREE.posterior("z", "z", 0.3), ShapeError, "messages must be real numbers"),
    (lambda: TREE.posterior(RAGGED, RAGGED, 0.3), ShapeError, "messages cannot be read as an array"),
    (lambda: TREE.posterior(np.eye(7), W * NAN, 0.3), ConfigError, "messages[0, 0] is nan"),
    (lambda: TREE.posterior(np.eye(7) * NAN, W, 0.3), ConfigError, "directions[0, 0] is nan"),
    (lambda: TREE.posterior(np.eye(7), W, 1e-200), ConfigError, "noise = 1e-200: its square is beyond"),
    (lambda: TREE.posterior(np.eye(7), W + 1e200, 0.3), ConfigError, "posterior: beyond the range of float64"),
    (lambda: TREE.full_posterior(None, 0.3), ShapeError, "estimate must be real numbers, not object"),
    (lambda: TREE.full_posterior(np.zeros(7), 0.3), ShapeError, "estimate [7]: [n, D], D is 7"),
    (lambda: TREE.token_posterior(np.full((1, 2, 7), NAN), np.zeros((1, 2)), 1.0), ConfigError, "x[0, 0, 0] is nan"),
    (
        lambda: TREE.token_posterior(np.full((1, 2, 7), 1e200), np.zeros((1, 2)), 1.0),
        ConfigError,
        "token_posterior: beyond",
    ),
    (lambda: TREE.full_data_error(None), ConfigError, "noise = None, must be positive"),
    (lambda: TREE.full_data_error(0.3, 0), ConfigError, "n = 0: contexts, at least 2"),
    (lambda: TREE.full_data_error(0.3, 9, -1), ConfigError, "seed = -1"),
    (lambda: adaptive.sample_estimate(W, "z", 1.0), ConfigError, "examples = 'z'"),
    (lambda: adaptive.sample_estimate(W, 8, -1.0), ConfigError, "sigma = -1, must not be negative"),
    (lambda: adaptive.sample_estimate(W, 8, NAN), ConfigError, "sigma = nan"),
    (lambda: adaptive.sample_estimate(W * NAN, 8, 1.0), ConfigError, "w[0, 0] is nan"),
]

NETWORKS: list[Case] = [
    (lambda: adaptive.Constrained(None, 0.3, 1), ConfigError, "prior: a Prior, such as tree() gives, not NoneType"),
    (lambda: adaptive.Constrained(TREE, 0.3, 10**30), ConfigError, "layers = 1"),
    (lambda: adaptive.Constrained(TREE, 0.3, 1, readout=True), ConfigError, "readout = True"),
    (lambda: adaptive.Constrained(TREE, 0.3, 1, readout=np.eye(2)), ConfigError, "a number of hidden units"),
    (lambda: adaptive.Constrained(TREE, 0.3, 1, readout=BIG), ConfigError, "readout = 1000000000000"),
    (lambda: adaptive.Constrained(TREE, 0.3, 1, width=2**31 - 1), ConfigError, "width 2147483647 must be 1 to 4096"),
    (lambda: adaptive.Constrained(TREE, 0.3, 1, routing="z"), ConfigError, "routing = 'z': True or False"),
    (lambda: adaptive.Constrained(TREE, 0.3, 1, seed=-1), ConfigError, "seed = -1"),
    (lambda: adaptive.Constrained(TREE, 0.3, 1, seed="z"), ConfigError, "seed = 'z'"),
    (lambda: adaptive.Constrained(TREE, 0.3, 1, dtype="z"), ConfigError, "dtype z: must be float32 or float64"),
    (lambda: adaptive.Constrained(TREE, 0.3, 2, parameters="z"), ShapeError, "parameters must be real numbers"),
    (lambda: adaptive.Constrained(TREE, 0.3, 2, parameters=[NAN] * 1102), ConfigError, "parameters[0] is nan"),
    (lambda: NET.run(W * NAN), ConfigError, "estimate[0, 0] is nan"),
    (lambda: POLICY.run(W + 1e300), ConfigError, "estimate[0, 0] = 1e+300 is beyond the range of float32"),
    (lambda: NET.gradient(W[:0], W[:0]), ShapeError, "w [0, 7]: at least one context, for an error's mean"),
    (lambda: NET.run(W, w=W * NAN), ConfigError, "w[0, 0] is nan"),
    (lambda: NET.run(W, start=1, messages="z"), ShapeError, "messages must be real numbers"),
    (lambda: NET.run(W, start=1, messages=np.full((4, 1), NAN)), ConfigError, "messages[0, 0] is nan"),
    (lambda: NET.run(examples=3), ConfigError, "examples: a pair (x [n, N, D], y [n, N]), not int"),
    (lambda: NET.run(examples=(W,)), ConfigError, "examples: a pair"),
    (lambda: NET.run(examples=(np.zeros((0, 4, 7)), np.zeros((0, 4)))), ShapeError, "x [0, 4, 7] and y [0, 4]"),
    (lambda: NET.gradient(None, W), ConfigError, "w = None: an error is against true contexts"),
    (lambda: NET.gradient(W[:2], W), ShapeError, "w [2, 7] for 4 contexts"),
    (lambda: NET.gradient(W[:, :3], W), ShapeError, "w [4, 3]: [n, D], D is 7"),
    (lambda: NET.gradient(W * NAN, W), ConfigError, "w[0, 0] is nan"),
    (lambda: NET.gradient(W, W * NAN), ConfigError, "estimate[0, 0] is nan"),
    (lambda: NET.error(0), ConfigError, "n = 0: contexts, at least 2"),
    (lambda: NET.error(-1), ConfigError, "n = -1"),
    (lambda: NET.error(1.5), ConfigError, "n = 1.5"),
    (lambda: NET.error("z"), ConfigError, "n = 'z'"),
    (lambda: NET.error(10, -1), ConfigError, "seed = -1"),
    (lambda: NET.error(10, None), ConfigError, "seed = None"),
    (lambda: NET.error(BIG * BIG), MemoryError, "bytes in float64, more than a process can address"),
    (lambda: adaptive.fit(TREE, 0.3, 1, rate="z"), ConfigError, "rate = 'z'"),
    (lambda: adaptive.fit(TREE, 0.3, 1, rate=np.inf), ConfigError, "rate = inf"),
    (lambda: adaptive.fit(TREE, 0.3, 1, seeds=[2**64]), ConfigError, "below 2⁶³"),
    (lambda: adaptive.fit(TREE, 0.3, 1, seeds=[True]), ConfigError, "seeds [True]"),
    (lambda: adaptive.level_bits(None, np.eye(8), np.arange(8)), ConfigError, "prior: a Prior"),
    (
        lambda: adaptive.level_bits(TREE, np.eye(8), np.arange(8) + 5),
        ConfigError,
        "index[3] = 8: the tree has leaves 0 to 7",
    ),
    (
        lambda: adaptive.level_bits(TREE, np.eye(8), np.arange(8.0)),
        ConfigError,
        "index: whole numbers of leaves, not float64",
    ),
    (
        lambda: adaptive.level_bits(TREE, np.eye(8) * 7, np.arange(8)),
        ConfigError,
        "probabilities of context 0 add up to 7",
    ),
    (lambda: adaptive.level_bits(TREE, -np.eye(8), np.arange(8)), ConfigError, "the least is -1"),
    (lambda: adaptive.level_bits(TREE, np.zeros((0, 8)), np.arange(0)), ShapeError, "at least one context"),
    (lambda: adaptive.bits_by_layer(None), ConfigError, "network: a Constrained, such as fit() gives, not NoneType"),
    (lambda: adaptive.bits_by_layer(POLICY, 0), ConfigError, "n = 0"),
    (lambda: adaptive.branches_of(TREE, W * NAN), ConfigError, "prediction[0, 0] is nan"),
    (lambda: adaptive.workspace_vectors(None, W, 1), ConfigError, "network: a Constrained"),
    (lambda: adaptive.workspace_vectors(NET, W, "z"), ConfigError, "layer = 'z'"),
    (lambda: adaptive.patch(None, W, W, 1), ConfigError, "network: a Constrained"),
    (lambda: adaptive.patch(NET, W, W * NAN, 1), ConfigError, "messages[0, 0] is nan"),
    (lambda: adaptive.patch_branches(None), ConfigError, "network: a Constrained"),
    (lambda: adaptive.patch_branches(NET, 10, "z"), ConfigError, "seed = 'z'"),
]

PROGRAMMES: list[Case] = [
    (
        lambda: adaptive.programme(TREE, 0.3, [1] * 6),
        MemoryError,
        "6 messages on a grid of 44 values need 239878144 bytes",
    ),
    (lambda: adaptive.programme(TREE, 0.3, "12"), ConfigError, "a layer's number = '1'"),
    (lambda: adaptive.programme(TREE, 0.3, [1], symmetry="z"), ConfigError, "symmetry = 'z': True or False"),
    (lambda: adaptive.programme(TREE, 1e-300, [1]), ConfigError, "noise = 1e-300: its square"),
    (lambda: adaptive.programme(TREE, 0.3, [1], step=1e-15), MemoryError, "memory"),
    (lambda: adaptive.node_directions(6, 63), MemoryError, "node_directions ["),
    (lambda: adaptive.node_directions(3, families="z"), ConfigError, "families = 'z'"),
    (lambda: adaptive.train_ordinary("linear", 0, True), ConfigError, "layers = 0: at least 1"),
    (lambda: adaptive.train_ordinary("linear", 1, None), ConfigError, "mlp = None: True or False"),
    (lambda: adaptive.train_ordinary("linear", 1, True, steps="z"), ConfigError, "steps = 'z'"),
    (lambda: adaptive.train_ordinary("linear", 1, True, examples=-3), ConfigError, "examples = -3"),
    (lambda: adaptive.train_ordinary("linear", 1, True, noise=-1), ConfigError, "noise = -1, must not be negative"),
    (lambda: adaptive.train_ordinary("linear", 1, True, seed="z"), ConfigError, "seed = 'z'"),
    (
        lambda: adaptive.train_ordinary("linear", 1, True, prior=3),
        ConfigError,
        "prior: a Prior, such as tree() gives, not int",
    ),
    (
        lambda: adaptive.train_ordinary("linear", 1, True, batch=2**31 - 1, examples=10**9),
        MemoryError,
        "bytes in float64",
    ),
    (
        lambda: adaptive.compare_with_algorithms(None),
        ConfigError,
        "model: a Model, such as clew.load gives, not NoneType",
    ),
    (lambda: adaptive.compare_with_algorithms(LEARNER.model), ConfigError, "reads vectors of 9 values, d_in is 4"),
    (lambda: adaptive.compare_with_algorithms(ORDINARY, n="z"), ConfigError, "n = 'z'"),
    (lambda: adaptive.compare_with_algorithms(ORDINARY, seed=-1), ConfigError, "seed = -1"),
    (lambda: ordinary.summary({}), ConfigError, "no seed was measured"),
    (lambda: ordinary.grid(seeds=()), ConfigError, "seeds is empty"),
    (lambda: ordinary.cells(()), ConfigError, "depths is empty"),
    (lambda: adaptive.experiment(only="a"), ConfigError, 'only: a list of keys, such as ["a", "table"], not str'),
    (lambda: adaptive.experiment(quick="z", only=["a"]), ConfigError, "quick = 'z': True or False"),
    (lambda: adaptive.reproduce(steps=0), ConfigError, "steps = 0: at least 1"),
    (lambda: adaptive.reproduce(path=3), ConfigError, "path: a path, not int"),
    (lambda: adaptive.reproduce(path="/no/such/x.json"), ConfigError, "there is no folder"),
    (lambda: adaptive.Laboratory(seed=-1), ConfigError, "seed = -1"),
    (lambda: adaptive.Laboratory().train(None, 1), ConfigError, "prior: a Prior"),
    (lambda: adaptive.expected_values(None), ConfigError, "lab: a Laboratory, not NoneType"),
    (
        lambda: adaptive.expected_values(adaptive.Laboratory(), [(3, 4)]),
        ConfigError,
        "cells = [(3, 4)]: at least one of (0.3, 1)",
    ),
    (lambda: adaptive.PREDICTIONS["a"](None), ConfigError, "lab: a Laboratory, not NoneType"),
    (lambda: adaptive.Specification(examples=0), ConfigError, "examples = 0: at least 1"),
]

VECTORS: list[Case] = [
    (lambda: fv.Task("z", None), ConfigError, "task 'z': pairs (input, output), not NoneType"),
    (lambda: fv.Task("z", [(1,), (2,)]), ConfigError, "task 'z': pair 0 is (1,), not (input, output)"),
    (lambda: fv.make_prompts(None, ONE), ConfigError, "model: a Model, such as clew.load gives, not NoneType"),
    (lambda: fv.make_prompts(MODEL, None), ConfigError, "task: a Task(name, pairs), not NoneType"),
    (lambda: fv.make_prompts(MODEL, ONE, 2, template="z"), ConfigError, "template: a Template or None, not str"),
    (
        lambda: fv.make_prompts(MODEL, ONE, 2, template=fv.Template(1.5, (), ())),
        ConfigError,
        "1.5 in a prompt of token ids",
    ),
    (lambda: fv.make_prompts(MODEL, ONE, 2, BIG, template=IDS), ConfigError, "n = 1000000000000 prompts of 2 examples"),
    (lambda: fv.make_prompts(MODEL, ONE, 2, 4, "z", template=IDS), ConfigError, "shuffled = 'z': True or False"),
    (
        lambda: fv.make_prompts(MODEL, fv.Task("z", [(99, 2), (2, 99)]), 1, template=IDS),
        TokenError,
        "task 'z': token 99, the vocabulary has ids 0 to 11",
    ),
    (lambda: fv.make_prompts(MODEL, fv.Task("z", [(-1, 2), (2, -1)]), 1, template=IDS), TokenError, "token -1"),
    (lambda: fv.mean_heads(None, SHOTS), ConfigError, "model: a Model"),
    (lambda: fv.mean_heads(MODEL, None), ConfigError, "prompts: TaskPrompts, such as make_prompts() gives"),
    (lambda: fv.mean_heads(MODEL, fv.TaskPrompts([], np.zeros(0, np.int64))), ConfigError, "prompts is empty"),
    (lambda: fv.mean_heads(MODEL, SHOTS, -1), ConfigError, "batch = -1: at least 1"),
    (lambda: fv.indirect_effects(MODEL, SHOTS, np.full((2, 2, 4), NAN)), ConfigError, "means[0, 0, 0] is nan"),
    (lambda: fv.indirect_effects(MODEL, SHOTS, MEANS, 0), ConfigError, "batch = 0"),
    (lambda: fv.function_vector(None, MEANS, [(0, 0)]), ConfigError, "model: a Model"),
    (lambda: fv.function_vector(MODEL, MEANS, None), ConfigError, "heads: pairs (layer, head), not NoneType"),
    (lambda: fv.function_vector(MODEL, MEANS, []), ConfigError, "heads is empty"),
    (lambda: fv.function_vector(MODEL, MEANS, [3]), ConfigError, "heads: 3 is no pair (layer, head)"),
    (lambda: fv.function_vector(MODEL, MEANS, [(0.5, 0)]), ConfigError, "layer = 0.5"),
    (lambda: fv.extract(None, [ONE]), ConfigError, "model: a Model"),
    (lambda: fv.extract(MODEL, ONE), ConfigError, "tasks: a list of tasks, not Task"),
    (lambda: fv.extract(MODEL, [3]), ConfigError, "tasks: each a Task(name, pairs), not int"),
    (lambda: fv.extract(MODEL, [ONE], 2, top="z"), ConfigError, "top = 'z'"),
    (lambda: fv.extract(MODEL, [ONE], 2, 2, 1), ConfigError, "shuffled_prompts = 1: at least 2"),
    (lambda: fv.transfer(None, ONE, np.zeros(8)), ConfigError, "model: a Model"),
    (lambda: fv.transfer(MODEL, ONE, np.full(8, NAN)), ConfigError, "vector[0] is nan"),
    (lambda: fv.transfer(MODEL, ONE, np.zeros(8), layers=[1.5]), ConfigError, "layers: a layer = 1.5"),
    (
        lambda: fv.transfer(MODEL, ONE, np.zeros(8), layers=3),
        ConfigError,
        "layers: a list of whole numbers, or None, not int",
    ),
    (lambda: fv.transfer(MODEL, ONE, np.zeros(8), scale=None), ConfigError, "scale = None"),
    (lambda: fv.transfer(MODEL, ONE, np.zeros(8), batch=0), ConfigError, "batch = 0"),
]

CASES = [*ESTIMATORS, *SETTINGS, *CONSTRUCTIONS, *LEARNERS, *PRIORS, *NETWORKS, *PROGRAMMES, *VECTORS]


def rag() -> Any:
    return RAGGED


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", range(len(CASES)))
def test_what_came_is_named(number: int) -> None:
    call, error, message = CASES[number]
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_results_are_told_in_a_line_or_a_table() -> None:
    """No repr dumps an array."""
    said = {
        "Prompts of 6 functions: X [6, 5, 3], y [6, 5], f [6, 5], w [6, 3]": PROMPTS,
        "Online ridge: 2 sequences of d = 3, 0 examples, float64": regression.Online("ridge", 3, batch=2, lam=1.0),
        "Learner 'linear' of dense: d 3, n 4, 1 layers, width 4, 1 heads": LEARNER,
        "Prior 'tree': 8 points in 7 dimensions, 3 levels, total variance 1.74": TREE,
        "Pass: prediction [4, 7], messages [4, 2], directions [4, 2, 7]": NET.run(W),
        "Task 'x + 1' of 8 pairs": ONE,
        "TaskPrompts: 4 prompts of 20 tokens": SHOTS,
    }
    for text, value in said.items():
        assert repr(value) == text
    results = [
        NET,
        POLICY,
        tasks.mixture(30, 100),
        tasks.correlated(np.eye(30)),
        learners.gradient_steps(LEARNER, PROMPTS),
        adaptive.programme(adaptive.tree([1.0]), 0.3, [1]),
        adaptive.patch_branches(NET, 100),
        adaptive.stored().predictions["a"],
        adaptive.stored(),
    ]
    for value in results:
        assert "array(" not in repr(value) and max(map(len, repr(value).splitlines())) < 400, type(value)


def test_modules_are_loaded_on_first_use() -> None:
    """`import clew` is enough for clew.adaptive.function_vectors, and loads neither before it is asked for."""
    import subprocess

    code = (
        "import clew, sys; assert 'clew.adaptive' not in sys.modules\n"
        "print(clew.adaptive.function_vectors.Task.__name__)\n"
        "try: clew.adaptve\nexcept AttributeError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["Task", "module 'clew' has no attribute 'adaptve'"]
