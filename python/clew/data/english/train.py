"""Trains the bundled model "english": python train.py SHARED_DATA [CHECKPOINTS], with clew, tokenizers and safetensors.

SHARED_DATA holds tinyshakespeare/input.txt, wikitext-2/valid.txt and hellaswag/hellaswag_val_full.txt.bz2. Of each text
the last twentieth is held out; of HellaSwag only the contexts of the first 8,000 tasks are read, no endings, so that
the other tasks and all endings stay unseen; wikitext-2/test.txt is never read. Everything is fixed: seed, order,
schedule; a second run gives the same bits, and one that was stopped goes on from its last checkpoint.

A text this small hardly rewards looking back: trained on it alone, the model grows no induction heads. So it learns to
look back first: in a first stage, on random tokens in short windows that say a passage again and again. In the second
stage three of four windows are text; the fourth says passages of text or random tokens again between other text.
Layers see the last four positions and all of them in turn: then a head that looks one token back forms within 150
steps and copying heads within 250, when a trial with global layers only had none yet.

Writes config.json, model.safetensors (float16), tokenizer.json and training.json (losses in nats per token, and
statistics of the checkpoints) beside this file.
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
from clew.train import Generated, Trainer, cosine
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SEED, CONTEXT = 0, 256
FIRST_STEPS, FIRST_BATCH, FIRST_CONTEXT, FIRST_RATE, FIRST_WARMUP = 400, 256, 32, 3e-3, 50
SECOND_STEPS, SECOND_BATCH, SECOND_RATE, SECOND_WARMUP = 1600, 32, 3e-3, 50
STEPS = FIRST_STEPS + SECOND_STEPS
CHECKPOINTS = (
    0,
    50,
    100,
    150,
    200,
    250,
    300,
    FIRST_STEPS,
    420,
    450,
    500,
    600,
    800,
    1000,
    1200,
    1400,
    1600,
    1800,
    STEPS,
)
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


def said_again(passage: np.ndarray[Any, Any], between: Any, length: int, rng: np.random.Generator) -> Any:
    """The passage as often as it fits, between pieces of other text."""
    parts: list[Any] = [between(int(rng.integers(1, 10)))]
    while sum(map(len, parts)) < length:
        parts += [passage, between(int(rng.integers(1, 10)))]
    return np.concatenate(parts)[:length]


def short_repeats(stream: np.ndarray[Any, Any]) -> Any:
    """Batches of the first stage: f(rng, size) → tokens, targets."""

    def rows(rng: np.random.Generator, size: int) -> tuple[Any, Any]:
        out = np.empty((size, FIRST_CONTEXT + 1), np.int64)
        for row in range(size):
            passage = rng.integers(0, 4096, int(rng.integers(6, 12)))
            out[row] = said_again(passage, piece_of(stream, rng), FIRST_CONTEXT + 1, rng)
        return out[:, :-1], out[:, 1:]

    return rows


def text_and_repeats(stream: np.ndarray[Any, Any]) -> Any:
    """Batches of the second stage: f(rng, size) → tokens, targets."""

    def rows(rng: np.random.Generator, size: int) -> tuple[Any, Any]:
        out = np.empty((size, CONTEXT + 1), np.int64)
        piece = piece_of(stream, rng)
        for row in range(size):
            if row % 4:
                out[row] = piece(CONTEXT + 1)
                continue
            n = int(rng.integers(6, 100))
            passage = piece(n) if row % 8 else rng.integers(0, 4096, n)
            out[row] = said_again(passage, piece, CONTEXT + 1, rng)
        return out[:, :-1], out[:, 1:]

    return rows


def piece_of(stream: np.ndarray[Any, Any], rng: np.random.Generator) -> Any:
    """f(n) → n tokens of the text from somewhere."""

    def piece(n: int) -> np.ndarray[Any, Any]:
        start = int(rng.integers(0, len(stream) - n))
        return stream[start : start + n]

    return piece


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
        positional_embedding_type="rotary", rotary_dim=8, attn_types=("local", "global") * 2, window_size=4,
        initializer_range=0.06, model_name="english",
    )  # fmt: skip
    model = clew.Model.from_config(config, seed=SEED)
    print(f"{model.n_params:,} parameters, {len(stream):,} tokens to learn from, {every.size:,} held out", flush=True)
    kept: dict[int, dict[str, Any]] = {}
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp())
    record = folder / "statistics.json"
    if record.exists():
        kept = {int(step): value for step, value in json.loads(record.read_text(encoding="utf-8")).items()}

    def note(step: int) -> None:
        if step in CHECKPOINTS and step not in kept:
            kept[step] = statistics(model, held_out)
            model.save(folder / f"step-{step}")
            record.write_text(json.dumps(kept), encoding="utf-8")
            print(step, kept[step]["held_out_loss"], kept[step]["repeated_tokens_loss"], flush=True)

    note(0)
    trainer = Trainer(
        model, Generated(short_repeats(stream), SEED), FIRST_STEPS, FIRST_BATCH,
        lr=cosine(FIRST_RATE, 2 * FIRST_STEPS, FIRST_WARMUP, FIRST_RATE / 10), betas=(0.9, 0.98), weight_decay=0.1,
        clip=1.0, directory=folder / "first", checkpoint_every=100, seed=SEED, progress="lines",
        callback=lambda t: note(t.optimizer.steps),
    )  # fmt: skip
    first = trainer.run()
    trainer = Trainer(
        model, Generated(text_and_repeats(stream), SEED), SECOND_STEPS, SECOND_BATCH,
        lr=cosine(SECOND_RATE, SECOND_STEPS, SECOND_WARMUP, SECOND_RATE / 20), betas=(0.9, 0.98), weight_decay=0.1,
        clip=1.0, held_out=every, eval_every=100, directory=folder / "second", checkpoint_every=100, seed=SEED,
        progress="lines", callback=lambda t: note(FIRST_STEPS + t.optimizer.steps),
    )  # fmt: skip
    second = trainer.run()
    tokenizer.save(str(HERE / "tokenizer.json"))
    model.save(HERE)
    half = {name: w.astype(np.float16) for name, w in load_file(HERE / "model.safetensors").items()}
    save_file(half, HERE / "model.safetensors", {"format": "clew"})
    steps = [(row[0], row[1]) for row in first.rows] + [(FIRST_STEPS + row[0], row[1]) for row in second.rows]
    rows = [[int(step), round(float(value), 4)] for step, value in steps if step % 10 == 0]
    result = {
        "seed": SEED, "steps": STEPS, "context": CONTEXT,
        "first_stage": {"steps": FIRST_STEPS, "batch": FIRST_BATCH, "context": FIRST_CONTEXT, "rate": FIRST_RATE},
        "second_stage": {"steps": SECOND_STEPS, "batch": SECOND_BATCH, "context": CONTEXT, "rate": SECOND_RATE},
        "parameters": model.n_params, "training_tokens": len(stream), "held_out_tokens": int(every.size),
        "held_out_loss": round(float(model.loss(every, reduce="mean")), 4),
        "loss_curve": rows, "checkpoints": {str(step): kept[step] for step in sorted(kept)},
    }  # fmt: skip
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in result.items()]
    (HERE / "training.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
