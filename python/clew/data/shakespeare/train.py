"""Trains the bundled model "shakespeare": python train.py input.txt [CHECKPOINTS].

With torch, transformers, tokenizers and safetensors.

Everything is fixed: seed, order, split (the last tenth of the text is held out), schedule. Writes config.json,
model.safetensors (float16), tokenizer.json and training.json (losses in nats per token) beside this file.

CHECKPOINTS is a folder that gets the model at twelve steps, 0 among them, as step-N directories (float32), and what a
stopped training goes on from. Then all files go there, and none beside this one.
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

SEED, STEPS, BATCH, CONTEXT, RATE, WARMUP = 0, 2400, 16, 128, 2e-3, 100
CHECKPOINTS = (0, 10, 25, 50, 100, 150, 300, 600, 900, 1200, 1800, STEPS)
HERE = Path(__file__).parent


def tokenizer_of(text: str) -> Tokenizer:
    """Byte-level BPE with 1,024 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=1024, initial_alphabet=alphabet))
    return tokenizer


def loss_of(model: GPT2LMHeadModel, ids: torch.Tensor) -> torch.Tensor:
    logits = model(ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def main() -> None:
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    tokenizer = tokenizer_of(text[:cut])
    train = torch.tensor(tokenizer.encode(text[:cut]).ids)
    held_out = torch.tensor(tokenizer.encode(text[cut:]).ids)
    held_out = held_out[: len(held_out) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)

    torch.manual_seed(SEED)
    config = GPT2Config(
        vocab_size=1024, n_positions=256, n_embd=128, n_layer=4, n_head=4, resid_pdrop=0.1, embd_pdrop=0.1,
        attn_pdrop=0.1, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99))
    best, history, first = math.inf, [], 0
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    out = HERE if folder is None else folder
    out.mkdir(parents=True, exist_ok=True)
    if (out / "state.pt").exists():
        first, best, history, weights, moments, drawn = torch.load(out / "state.pt", weights_only=False)
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
        torch.set_rng_state(drawn)
    for step in range(first, STEPS + 1):
        if folder is not None and step % 150 == 0:
            state = (step, best, history, model.state_dict(), optimizer.state_dict(), torch.get_rng_state())
            torch.save(state, out / "state.tmp")
            (out / "state.tmp").replace(out / "state.pt")
        if folder is not None and step in CHECKPOINTS:
            model.save_pretrained(out / f"step-{step}")
        if step % 150 == 0:
            model.eval()
            with torch.no_grad():
                value = torch.stack([loss_of(model, part) for part in held_out.split(32)]).mean().item()
            model.train()
            history = [*history, {"step": step, "held_out_loss": round(value, 4)}]
            print(history[-1], flush=True)
            if value < best:
                best = value
                tensors = {k: v.half().contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
                save_file({k: v.clone() for k, v in tensors.items()}, out / "model.safetensors")
        rate = RATE * min(1.0, (step + 1) / WARMUP) * (0.55 + 0.45 * math.cos(math.pi * step / STEPS))
        for group in optimizer.param_groups:
            group["lr"] = rate
        start = torch.randint(len(train) - CONTEXT - 256, (BATCH,))
        length = CONTEXT if step % 4 else 255  # every fourth batch uses the whole context
        loss = loss_of(model, torch.stack([train[s : s + length + 1] for s in start[: BATCH * CONTEXT // length]]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    tokenizer.save(str(out / "tokenizer.json"))
    kept = {"model_type", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "activation_function"}
    kept |= {"layer_norm_epsilon", "tie_word_embeddings", "bos_token_id", "eos_token_id", "initializer_range"}
    fields = {k: v for k, v in config.to_dict().items() if k in kept}
    fields |= {"_name_or_path": "shakespeare", "tie_word_embeddings": True}
    (out / "config.json").write_text(json.dumps(fields, indent=1) + "\n")
    record = {
        "seed": SEED, "steps": STEPS, "batch": BATCH, "context": CONTEXT, "rate": RATE, "train_tokens": len(train),
        "held_out_tokens": held_out.numel(), "best_held_out_loss": round(best, 4), "curve": history,
    }  # fmt: skip
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
