"""Trains the bundled model "prose": python train.py DATA [--work DIR] [--output DIR].

Needs clew, tokenizers and safetensors. DATA holds tinyshakespeare/input.txt, wikitext-2/valid.txt (never test.txt:
evaluations use it) and hellaswag/hellaswag_val_full.txt.bz2 (contexts only). Everything is fixed: seed, order, split
(the last twentieth of each text is held out), schedule. Interrupt it and start it again with the same --work: it goes
on where it was, to the same bits. Writes config.json, model.safetensors (float16), tokenizer.json and training.json
into --output: losses in nats a token, and at some steps what became of the heads.
"""

from __future__ import annotations

import argparse
import bz2
import json
from pathlib import Path
from typing import Any

import clew
import numpy as np
from clew.train import Curve, Examples, Trainer, cosine, evaluate, load_model
from clew.train.data import generator
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SEED, STEPS, BATCH, CONTEXT, RATE, WARMUP = 0, 2200, 16, 256, 2e-3, 100
VOCABULARY, LAYERS, WIDTH, HEADS = 4096, 4, 192, 6
EVAL_EVERY, HELD_OUT = 100, 20
LOOK_AT = (0, 25, 50, 100, 200, 300, 400, 600, 800, 1000, 1400, 1800, 2200)
HERE = Path(__file__).parent


# ---- Text ------------------------------------------------------------------------------------------------------------


