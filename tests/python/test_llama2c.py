"""llama2.c files against the arrays they were written from; the bundled model against what is published of it."""

from __future__ import annotations

import hashlib
import re
import struct
import sys
from pathlib import Path

import clew
import numpy as np
import pytest
from clew.errors import LoadError, UnsupportedModelError
from clew.loaders.llama2c import load_llama2c

sys.path.insert(0, str(Path(__file__).parent))
from checkpoint_files import case, random_tensors, write_checkpoint
from twin import twin

STORIES = Path(clew.__file__).parent / "data" / "stories260K" / "stories260K.bin"

D, F, LAYERS, HEADS, GROUPS, VOCABULARY, CONTEXT = 12, 10, 3, 3, 1, 7, 5
SHAPES = {
    "tok_embeddings": (VOCABULARY, D), "attention_norm": (LAYERS, D), "wq": (LAYERS, D, D), "wk": (LAYERS, 4, D),
    "wv": (LAYERS, 4, D), "wo": (LAYERS, D, D), "ffn_norm": (LAYERS, D), "w1": (LAYERS, F, D), "w2": (LAYERS, D, F),
    "w3": (LAYERS, F, D), "norm": (D,), "freqs": (2, CONTEXT, 2), "output": (VOCABULARY, D),
}  # fmt: skip


