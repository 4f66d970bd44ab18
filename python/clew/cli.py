"""The command `clew`: look at a model, run it, see the demonstration, time it."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import bench, demo, get_num_threads, info, lens, set_num_threads, tables
from . import commands as papers
from .errors import ConfigError, Error, MissingPackageError, TokenError, install
from .inputs import check_path
from .model import Model, load

_EXAMPLES = """examples:
  clew info                                        what this installation is, bundled models
  clew info stories260K                            configuration, weights, sites, memory of a model
  clew run stories260K --ids 1,403,407,261         the likeliest next tokens
  clew run path/to/gpt2 "The Eiffel Tower is in"   the same from text
  clew run model.gguf "Once" --capture resid_post --capture pattern.3 --save run.npz
  clew demo --out out                              a trained model, layer by layer, with figures
  clew bench path/to/gpt2 --pos 1024               how fast this machine runs it

MODEL is a Hugging Face directory, a .gguf file, a llama2.c .bin file, a classic HookedTransformer state, a hub id
or the name of a bundled model.
"""

_FAILED = 2
_INTERRUPTED = 130
_PIPE_CLOSED = 141


def _threads(text: str) -> int:
    try:
        n = int(text)
    except ValueError:
        n = 0
    if not 1 <= n <= 256:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads from 1 to 256")
    return n


def _positive(text: str) -> int:
    try:
        n = int(text)
    except ValueError:
        n = 0
    if n < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return n


def _ids(text: str) -> list[int]:
    parts = [part for part in re.split(r"[,\s]+", text.strip()) if part]
    try:
        return [int(part) for part in parts]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of token ids such as 1,403,407") from None


def _size(n: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.3g} GB" if n < 1000 else f"{n:,.0f} GB"


# ---- info -----------------------------------------------------------------------------------------------------------


def _weight_rows(model: Model) -> list[tuple[str, str, str]]:
    """(name, shape, how often and how large) of every kind of weight."""
    kinds: dict[tuple[str, tuple[int, ...]], int] = {}
    tied = model.config.tie_word_embeddings
    for name, array in model.weights.items():
        key = (re.sub(r"^blocks\.\d+\.", "blocks.L.", name), array.shape)
        kinds[key] = kinds.get(key, 0) + 1
    rows = []
    for (name, shape), count in kinds.items():
        each = int(np.prod(shape)) * model.dtype.itemsize
        size = f"{count} × {_size(each)}" if name.startswith("blocks.L.") else _size(each)
        rows.append((name, str(list(shape)), "embed.W_E, transposed" if tied and name == "unembed.W_U" else size))
    return rows


def _table(rows: Sequence[tuple[str, ...]], indent: str = "  ") -> str:
    """Columns side by side."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        indent + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _info(args: argparse.Namespace) -> None:
    if args.model is None:
        given = [name for name in ("batch", "pos", "dtype") if getattr(args, name) is not None]
        if given:
            raise ConfigError(f"--{given[0]} is of a model: clew info MODEL --{given[0]} {getattr(args, given[0])}")
        info.show_config()
        print(f"{'bundled':<13} {', '.join(info.bundled()) or 'none'}")
        return
    model = load(args.model, dtype=args.dtype)
    print(model)
    for note in model.notes:
        print(f"  note: {note}")
    try:
        print(f"  tokenizer     {model.tokenizer if model.tokenizer is not None else 'none: give token ids'}")
    except MissingPackageError as error:
        print(f"  tokenizer     not usable, give token ids: {error}")
    bad = model.check()
    for value in bad:
        print(f"  WARNING: {value.name}{list(value.index)} is {value.value}")

    print("\nConfiguration")
    print(_table([(name, str(value)) for name, value in model.config.to_dict().items() if name != "extra"]))
    unique = model.n_params * model.dtype.itemsize
    print(f"\nWeights, {model.dtype}, {_size(unique)}; L = 0 … {model.config.n_layers - 1}")
    print(_table(_weight_rows(model)))
    print("\nSites:", model.sites())

    pos = min(args.pos or 1024, model.config.n_ctx)
    batch = args.batch or 1
    print(f"\nMemory of a run of {batch} × {pos} tokens, beside the weights")
    rows = [("captured", "kept", "scratch", "GFLOP")]
    plans = (("nothing (logits only)", None), ("resid_post", "resid_post"), ("pattern", "pattern"), ("every site", "*"))
    for what, capture in plans:
        plan = model.plan(batch, pos, capture=capture)
        rows.append((what, _size(plan.keep_bytes), _size(plan.scratch_bytes), f"{plan.flops / 1e9:.3g}"))
    print(_table(rows))


