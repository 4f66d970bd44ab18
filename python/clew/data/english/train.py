"""Trains the bundled model "english": python train.py SHARED_DATA [CHECKPOINTS], with clew, tokenizers and safetensors.

SHARED_DATA holds tinyshakespeare/input.txt, wikitext-2/valid.txt and hellaswag/hellaswag_val_full.txt.bz2. Of each text
the last twentieth is held out; of HellaSwag only the contexts of the first 8,000 tasks are read, no endings, so that
the other tasks and all endings stay unseen; wikitext-2/test.txt is never read. Everything is fixed: seed, order,
schedule; a second run gives the same bits, and one that was stopped goes on from its last checkpoint.

A text this small hardly rewards looking back, and a first stage on plain windows leaves no induction heads (its
checkpoints are in training.json). In a second stage every other window says passages of the text again, some of them
with their tokens shuffled, so that only what was said before helps.

Writes config.json, model.safetensors (float16), tokenizer.json and training.json (losses in nats per token, and
statistics of nineteen checkpoints) beside this file.
"""

from __future__ import annotations

import bz2
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import clew
import numpy as np
from clew.train import Generated, Trainer, Windows, cosine
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SEED, STEPS, BATCH, CONTEXT, RATE, WARMUP = 0, 1200, 32, 256, 3e-3, 120
CHECKPOINTS = (0, 10, 30, 60, 100, 150, 250, 400, 600, 800, 1000, STEPS)
SECOND_STEPS, SECOND_RATE, SECOND_WARMUP = 500, 2e-3, 40
SECOND_CHECKPOINTS = tuple(STEPS + n for n in (50, 100, 150, 200, 300, 400, SECOND_STEPS))
TASKS = 8000
HERE = Path(__file__).parent