def write(path: Path, tied: bool = True) -> dict[str, np.ndarray]:
    """A file of random numbers in the format's order, and the numbers."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype("<f4") for name, shape in SHAPES.items()}
    if tied:
        del arrays["output"]
    header = struct.pack("<7i", D, F, LAYERS, HEADS, GROUPS, VOCABULARY if tied else -VOCABULARY, CONTEXT)
    path.write_bytes(header + b"".join(array.tobytes() for array in arrays.values()))
    return arrays


@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight(tied: bool, dtype: str | None, tmp_path: Path) -> None:
    arrays = write(tmp_path / "a.bin", tied)
    checkpoint = load_llama2c(tmp_path / "a.bin", dtype)
    config, weights = checkpoint.config, checkpoint.weights
    assert checkpoint.dtype == (dtype or "float32")
    assert all(array.dtype == checkpoint.dtype and not array.flags.writeable for array in weights.values())
    assert (config.n_layers, config.d_model, config.d_mlp) == (3, 12, 10)
    assert (config.n_heads, config.n_key_value_heads) == (3, 1)
    assert (config.d_vocab, config.n_ctx, config.d_head, config.tie_word_embeddings) == (7, 5, 4, tied)
    assert not config.rotary_adjacent_pairs
    assert config.gated_mlp
    assert (config.act_fn, config.normalization_type, config.eps) == ("silu", "RMS", 1e-5)

    # x @ W in classic layout is what llama2.c's matmul(W, x) gives
    x, f = np.random.default_rng(1).normal(size=(2, D)), np.random.default_rng(2).normal(size=(2, F))
    for layer in range(LAYERS):
        at = f"blocks.{layer}."
        # but for queries and keys, whose rotary pairs (0, 1), (2, 3) stand as halves (0, 2), (1, 3) everywhere else
        for letter, heads, order in (("q", HEADS, (0, 2, 1, 3)), ("k", GROUPS, (0, 2, 1, 3)), ("v", GROUPS, range(4))):
            found = np.einsum("bd,hde->bhe", x, weights[f"{at}attn.W_{letter.upper()}"])
            theirs = (x @ arrays[f"w{letter}"][layer].T.astype(float)).reshape(2, heads, 4)
            np.testing.assert_allclose(found, theirs[..., list(order)], rtol=1e-12)
        found = np.einsum("bhe,hed->bd", x.reshape(2, HEADS, 4), weights[at + "attn.W_O"])
        np.testing.assert_allclose(found, x @ arrays["wo"][layer].T.astype(float), rtol=1e-12)
        for name, source in (("W_gate", "w1"), ("W_in", "w3")):
            found = x @ weights[f"{at}mlp.{name}"].astype(float)
            np.testing.assert_allclose(found, x @ arrays[source][layer].T.astype(float), rtol=1e-12)
        np.testing.assert_allclose(
            f @ weights[at + "mlp.W_out"].astype(float), f @ arrays["w2"][layer].T.astype(float), rtol=1e-12
        )
        np.testing.assert_array_equal(weights[at + "ln1.w"], arrays["attention_norm"][layer])
        np.testing.assert_array_equal(weights[at + "ln2.w"], arrays["ffn_norm"][layer])
    np.testing.assert_array_equal(weights["embed.W_E"], arrays["tok_embeddings"])
    np.testing.assert_array_equal(weights["ln_final.w"], arrays["norm"])
    np.testing.assert_array_equal(weights["unembed.W_U"].T, arrays["tok_embeddings" if tied else "output"])
    assert len(weights) == 3 + 9 * LAYERS


def test_weights_are_views_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "a.bin", tied=False)
    weights = load_llama2c(tmp_path / "a.bin").weights
    mapping = weights["embed.W_E"]
    while isinstance(mapping.base, np.ndarray):
        mapping = mapping.base
    for name, array in weights.items():
        assert np.shares_memory(array, mapping) != name.endswith(("W_Q", "W_K")), name


def test_queries_and_keys_mean_what_they_do_from_other_sources(tmp_path: Path) -> None:
    """One model as a Hugging Face directory and as llama2.c's own export writes it: the same weights, the same bits."""
    config, shapes = case("llama", rms_norm_eps=1e-5, vocab_size=VOCABULARY, max_position_embeddings=CONTEXT)
    shapes = {name: (VOCABULARY, D) if "embed" in name or "lm_head" in name else s for name, s in shapes.items()}
    tensors = random_tensors(shapes)
    directory = clew.load(write_checkpoint(tmp_path / "hf", config, tensors), dtype="float64")

    def of_layers(name: str, heads: int = 0) -> np.ndarray:
        rows = [tensors[f"model.layers.{layer}.{name}.weight"] for layer in range(config["num_hidden_layers"])]
        if heads:  # permute_reverse of its export.py
            rows = [w.reshape(heads, 2, len(w) // heads // 2, D).swapaxes(1, 2).reshape(w.shape) for w in rows]
        return np.stack(rows)

    c = directory.config
    parts = [
        tensors["model.embed_tokens.weight"], of_layers("input_layernorm"), of_layers("self_attn.q_proj", c.n_heads),
        of_layers("self_attn.k_proj", c.n_key_value_heads), of_layers("self_attn.v_proj"),
        of_layers("self_attn.o_proj"), of_layers("post_attention_layernorm"), of_layers("mlp.gate_proj"),
        of_layers("mlp.down_proj"), of_layers("mlp.up_proj"), tensors["model.norm.weight"],
        np.zeros((2, CONTEXT, c.d_head // 2), np.float32), tensors["lm_head.weight"],
    ]  # fmt: skip
    header = struct.pack("<7i", D, c.d_mlp, c.n_layers, c.n_heads, c.n_key_value_heads, -VOCABULARY, CONTEXT)
    (tmp_path / "a.bin").write_bytes(header + b"".join(part.tobytes() for part in parts))
    file = clew.load(tmp_path / "a.bin", dtype="float64")
    assert set(file.weights) == set(directory.weights)
    for name, array in directory.weights.items():
        np.testing.assert_array_equal(file.weights[name], array, err_msg=name)
    sites = ["q", "k", "rot_q", "rot_k", "pattern"]
    one, other = (model.run([[1, 2, 3, 4, 5]], capture=sites) for model in (directory, file))
    for site in one:
        np.testing.assert_array_equal(one[site], other[site], err_msg=site)
    np.testing.assert_array_equal(one.logits, other.logits)


def test_every_other_length_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.bin")
    content = (tmp_path / "a.bin").read_bytes()
    path = tmp_path / "b.bin"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(LoadError, match=f"b.bin: byte {length if length >= 28 else 0}"):
            load_llama2c(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(LoadError, match=f"byte {len(content)}: the header asks for {len(content)} bytes"):
        load_llama2c(path)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (0, 0, "byte 0: dim = 0"),
        (0, -12, "byte 0: dim = -12"),
        (1, 1 << 30, "the header asks for"),
        (2, 0, "byte 8: n_layers = 0"),
        (3, 5, "byte 12: n_heads = 5 does not cut dim = 12"),
        (3, 12, "byte 12: n_heads = 12 does not cut dim = 12 into heads of even size"),
        (4, 2, "byte 16: n_heads = 3 is no multiple of n_kv_heads = 2"),
        (5, 0, "byte 20: vocab_size = 0"),
        (5, 8, "the header asks for"),
        (6, -1, "byte 24: seq_len = -1"),
    ],
)
def test_impossible_headers(place: int, value: int, said: str, tmp_path: Path) -> None:
    write(tmp_path / "a.bin")
    content = bytearray((tmp_path / "a.bin").read_bytes())
    content[4 * place : 4 * place + 4] = struct.pack("<i", value)
    (tmp_path / "b.bin").write_bytes(content)
    with pytest.raises(LoadError, match=re.escape(said)):
        load_llama2c(tmp_path / "b.bin")


def test_random_headers(tmp_path: Path) -> None:
    write(tmp_path / "a.bin")
    content = (tmp_path / "a.bin").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "b.bin"
    for _ in range(2000):
        path.write_bytes(rng.integers(0, 256, 28, dtype=np.uint8).tobytes() + content[28:])
        with pytest.raises((LoadError, UnsupportedModelError)):
            load_llama2c(path)


def test_newer_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(struct.pack("<Ii", 0x616B3432, 1) + bytes(248))
    with pytest.raises(UnsupportedModelError, match="supported: version 0"):
        load_llama2c(tmp_path / "a.bin")


def test_no_file_and_no_dtype(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"none\.bin: No such file"):
        load_llama2c(tmp_path / "none.bin")
    write(tmp_path / "a.bin")
    with pytest.raises(ValueError, match="float16"):
        load_llama2c(tmp_path / "a.bin", "float16")


@pytest.mark.parametrize("name", ["tokenizer.bin", f"tok{VOCABULARY}.bin"])
def test_the_tokenizer_beside_it(name: str, tmp_path: Path) -> None:
    write(tmp_path / "a.bin")
    checkpoint = load_llama2c(tmp_path / "a.bin")
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer() is None
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", b" ", b"a", b"b", b" a"]
    body = b"".join(struct.pack("<fi", -i, len(piece)) + piece for i, piece in enumerate(pieces))
    (tmp_path / name).write_bytes(struct.pack("<i", 6) + body)
    assert checkpoint.tokenizer().encode("ab") == [1, 6, 5]
    (tmp_path / name).write_bytes(struct.pack("<i", 6) + body + struct.pack("<fi", 0, 1) + b"c")
    with pytest.raises(LoadError, match="8 pieces, expected 7"):
        checkpoint.tokenizer()


# ---- The bundled model ----------------------------------------------------------------------------------------------


def test_stories_is_the_published_file() -> None:
    digest = hashlib.sha256(STORIES.read_bytes()).hexdigest()
    assert digest == "b0a507e7ad0f626624f17112325e66691f9076d622e1d3274d103d00299f2696"
    assert "Andrej" in (STORIES.parent / "LICENSE").read_text()


def test_stories_tells_its_story() -> None:
    """The greedy continuation of nothing is published: "Once upon a time, there was a little girl named Lily"."""
    checkpoint = load_llama2c(STORIES)
    story = [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317]
    logits = twin(checkpoint.config, checkpoint.weights, story[:-1])["logits"][0]
    assert logits.argmax(-1).tolist() == story[1:]
    # what the file's own order gives, with pairs rotated as llama2.c rotates them
    c, weights = checkpoint.config, dict(checkpoint.weights)
    for name, array in weights.items():
        if name.endswith(("W_Q", "W_K")):
            h, d, e = array.shape
            weights[name] = array.reshape(h, d, 2, e // 2).swapaxes(2, 3).reshape(h, d, e)
    own = twin(c.replace(rotary_adjacent_pairs=True), weights, story[:-1])["logits"][0]
    np.testing.assert_allclose(own, logits, rtol=0, atol=1e-10)
    raw = np.fromfile(STORIES, dtype="<f4")[7 + 512 * 64 + 5 * 64 :][: 64 * 64].reshape(64, 64)  # layer 0's wq
    np.testing.assert_array_equal(weights["blocks.0.attn.W_Q"].transpose(0, 2, 1).reshape(64, 64), raw)


def test_stories_rotary_tables() -> None:
    """The tables that the file still holds are the angles of the configuration."""
    config = load_llama2c(STORIES).config
    tables = np.fromfile(STORIES, dtype="<f4")[-2 * 512 * 4 :].reshape(2, 512, 4)
    angles = np.arange(512)[:, None] * config.rotary_frequencies()[0]
    np.testing.assert_allclose(tables[0], np.cos(angles), atol=3e-5)  # float32 angles up to 511
    np.testing.assert_allclose(tables[1], np.sin(angles), atol=3e-5)


def test_a_tokenizer_without_files_of_its_own_is_missed_aloud(tmp_path: Path) -> None:
    names = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % i for i in range(256))]
    words = [*names, *(bytes([97 + i % 26, 97 + i // 26]) for i in range(512 - len(names)))]
    vocabulary = b"".join(struct.pack("<fi", -float(i), len(word)) + word for i, word in enumerate(words))
    (tmp_path / "tokenizer.bin").write_bytes(struct.pack("<i", 27) + vocabulary)
    (tmp_path / "m.bin").write_bytes(STORIES.read_bytes())
    model = clew.load(tmp_path / "m.bin")
    assert model.tokenizer is not None
    with pytest.warns(UserWarning, match="saved: saved without the tokenizer, which has no files to copy"):
        model.save(tmp_path / "saved")
    assert clew.load(tmp_path / "saved").tokenizer is None
    clew.load(STORIES).save(tmp_path / "saved")  # without one: a warning would be an error here