def texts(data: Path) -> dict[str, str]:
    """The sources, each as one text."""
    with bz2.open(data / "hellaswag" / "hellaswag_val_full.txt.bz2", "rt", encoding="utf-8") as file:
        contexts = [line.strip() for number, line in enumerate(file) if number % 6 == 0]
    return {
        "shakespeare": (data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8"),
        "wikitext": (data / "wikitext-2" / "valid.txt").read_text(encoding="utf-8"),
        "hellaswag": "\n".join(contexts) + "\n",
    }


def split(text: str) -> tuple[str, str]:
    """What is trained on and what is held out, cut at a line."""
    cut = text.index("\n", len(text) * (HELD_OUT - 1) // HELD_OUT) + 1
    return text[:cut], text[cut:]


def tokenizer_of(parts: list[str]) -> Tokenizer:
    """Byte-level BPE, merges learnt from the training text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((line for part in parts for line in part.splitlines(keepends=True)), trainer)
    return tokenizer


class Prose:
    """Windows of the text. In one of eight, a passage of it comes again later in the window, as a refrain would."""

    def __init__(self, stream: np.ndarray[Any, Any], seed: int) -> None:
        self.stream, self.seed = stream, seed
        self._name = clew.train.Windows(stream, CONTEXT, seed).identity()

    def batch(self, step: int, size: int) -> Examples:
        """Windows [size, CONTEXT] and what follows each token."""
        rng = generator(self.seed, step)
        starts = rng.integers(0, len(self.stream) - CONTEXT, size)
        rows = self.stream[starts[:, None] + np.arange(CONTEXT + 1)]
        for i in np.flatnonzero(rng.random(size) < 1 / 8):
            length = rng.integers(24, 100)
            first = rng.integers(0, CONTEXT + 2 - 2 * length)
            second = rng.integers(first + length, CONTEXT + 2 - length)
            rows[i, second : second + length] = rows[i, first : first + length]
        return Examples(rows[:, :-1], rows[:, 1:])

    def identity(self) -> str:
        """As the windows are called, and that passages come again."""
        return f"{self._name} with refrains"


# ---- Looks -----------------------------------------------------------------------------------------------------------


def heads_of(model: clew.Model) -> dict[str, Any]:
    """What heads do on random tokens that come twice: attention to the token behind the first copy (induction), to the
    token before (previous), and how much less the second copy costs."""
    half = 64
    tokens = generator(SEED, 1, 2, 3).integers(0, VOCABULARY, (8, half))
    tokens = np.concatenate([tokens, tokens], axis=1)
    run = model.run(tokens, capture="pattern", logits=None)
    patterns = run.stack("pattern")  # [layer, batch, head, query, key]
    queries = np.arange(half + 1, 2 * half)
    induction = patterns[..., queries, queries - half + 1].mean(axis=(1, 3))
    previous = patterns[..., np.arange(1, 2 * half), np.arange(2 * half - 1)].mean(axis=(1, 3))
    losses = model.loss(tokens)
    return {
        "induction": np.round(induction.astype(float), 4).tolist(),
        "previous": np.round(previous.astype(float), 4).tolist(),
        "loss_first_copy": round(float(losses[:, : half - 1].mean()), 4),
        "loss_second_copy": round(float(losses[:, half:].mean()), 4),
    }


def held_out_of(model: clew.Model, held: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Held-out loss of each source, and by the place in the window."""
    losses = {name: model.loss(rows) for name, rows in held.items()}
    every = np.concatenate(list(losses.values())).astype(float)
    spans = [(0, 16), (16, 64), (64, 128), (128, CONTEXT - 1)]
    return {
        "held_out": {name: round(float(each.mean()), 4) for name, each in losses.items()},
        "by_position": {f"{a}-{b}": round(float(every[:, a:b].mean()), 4) for a, b in spans},
    }


# ---- The model in Hugging Face's GPT-2 form --------------------------------------------------------------------------


def export(model: clew.Model, directory: Path) -> None:
    """config.json and model.safetensors, float16."""
    w, d = model.weights, WIDTH
    tensors = {"transformer.wte.weight": w["embed.W_E"], "transformer.wpe.weight": w["pos_embed.W_pos"]}
    for layer in range(LAYERS):
        own, h = f"blocks.{layer}.", f"transformer.h.{layer}."
        qkv = [w[f"{own}attn.W_{k}"].transpose(1, 0, 2).reshape(d, d) for k in "QKV"]
        tensors[h + "attn.c_attn.weight"] = np.concatenate(qkv, axis=1)
        tensors[h + "attn.c_attn.bias"] = np.concatenate([w[f"{own}attn.b_{k}"].reshape(d) for k in "QKV"])
        tensors[h + "attn.c_proj.weight"] = w[own + "attn.W_O"].reshape(d, d)
        tensors[h + "attn.c_proj.bias"] = w[own + "attn.b_O"]
        for ours, theirs in (("in", "c_fc"), ("out", "c_proj")):
            tensors[f"{h}mlp.{theirs}.weight"] = w[f"{own}mlp.W_{ours}"]
            tensors[f"{h}mlp.{theirs}.bias"] = w[f"{own}mlp.b_{ours}"]
        for ours, theirs in (("ln1", "ln_1"), ("ln2", "ln_2")):
            tensors[f"{h}{theirs}.weight"], tensors[f"{h}{theirs}.bias"] = w[f"{own}{ours}.w"], w[f"{own}{ours}.b"]
    tensors["transformer.ln_f.weight"], tensors["transformer.ln_f.bias"] = w["ln_final.w"], w["ln_final.b"]
    save_file({k: np.ascontiguousarray(v, np.float16) for k, v in tensors.items()}, directory / "model.safetensors")
    fields = {
        "model_type": "gpt2", "_name_or_path": "prose", "vocab_size": VOCABULARY, "n_positions": CONTEXT,
        "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(fields, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("out/prose"), help="checkpoints; training goes on from there")
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--until", type=int, default=STEPS, help="stop after so many steps, to go on another time")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)

    parts = {name: split(text) for name, text in texts(arguments.data).items()}
    tokenizer = tokenizer_of([part for part, _ in parts.values()])
    streams = {name: [np.array(tokenizer.encode(t).ids) for t in part] for name, part in parts.items()}
    train = np.concatenate([stream for stream, _ in streams.values()])
    held = {name: h[: len(h) // CONTEXT * CONTEXT].reshape(-1, CONTEXT) for name, (_, h) in streams.items()}
    counts = {name: (len(stream), held[name].size) for name, (stream, _) in streams.items()}
    print(f"{len(train):,} tokens to train on, {sum(r.size for r in held.values()):,} held out; {counts}", flush=True)

    config = clew.ModelConfig(
        n_layers=LAYERS, d_model=WIDTH, n_heads=HEADS, n_ctx=CONTEXT, d_vocab=VOCABULARY, act_fn="gelu_new",
        tie_word_embeddings=True,
    )  # fmt: skip
    seen = arguments.work / "looks.json"
    looks: dict[str, Any] = json.loads(seen.read_text()) if seen.exists() else {}

    def look(trainer: Trainer) -> None:
        step = trainer.optimizer.steps
        if step in LOOK_AT and str(step) not in looks:
            looks[str(step)] = heads_of(trainer.model) | held_out_of(trainer.model, held)
            seen.write_text(json.dumps(looks))
            print(f"step {step}: {looks[str(step)]}", flush=True)

    trainer = Trainer(
        clew.Model.from_config(config, seed=SEED), Prose(train, SEED), STEPS, BATCH,
        lr=cosine(RATE, STEPS, WARMUP, RATE / 20), betas=(0.9, 0.95), weight_decay=0.1, clip=1.0,
        held_out=Examples(np.concatenate(list(held.values()))), eval_every=EVAL_EVERY, eval_batch=16,
        directory=arguments.work / "checkpoints", checkpoint_every=50, keep=2, progress="lines", callback=look,
    )  # fmt: skip
    look(trainer)
    curve = trainer.run(until=arguments.until)
    if trainer.optimizer.steps < STEPS:
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(arguments.output / "tokenizer.json"))
    export(load_model(arguments.work / "checkpoints" / "best.safetensors"), arguments.output)
    record(arguments.output, curve, looks, counts, held)


def record(
    output: Path, curve: Curve, looks: dict[str, Any], counts: dict[str, Any], held: dict[str, np.ndarray[Any, Any]]
) -> None:
    """training.json, with the losses of what lies in the files: weights in float16."""
    model = clew.load(output)
    loss, _ = evaluate(model, Examples(np.concatenate(list(held.values()))))
    assert curve.best is not None
    means = curve.losses[: len(curve.losses) // 20 * 20].reshape(-1, 20).mean(axis=1)
    fields = {
        "seed": SEED, "steps": STEPS, "batch": BATCH, "context": CONTEXT, "rate": RATE, "parameters": model.n_params,
        "tokens": {name: {"train": a, "held_out": b} for name, (a, b) in counts.items()},
        "best_step": curve.best[0], "held_out_loss": round(loss, 4), **heads_of(model), **held_out_of(model, held),
        "curve": [{"step": step, "held_out_loss": round(value, 4)} for step, value in curve.held_out],
        "train_loss_mean_of_20": [round(float(value), 4) for value in means],
        "checkpoints": [{"step": int(step), **facts} for step, facts in sorted(looks.items(), key=lambda i: int(i[0]))],
    }  # fmt: skip
    (output / "training.json").write_text(json.dumps(fields, indent=1) + "\n")
    print(f"held-out loss {loss:.4f} at step {curve.best[0]}; {output}", flush=True)


if __name__ == "__main__":
    main()
