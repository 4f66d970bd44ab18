"""Function vectors: the vector that tells a model which task its examples show (Todd et al. 2023, arXiv 2310.15213).

    from clew.adaptive import function_vectors as fv
    tasks = [fv.Task("antonyms", [("hot", "cold"), ("big", "small"), …]), fv.Task("capitals", […])]
    found = fv.extract(model, tasks, shots=10)
    print(found)                                     # the heads that carry tasks, by average indirect effect
    fv.transfer(model, tasks[0], found.vectors["antonyms"])        # zero-shot, with the vector added at each layer

On any loaded model, with text where it has a tokenizer, else with token ids. The steps:

1. a_lh(t), a head's mean output at the last token over prompts of task t (:func:`mean_heads`);
2. the same head's output put into prompts whose labels are shuffled: by how much does the probability of the right
   answer rise? Over tasks and prompts that is the average indirect effect of a head (:func:`indirect_effects`);
3. v_t = Σ a_lh(t) over the heads with the largest effects (:func:`function_vector`);
4. v_t is added to the residual stream at the last token of prompts without any example (:func:`transfer`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import edit
from ..errors import ConfigError, ShapeError, TokenError
from ..inputs import check_counts, check_flags, check_numbers, check_type, whole
from ..metrics import log_prob
from ..model import check_model
from ..regression._inputs import finite_array
from ..train.data import check_seed, generator

if TYPE_CHECKING:
    from ..model import Model

Array = NDArray[Any]
Float = NDArray[np.float64]
Piece = str | int | Sequence[int]
Head = tuple[int, int]
"""(layer, head)"""


@dataclass(frozen=True)
class Task:
    """Inputs and outputs that show one function; texts, token ids or lists of ids."""

    name: str
    pairs: Sequence[tuple[Piece, Piece]]

    def __post_init__(self) -> None:
        check_type(str, "a text", name=self.name)
        if not isinstance(self.pairs, Sequence) or isinstance(self.pairs, str):
            raise ConfigError(f"task {self.name!r}: pairs (input, output), not {type(self.pairs).__name__}")
        for i, pair in enumerate(self.pairs):
            if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
                raise ConfigError(f"task {self.name!r}: pair {i} is {pair!r:.60}, not (input, output)")

    def __repr__(self) -> str:
        return f"Task {self.name!r} of {len(self.pairs)} pairs"


@dataclass(frozen=True)
class Template:
    """What stands around inputs and outputs; the defaults, for text, are those of Todd et al.

    A prompt is (before + input + between + output + after) for each example, then before + input + between. Of a task
    in token ids these are ids, too: `Template((), (), ())` puts nothing between them.
    """

    before: Piece = "Q: "
    between: Piece = "\nA:"
    after: Piece = "\n\n"
    output: str = " "
    """Before an output that is text: the space that belongs to its first token."""


@dataclass(frozen=True)
class TaskPrompts:
    """Prompts of one task, tokenised."""

    tokens: list[list[int]]
    answers: NDArray[np.int64]
    """The first token of each right answer [n]."""

    def __repr__(self) -> str:
        return f"TaskPrompts: {len(self.tokens)} prompts of {sum(map(len, self.tokens))} tokens"


def _text(task: Task) -> bool:
    kinds = {isinstance(piece, str) for pair in task.pairs for piece in pair}
    if len(kinds) != 1:
        raise ConfigError(
            f"task {task.name!r}: inputs and outputs must be all text or all token ids, and there must be some"
        )
    return kinds.pop()


def _ids(piece: Piece) -> list[int]:
    if isinstance(piece, str):
        raise ConfigError(f"{piece!r} in a prompt of token ids: give a Template of ids, such as Template((), (), ())")
    ids = [piece] if isinstance(piece, int | np.integer) else piece
    if not isinstance(ids, Sequence | np.ndarray):
        raise ConfigError(f"{piece!r:.60} in a prompt of token ids: an id, or several")
    return [whole(i, "a token id") for i in ids]


def _assemble(model: Model, shown: Sequence[tuple[Piece, Piece]], query: Piece, answer: Piece, template: Template,
              text: bool) -> tuple[list[int], int]:  # fmt: skip
    """Tokens of a prompt, and the first of its answer."""
    t = template
    if not text:
        before, between, after = (_ids(piece) for piece in (t.before, t.between, t.after))
        tokens = [i for a, b in shown for i in (*before, *_ids(a), *between, *_ids(b), *after)]
        tokens += [*before, *_ids(query), *between]
        first = _ids(answer)
        if not first:
            raise TokenError(f"the answer to {query!r} is empty")
        return tokens, first[0]
    said = (
        "".join(f"{t.before}{a}{t.between}{t.output}{b}{t.after}" for a, b in shown) + f"{t.before}{query}{t.between}"
    )
    tokens, whole = model._encode(said), model._encode(f"{said}{t.output}{answer}")
    if whole[: len(tokens)] != tokens or len(whole) == len(tokens):
        raise TokenError(
            f"the answer {answer!r} does not begin a token behind {said[-20:]!r}: change the template's end or `output`"
        )
    return tokens, whole[len(tokens)]


def make_prompts(
    model: Model,
    task: Task,
    shots: int = 10,
    n: int = 100,
    shuffled: bool = False,
    template: Template | None = None,
    seed: int = 0,
) -> TaskPrompts:
    """n prompts of a task: `shots` examples drawn without repetition, then another input.

    Without examples every pair is asked once before any comes again.

    shuffled: the examples' outputs change places, so that they show no function; the right answer stays the task's. The
    same seed draws the same examples with and without.

    Raises ConfigError for a task of fewer than shots + 1 pairs, TokenError for ids outside the vocabulary.

    Example
    -------
    >>> import clew
    >>> from clew.adaptive import function_vectors as fv
    >>> model = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=16, d_vocab=10))
    >>> add_one = fv.Task("x + 1", [(i, i + 1) for i in range(8)])
    >>> prompts = fv.make_prompts(model, add_one, shots=2, n=3, template=fv.Template((), (), ()))
    >>> [len(p) for p in prompts.tokens], all(p[-1] + 1 == a for p, a in zip(prompts.tokens, prompts.answers))
    ([5, 5, 5], True)
    """
    check_model(model)
    check_type(Task, "a Task(name, pairs)", task=task)
    if template is not None:
        check_type(Template, "a Template or None", template=template)
    check_flags(shuffled=shuffled)
    for name, value, least in (("shots", shots, 0), ("n", n, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ConfigError(f"{name} = {value!r}, must be a whole number, at least {least}")
    if n * (shots + 1) > 2**31 - 1:
        raise ConfigError(f"n = {n} prompts of {shots} examples: at most 2³¹ − 1 pairs in all")
    if len(task.pairs) < shots + 1:
        raise ConfigError(
            f"task {task.name!r} has {len(task.pairs)} pairs: {shots} examples and a query need {shots + 1}"
        )
    text, template = _text(task), Template() if template is None else template
    rng = generator(check_seed(seed))
    alone = np.resize(rng.permutation(len(task.pairs)), n) if shots == 0 else None
    tokens, answers = [], []
    for prompt_number in range(n):
        order = rng.permutation(len(task.pairs))[: shots + 1] if alone is None else alone[prompt_number, None]
        turned = rng.permutation(shots)
        shown = [task.pairs[i] for i in order[:shots]]
        if shuffled:
            shown = [(a, shown[j][1]) for (a, _), j in zip(shown, turned, strict=True)]
        query, wanted = task.pairs[order[-1]]
        prompt, answer = _assemble(model, shown, query, wanted, template, text)
        if strange := [i for i in (*prompt, answer) if not 0 <= i < model.config.d_vocab]:
            raise TokenError(
                f"task {task.name!r}: token {strange[0]}, the vocabulary has ids 0 to {model.config.d_vocab - 1}"
            )
        tokens.append(prompt)
        answers.append(answer)
    return TaskPrompts(tokens, np.array(answers, np.int64))


# ---- Heads ----------------------------------------------------------------------------------------------------------


def mean_heads(model: Model, prompts: TaskPrompts, batch: int = 32) -> Float:
    """Mean over prompts of what every head puts out at the last token, before W_O: [n_layers, n_heads, d_head].

    Raises ConfigError for what is no model, no prompts or no size of a batch.
    """
    _check_prompts(model, prompts, batch)
    total = np.zeros((model.config.n_layers, model.config.n_heads, model.config.d_head))
    for start in range(0, len(prompts.tokens), batch):
        run = model.run(prompts.tokens[start : start + batch], capture="z", positions=[-1], logits=None)
        total += run.stack("z")[:, :, 0].sum(axis=1, dtype=np.float64)
    return total / len(prompts.tokens)


def _check_prompts(model: Model, prompts: TaskPrompts, batch: int) -> None:
    check_model(model)
    check_type(TaskPrompts, "TaskPrompts, such as make_prompts() gives", prompts=prompts)
    check_counts(batch=batch)
    if not prompts.tokens:
        raise ConfigError("prompts is empty: at least one prompt")


def _means(model: Model, means: ArrayLike) -> Float:
    check_model(model)
    c = model.config
    array = finite_array(means, "means")
    if array.shape != (c.n_layers, c.n_heads, c.d_head):
        raise ShapeError(f"means: {list(array.shape)}, expected {[c.n_layers, c.n_heads, c.d_head]}")
    return array


def indirect_effects(model: Model, prompts: TaskPrompts, means: ArrayLike, batch: int = 16) -> Float:
    """What each head's mean output does to prompts with shuffled labels: effects [n, n_layers, n_heads].

    The rise of the right answer's probability when the head's output at the last token is the mean (`mean_heads` of the
    same task's clean prompts) instead of its own.

    Raises ShapeError naming both shapes.
    """
    _check_prompts(model, prompts, batch)
    values = _means(model, means)
    layers, heads = values.shape[:2]
    variants = [
        edit.set(("z", layer), values[layer, head], heads=[head], positions=[-1])
        for layer in range(layers)
        for head in range(heads)
    ]
    out = []
    for start in range(0, len(prompts.tokens), batch):
        cut = slice(start, start + batch)
        swept = model.sweep(prompts.tokens[cut], edits=variants, metric=log_prob(prompts.answers[cut]))
        out.append((np.exp(swept.per_example) - np.exp(swept.baseline)).T.reshape(-1, layers, heads))
    return np.concatenate(out)


def function_vector(model: Model, means: ArrayLike, heads: Iterable[Head]) -> Float:
    """v = Σ over (layer, head) of the mean output times W_O: what these heads add to the residual stream [d_model].

    Where a norm stands behind attention (Gemma 2 and 3), before that norm.

    Raises ShapeError, and ConfigError for a head that the model does not have.
    """
    values = _means(model, means)
    out = np.zeros(model.config.d_model)
    check_type(Iterable, "pairs (layer, head)", heads=heads)
    if not (chosen := list(heads)):
        raise ConfigError("heads is empty: at least one (layer, head)")
    for place in chosen:
        if not isinstance(place, Sequence) or len(place) != 2:
            raise ConfigError(f"heads: {place!r:.60} is no pair (layer, head)")
        layer, head = (whole(number, what) for number, what in zip(place, ("layer", "head"), strict=True))
        if not (0 <= layer < values.shape[0] and 0 <= head < values.shape[1]):
            raise ConfigError(f"head ({layer}, {head}): there are {values.shape[0]} layers of {values.shape[1]} heads")
        out += values[layer, head] @ np.asarray(model.weights[f"blocks.{layer}.attn.W_O"][head], np.float64)
    return out


@dataclass(frozen=True)
class FunctionVectors:
    """What :func:`extract` found."""

    effects: dict[str, Float] = field(repr=False)
    """By task: indirect effects [n, n_layers, n_heads]."""
    heads: list[Head]
    """The heads of the largest average indirect effect, the largest first."""
    means: dict[str, Float] = field(repr=False)
    """By task: mean head outputs [n_layers, n_heads, d_head]."""
    vectors: dict[str, Float] = field(repr=False)
    """By task: its function vector [d_model]."""

    @property
    def average(self) -> Float:
        """Average indirect effect of each head, over prompts, then tasks [n_layers, n_heads]."""
        return np.asarray(np.mean([effect.mean(axis=0) for effect in self.effects.values()], axis=0))

    @property
    def standard_error(self) -> Float:
        """Of `average`, for these tasks and other prompts [n_layers, n_heads]."""
        variances = [effect.var(axis=0, ddof=1) / len(effect) for effect in self.effects.values()]
        return np.asarray(np.sqrt(np.sum(variances, axis=0)) / len(variances))

    def __repr__(self) -> str:
        average, error = self.average, self.standard_error
        rows = [
            f"  {layer:>5} {head:>5} {average[layer, head]:>10.4f} ± {error[layer, head]:.4f}"
            for layer, head in self.heads
        ]
        return "\n".join(
            [f"Function vectors of {', '.join(self.vectors)}", "  layer  head  average indirect effect", *rows]
        )


def extract(
    model: Model,
    tasks: Sequence[Task],
    shots: int = 10,
    prompts: int = 100,
    shuffled_prompts: int = 25,
    top: int = 10,
    template: Template | None = None,
    seed: int = 0,
) -> FunctionVectors:
    """Finds the heads that carry tasks, and each task's function vector; defaults are those of Todd et al.

    Parameters
    ----------
    shots
        Examples in a prompt.
    prompts, shuffled_prompts
        Of each task: for the means, and for the effects.
    top
        Heads in the vector (10 for a model of GPT-J's size; less for small ones).

    Raises ConfigError, TokenError.
    """
    check_model(model)
    check_type(Sequence, "a list of tasks", tasks=tasks)
    for task in tasks:
        check_type(Task, "each a Task(name, pairs)", tasks=task)
    check_counts(prompts=prompts, top=top)
    check_counts(2, shuffled_prompts=shuffled_prompts)  # one has no standard error
    if not tasks or len({task.name for task in tasks}) != len(tasks):
        raise ConfigError(f"tasks {[task.name for task in tasks]}: at least one, each with a name of its own")
    c = model.config
    if not 1 <= top <= c.n_layers * c.n_heads:
        raise ConfigError(f"top = {top}: the model has {c.n_layers * c.n_heads} heads")
    means, effects = {}, {}
    seed = check_seed(seed)
    for task in tasks:
        means[task.name] = mean_heads(model, make_prompts(model, task, shots, prompts, False, template, seed))
        shuffled = make_prompts(model, task, shots, shuffled_prompts, True, template, seed + 1)
        effects[task.name] = indirect_effects(model, shuffled, means[task.name])
    average = np.mean([effect.mean(axis=0) for effect in effects.values()], axis=0)
    order = np.argsort(-average, axis=None, kind="stable")[:top]
    heads = [(int(i) // c.n_heads, int(i) % c.n_heads) for i in order]
    vectors = {name: function_vector(model, value, heads) for name, value in means.items()}
    return FunctionVectors(effects, heads, means, vectors)


# ---- Zero-shot transfer ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transfer:
    """What a vector, added at one layer, does to prompts: by layer."""

    layers: list[int]
    accuracy: Float
    """Share of prompts whose likeliest next token is the right answer's first [layers]."""
    probability: Float
    """Mean probability of that token [layers]."""
    base_accuracy: float
    base_probability: float
    n: int
    """Prompts."""

    @property
    def best(self) -> int:
        """The layer of the highest accuracy (of equals, of the highest probability)."""
        return self.layers[max(range(len(self.layers)), key=lambda i: (self.accuracy[i], self.probability[i]))]

    def interval(self, level: float = 0.95) -> Float:
        """Wilson's interval of each accuracy [2, layers]. Raises ConfigError for a level outside (0, 1)."""
        check_numbers(level=level)
        if not 0 < level < 1:
            raise ConfigError(f"interval: level {level} must lie in (0, 1)")
        from statistics import NormalDist

        z, p, n = NormalDist().inv_cdf(0.5 + level / 2), self.accuracy, self.n
        centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return np.stack([centre - half, centre + half]) / (1 + z * z / n)

    def __repr__(self) -> str:
        rows = [f"  {layer:>5} {a:>9.3f} {p:>12.4f}" for layer, a, p in
                zip(self.layers, self.accuracy, self.probability, strict=True)]  # fmt: skip
        without = f"without: accuracy {self.base_accuracy:.3f}, probability {self.base_probability:.4f}"
        head = f"Transfer over {self.n} prompts; {without}"
        return "\n".join([head, "  layer  accuracy  probability", *rows])


def transfer(
    model: Model,
    task: Task,
    vector: ArrayLike,
    layers: Sequence[int] | None = None,
    shots: int = 0,
    n: int = 100,
    shuffled: bool = False,
    scale: float = 1.0,
    template: Template | None = None,
    seed: int = 2,
    batch: int = 64,
) -> Transfer:
    """Adds a vector [d_model] to the residual stream leaving a layer, at the last token, and looks at the answers.

    shots = 0: prompts without any example (zero-shot transfer), as many as the task has pairs or n, if that is less:
    the same prompt again would tell nothing. With `shots` and `shuffled` n of those that show no function. Controls:
    another task's vector, or a random one of the same length. layers: None, every one.

    Raises ShapeError, ConfigError.
    """
    check_model(model)
    direction = finite_array(vector, "vector")
    c = model.config
    if direction.shape != (c.d_model,):
        raise ShapeError(f"vector: {list(direction.shape)}, expected [{c.d_model}]")
    check_numbers(scale=scale)
    check_counts(batch=batch)
    if layers is not None:
        check_type((Sequence, np.ndarray), "a list of whole numbers, or None", layers=layers)
    chosen = list(range(c.n_layers)) if layers is None else [whole(layer, "layers: a layer") for layer in layers]
    outside = [layer for layer in chosen if not 0 <= layer < c.n_layers]
    if outside or not chosen:
        raise ConfigError(f"layers = {chosen}: at least one of 0 to {c.n_layers - 1}")
    prompts = make_prompts(model, task, shots, n, shuffled, template, seed)
    if shots == 0 and n > len(task.pairs):
        n = len(task.pairs)
        prompts = TaskPrompts(prompts.tokens[:n], prompts.answers[:n])

    def measure(edits: Sequence[edit.Edit]) -> tuple[float, float]:
        right = likely = 0.0
        for start in range(0, n, batch):
            answers = prompts.answers[start : start + batch]
            logits = model.run(prompts.tokens[start : start + batch], logits="last", edits=edits).logits
            right += float((logits[:, 0].argmax(axis=-1) == answers).sum())
            likely += float(np.exp(log_prob(answers)(logits)).sum())
        return right / n, likely / n

    base = measure([])
    measured = np.array([measure([edit.add(("resid_post", i), scale * direction, positions=[-1])]) for i in chosen])
    return Transfer(chosen, measured[:, 0], measured[:, 1], *base, n)


__all__ = [
    "FunctionVectors",
    "Task",
    "TaskPrompts",
    "Template",
    "Transfer",
    "extract",
    "function_vector",
    "indirect_effects",
    "make_prompts",
    "mean_heads",
    "transfer",
]


def __dir__() -> list[str]:
    return __all__