# ---- run ------------------------------------------------------------------------------------------------------------


def _prompt(args: argparse.Namespace, model: Model) -> Any:
    if (args.text is None) == (args.ids is None):
        raise TokenError("give a text or --ids, one of them")
    if args.ids is not None:
        return args.ids
    if model.tokenizer is None:
        more = " (it reads mazes: clew mazes shows what it does)" if "mazes" in model.config.extra else ""
        raise TokenError(f"{args.model} has no tokenizer: give token ids with --ids 1,2,3 instead of text{more}")
    return sys.stdin.read() if args.text == "-" else args.text


def _run(args: argparse.Namespace) -> None:
    if args.save is not None:
        check_path(save=args.save)  # before the work, not after it
    model = load(args.model, dtype=args.dtype)
    capture = [name for item in args.capture for name in item.split(",") if name]
    if args.capture and not capture:
        raise ConfigError(f"--capture {args.capture[0]!r} names no site: clew info {args.model} lists them")
    tokens = _prompt(args, model)
    run = model.run(tokens, capture=capture, logits="last" if args.save is None else "all")
    ids = run.tokens[0]  # type: ignore[index]
    print(f"{len(ids)} token{'s' if len(ids) != 1 else ''}: {' '.join(tables.token_texts(model, ids))}")
    log_probs = run.logits[0, -1].astype(np.float64)
    log_probs -= log_probs.max()
    log_probs -= np.log(np.exp(log_probs).sum())
    k = min(args.top, len(log_probs))
    best = np.argsort(-log_probs, kind="stable")[:k]
    print("\nmost likely next:")
    rows = [
        (f"{np.exp(log_probs[i]):7.2%}", f"{i}", *([t] if model._labeller is not None else []))
        for i, t in zip(best, tables.token_texts(model, best), strict=True)
    ]
    print(_table(rows))
    if args.lens:
        view = lens.logit_lens(model, tokens)
        last = range(max(0, len(ids) - args.lens), len(ids))
        print("\nlikeliest after each layer (share of the probability; * right):\n")
        print(view.table(last))
    sites = {name: run[name] for name in run if name != "logits"}
    if sites:
        print("\ncaptured:")
        print(_table([(name, str(list(a.shape)), _size(a.nbytes)) for name, a in sites.items()]))
    if args.save is not None:
        run.save(args.save)
        size = sum(a.nbytes for a in (*run.values(), ids))
        print(f"\nsaved {len(run) + 1} arrays, {_size(size)}, in {args.save}")


def _generate(args: argparse.Namespace) -> None:
    model = load(args.model, dtype=args.dtype)
    prompt = _prompt(args, model)
    stream = model.generate_stream(
        prompt, args.tokens, args.temperature, args.top_k, args.top_p, args.seed, stop=args.stop
    )
    if isinstance(prompt, str):
        print(prompt, end="", flush=True)
    for step in stream:
        shown = step.texts[0] if model._labeller is not None else f"{step.tokens[0]} "
        print(shown, end="", flush=True)
    print()


def _bench(args: argparse.Namespace) -> None:
    model = load(args.model, dtype=args.dtype)
    rows = bench.bench(model, args.batch, args.pos, args.rounds)
    threads = get_num_threads()
    print(
        f"{args.model}, {model.dtype}, {threads} thread{'s' if threads != 1 else ''}, median of {args.rounds} rounds\n"
    )
    print(_table([(row.what, f"{row.seconds * 1e3:9.3f} ms", row.note) for row in rows]))


