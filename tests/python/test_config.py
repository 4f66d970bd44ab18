"""ModelConfig: defaults, refusals, rotary frequencies, and the way through JSON."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
from clew.config import ACTIVATION_ALIASES, ACTIVATIONS, ModelConfig
from clew.errors import Error, UnsupportedModelError

SMALL: dict[str, Any] = dict(n_layers=2, d_model=12, n_heads=3, n_ctx=8, d_vocab=9)
LLAMA3: dict[str, Any] = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=100
)


def test_defaults() -> None:
    config = ModelConfig(**SMALL)
    assert (config.d_head, config.n_key_value_heads, config.d_mlp, config.rotary_dim) == (4, 3, 48, 0)
    assert config.attn_scale == 2.0 and config.norm_affine and not config.rms
    assert ModelConfig(**SMALL, use_attn_scale=False).attn_scale == 1.0
    assert ModelConfig(**SMALL, attn_only=True).d_mlp == 0
    assert ModelConfig(**SMALL, positional_embedding_type="rotary").rotary_dim == 4
    assert ModelConfig(**SMALL, d_head=7).attn_scale == math.sqrt(7)
    with pytest.raises(AttributeError):
        config.d_model = 3  # type: ignore[misc]


def test_activations() -> None:
    for name in ACTIVATIONS:
        assert ModelConfig(**SMALL, act_fn=name).act_fn == name
    for alias, name in ACTIVATION_ALIASES.items():
        assert name in ACTIVATIONS and ModelConfig(**SMALL, act_fn=alias).act_fn == name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"act_fn": "solu"}, "act_fn = 'solu'; supported: none, gelu"),
        ({"normalization_type": "batch"}, "normalization_type = 'batch'"),
        ({"positional_embedding_type": "alibi"}, "positional_embedding_type = 'alibi'"),
        ({"attention_kind": "cosine"}, "attention_kind = 'cosine'"),
        ({"attention_dir": "backward"}, "attention_dir = 'backward'"),
        ({"positional_embedding_type": "rotary", "rope_scaling": {"rope_type": "yarn"}}, "rope_type = 'yarn'"),
    ],
)
def test_what_the_engine_does_not_have(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        ModelConfig(**SMALL, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layers": -1}, "n_layers = -1"),
        ({"d_model": 0}, "d_model = 0"),
        ({"d_vocab": 0}, "d_vocab = 0"),
        ({"d_vocab": 2**62}, f"d_vocab = {2**62}, at most {2**31 - 1}"),
        ({"n_layers": 10**9}, "n_layers = 1000000000, at most 65536"),
        ({"n_ctx": None}, "n_ctx = None, must be a whole number"),
        ({"n_heads": True}, "n_heads = True, must be a whole number"),
        ({"eps": "1"}, "eps = '1', must be a finite number"),
        ({"eps": None}, "eps = None, must be a finite number"),
        ({"eps": -1.0}, "eps = -1.0, must not be negative"),
        ({"attn_scale": 10**400}, "attn_scale = 10+, must be a finite number"),
        ({"attn_scale": 0}, "attn_scale = 0.0, must be positive"),
        ({"embed_scale": math.nan}, "embed_scale = nan, must be a finite number"),
        ({"rotary_base": [1]}, r"rotary_base = \[1\], must be a finite number"),
        ({"gated_mlp": "no"}, "gated_mlp = 'no', must be true or false"),
        ({"act_fn": ["gelu"]}, "act_fn = .'gelu'., must be a name"),
        ({"attn_types": 3}, "attn_types = 3, must be a list"),
        ({"n_heads": 5}, "d_model = 12 is no multiple of n_heads = 5"),
        ({"n_key_value_heads": 2}, "n_heads = 3 is no multiple of n_key_value_heads = 2"),
        ({"positional_embedding_type": "rotary", "rotary_dim": 3}, "rotary_dim = 3"),
        ({"positional_embedding_type": "rotary", "rotary_dim": 6}, "rotary_dim = 6"),
        ({"positional_embedding_type": "rotary", "rotary_dim": 0}, "rotary positions with rotary_dim = 0"),
        ({"attn_types": ("global",)}, "attn_types"),
        ({"attn_types": ("global", "sparse")}, "attn_types"),
        ({"attn_types": ("global", "local")}, "window_size"),
    ],
)
def test_contradictions(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**(SMALL | fields))


def test_numbers_of_numpy_become_plain() -> None:
    config = ModelConfig(
        **{name: np.int64(value) for name, value in SMALL.items()}, eps=np.float32(0.5), gated_mlp=np.bool_(True)
    )  # type: ignore[arg-type]
    assert type(config.d_vocab) is int and type(config.eps) is float and type(config.gated_mlp) is bool
    assert json.loads(json.dumps(config.to_dict())) == ModelConfig(**SMALL, eps=0.5, gated_mlp=True).to_dict()


def test_windows() -> None:
    assert not ModelConfig(**SMALL).is_local(0)
    assert ModelConfig(**SMALL, window_size=3).is_local(1)
    mixed = ModelConfig(**SMALL, window_size=3, attn_types=["global", "local"])
    assert not mixed.is_local(0) and mixed.is_local(1)


def test_frequencies() -> None:
    assert ModelConfig(**SMALL).rotary_frequencies().size == 0
    rotary: dict[str, Any] = SMALL | dict(positional_embedding_type="rotary", d_head=8)
    want = [10000.0 ** (-2 * i / 8) for i in range(4)]
    np.testing.assert_allclose(ModelConfig(**rotary).rotary_frequencies(), [want], rtol=1e-15)
    partial = ModelConfig(**rotary, rotary_dim=4, rotary_base=100.0)
    np.testing.assert_allclose(partial.rotary_frequencies(), [[1, 0.1]], rtol=1e-15)
    linear = ModelConfig(**rotary, rope_scaling={"type": "linear", "factor": 4}, rotary_base_local=100.0)
    np.testing.assert_allclose(
        linear.rotary_frequencies(), [[f / 4 for f in want], [100.0 ** (-2 * i / 8) for i in range(4)]], rtol=1e-15
    )


def test_llama3_scaling_in_its_three_ranges() -> None:
    config = ModelConfig(**SMALL, positional_embedding_type="rotary", d_head=8, rope_scaling=LLAMA3)
    got = config.rotary_frequencies()[0]
    seen = set()
    for i, freq in enumerate(10000.0 ** (-2 * i / 8) for i in range(4)):
        wavelength = 2 * math.pi / freq
        if wavelength < 100 / 4:
            want, kind = freq, "kept"
        elif wavelength > 100 / 1:
            want, kind = freq / 8, "divided"
        else:
            smooth = (100 / wavelength - 1) / (4 - 1)
            want, kind = (1 - smooth) * freq / 8 + smooth * freq, "blended"
        seen.add(kind)
        assert got[i] == pytest.approx(want, rel=1e-14)
    assert seen == {"kept", "blended", "divided"}


def test_what_follows_from_others_follows_anew() -> None:
    plain = ModelConfig(n_layers=1, d_model=16, n_heads=2, n_ctx=8, d_vocab=10)
    assert plain.replace(positional_embedding_type="rotary").rotary_dim == 8
    wide = plain.replace(n_heads=4, d_vocab=20)
    assert (wide.n_key_value_heads, wide.d_head, wide.attn_scale, wide.d_vocab_out) == (4, 4, 2.0, 20)
    assert plain.replace(d_model=32).d_mlp == 128 and plain.replace(attn_only=True).d_mlp == 0
    assert plain.replace(d_head=4).attn_scale == 2.0 and plain.replace(use_attn_scale=False).attn_scale == 1.0
    vectors = ModelConfig(n_layers=1, d_model=16, n_heads=2, n_ctx=8, d_in=3, d_out=1)
    assert (vectors.replace(d_in=5).d_vocab, vectors.replace(d_out=4).d_vocab_out) == (5, 4)
    given = ModelConfig(n_layers=1, d_model=16, n_heads=2, n_ctx=8, d_vocab=10, d_head=8, attn_scale=3.0, d_mlp=64)
    kept = pickle.loads(pickle.dumps(given)).replace(d_model=32, n_heads=4)
    assert (kept.d_head, kept.attn_scale, kept.d_mlp, kept.n_key_value_heads) == (8, 3.0, 64, 4)
    assert plain == ModelConfig(**plain.to_dict()) and hash(plain) == hash(ModelConfig(**plain.to_dict()))
    assert plain.replace(n_heads=4).replace(n_heads=2) == plain


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "linear", "factor": 0}, "factor = 0, must be finite and positive"),
        ({"rope_type": "linear", "factor": math.inf}, "factor = inf, must be finite and positive"),
        ({"rope_type": "linear", "factor": "2"}, "factor must be real numbers"),
        ({"rope_type": "linear", "factor": [2.0]}, r"factor = \[2.0\], must be"),
        ({"rope_type": "linear"}, "linear: factor is missing"),
        ({"rope_type": "linear", "fctor": 2}, "linear has no 'fctor'; nearest: factor"),
        ({"factor": 2.0}, "rope_type is missing"),
        ({"rope_type": "llama3", "factor": 8}, "llama3: low_freq_factor is missing"),
        (LLAMA3 | {"high_freq_factor": 0.5}, "high_freq_factor must be larger"),
        ({"rope_type": "factors", "factors": [1.0, -1.0]}, r"factors = \[1.0, -1.0\], must be"),
        ({"rope_type": ["linear"]}, "supported: linear, llama3"),
        (5, "rope_scaling = 5, must be a mapping"),
    ],
)
def test_scalings_that_would_be_ignored(scaling: Any, message: str) -> None:
    with pytest.raises(Error, match=message):
        ModelConfig(**SMALL, positional_embedding_type="rotary", rope_scaling=scaling)


def test_replace_and_json() -> None:
    config = ModelConfig(
        **SMALL, positional_embedding_type="rotary", rope_scaling=LLAMA3, attn_types=("local", "global"), window_size=2,
        eos_token_id=(1, 2), extra={"a": None},
    )  # fmt: skip
    assert config.replace(n_ctx=9).n_ctx == 9 and config.n_ctx == 8
    assert config.replace() == config
    again = json.loads(json.dumps(config.to_dict()))
    again |= {"eos_token_id": tuple(again["eos_token_id"])}
    assert ModelConfig(**again) == config