def texts(data: Path) -> dict[str, str]:
    """The three texts."""
    tasks = bz2.open(data / "hellaswag" / "hellaswag_val_full.txt.bz2", "rt", encoding="utf-8").read().split("\n")
    return {
        "shakespeare": (data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8"),
        "wikitext": (data / "wikitext-2" / "valid.txt").read_text(encoding="utf-8").replace("<unk>", "unknown"),
        "hellaswag": "\n".join(tasks[0 : 6 * TASKS : 6]) + "\n",
    }


def tokenizer_of(parts: list[str]) -> Tokenizer:
    """Byte-level BPE with 4,096 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4096, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(parts, trainer)
    return tokenizer


def windows(ids: list[int]) -> np.ndarray[Any, Any]:
    """Whole windows of a held-out text, one token longer than the context."""
    n = len(ids) // (CONTEXT + 1) * (CONTEXT + 1)
    return np.array(ids[:n]).reshape(-1, CONTEXT + 1)


def saying_again(stream: np.ndarray[Any, Any]) -> Any:
    """Batches of which every other window repeats a passage between other text: f(rng, size) → tokens, targets."""

    def rows(rng: np.random.Generator, size: int) -> tuple[Any, Any]:
        def piece(n: int) -> np.ndarray[Any, Any]:
            start = int(rng.integers(0, len(stream) - n))
            return stream[start : start + n]

        out = np.empty((size, CONTEXT + 1), np.int64)
        for row in range(size):
            if row % 2 == 0:
                out[row] = piece(CONTEXT + 1)
                continue
            passage = piece(int(rng.integers(12, 100)))
            if rng.random() < 0.5:
                passage = rng.permutation(passage)
            parts: list[Any] = [piece(int(rng.integers(1, 30)))]
            while sum(map(len, parts)) <= CONTEXT:
                parts += [passage, piece(int(rng.integers(1, 30)))]
            out[row] = np.concatenate(parts)[: CONTEXT + 1]
        return out[:, :-1], out[:, 1:]

    return rows


def induction(model: clew.Model) -> tuple[list[list[float]], float, float]:
    """On random tokens that come twice: each head's attention from a token to what followed it the first time
    [layer][head], and the loss of the first and of the second time."""
    half = 60
    rng = np.random.default_rng(1)
    once = rng.integers(256, 4096, (16, half))
    tokens = np.concatenate([once, once], axis=1)
    pattern = model.run(tokens, capture="pattern", logits=None).stack("pattern")  # [layer, batch, head, query, key]
    queries = np.arange(half, 2 * half - 1)
    scores = pattern[:, :, :, queries, queries - half + 1].mean(axis=(1, 3))
    losses = model.loss(tokens)
    return (
        np.round(scores.astype(np.float64), 4).tolist(),
        float(losses[:, : half - 1].mean()),
        float(losses[:, half:].mean()),
    )


def statistics(model: clew.Model, held_out: dict[str, Any]) -> dict[str, Any]:
    """What training.json keeps of a checkpoint."""
    losses = {name: round(float(model.loss(rows, reduce="mean")), 4) for name, rows in held_out.items()}
    heads, first, second = induction(model)
    norms = {
        name: round(float(np.linalg.norm(w.astype(np.float64))), 3) for name, w in model.weights.items() if w.ndim > 1
    }
    return {
        "held_out_loss": losses,
        "induction_by_head": heads,
        "repeated_tokens_loss": [round(first, 4), round(second, 4)],
        "weight_norms": norms,
    }


def main() -> None:
    parts = texts(Path(sys.argv[1]))
    cut = {name: len(text) * 19 // 20 for name, text in parts.items()}
    tokenizer = tokenizer_of([text[: cut[name]] for name, text in parts.items()])
    stream = np.concatenate([tokenizer.encode(text[: cut[name]]).ids for name, text in parts.items()])
    held_out = {name: windows(tokenizer.encode(text[cut[name] :]).ids) for name, text in parts.items()}
    every = np.concatenate(list(held_out.values()))
    config = clew.ModelConfig(
        n_layers=4, d_model=192, n_heads=6, n_ctx=CONTEXT, d_vocab=4096, act_fn="gelu_new", tie_word_embeddings=True,
        positional_embedding_type="rotary", rotary_dim=32,
    )  # fmt: skip
    model = clew.Model.from_config(config, seed=SEED)
    print(f"{model.n_params:,} parameters, {len(stream):,} tokens to learn from, {every.size:,} held out", flush=True)
    kept: dict[int, dict[str, Any]] = {}
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp())
    record = folder / "statistics.json"
    if record.exists():
        kept = {int(step): value for step, value in json.loads(record.read_text(encoding="utf-8")).items()}

    def note(step: int) -> None:
        if step in CHECKPOINTS + SECOND_CHECKPOINTS and step not in kept:
            kept[step] = statistics(model, held_out)
            model.save(folder / f"step-{step}")
            record.write_text(json.dumps(kept), encoding="utf-8")
            print(step, kept[step]["held_out_loss"], kept[step]["repeated_tokens_loss"], flush=True)

    note(0)
    trainer = Trainer(
        model, Windows(stream, CONTEXT, SEED, "shuffle"), STEPS, BATCH, lr=cosine(RATE, STEPS, WARMUP, RATE / 10),
        betas=(0.9, 0.98), weight_decay=0.1, clip=1.0, held_out=every, eval_every=100, directory=folder,
        checkpoint_every=100, seed=SEED, progress="lines", callback=lambda t: note(t.optimizer.steps),
    )  # fmt: skip
    first = trainer.run()
    trainer = Trainer(
        model, Generated(saying_again(stream), SEED), SECOND_STEPS, BATCH,
        lr=cosine(SECOND_RATE, SECOND_STEPS, SECOND_WARMUP, SECOND_RATE / 20), betas=(0.9, 0.98), weight_decay=0.1,
        clip=1.0, held_out=every, eval_every=100, directory=folder / "second", checkpoint_every=100, seed=SEED,
        progress="lines", callback=lambda t: note(STEPS + t.optimizer.steps),
    )  # fmt: skip
    second = trainer.run()
    tokenizer.save(str(HERE / "tokenizer.json"))
    model.save(HERE)
    half = {name: w.astype(np.float16) for name, w in load_file(HERE / "model.safetensors").items()}
    save_file(half, HERE / "model.safetensors", {"format": "clew"})
    steps = [(row[0], row[1]) for row in first.rows] + [(STEPS + row[0], row[1]) for row in second.rows]
    rows = [[int(step), round(float(value), 4)] for step, value in steps if step % 10 == 0]
    result = {
        "seed": SEED, "steps": STEPS, "batch": BATCH, "context": CONTEXT, "learning_rate": RATE, "warm_up": WARMUP,
        "second_steps": SECOND_STEPS, "second_learning_rate": SECOND_RATE, "second_warm_up": SECOND_WARMUP,
        "parameters": model.n_params, "training_tokens": len(stream), "held_out_tokens": int(every.size),
        "held_out_loss": round(float(model.loss(every, reduce="mean")), 4),
        "loss_curve": rows, "checkpoints": {str(step): kept[step] for step in sorted(kept)},
    }  # fmt: skip
    (HERE / "training.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
