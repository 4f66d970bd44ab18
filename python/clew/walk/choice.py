"""The paper's two tests as multiple choice, their baseline and controls; an evaluation can be stopped and resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, LoadError, TokenError
from ..inputs import check_counts, check_folder, check_numbers, check_path, check_seed, check_type, is_word
from ..model import Model, check_model
from .concepts import Concept, concept_vectors
from .continuation import log_probabilities
from .tasks import N_CHOICES, Task

Array = NDArray[Any]
Test = Literal["cross_encoding", "generation", "similarity"]
Scheme = Literal["concat_all_examples", "concat_each_example", "segment_each_example", "sentence_level"]
Average = Literal["none", "mean"]
Control = Literal["ending_only", "mismatched"]

DEFAULTS = {"generation": Concept("mean", 0), "similarity": Concept("w1mean", "last")}
CHANCE = 1 / N_CHOICES


@dataclass(frozen=True)
class Settings:
    """How an evaluation is made; the arguments of :func:`evaluate`."""

    test: Test = "cross_encoding"
    concept: Concept | None = None
    scheme: Scheme = "concat_all_examples"
    shots: int = 0
    segment_average: Average = "none"
    example_average: Average = "none"
    control: Control | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("test", Test), ("scheme", Scheme), ("segment_average", Average),
                           ("example_average", Average), ("control", Control)):  # fmt: skip
            value = getattr(self, name)
            if (not isinstance(value, str) or value not in get_args(kind)) and not (
                name == "control" and value is None
            ):
                raise ConfigError(f"evaluate: {name} = {value!r}: one of {', '.join(map(repr, get_args(kind)))}")
        check_seed(self.seed)
        if self.concept is not None:
            check_type(Concept, "a Concept", concept=self.concept)
        check_counts(0, shots=self.shots)
        if self.test == "similarity" and self.control == "ending_only":
            raise ConfigError("evaluate: an ending alone has no similarity; its controls are 'mismatched' and chance")
        if self.test == "cross_encoding" and self.concept is not None:
            raise ConfigError("evaluate: cross_encoding reads the prompt itself, it has no concept")
        if self.concept is None and self.test in DEFAULTS:
            object.__setattr__(self, "concept", DEFAULTS[self.test])


@dataclass(frozen=True)
class Choices:
    """Scores of every task; made by :func:`evaluate`."""

    settings: Settings
    scores: Array
    """[task, 4]: summed log-probability in nats, or similarity; NaN where the task was skipped."""
    gold: NDArray[np.int64]
    skipped: tuple[str, ...] = ()
    """Tasks that were too long for the context, with their numbers: they count in no figure."""

    @property
    def used(self) -> NDArray[np.bool_]:
        """Which tasks have scores."""
        return np.asarray(~np.isnan(self.scores).any(axis=1))

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Is the gold ending the best? The first of equal scores is taken. False where skipped."""
        picked = np.where(self.used, np.nan_to_num(self.scores, nan=-np.inf).argmax(1), -1)
        return np.asarray(picked == self.gold)

    @property
    def accuracy(self) -> float:
        """Share of the used tasks that are right: a plain argmax, no length normalisation."""
        return float(self.correct[self.used].mean())

    def interval(self, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
        """Bootstrap interval of the accuracy, over tasks. Raises ConfigError."""
        check_numbers(level=level)
        if not 0 < level < 1:
            raise ConfigError(f"level = {level}: between 0 and 1, as .95")
        draws = _resample(self.correct[self.used][:, None], resamples, seed)[:, 0]
        return _quantiles(draws, level)

    def __repr__(self) -> str:
        if not self.used.any():
            return f"Choices of {self.settings.test}, {self.settings.shots} shots: all {len(self.gold)} tasks skipped"
        low, high = self.interval()
        more = f", {len(self.skipped)} skipped" if self.skipped else ""
        return (f"Choices of {self.settings.test}, {self.settings.shots} shots: accuracy {self.accuracy:.3f} "
                f"[{low:.3f}, {high:.3f}] on {int(self.used.sum())} tasks{more}")  # fmt: skip


def _resample(values: Array, resamples: int, seed: int) -> Array:
    """Means over resampled rows [resamples, columns] of values [n, columns]: the same rows for every column."""
    check_counts(resamples=resamples)
    n = len(values)
    if not n:
        raise ConfigError("no task was used: there is nothing to resample")
    rng = np.random.default_rng(check_seed(seed))
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.asarray(counts @ values.astype(np.float64) / n)


def _quantiles(draws: Array, level: float) -> tuple[float, float]:
    known = draws[~np.isnan(draws)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """A test beside its baseline, item-paired; made by :func:`compare`. Intervals are bootstrap, 95 %."""

    accuracy: float
    baseline: float
    n: int
    ratio: float | None
    """accuracy / baseline, the paper's figure; None, withheld, where the baseline's interval contains the floor."""
    ratio_interval: tuple[float, float]
    corrected: float | None
    """(accuracy − .25) / (baseline − .25); withheld likewise."""
    corrected_interval: tuple[float, float]
    difference: float
    """accuracy − baseline"""
    difference_interval: tuple[float, float]
    floor: float
    """The larger of chance and the control's accuracy."""
    chance_ratio: float
    """Chance / baseline: the ratio that guessing gets."""

    def __repr__(self) -> str:
        def shown(value: float | None, interval: tuple[float, float]) -> str:
            if value is None:
                return "withheld (the baseline may be at the floor)"
            return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"

        low, high = self.difference_interval
        return (f"accuracy {self.accuracy:.3f}, baseline {self.baseline:.3f}, n = {self.n}: ratio "
                f"{shown(self.ratio, self.ratio_interval)}, chance-corrected "
                f"{shown(self.corrected, self.corrected_interval)}, difference {self.difference:+.3f} "
                f"[{low:+.3f}, {high:+.3f}]; guessing's ratio {self.chance_ratio:.3f}")  # fmt: skip


def compare(test: Choices, baseline: Choices, control: Choices | None = None, resamples: int = 2000,
            seed: int = 0) -> Comparison:  # fmt: skip
    """Ratio, chance-corrected ratio and difference of two evaluations of the same tasks, item-paired bootstrap.

    control: an evaluation whose accuracy is a floor beside chance (an ending alone, a mismatched context). Raises
    ConfigError for evaluations of other tasks.

    >>> rng = np.random.default_rng(0)
    >>> gold = rng.integers(0, 4, 200)
    >>> best = rng.random((200, 4)) + 2 * np.eye(4)[gold]
    >>> compare(Choices(Settings(), rng.random((200, 4)), gold), Choices(Settings(), best, gold)).baseline
    1.0
    """
    check_type(Choices, "what evaluate gives", test=test, baseline=baseline)
    if control is not None:
        check_type(Choices, "what evaluate gives", control=control)
    if len(test.gold) != len(baseline.gold) or (test.gold != baseline.gold).any():
        raise ConfigError(f"compare: evaluations of {len(test.gold)} and {len(baseline.gold)} tasks, or of other ones")
    both = test.used & baseline.used
    if not both.any():
        raise ConfigError("compare: no task was used by both")
    pairs = np.stack([test.correct[both], baseline.correct[both]], axis=1).astype(np.float64)
    draws = _resample(pairs, resamples, seed)
    accuracy, base = (float(x) for x in pairs.mean(0))
    floor = CHANCE if control is None else max(CHANCE, control.accuracy)
    low, high = _quantiles(draws[:, 1], 0.95)
    withheld = low <= floor <= high or base <= floor
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios, corrected = draws[:, 0] / draws[:, 1], (draws[:, 0] - CHANCE) / (draws[:, 1] - CHANCE)
    unknown = (float("nan"), float("nan"))
    return Comparison(
        accuracy, base, int(both.sum()),
        None if withheld else accuracy / base, unknown if withheld else _quantiles(ratios, 0.95),
        None if withheld else (accuracy - CHANCE) / (base - CHANCE),
        unknown if withheld else _quantiles(corrected, 0.95),
        accuracy - base, _quantiles(draws[:, 0] - draws[:, 1], 0.95), floor,
        CHANCE / base if base else float("nan"),
    )  # fmt: skip


# ---- Prompts --------------------------------------------------------------------------------------------------------


def _shots(settings: Settings, pool: Sequence[Task], index: int, task: Task) -> list[Task]:
    """The examples of one task, never itself: drawn by the seed and the task's number alone."""
    if not settings.shots:
        return []
    others = [other for other in pool if other != task]
    if settings.shots > len(others):
        raise ConfigError(f"evaluate: {settings.shots} shots of {len(others)} held-out tasks other than task {index}")
    rng = np.random.default_rng([settings.seed, index, 1])
    return [others[int(i)] for i in rng.choice(len(others), settings.shots, replace=False)]


def prompt(shots: Sequence[Task], question: str) -> str:
    """The ordinary prompt: examples, each with its answer, then the question."""
    return "".join(f"{s.context}{s.answer}\n\n" for s in shots) + question


def context_texts(settings: Settings, shots: Sequence[Task], question: str) -> list[list[str]]:
    """What an encoding scheme makes vectors of: examples, each a list of segments; the question is the last one.

    >>> context_texts(Settings("similarity", scheme="sentence_level"), [], "One. Two. Three")
    [['One.', 'Two.', 'Three']]
    """
    if settings.scheme == "concat_all_examples":
        return [[prompt(shots, question)]]
    if settings.scheme == "concat_each_example":
        return [*([s.context + s.answer] for s in shots), [question]]
    if settings.scheme == "segment_each_example":
        return [*([s.context, s.answer] for s in shots), [question]]
    examples = [*(s.context + s.answer for s in shots), question]
    return [_sentences(e) for e in examples]


def _sentences(text: str) -> list[str]:
    parts = [p.strip() for p in text.split(". ")]
    kept = [p for p in parts if p]
    return [p + "." if i < len(kept) - 1 and not p.endswith(".") else p for i, p in enumerate(kept)]


def _reduced(settings: Settings, vectors: list[list[Array]]) -> Array:
    """Vectors [n, d] of one context from those of its segments, after averaging."""
    examples = []
    for own in vectors:
        stacked = np.concatenate([v.reshape(-1, v.shape[-1]) for v in own])
        examples.append(stacked.mean(0, keepdims=True) if settings.segment_average == "mean" else stacked)
    stacked = np.concatenate(examples)
    return stacked.mean(0, keepdims=True) if settings.example_average == "mean" else stacked


def _context_vectors(model: Model, settings: Settings, contexts: list[list[list[str]]], too_long: str) -> list[Array]:
    flat = [text for context in contexts for example in context for text in example]
    unique = list(dict.fromkeys(flat))
    found = concept_vectors(model, unique, settings.concept, too_long="split" if too_long == "split" else "error")
    by_text = dict(zip(unique, found, strict=True))
    return [_reduced(settings, [[by_text[t] for t in example] for example in context]) for context in contexts]


def _score(model: Model, settings: Settings, asked: list[tuple[list[Task], str, Task]], too_long: str) -> list[Array]:
    """Scores [4] of each (shots, question, task)."""
    endings = [[" " + e for e in task.endings] for _, _, task in asked]
    if settings.test == "similarity":
        contexts = _context_vectors(model, settings, [context_texts(settings, s, q) for s, q, _ in asked], too_long)
        found = concept_vectors(model, [e for own in endings for e in own], settings.concept,
                                too_long="split" if too_long == "split" else "error")  # fmt: skip
        out = []
        for i, context in enumerate(contexts):
            own = found[N_CHOICES * i : N_CHOICES * (i + 1)]
            out.append(np.array([float((context @ np.atleast_2d(v).T).max()) for v in own]))
        return out
    plain = _plain_tokens(model, endings)
    if settings.control == "ending_only":
        # the first token has no context: it is read, not scored
        flat = [ids for own in plain for ids in own]
        scored = [log_probabilities(model, [ids[:1]], [[ids[1:]]])[0][0] if len(ids) > 1 else 0.0 for ids in flat]
        return list(np.array(scored).reshape(-1, N_CHOICES))
    if settings.test == "generation":
        contexts = _context_vectors(model, settings, [context_texts(settings, s, q) for s, q, _ in asked], too_long)
        return log_probabilities(model, contexts, plain)
    rows = [[int(i) for i in model.to_tokens(prompt(s, q))[0]] for s, q, _ in asked]
    return log_probabilities(model, rows, plain)


def _plain_tokens(model: Model, endings: list[list[str]]) -> list[list[list[int]]]:
    """Ids of endings, without special tokens."""
    bos = None if model.tokenizer is None or model.tokenizer.bos_id is None else False
    return [[[int(i) for i in model.to_tokens(e, bos=bos)[0]] for e in own] for own in endings]


# ---- The evaluation -------------------------------------------------------------------------------------------------


def _identity(model: Model, settings: Settings, tasks: Sequence[Task], pool: Sequence[Task], too_long: str) -> str:
    """What must be the same for an evaluation to go on: model, settings and tasks."""
    digest = hashlib.sha256()
    digest.update(repr((settings, too_long, model.config, str(model.dtype))).encode())
    for name in sorted(model.weights):
        digest.update(
            np.ascontiguousarray(model.weights[name].reshape(-1)[:: max(1, model.weights[name].size // 64)]).tobytes()
        )
    for task in (*tasks, *(pool if settings.shots else ())):
        digest.update(repr(task).encode())
    return digest.hexdigest()[:32]


class _Store:
    """Scores in a JSONL file, one line a task, the first line says what of."""

    def __init__(self, path: str | os.PathLike[str] | None, identity: str, n: int) -> None:
        self.path = None if path is None else Path(path)
        self.scores: dict[int, list[float | None]] = {}
        self.skipped: dict[int, str] = {}
        if self.path is None:
            return
        if self.path.is_dir():
            raise ConfigError(f"resume = {self.path}: a folder; give a file")
        head = json.dumps({"clew": "evaluation", "identity": identity})
        if not self.path.exists() or not self.path.read_bytes():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(head + "\n", encoding="utf-8")
            return
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1  # a line that an interruption cut off is computed again
        lines = data[:end].decode("utf-8", "replace").splitlines()
        if not lines or lines[0] != head:
            raise ConfigError(f"resume = {self.path}: the file is of another model, other settings or other tasks: "
                              "choose another file")  # fmt: skip
        for number, line in enumerate(lines[1:], 2):
            try:
                row = json.loads(line)
                task, scores = int(row["task"]), row["scores"]
                if not 0 <= task < n or np.array(scores, np.float64).shape != (N_CHOICES,):
                    raise ValueError
                self.scores[task] = scores
                if row.get("skipped"):
                    self.skipped[task] = str(row["skipped"])
            except (ValueError, KeyError, TypeError):
                raise LoadError(f"{self.path}: line {number} is no line of an evaluation") from None
        if end < len(data):
            with self.path.open("r+b") as file:
                file.truncate(end)

    def add(self, found: dict[int, tuple[list[float | None], str]]) -> None:
        lines = []
        for task, (scores, why) in found.items():
            self.scores[task] = scores
            if why:
                self.skipped[task] = why
            lines.append(json.dumps({"task": task, "scores": scores} | ({"skipped": why} if why else {})) + "\n")
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(lines))


def _progress(show: bool, total: int, done: int) -> Any:
    """A function that counts tasks: a bar where tqdm is installed, else a line now and then."""
    if not show:
        return lambda n: None
    try:
        from tqdm.auto import tqdm

        return tqdm(total=total, initial=done, unit="task", dynamic_ncols=True).update
    except ImportError:
        count = [done]

        def line(n: int) -> None:
            count[0] += n
            print(f"{count[0]} of {total} tasks", flush=True)

        return line


def _questions(settings: Settings, tasks: Sequence[Task]) -> list[str]:
    """Each task's question; with the control "mismatched" another task's, never its own."""
    if settings.control != "mismatched":
        return [t.context for t in tasks]
    if len(tasks) < 2:
        raise ConfigError("evaluate: a mismatched context needs a second task")
    shift = int(np.random.default_rng([settings.seed, 2]).integers(1, len(tasks)))
    return [tasks[(i + shift) % len(tasks)].context for i in range(len(tasks))]


def evaluate(
    model: Model,
    tasks: Sequence[Task],
    test: Test = "cross_encoding",
    *,
    concept: Concept | None = None,
    scheme: Scheme = "concat_all_examples",
    shots: int = 0,
    shot_tasks: Sequence[Task] | None = None,
    segment_average: Average = "none",
    example_average: Average = "none",
    control: Control | None = None,
    seed: int = 0,
    limit: int | None = 1000,
    too_long: Literal["error", "split", "skip"] = "error",
    resume: str | os.PathLike[str] | None = None,
    progress: bool = False,
    at_once: int = 32,
) -> Choices:
    """Scores the four endings of tasks and picks the best (Singh 2023: acc without length normalisation).

    Parameters
    ----------
    tasks
        Of :func:`read_tasks` or :func:`next_sentence_tasks`; the first `limit` are used (None: all).
    test
        "cross_encoding": Σ log p of the ending behind the ordinary prompt, the baseline. "generation" (test 1): behind
        the context's concept vectors, which are fed as embeddings. "similarity" (test 2): dot product of the ending's
        and the context's concept vectors, the largest of several.
    concept
        None: mean of layer 0 for test 1, w1mean of the last layer for test 2.
    scheme, segment_average, example_average
        What becomes a vector: all examples together, each one, question and answer of each apart, or each sentence;
        and whether segments of an example, and then examples, are averaged.
    shots, shot_tasks
        Examples in front, drawn for each task by seed and number from `shot_tasks`, the task itself left out; None: the
        tasks behind the first `limit`, so that none is scored.
    control
        "ending_only": the ending without a context (its first token is not scored). "mismatched": another task's
        context.
    too_long
        Of a text that the context does not hold: an error, "skip" (counted in `skipped`), or for tests of concepts
        "split" (run in pieces, pooled together). Nothing is ever cut silently.
    resume
        A file that keeps scores as they are made: the same call goes on where an interrupted one stopped. Not inside
        `model.edited`: the file could not tell by which edits.
    progress, at_once
        Show a bar or lines; tasks of one batch.

    Raises
    ------
    TokenError
        A model without a tokenizer; a task that is too long, with its number.
    ConfigError
        Unknown names, too few tasks to draw shots from, `resume` of another evaluation or of an edited model.
    LoadError
        `resume` cannot be read.

    Example
    -------
    >>> import clew
    >>> from clew import corpus, walk
    >>> tasks = walk.next_sentence_tasks(corpus.held_out(), n=8)
    >>> walk.evaluate(clew.load("shakespeare"), tasks).scores.shape
    (8, 4)
    """
    if not is_word(too_long, ("error", "split", "skip")):
        raise ConfigError(f"evaluate: too_long = {too_long!r}: 'error', 'split' or 'skip'")
    settings = Settings(test, concept, scheme, shots, segment_average, example_average, control, seed)
    if too_long == "split" and test == "cross_encoding":
        raise ConfigError("evaluate: an ordinary prompt cannot be split: too_long = 'error' or 'skip'")
    check_model(model)
    model._needs_tokenizer()
    check_counts(at_once=at_once)
    if limit is not None:
        check_counts(limit=limit)
    for name, given in (("tasks", tasks), ("shot_tasks", () if shot_tasks is None else shot_tasks)):
        if not isinstance(given, Sequence) or not all(isinstance(task, Task) for task in given):
            raise ConfigError(f"evaluate: {name}: a list of tasks, such as read_tasks gives, not {given!r:.60}")
    if resume is not None:
        check_path(resume=resume)
        check_folder(resume=Path(resume).parent)
        if model._active_edits():
            raise ConfigError("evaluate: resume inside model.edited: the file could not tell by which edits")
    if settings.concept is not None:
        settings.concept.index(model)
    n = len(tasks) if limit is None else min(limit, len(tasks))
    if n < 1:
        raise ConfigError("evaluate: no task")
    chosen = list(tasks[:n])
    pool = list(tasks[n:]) if shot_tasks is None else list(shot_tasks)
    if shots > len(pool):
        raise ConfigError(f"evaluate: {shots} shots of {len(pool)} held-out tasks: give shot_tasks=, or a lower limit")
    questions = _questions(settings, chosen)
    store = _Store(resume, _identity(model, settings, chosen, pool, too_long), n)
    todo = [i for i in range(n) if i not in store.scores]
    tick = _progress(progress, n, n - len(todo))
    for at in range(0, len(todo), at_once):
        now = todo[at : at + at_once]
        store.add(_scored(model, settings, chosen, questions, pool, now, too_long))
        tick(len(now))
    scores = np.array([store.scores[i] for i in range(n)], np.float64)
    return Choices(settings, scores, np.array([t.gold for t in chosen]), tuple(store.skipped[i] for i in
                                                                             sorted(store.skipped)))  # fmt: skip


def _scored(model: Model, settings: Settings, tasks: list[Task], questions: list[str], pool: list[Task],
            now: list[int], too_long: str) -> dict[int, tuple[list[float | None], str]]:  # fmt: skip
    asked = [(_shots(settings, pool, i, tasks[i]), questions[i], tasks[i]) for i in now]
    try:
        found = _score(model, settings, asked, too_long)
        return {i: ([float(x) for x in row], "") for i, row in zip(now, found, strict=True)}
    except TokenError as error:
        if len(now) == 1:  # which task it was
            what = f"task {now[0]}" + (f" with {settings.shots} shots" if settings.shots else "")
            if too_long != "skip":
                ways = [*(["fewer shots"] if settings.shots else []), "too_long='skip'"]
                raise TokenError(f"{what}: {error}; {' or '.join(ways)}") from None
            return {now[0]: ([None] * N_CHOICES, f"{what}: {error}")}
        out: dict[int, tuple[list[float | None], str]] = {}
        for i in now:
            out |= _scored(model, settings, tasks, questions, pool, [i], too_long)
        return out


def only(choices: Choices, n: int) -> Choices:
    """The first n tasks of an evaluation."""
    check_type(Choices, "what evaluate gives", choices=choices)
    check_counts(n=n)
    return replace(choices, scores=choices.scores[:n], gold=choices.gold[:n])


__all__ = [
    "CHANCE", "DEFAULTS", "Choices", "Comparison", "Settings", "compare", "context_texts", "evaluate", "only", "prompt",
]  # fmt: skip
