"""Making mazes, walking through them and probing, against maze-dataset, Hugging Face's generate and plain runs."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import clew
import numpy as np
from clew import mazes

from . import models
from .cost import probe
from .report import Figure, at_least, at_most, megabytes, of_times, skipped
from .timing import alternate, median

if TYPE_CHECKING:
    from .part import Setting

GRID = 6
BUDGET = 15e-6
"""Seconds that a 6 × 6 maze and its tokens may take on one thread."""


def _maze_dataset(n: int) -> Any:
    """Their generator and tokenizer on n mazes: a function of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from maze_dataset import SolvedMaze
        from maze_dataset.generation import LatticeMazeGenerators
        from maze_dataset.tokenization import MazeTokenizer, TokenizationMode
    tokenizer = MazeTokenizer(tokenization_mode=TokenizationMode.AOTP_UT_uniform, max_grid_size=7)
    shape = np.array([GRID, GRID])

    def make() -> list[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = []
            for _ in range(n):
                maze = LatticeMazeGenerators.gen_dfs(shape)
                solved = SolvedMaze.from_lattice_maze(maze, maze.generate_random_path())
                out.append(tokenizer.encode(solved.as_tokens(tokenizer)))
            return out

    return make


def _ours(tokenizer: mazes.Tokenizer, n: int) -> Any:
    return tokenizer.encode_batch(mazes.generate(n, GRID))


def _making(setting: Setting) -> list[Figure]:
    """Seconds of a maze and its tokens, on one thread."""
    n, few = 20_000, 20
    label = f"{GRID}×{GRID} RDFS and tokens"
    clew.set_num_threads(1)
    sides: dict[str, models.Forward] = {"clew": partial(_ours, mazes.Tokenizer(7), n)}
    why = models.missing("maze_dataset")
    if not why:
        sides["theirs"] = _maze_dataset(few)
    times = alternate(sides, setting.rounds)
    clew.set_num_threads(models.threads())
    each = {"clew": [t / n for t in times["clew"]], "budget": [BUDGET] * setting.rounds}
    out = [of_times(f"{label}  clew / 15 µs, one thread", each, "clew", "budget", at_most(1.0))]
    name = f"{label}  maze-dataset / clew, one thread"
    if why:
        return [*out, skipped(name, at_least(100), why)]
    each["theirs"] = [t / few for t in times["theirs"]]
    return [*out, of_times(name, each, "theirs", "clew", at_least(100))]


def hugging_face(model: clew.Model) -> Any:
    """The same weights as a GPT-2 on torch."""
    import torch
    import transformers

    torch.set_num_threads(models.threads())
    c, w = model.config, model.weights
    config = transformers.GPT2Config(
        n_layer=c.n_layers, n_embd=c.d_model, n_head=c.n_heads, n_inner=c.d_mlp, n_positions=c.n_ctx,
        vocab_size=c.d_vocab, activation_function="gelu", layer_norm_epsilon=c.eps, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=7, pad_token_id=10, attn_implementation="sdpa",
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.lm_head = torch.nn.Linear(c.d_model, c.d_vocab)
    state: dict[str, Any] = {
        "transformer.wte.weight": w["embed.W_E"], "transformer.wpe.weight": w["pos_embed.W_pos"],
        "transformer.ln_f.weight": w["ln_final.w"], "transformer.ln_f.bias": w["ln_final.b"],
        "lm_head.weight": w["unembed.W_U"].T, "lm_head.bias": w["unembed.b_U"],
    }  # fmt: skip
    for layer in range(c.n_layers):
        ours, at = f"blocks.{layer}.", f"transformer.h.{layer}."
        qkv = [w[f"{ours}attn.W_{x}"].transpose(1, 0, 2).reshape(c.d_model, -1) for x in "QKV"]
        state |= {
            f"{at}attn.c_attn.weight": np.concatenate(qkv, axis=1),
            f"{at}attn.c_attn.bias": np.concatenate([w[f"{ours}attn.b_{x}"].reshape(-1) for x in "QKV"]),
            f"{at}attn.c_proj.weight": w[f"{ours}attn.W_O"].reshape(-1, c.d_model),
            f"{at}attn.c_proj.bias": w[f"{ours}attn.b_O"],
            f"{at}mlp.c_fc.weight": w[f"{ours}mlp.W_in"], f"{at}mlp.c_fc.bias": w[f"{ours}mlp.b_in"],
            f"{at}mlp.c_proj.weight": w[f"{ours}mlp.W_out"], f"{at}mlp.c_proj.bias": w[f"{ours}mlp.b_out"],
        }  # fmt: skip
        for norm in ("ln_1", "ln_2"):
            name = norm.replace("_", "")
            state |= {f"{at}{norm}.weight": w[f"{ours}{name}.w"], f"{at}{norm}.bias": w[f"{ours}{name}.b"]}
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    missing, strange = theirs.load_state_dict(tensors, strict=False)
    if strange or any(not name.endswith(("attn.bias", "attn.masked_bias")) for name in missing):
        raise RuntimeError(f"weights do not fit: {missing} are missing, {strange} strange")
    return theirs


def _walking(setting: Setting) -> list[Figure]:
    """1,000 rollouts of one model through the key-value cache, against generate in batches, by itself and at once."""
    n, batch, bound = (250 if setting.quick else 1000), 250, at_least(10.0)
    model, which = _model()
    name, single, once = (
        f"{n} rollouts  HF generate{how} / clew"
        for how in (f" in batches of {batch}", ", a maze at a time", " at once")
    )
    why = models.missing_hf()
    if why:
        return [skipped(label, bound, why) for label in (name, single, once)]
    import torch

    tokenizer, ms = mazes.Tokenizer(7), mazes.generate(n, GRID, split="test")
    prompts = torch.from_numpy(np.stack(tokenizer.encode_batch(ms, path=False)).astype(np.int64))
    theirs = hugging_face(model)
    room = GRID * GRID + 2

    def generate(count: int = n, batch: int = batch) -> list[Any]:
        out: list[Any] = []
        with torch.inference_mode():
            for start in range(0, count, batch):
                part = prompts[start : start + batch]
                made = theirs.generate(
                    part, attention_mask=torch.ones_like(part), max_new_tokens=room, do_sample=False, pad_token_id=10
                )
                out += made[:, part.shape[1] :].tolist()
        return out

    def walk() -> list[Any]:
        return mazes.rollouts(model, ms)

    def cut(row: list[int]) -> list[int]:
        """Without padding; a walk that has not ended leaves the place of <PATH_END> empty, as ours does."""
        said = [t for t in row if t != 10]
        return said[:-1] if len(said) == room and said[-1] != tokenizer.ids["<PATH_END>"] else said

    ours, others = [row.tolist() for row in walk()], [cut(row) for row in generate()]
    same = sum(a == b for a, b in zip(ours, others, strict=True)) / n
    if same < 0.98:  # a tie may fall otherwise
        raise RuntimeError(f"the two sides walk differently in {1 - same:.0%} of the mazes")
    few = 25
    times = alternate({"clew": walk, "hf": generate, "single": partial(generate, few, 1)}, setting.rounds, 0)
    at_once = alternate({"clew": walk, "hf": partial(generate, n, n)}, 2, 0) if n > batch else times
    times["single"] = [t * n / few for t in times["single"]]
    tokens = sum(map(len, ours)) / n
    note = f"{which} weights, {tokens:.1f} tokens a maze, {same:.1%} the same paths"
    return [
        of_times(name, times, "hf", "clew", bound, note),
        of_times(single, times, "single", "clew", bound, f"{few} mazes of theirs, scaled"),
        of_times(once, at_once, "hf", "clew", bound, "one call of theirs"),
    ]


def _model() -> tuple[clew.Model, str]:
    """The trained model where it is bundled, else one of its shape; and which."""
    if "maze-6x6" in clew.bundled():
        return clew.load("maze-6x6"), "trained"
    return clew.Model.from_config(mazes.hallway_config(), seed=0), "random"


def probed(n: int) -> tuple[clew.Model, mazes.Mazes, mazes.Mazes]:
    """A model, and n mazes: four fifths to learn from, the others held out."""
    held = n // 5
    return _model()[0], mazes.generate(n - held, GRID, split="train"), mazes.generate(held, GRID, split="test")


def _probing(setting: Setting) -> list[Figure]:
    """Probes of every inner wall at every layer, against the forward passes that they need."""
    n, batch = (1_000 if setting.quick else 15_000), 256
    model, train, test = probed(n)
    tokenizer = mazes.Tokenizer(7)
    prompts = [np.append(row, np.int32(tokenizer.ids["<PATH_START>"])) for ms in (train, test)
               for row in tokenizer.encode_batch(ms, path=False)]  # fmt: skip

    def passes() -> None:
        for start in range(0, n, batch):
            model.run(prompts[start : start + batch], logits="last")

    sides: dict[str, models.Forward] = {
        "ridge": partial(mazes.wall_probes, model, train, test, methods=["ridge"]),
        "both": partial(mazes.wall_probes, model, train, test),
        "passes": passes,
    }
    times = alternate(sides, 2, int(setting.quick))  # a minute a side with all mazes: nothing to warm up
    name = f"wall probes, all layers, {n:,} mazes"
    took = probe("walls", str(n))["bytes"]
    note = "peak memory not known here" if took is None else f"{megabytes(took)} at the peak beside model and mazes"
    return [
        of_times(f"{name}  ridge / forward passes", times, "ridge", "passes", at_most(1.5), note),
        of_times(f"{name}  ridge and logistic / forward passes", times, "both", "passes"),
    ]


def _learning(setting: Setting, questions: int = 0) -> Figure:
    """What making a batch takes of a training step, with so many questions more about each maze."""
    source = mazes.Curriculum([mazes.Stage(1, {GRID: 1.0}, {"rdfs": 1.0}, questions=questions)], mazes.Tokenizer(7))
    model = clew.Model.from_config(mazes.hallway_config(), seed=0)
    optimizer = clew.AdamW(model, lr=1e-3)
    examples = source.batch(0, 32)

    def step() -> float:
        return model.train_step(examples.tokens, loss_mask=examples.loss_mask, optimizer=optimizer)

    times = alternate({"data": partial(source.batch, 0, 32), "step": step}, setting.rounds + 2, 2)
    note = f"a batch {median(times['data']) * 1e3:.1f} ms"
    name = "batch of 32 6×6 mazes" + (f", {questions} questions each" if questions else "")
    return of_times(f"{name}  making it / training on it", times, "data", "step", at_most(0.02), note)


def figures(setting: Setting) -> list[Figure]:
    """Making, walking, probing, learning."""
    return [*_making(setting), *_walking(setting), *_probing(setting), _learning(setting), _learning(setting, 9)]
