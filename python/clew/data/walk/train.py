"""Trains matched small models with six kinds of attention: python train.py SHARED_DATA FOLDER

For claim 5 of paper 1 (attention "contributes an association bias", v2: "potentially redundant"). Three seeds of each:

softmax         as usual
uniform         queries are 0 and stay so: every position reads the mean of all before it and itself
random          queries and keys are random (scores deviate by about 2) and stay as they were drawn
similarity      one head whose queries, keys and values are the normed stream itself, softmax(causal(x xᵀ)) x: attention
                without parameters, in the same block
none            attention writes nothing: what a model of single tokens and positions gets
bare            the whole model without parameters but its embeddings, as the paper's author wrote it:
                X ← softmax(causal(X Xᵀ)) X in each layer, logits X W_outᵀ; no norm, residual, MLP or position

All but "bare" have the same shape: 2 layers, d_model 64, MLP of 256, learned positions, untied embeddings; what does not
learn gets no gradient and no decay. Batches, their order and the schedule are the same for all of a seed. The text is the
first nine tenths of SHARED_DATA/tinyshakespeare/input.txt through shakespeare's tokenizer; losses are those of windows
of the last tenth.

FOLDER keeps a file for each run that is done, so that the script can be stopped and started again. When all are there,
training.json is written beside this file: losses, similarity of the embeddings, their purity. Twenty minutes on one quiet core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import clew
import numpy as np
from clew.gradients import WeightGradients
from clew.train import Windows, cosine

KINDS = ("softmax", "uniform", "random", "similarity", "none", "bare")
SEEDS = (0, 1, 2)
STEPS, BATCH, CONTEXT, RATE, WARMUP, DECAY, CLIP = 1000, 16, 64, 3e-3, 50, 0.1, 1.0
LAYERS, WIDTH, HEADS, EVERY = 2, 64, 4, 50
SCORES = 2.0
HERE = Path(__file__).parent

Array = np.ndarray[Any, Any]


def config(kind: str, d_vocab: int) -> clew.ModelConfig:
    """The shape of a kind."""
    if kind == "bare":  # embeddings alone: what is between them is computed here
        return clew.ModelConfig(
            n_layers=0, d_model=WIDTH, n_heads=1, n_ctx=CONTEXT, d_vocab=d_vocab, normalization_type=None,
            positional_embedding_type="none", initializer_range=0.1,
        )  # fmt: skip
    heads = 1 if kind == "similarity" else HEADS
    return clew.ModelConfig(
        n_layers=LAYERS, d_model=WIDTH, n_heads=heads, n_ctx=CONTEXT, d_vocab=d_vocab, act_fn="gelu_new",
        use_attn_scale=kind != "similarity", initializer_range=0.06, model_name=kind,
    )  # fmt: skip


def frozen(kind: str, names: list[str]) -> list[str]:
    """Weights that do not learn."""
    letters = {"uniform": ("Q", "K"), "random": ("Q", "K"), "similarity": ("Q", "K", "V", "O"), "none": ("V", "O")}
    ends = tuple(f"attn.{a}_{b}" for a in "Wb" for b in letters.get(kind, ()))
    return [name for name in names if ends and name.endswith(ends)]


def start(kind: str, optimizer: clew.AdamW, seed: int) -> None:
    """Sets what does not learn."""
    state = {name: array.copy() for name, array in optimizer.state().items()}
    rng = np.random.default_rng([seed, 3])
    for name in frozen(kind, optimizer.names):
        array = state[f"weights/{name}"]
        if kind == "random" and ".W_" in name:  # normed streams have a variance of 1: q·k / √e deviates by d s²
            array[...] = rng.normal(0, np.sqrt(SCORES / WIDTH), array.shape)
        elif kind == "similarity" and ".W_" in name:
            array[...] = np.eye(WIDTH).reshape(array.shape)
        else:
            array[...] = 0
    if kind == "similarity":  # a token's score with itself begins at 1
        for layer in range(LAYERS):
            state[f"weights/blocks.{layer}.ln1.w"][...] = WIDTH**-0.5
    optimizer.load_state(state, 0)


def associate(x: Array) -> Array:
    """softmax(causal(X Xᵀ)) [batch, pos, pos] of x [batch, pos, d]."""
    scores = x @ x.swapaxes(1, 2)
    scores[:, ~np.tri(x.shape[1], dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def bare(weights: Any, tokens: Array, targets: Array, backward: bool = True) -> tuple[float, dict[str, Array]]:
    """Mean loss of the model without parameters, and its gradients."""
    table, out = weights["embed.W_E"], weights["unembed.W_U"]
    xs, patterns = [table[tokens]], []
    for _ in range(LAYERS):
        patterns.append(associate(xs[-1]))
        xs.append(patterns[-1] @ xs[-1])
    logits = xs[-1] @ out
    logits -= logits.max(-1, keepdims=True)
    p = np.exp(logits)
    total = p.sum(-1, keepdims=True)
    picked = np.take_along_axis(logits, targets[..., None], -1) - np.log(total)
    loss = -float(picked.mean(dtype=np.float64))
    if not backward:
        return loss, {}
    p /= total
    np.put_along_axis(p, targets[..., None], np.take_along_axis(p, targets[..., None], -1) - 1, -1)
    p /= targets.size
    gradient = p @ out.T
    slopes = {"unembed.W_U": xs[-1].reshape(-1, WIDTH).T @ p.reshape(-1, p.shape[-1])}
    for x, a in zip(xs[-2::-1], patterns[::-1], strict=True):
        slope = gradient @ x.swapaxes(1, 2)
        scores = a * (slope - (a * slope).sum(-1, keepdims=True))
        gradient = a.swapaxes(1, 2) @ gradient + scores @ x + scores.swapaxes(1, 2) @ x
    slopes["embed.W_E"] = np.zeros_like(table)
    np.add.at(slopes["embed.W_E"], tokens.reshape(-1), gradient.reshape(-1, WIDTH))
    return loss, slopes


def run(kind: str, seed: int, stream: Array, held_out: Array, d_vocab: int) -> tuple[dict[str, Any], Array]:
    """Trains one model; what there is to tell, and its W_E."""
    model = clew.Model.from_config(config(kind, d_vocab), seed=seed)
    still = set(frozen(kind, list(model.weights)))
    optimizer = clew.AdamW(
        model, RATE, betas=(0.9, 0.98), weight_decay=DECAY, clip=CLIP,
        decay=lambda name: clew.train.adamw.is_matrix(name) and name not in still,
    )  # fmt: skip
    start(kind, optimizer, seed)
    source, schedule = Windows(stream, CONTEXT, seed), cosine(RATE, STEPS, WARMUP, RATE / 10)
    compiled = None if kind == "bare" else WeightGradients(model, [CONTEXT] * BATCH)

    def measured() -> float:
        if kind == "bare":
            return bare(model.weights, held_out[:, :-1], held_out[:, 1:], backward=False)[0]
        return float(model.loss(held_out, reduce="mean"))

    curve, losses = [[0, measured()]], []
    for step in range(STEPS):
        batch = source.batch(step, BATCH)
        if compiled is None:
            loss, gradients = bare(model.weights, batch.tokens, batch.targets)
        else:
            loss, gradients = compiled.run(
                np.ascontiguousarray(batch.tokens.reshape(-1), np.int32),
                np.ascontiguousarray(batch.targets.reshape(-1), np.int32),
            )
            for name in still:
                gradients[name][...] = 0
        losses.append(loss)
        optimizer.lr = schedule(step)
        optimizer.step(gradients)
        if (step + 1) % EVERY == 0:
            curve.append([step + 1, measured()])
    learned = sum(model.weights[name].size for name in optimizer.names if name not in still)
    result = {
        "kind": kind, "seed": seed, "parameters": int(learned), "held_out_loss": curve[-1][1],
        "curve": [[step, round(loss, 4)] for step, loss in curve],
        "training_loss": round(float(np.mean(losses[-EVERY:])), 4),
    }  # fmt: skip
    return result, np.asarray(model.W_E, np.float32).copy()


def references(stream: Array, held_out: Array, d_vocab: int) -> dict[str, float]:
    """Held-out losses of counting: tokens, and pairs of tokens mixed with tokens by the best weight."""
    counts = np.bincount(stream, minlength=d_vocab) + 1.0
    one = counts / counts.sum()
    pairs = np.zeros((d_vocab, d_vocab))
    np.add.at(pairs, (stream[:-1], stream[1:]), 1)
    before, after = held_out[:, :-1].reshape(-1), held_out[:, 1:].reshape(-1)
    total = pairs.sum(1)[before]
    two = np.divide(pairs[before, after], total, out=np.zeros(len(before)), where=total > 0)
    mixed = min(float(-np.log(w * two + (1 - w) * one[after]).mean()) for w in np.arange(0, 1, 0.05))
    return {"tokens": float(-np.log(one[after]).mean()), "pairs": mixed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    source = clew.load("shakespeare")
    text = (args.data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    stream = np.asarray(source.to_tokens(text[: len(text) * 9 // 10])[0])
    rest = np.asarray(source.to_tokens(text[len(text) * 9 // 10 :])[0])
    held_out = rest[: 256 * CONTEXT].reshape(256, CONTEXT)
    d_vocab = source.config.d_vocab
    args.folder.mkdir(parents=True, exist_ok=True)
    runs, tables = [], []
    for seed in SEEDS:
        for kind in KINDS:
            path = args.folder / f"{kind}-{seed}.json"
            if not path.exists():
                result, table = run(kind, seed, stream, held_out, d_vocab)
                np.save(path.with_suffix(".npy"), table)
                path.write_text(json.dumps(result), encoding="utf-8")
                print(kind, seed, round(result["held_out_loss"], 4), flush=True)
            runs.append(json.loads(path.read_text(encoding="utf-8")))
            tables.append(np.load(path.with_suffix(".npy")))
    from clew.walk import embedding_similarity, purity_of_tokens

    counts = np.bincount(stream, minlength=d_vocab)
    seen = counts >= 20
    for row, table in zip(runs, tables, strict=True):
        found = purity_of_tokens(source, table=table)
        row["purity"], row["purity_chance"] = found.purity, found.chance
    about = {
        "text": "tiny Shakespeare, first nine tenths", "training_tokens": len(stream), "held_out_tokens": held_out.size,
        "steps": STEPS, "batch": BATCH, "context": CONTEXT, "rate": RATE, "weight_decay": DECAY, "layers": LAYERS,
        "d_model": WIDTH, "tokens_compared": int(seen.sum()), "version": clew.__version__,
    }  # fmt: skip
    result = {
        "about": about, "references": references(stream, held_out, d_vocab), "runs": runs,
        "similarity": [[embedding_similarity(a[seen], b[seen]) for b in tables] for a in tables],
    }  # fmt: skip
    rounded = json.loads(json.dumps(result), parse_float=lambda x: float(f"{float(x):.5g}"))
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in rounded.items()]
    (HERE / "training.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
