"""GPT-2 124M with random weights, on every side."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import clew
import numpy as np
from numpy.typing import NDArray

N_LAYERS, D_MODEL, N_HEADS, D_MLP, N_CTX, D_VOCAB = 12, 768, 12, 3072, 1024, 50257

QKV_INPUTS = ("q_input", "k_input", "v_input")
LARGE = ("attn_scores", "pattern", "result")
"""Short names of the sites whose cost is bounded apart from the others'."""

Forward = Callable[[], Any]


def config(**fields: Any) -> clew.ModelConfig:
    """GPT-2 124M's configuration, with some fields replaced."""
    shape: dict[str, Any] = dict(n_layers=N_LAYERS, d_model=D_MODEL, n_heads=N_HEADS, n_ctx=N_CTX, d_vocab=D_VOCAB)
    return clew.ModelConfig(**shape | dict(tie_word_embeddings=True, act_fn="gelu_new") | fields)


def threads() -> int:
    """Threads of every side: what the command was told."""
    return int(os.environ["CLEW_NUM_THREADS"])


def missing(*packages: str) -> str:
    """Why a peer cannot run here, or an empty string."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def missing_hf() -> str:
    """Why Hugging Face cannot run here, or an empty string."""
    return missing("torch", "transformers")


def missing_lens() -> str:
    """Why TransformerLens cannot run here, or an empty string."""
    why = missing_hf() or missing("transformer_lens")
    if not why and int(metadata.version("transformer_lens").split(".")[0]) < 3:
        why = "needs transformer_lens >= 3"
    return why


def write(directory: Path) -> str:
    """Writes the model's files: transformers' own where it is installed, else ours. What wrote them."""
    writer = _write(directory)
    # As a user's files are: read from the disk. Pages that were only just written are smaller to the kernel, and
    # runs that do little but read the weights take up to 1.7 times as long on them.
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return writer


def _write(directory: Path) -> str:
    if missing_hf():
        clew.Model.from_config(config(), seed=0).save(directory)
        return "clew"
    import torch
    import transformers

    torch.manual_seed(0)
    shape = dict(n_layer=N_LAYERS, n_embd=D_MODEL, n_head=N_HEADS, n_positions=N_CTX, vocab_size=D_VOCAB)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).save_pretrained(directory)
    return "transformers"


def tokens(batch: int, pos: int) -> NDArray[np.int64]:
    """Token ids [batch, pos]."""
    return np.random.default_rng(0).integers(0, D_VOCAB, (batch, pos))


def weight_bytes(model: clew.Model) -> int:
    """Bytes of all weights; a tied unembedding counts once."""
    return model.n_params * model.dtype.itemsize


def sites(model: clew.Model, *without: str) -> list[str]:
    """Full names of every site but those with these short names."""
    return [name for name in model.sites() if name.rsplit(".", 1)[-1].removeprefix("hook_") not in without]


def hugging_face(directory: Path, attention: str) -> Any:
    """The model on torch, "eager" or "sdpa"."""
    import torch
    import transformers

    torch.set_num_threads(threads())
    model = transformers.GPT2LMHeadModel.from_pretrained(
        directory, attn_implementation=attention, dtype=torch.float32, local_files_only=True
    )
    return model.eval()


def hf_forward(model: Any, ids: NDArray[np.int64]) -> Forward:
    """All logits [batch, pos, d_vocab], without a key-value cache."""
    import torch

    inputs = torch.from_numpy(ids)

    def forward() -> Any:
        with torch.inference_mode():
            return model(inputs, use_cache=False).logits

    return forward


def transformer_lens(directory: Path) -> Any:
    """TransformerLens around a model of its own."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge

    words = models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>")  # it insists on a tokenizer
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="</s>")
    return TransformerBridge.boot_transformers(
        str(directory), hf_model=hugging_face(directory, "eager"), dtype=torch.float32, tokenizer=tokenizer
    )


def lens_forward(model: Any, ids: NDArray[np.int64], cache: bool) -> Forward:
    """All logits, with or without the cache of every hook."""
    import torch

    inputs = torch.from_numpy(ids)

    def forward() -> Any:
        with torch.inference_mode():
            return model.run_with_cache(inputs) if cache else model(inputs)

    return forward


def same_logits(ours: NDArray[Any], theirs: Any) -> None:
    """Both sides must compute the same model, else their times say nothing."""
    error = float(np.abs(ours - theirs.numpy()).max() / np.abs(ours).max())
    if not error < 1e-4:
        raise RuntimeError(f"the two sides disagree: logits differ by {error:.2g} of the largest")
