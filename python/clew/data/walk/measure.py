"""Measures what needs data that do not come with the package: python measure.py SHARED_DATA FOLDER

For "shakespeare" and "english": word similarity over every set in SHARED_DATA/word-similarity, for words that occur 20
times or more in the text that the model learned, with PPMI-SVD vectors of the same text as the control; for "english",
whose training held out the last tasks of HellaSwag, both tests of paper 1 on them, their baseline and controls, by
every encoding scheme: without examples, and with one, on the tasks that fit (prompts of five examples, which the paper
used, have some 780 tokens, its context holds 256). Writes semantics.json beside this file, which is read by
clew.walk.stored_semantics; a few minutes. FOLDER keeps the scores of tasks, so that it can be stopped and started
again. Nothing is drawn but bootstrap intervals, mismatched contexts and examples, from other held-out tasks (seed 0).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import clew
from clew import walk
from clew.experiment import plain

TASKS, FIRST = 1000, 8000
HERE = Path(__file__).parent


def learned(name: str, data: Path) -> str:
    """The text that a bundled model was trained on."""
    text = (data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    if name == "shakespeare":
        return text[: len(text) * 9 // 10]
    sys.path.insert(0, str(HERE.parent / "english"))
    import train as english  # type: ignore[import-not-found]  # data/english/train.py

    return "\n".join(part[: len(part) * 19 // 20] for part in english.texts(data).values())


def hellaswag(model: clew.Model, data: Path, folder: Path, shots: int) -> dict[str, Any]:
    """Both tests on tasks that the model never saw."""
    tasks = walk.read_tasks(data / "hellaswag" / "hellaswag_val_full.txt.bz2")[FIRST:]
    kinds: dict[str, dict[str, Any]] = {
        "cross_encoding": {}, "ending_only": {"control": "ending_only"}, "mismatched": {"control": "mismatched"},
        "generation": {"test": "generation"}, "similarity": {"test": "similarity"},
    }  # fmt: skip
    # without examples the question is all there is: each example apart is the same as all together
    schemes = ("concat_each_example", "segment_each_example", "sentence_level") if shots else ("sentence_level",)
    tests = [f"{test}, {scheme}" for test in ("generation", "similarity") for scheme in schemes]
    kinds |= {name: dict(zip(("test", "scheme"), name.split(", "), strict=True)) for name in tests}
    found = {}
    for name, more in kinds.items():
        path = folder / f"{name.replace(', ', '-')}{f'-{shots}' if shots else ''}.jsonl"
        found[name] = walk.evaluate(
            model, tasks, limit=TASKS, shots=shots, too_long="skip", resume=path, progress=True, **more
        )
    floor = max((found["ending_only"], found["mismatched"]), key=lambda c: c.accuracy)
    out: dict[str, Any] = {"tasks": TASKS, "first": FIRST, "shots": shots}
    out["accuracy"] = {name: [c.accuracy, *c.interval()] for name, c in found.items()}
    out["used"] = {name: int(c.used.sum()) for name, c in found.items()}
    for name in ("generation", "similarity", *tests):
        out[name] = plain(walk.compare(found[name], found["cross_encoding"], floor))
    return out


def main() -> None:
    data, folder = Path(sys.argv[1]), Path(sys.argv[2])
    models = {}
    for name in ("shakespeare", "english"):
        model, text = clew.load(name), learned(name, data)
        found = walk.word_similarities(model, data / "word-similarity", text)
        print(name, found.table(), sep="\n", flush=True)
        rows = [
            {key: value for key, value in plain(row).items() if key not in ("missing", "rare")}
            | {"missing": len(row.missing), "rare": len(row.rare)}
            for row in found.rows
        ]
        models[name] = {"identity": walk.identity(model), "about": found.about, "word_similarity": rows}
        if name == "english":
            models[name]["hellaswag"] = hellaswag(model, data, folder, 0)
            models[name]["hellaswag_one_shot"] = hellaswag(model, data, folder, 1)
            print(models[name]["hellaswag"], models[name]["hellaswag_one_shot"], flush=True)
    result = json.loads(
        json.dumps({"version": clew.__version__, "models": models}), parse_float=lambda x: float(f"{float(x):.5g}")
    )
    (HERE / "semantics.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
