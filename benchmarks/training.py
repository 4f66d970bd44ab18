"""Decoding and training against the peers, and against reading memory once and the forward pass."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import clew
import numpy as np
from clew.gradients import WeightGradients

from . import models
from .floor import Reading
from .report import Figure, at_least, at_most, of_times, skipped
from .timing import Times, alternate, median, paired, quartiles

if TYPE_CHECKING:
    from .part import Setting

NEW = 64
"""Tokens that one measurement of decoding makes."""


def _hf_generate(directory: Any, ids: Any) -> Any:
    """Hugging Face's greedy continuation, with its key-value cache: a function of nothing."""
    import torch

    inputs = torch.from_numpy(ids)
    model = models.hugging_face(directory, "sdpa")
    how: dict[str, Any] = dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)

    def generate() -> Any:
        with torch.inference_mode():
            return model.generate(inputs, attention_mask=torch.ones_like(inputs), **how)

    return generate


def decode(setting: Setting) -> list[Figure]:
    """Greedy decoding of one sequence behind a prompt of 16, with all that generating takes."""
    model = clew.load(setting.directory)
    ids = models.tokens(1, 16)
    n_bytes = models.weight_bytes(model) - model.weights["pos_embed.W_pos"].nbytes
    mapped = Reading(n_bytes, models.threads(), setting.directory / "model.safetensors")  # as clew reads them
    own = Reading(n_bytes, models.threads())
    sides: dict[str, models.Forward] = {
        "clew": partial(model.generate, ids, max_new_tokens=NEW),
        "mapped": lambda: [mapped() for _ in range(NEW)],
        "own": lambda: [own() for _ in range(NEW)],
    }
    why = models.missing_hf()
    if not why:
        sides["hf"] = _hf_generate(setting.directory, ids)
        if sides["hf"]()[0, 16:].tolist() != model.generate(ids, max_new_tokens=NEW).tokens[0].tolist():
            raise RuntimeError("the two sides continue the prompt differently")
    times = alternate(sides, setting.rounds)
    speed = NEW / median(times["clew"])

    def rates(side: str) -> str:
        return f"a at {n_bytes * NEW / median(times[side]) / 1e9:.1f} GB/s, b at {speed:.0f} tokens/s"

    once = "decoding  reading the weights once a token"
    out = [
        of_times(f"{once} / clew", times, "mapped", "clew", at_least(0.85), rates("mapped")),
        of_times(f"{once}, in huge pages / clew", times, "own", "clew", None, rates("own")),
    ]
    label = "decoding  HF generate / clew"
    out.append(skipped(label, at_least(2.0), why) if why else of_times(label, times, "hf", "clew", at_least(2.0)))
    return out


def _hf_step(layers: int, d_model: int, heads: int, vocab: int, ids: Any) -> Any:
    """A training step of Hugging Face's model with eager attention and torch's own AdamW."""
    import torch
    import transformers

    torch.set_num_threads(models.threads())
    config = transformers.GPT2Config(
        n_layer=layers, n_embd=d_model, n_head=heads, n_positions=ids.shape[1], vocab_size=vocab, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs = torch.from_numpy(ids)

    def step() -> None:
        optimizer.zero_grad()
        model(inputs, labels=inputs, use_cache=False).loss.backward()
        optimizer.step()

    return step


def training(setting: Setting) -> list[Figure]:
    """Training steps with AdamW, and what the backward pass takes beside the forward pass, all logits included."""
    out = []
    for layers, d_model, heads, batch, pos, bound in (
        (6, 128, 4, 32, 160, 1.8),
        (4, 64, 4, 32, 100, 2.0),
        (12, 256, 8, 32, 160, 1.6),
    ):
        vocab = 60
        shape = clew.ModelConfig(
            n_layers=layers, d_model=d_model, n_heads=heads, n_ctx=pos, d_vocab=vocab, act_fn="gelu_new",
            tie_word_embeddings=True,
        )  # fmt: skip
        model = clew.Model.from_config(shape, seed=0)
        optimizer = clew.AdamW(model, lr=1e-3)
        ids = np.random.default_rng(0).integers(0, vocab, (batch, pos))
        compiled = WeightGradients(model, np.full(batch, pos))
        flat, targets = ids.reshape(-1).astype(np.int32), np.roll(ids, -1, axis=1).reshape(-1).astype(np.int32)
        sides: dict[str, models.Forward] = {"step": partial(model.train_step, ids, optimizer=optimizer)}
        passes: dict[str, models.Forward] = {
            "forward": partial(model.run, ids),
            "gradients": partial(compiled.run, flat, targets),
        }
        why = models.missing_hf()
        if not why:
            sides["hf"] = _hf_step(layers, d_model, heads, vocab, ids)
        times: Times = alternate(sides, setting.rounds + 2, 2)
        both: Times = alternate(passes, 3 * (setting.rounds + 2), 2)  # a difference of two: more rounds
        name = f"training {layers} layers, d {d_model}, {batch}×{pos}"
        label = f"{name}  torch eager / clew"
        out.append(
            skipped(label, at_least(bound), why) if why else of_times(label, times, "hf", "step", at_least(bound))
        )
        backward = [ratio - 1 for ratio in paired(both, "gradients", "forward")]
        low, high = quartiles(backward)
        note = f"forward {median(both['forward']) * 1e3:.0f} ms, step {median(times['step']) * 1e3:.0f} ms"
        out.append(Figure(f"{name}  backward / forward", median(backward), low, high, at_most(2.2), note=note))
    return out