# ---- the command ----------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clew",
        description="Take transformers apart: run them on a CPU and see every internal quantity.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"clew {info.__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--threads", type=_threads, metavar="N", help="threads to use (else: CLEW_NUM_THREADS, cores)")
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--dtype", choices=("float32", "float64"), help="compute in this precision (else: the file's)")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")

    sub = commands.add_parser(
        "info",
        parents=[common, model],
        help="what this installation or a model is",
        description="Without MODEL: versions, kernels, threads and bundled models. With MODEL: its configuration, "
        "weights, capture sites, and the memory that runs need.",
        epilog="examples:\n  clew info\n  clew info stories260K\n  clew info path/to/gpt2 --batch 8 --pos 128\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("model", nargs="?", metavar="MODEL", help="directory, file, hub id or bundled name")
    sub.add_argument("--batch", type=_positive, metavar="N", help="sequences of the memory plan (1)")
    sub.add_argument("--pos", type=_positive, metavar="N", help="tokens of the memory plan (1024, at most n_ctx)")
    sub.set_defaults(act=_info)

    sub = commands.add_parser(
        "run",
        parents=[common, model],
        help="run a model on text or ids",
        description="Runs a model, prints the likeliest next tokens, and saves what was captured.",
        epilog='examples:\n  clew run path/to/gpt2 "The Eiffel Tower is in"\n'
        "  clew run stories260K --ids 1,403,407,261 --top 3 --lens 4\n"
        '  clew run openai-community/gpt2 "Hi" --capture "blocks.*.hook_resid_post,pattern.3" --save run.npz\n'
        "  cat story.txt | clew run path/to/gpt2 -\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("model", metavar="MODEL", help="directory, file, hub id or bundled name")
    sub.add_argument("text", nargs="?", metavar="TEXT", help="the prompt; - reads it from standard input")
    sub.add_argument("--ids", type=_ids, metavar="1,2,3", help="token ids instead of a text")
    sub.add_argument(
        "--capture", action="append", default=[], metavar="SITES",
        help="sites, comma-separated or repeated: short name, name.layer, full name or glob (clew info MODEL)",
    )  # fmt: skip
    sub.add_argument("--top", type=_positive, default=5, metavar="K", help="how many next tokens to print (5)")
    sub.add_argument("--lens", type=_positive, metavar="N", help="the logit lens at the last N positions")
    sub.add_argument("--save", metavar="FILE.npz", help="write captured arrays, all logits and the tokens")
    sub.set_defaults(act=_run)

    sub = commands.add_parser(
        "generate",
        parents=[common, model],
        help="continue a text",
        description="Prints a continuation as it is made.",
        epilog='examples:\n  clew generate shakespeare "ROMEO:" --tokens 40 --temperature 0.8 --seed 1\n'
        "  clew generate stories260K --ids 1,403,407,261 --tokens 20\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("model", metavar="MODEL", help="directory, file, hub id or bundled name")
    sub.add_argument("text", nargs="?", metavar="TEXT", help="the prompt; - reads it from standard input")
    sub.add_argument("--ids", type=_ids, metavar="1,2,3", help="token ids instead of a text")
    sub.add_argument("--tokens", type=_positive, default=50, metavar="N", help="new tokens (50)")
    sub.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: the likeliest token (0)")
    sub.add_argument("--top-k", type=_positive, metavar="K", help="among the K likeliest tokens only")
    sub.add_argument("--top-p", type=float, metavar="P", help="among the likeliest that hold a share P only")
    sub.add_argument("--seed", type=int, metavar="N", help="of the random numbers")
    sub.add_argument("--stop", action="append", metavar="TEXT", help="ends the text; may be repeated")
    sub.set_defaults(act=_generate)

    sub = commands.add_parser(
        "demo",
        parents=[common],
        help="a trained model, layer by layer, with figures",
        description="A small trained model reads a few lines. Prints what each layer predicts and writes "
        f"{', '.join(demo.FIGURES)} into a folder (needs {install('plot,text')}).",
        epilog="examples:\n  clew demo\n  clew demo --out figures --model path/to/gpt2\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("--out", default="out", metavar="DIR", help="folder for the figures (out), made where missing")
    sub.add_argument("--model", default="shakespeare", metavar="MODEL", help="another model (shakespeare)")
    sub.set_defaults(act=lambda args: demo.main(args.out, args.model))

    sub = commands.add_parser(
        "bench",
        parents=[common, model],
        help="how fast this machine runs a model",
        description="Times a forward pass on random tokens, the same with everything captured and with an edit, the "
        "backward pass and decoding; ratios are to the forward pass. `make bench` compares with other libraries.",
        epilog="examples:\n  clew bench\n  clew bench path/to/gpt2 --batch 8 --pos 128 --threads 2\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("model", nargs="?", default="english", metavar="MODEL", help="(english)")
    sub.add_argument("--batch", type=_positive, default=1, metavar="N", help="sequences (1)")
    sub.add_argument("--pos", type=_positive, metavar="N", help="tokens of each (256, at most n_ctx)")
    sub.add_argument("--rounds", type=_positive, default=7, metavar="N", help="timed rounds (7)")
    sub.set_defaults(act=_bench)
    papers.add(commands, common)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit status: 0, 2 for an error (one line on stderr), 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):  # a terminal or pipe that cannot show a letter gets its code instead
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    try:
        if args.threads is not None:
            set_num_threads(args.threads)
        args.act(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("clew: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # `clew info MODEL | head`: the reader has seen enough
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return _PIPE_CLOSED
    except (Error, OSError, MemoryError, ImportError) as error:
        text = " ".join(str(error).split()).replace("model.sites()", "clew info MODEL") or type(error).__name__
        print(f"clew: error: {text}", file=sys.stderr)
        return _FAILED
    return 0
