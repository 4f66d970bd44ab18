"""The engine inside a process: threads, forks, Ctrl-C, memory over time."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import _core, memory
from support import assert_python, make, relative_error, resident, run_python
from twin import twin
from zoo import random_tokens, zoo

ZOO = zoo()


# ---- Any number of threads ------------------------------------------------------------------------------------------

WIDE = clew.ModelConfig(n_layers=2, d_model=256, n_heads=8, n_ctx=256, d_vocab=1300, gated_mlp=True, d_mlp=700)
NARROW = clew.ModelConfig(
    n_layers=3, d_model=72, n_heads=6, n_key_value_heads=2, d_head=20, n_ctx=256, d_vocab=97, use_qk_norm=True,
    normalization_type="RMS", positional_embedding_type="rotary", window_size=50, attn_scores_soft_cap=3.0,
    use_normalization_before_and_after=True,
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("config", [WIDE, NARROW], ids=["wide", "narrow"])
def test_bits_do_not_depend_on_the_number_of_threads(config: clew.ModelConfig, dtype: str) -> None:
    model, _ = make(config, dtype=np.dtype(dtype))
    rng = np.random.default_rng(0)
    even = rng.integers(0, config.d_vocab, (1, 200))
    ragged = [rng.integers(0, config.d_vocab, n) for n in (33, 7, 33, 1)]
    few = rng.integers(0, config.d_vocab, (1, 5))
    many = rng.integers(0, config.d_vocab, (4, 250))  # rows are cut differently for one, three and eight threads

    def everything() -> dict[str, bytes]:
        runs = {
            "even": model.run(even, capture="*"), "streaming": model.run(even),
            "ragged": model.run(ragged, capture="*"), "many": model.run(many),
            "last": model.run(ragged, logits="last"), "few": model.run(few, capture=["resid_post", "z"]),
            "some": model.run(ragged, capture="*", positions=[-1, 0]),
        }  # fmt: skip
        out = {f"{kind} {name}": array.tobytes() for kind, run in runs.items() for name, array in run.items()}
        return out | {"loss": model.loss(even).tobytes(), "ragged loss": model.loss(ragged).tobytes()}

    clew.set_num_threads(1)
    want = everything()
    for n in (2, 3, 8, 1):
        clew.set_num_threads(n)
        assert clew.get_num_threads() == n
        got = everything()
        assert got.keys() == want.keys()
        assert not [name for name in want if got[name] != want[name]], n


# Matrices whose rows are short: of few rows, each half of k is a task. Odd sizes, and k of 525 and 701.
HALVED = clew.ModelConfig(
    n_layers=2, d_model=525, n_heads=5, d_head=105, n_ctx=40, d_vocab=700, d_mlp=701, output_logits_soft_cap=9.0
)  # fmt: skip


def test_products_that_are_halved() -> None:
    model, weights = make(HALVED)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, HALVED.d_vocab, n) for n in (9, 1, 17, 4)]  # 31 rows
    single, _ = make(HALVED, dtype=np.float32)

    def everything() -> dict[str, bytes]:
        runs = {"all": single.run(prompts, capture="*"), "last": single.run(prompts, logits="last")}
        runs |= {"one": single.run(prompts[1]), "none": single.run(prompts)}
        return {f"{kind} {name}": array.tobytes() for kind, run in runs.items() for name, array in run.items()}

    clew.set_num_threads(1)
    bits = everything()
    for n in (2, 3, 8):
        clew.set_num_threads(n)
        assert everything() == bits, n
    run = model.run(prompts, capture="*")
    for i, tokens in enumerate(prompts):
        want = twin(HALVED, weights, tokens[None])
        for name in ("attn_out", "mlp.hook_pre", "mlp_out", "resid_post"):
            for full in (key for key in want if key.endswith(name)):
                assert relative_error(run[full][i, : len(tokens)], want[full][0]) <= 1e-12, full
        assert relative_error(run.logits[i, : len(tokens)], want["logits"][0]) <= 1e-12
        assert not run.logits[i, len(tokens) :].any()


def test_the_number_of_threads_comes_from_the_environment() -> None:
    script = "import clew; print(clew.get_num_threads(), 'fine')"
    assert assert_python(script, CLEW_NUM_THREADS="3").startswith("3 ")
    default = int(assert_python(script, CLEW_NUM_THREADS="").split()[0])
    assert 1 <= default <= len(os.sched_getaffinity(0))
    # what is no number is not a number
    for nonsense in ("many", "0", "-2", "2x"):
        assert int(assert_python(script, CLEW_NUM_THREADS=nonsense).split()[0]) == default
    one = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); {script}"
    assert assert_python(one, CLEW_NUM_THREADS="").startswith("1 ")


def test_two_python_threads_run_one_model() -> None:
    """Different inputs, captures and threads at once: each gets the bits that it gets alone."""
    model, _ = make(NARROW, dtype=np.float32)
    rng = np.random.default_rng(0)
    jobs = [
        dict(tokens=rng.integers(0, 97, (1 + i % 3, 20 + 17 * i)), capture=capture)
        for i, capture in enumerate(["*", None, "z", ["pattern.1", "resid_post"], "scale", "logits"])
    ]
    alone = [{k: v.tobytes() for k, v in model.run(**job).items()} for job in jobs]  # type: ignore[arg-type]
    wrong: list[Any] = []

    def work(i: int) -> None:
        try:
            for turn in range(12):
                job = (i + turn) % len(jobs)
                got = {k: v.tobytes() for k, v in model.run(**jobs[job]).items()}  # type: ignore[arg-type]
                if got != alone[job]:
                    wrong.append(job)
        except BaseException as error:  # noqa: BLE001
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_python_goes_on_while_a_run_computes() -> None:
    """Runs release the GIL."""
    config = clew.ModelConfig(n_layers=4, d_model=256, n_heads=4, n_ctx=1024, d_vocab=50)
    model = clew.Model.from_config(config)
    model.run([1, 2])
    done = threading.Event()
    ticks, began = 0, threading.Event()

    def work() -> None:
        began.set()
        model.run(np.zeros((2, 1024), int))
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    began.wait()
    while not done.is_set():
        time.sleep(0.001)
        ticks += 1
    thread.join()
    assert ticks >= 5


def test_every_thread_of_the_pool_can_grow_the_rotary_table() -> None:
    """Longer and longer prompts from several threads: tables that grow stay valid for the runs that use them."""
    model, weights = make(ZOO["llama3"])
    prompts = [random_tokens(ZOO["llama3"], n, 1, n) for n in (3, 60, 65, 130, 200, 70)]
    want = [twin(ZOO["llama3"], weights, p)["logits"] for p in prompts]
    errors: list[float] = []

    def work(order: list[int]) -> None:
        errors.extend(relative_error(model.run(prompts[i]).logits, want[i]) for i in order)

    threads = [threading.Thread(target=work, args=(list(np.roll(range(6), i)),)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 36 and max(errors) <= 1e-12


# ---- Fork -----------------------------------------------------------------------------------------------------------

SETUP = """
import os, signal, sys, threading, time
import numpy as np
import clew
from support import make
from zoo import zoo
config = clew.ModelConfig(n_layers=3, d_model=64, n_heads=4, n_ctx=300, d_vocab=50)
model, _ = make(config, dtype=np.float32)
tokens = np.random.default_rng(0).integers(0, 50, (2, 200))
clew.set_num_threads(3)

def bits():
    run = model.run(tokens, capture="*")
    return {name: array.tobytes() for name, array in run.items()}

def in_child(check):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            os._exit(0 if check() else 3)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_forked_child_runs_the_model() -> None:
    assert_python(
        SETUP
        + """
want = bits()
for _ in range(3):
    in_child(lambda: bits() == want)
    assert bits() == want
def grandchild():
    in_child(lambda: bits() == want)
    clew.set_num_threads(2)
    return bits() == want
in_child(grandchild)
print("fine")
"""
    )


def test_a_fork_while_other_threads_run() -> None:
    assert_python(
        SETUP
        + """
want = bits()
stop, wrong = False, []
def work():
    while not stop:
        if bits() != want:
            wrong.append(1)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(12):
    in_child(lambda: all(bits() == want for _ in range(2)))
    time.sleep(0.005)
stop = True
for thread in threads:
    thread.join()
assert not wrong and bits() == want
print("fine")
"""
    )


def test_arrays_live_on_in_a_child() -> None:
    assert_python(
        SETUP
        + """
run = model.run(tokens, capture="z")
z = run.stack("z")
want = z.tobytes()
def check():
    global run
    del run
    for _ in range(3):
        bits()
    return z.tobytes() == want
in_child(check)
assert z.tobytes() == want
print("fine")
"""
    )


def test_multiprocessing_by_fork() -> None:
    assert_python(
        SETUP
        + """
import multiprocessing
want = model.run(tokens).logits.tobytes()
def work(_):
    return model.run(tokens).logits.tobytes() == want
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(work, range(6)) == [True] * 6
print("fine")
"""
    )


# ---- Ctrl-C ---------------------------------------------------------------------------------------------------------

LONG = """
import signal, sys, time
import numpy as np
import clew
config = clew.ModelConfig(n_layers=40, d_model=256, n_heads=4, n_ctx=2048, d_vocab=100, d_mlp=512)
model = clew.Model.from_config(config)
short = model.run([1, 2, 3]).logits.copy()
requests = {
    "wide": dict(tokens=np.zeros((4, 2048), int)),
    "pattern": dict(tokens=np.zeros((4, 2048), int), capture=["pattern.0", "resid_post.3"]),
    "few": None,
}
request = requests[sys.argv[1]]
for turn in range(4):
    print("go", flush=True)
    try:
        if request is None:
            while True:
                model.run([[1, 2, 3]] * 4)
        else:
            model.run(**request)
        print("ended", flush=True)
        break
    except KeyboardInterrupt:
        print(time.monotonic(), flush=True)
    assert np.array_equal(model.run([1, 2, 3]).logits, short)
print("fine", flush=True)
"""


@pytest.mark.parametrize("kind", ["wide", "pattern", "few"])
def test_ctrl_c_stops_a_long_run(kind: str) -> None:
    """KeyboardInterrupt within 0.2 s; the best of four, as other programs may take the processor meanwhile."""
    path = os.pathsep.join([str(Path(clew.__file__).parent.parent), str(Path(__file__).parent)])
    child = subprocess.Popen(
        [sys.executable, "-c", LONG, kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert child.stdout is not None and child.stderr is not None
    waits = []
    try:
        for _ in range(4):
            line = child.stdout.readline()
            assert line == "go\n", line + child.stderr.read()
            time.sleep(0.25)
            sent = time.monotonic()
            child.send_signal(signal.SIGINT)
            line = child.stdout.readline()
            assert line and line != "ended\n", line + child.stderr.read()
            waits.append(float(line) - sent)
        rest, errors = child.communicate(timeout=60)
    finally:
        child.kill()
    assert rest == "fine\n" and not errors and child.returncode == 0
    assert min(waits) <= 0.2, waits


def test_a_signal_handler_runs_during_a_run_and_does_not_end_it() -> None:
    assert_python("""
import signal, time
import numpy as np
import clew
config = clew.ModelConfig(n_layers=16, d_model=256, n_heads=4, n_ctx=1024, d_vocab=100)
model = clew.Model.from_config(config)
tokens = np.zeros((1, 1024), int)
want = model.run(tokens).logits
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(time.monotonic()))
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
got = model.run(tokens).logits
end = time.monotonic()
signal.setitimer(signal.ITIMER_REAL, 0)
assert np.array_equal(got, want)
assert [t for t in seen if t < end], seen
class Stop(Exception): pass
def stop(*_): raise Stop("from the handler")
signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    while True:
        model.run(tokens)
except Stop as error:
    assert str(error) == "from the handler"
assert np.array_equal(model.run(tokens).logits, want)
print("fine")
""")


# ---- Memory ---------------------------------------------------------------------------------------------------------


def test_a_thousand_runs_leave_nothing_behind() -> None:
    model, _ = make(ZOO["gemma2"], dtype=np.float32)
    tokens = [[1, 2, 3, 4, 5], [6, 7]]

    def once(i: int) -> None:
        kind = i % 5
        if kind == 0:
            model.run(tokens, capture="*")
        elif kind == 1:
            model.run(tokens[0], capture=["z"], positions=[-1], logits="last")
        elif kind == 2:
            model.loss(tokens)
        elif kind == 3:
            model.plan(2, 9, capture="*").steps  # noqa: B018
        else:
            with pytest.raises(clew.TokenError):
                model.run([1, 99])
            with pytest.raises(clew.SiteError):
                model.run([1], capture="nothing")

    for i in range(100):
        once(i)
    gc.collect()
    before = resident()
    for i in range(1000):
        once(i)
    gc.collect()
    assert resident() - before <= 1 << 20


def test_models_leave_nothing_behind() -> None:
    config = clew.ModelConfig(n_layers=2, d_model=64, n_heads=4, n_ctx=64, d_vocab=500)

    def once() -> None:
        model = clew.Model.from_config(config, dtype="float64")
        model.run([1, 2, 3], capture="*")

    for _ in range(10):
        once()
    gc.collect()
    before = resident()
    for _ in range(100):
        once()
    gc.collect()
    # one model is 1.4 MB: 100 would be 140
    assert resident() - before <= 4 << 20


def test_references_are_counted() -> None:
    """Nothing that a run touches gains or loses a reference."""
    model, _ = make(ZOO["gpt2"])
    tokens = np.array([1, 2, 3], np.int32)
    lengths, none = np.array([3], np.int32), np.zeros((0, 2), np.int32)
    x = np.zeros((3, 24))
    objects = [tokens, lengths, none, x, model._core, None, float, np.ndarray, clew.TokenError]

    def once() -> None:
        plan = _core.Plan(model._core, lengths, none, None, -1, -1, False, 2)
        plan.run(tokens, None)
        plan.outputs, plan.steps, plan.flops, plan.keep_bytes  # noqa: B018
        _core.Plan(model._core, lengths, none, None, -1, -1, True, 2).run(None, x)
        for bad in ((tokens[:2].copy(), None), (None, None), (tokens, x[:2]), (tokens + 99, None)):
            with pytest.raises(ValueError):
                plan.run(*bad)
        with pytest.raises(ValueError):
            _core.Plan(model._core, lengths, none, lengths, -1, -1, False, 2)
        with pytest.raises(TypeError):
            _core.Plan(model._core, lengths, none, x, -1, -1, False, 2)
        _core.empty((3,), "float32")
        _core.in_slab(x), _core.first_bad(x), _core.sites(), _core.weights()

    once()
    gc.collect()  # what was made before and is not reached any more
    before = [sys.getrefcount(o) for o in objects]
    for _ in range(50):
        once()
    gc.collect()
    after = [sys.getrefcount(o) for o in objects]
    # None and types are shared with everything else: allow for a few, not for fifty
    assert all(abs(a - b) < 25 for a, b in zip(after, before, strict=True)), (before, after)
    assert after[:5] == before[:5]


def test_idle_memory_is_bounded_and_given_back() -> None:
    assert_python("""
import numpy as np
import clew
from clew import _core, memory
from support import resident
_core.trim()
assert _core.idle_bytes() == 0
big = [_core.empty((200 << 20,), "uint8") for _ in range(7)]
for array in big:
    array[::4096] = 1
full = resident()
del array, big
assert (1 << 30) - (201 << 20) <= _core.idle_bytes() <= 1 << 30, _core.idle_bytes()
assert resident() <= full - (300 << 20)
_core.trim()
assert _core.idle_bytes() == 0 and resident() <= full - (1300 << 20)
print("fine")
""")


def test_scratch_is_used_again() -> None:
    config = clew.ModelConfig(n_layers=2, d_model=64, n_heads=4, n_ctx=256, d_vocab=200)
    model = clew.Model.from_config(config)
    _core.trim()
    sizes = []
    for _ in range(4):
        model.run(np.zeros((2, 256), int), capture="*")
        gc.collect()
        sizes.append(_core.idle_bytes())
    assert sizes[0] > 0 and len(set(sizes)) == 1


EXERCISE = """
import gc
import numpy as np
import pytest
import clew
from support import make
from zoo import zoo
for name in ("gpt2", "gemma3", "linear_full", "attn_only", "no_layers"):
    for dtype in (np.float32, np.float64):
        model, _ = make(zoo()[name], dtype=dtype)
        run = model.run([[1, 2, 3], [0]], capture="*")
        kept = run["logits"]
        del run
        model.run([1, 2, 3], capture="*", positions=[0, -1], logits="last")
        model.run(embeddings=np.ones((2, 3, model.config.d_model)), capture="hook_embed")
        model.loss([[1, 2, 3], [0]])
        model.check(), model.plan(2, 3, "*").steps, repr(model), model._repr_html_(), repr(model.sites())
        for bad in ([99], [-1], [], "text", [1.5], [[1], []]):
            with pytest.raises(clew.Error):
                model.run(bad)
        with pytest.raises(clew.SiteError):
            model.run([1], capture="nothing")
        del model
        gc.collect()
        assert np.isfinite(kept).all()
print("fine")
"""


def test_python_development_mode_has_no_complaint() -> None:
    done = run_python(EXERCISE, "-X", "dev", "-W", "error")
    assert done.returncode == 0 and done.stdout.endswith("fine\n") and done.stderr == "", done.stderr


def test_pythons_debugging_allocators_have_no_complaint() -> None:
    done = run_python(EXERCISE, PYTHONMALLOC="debug", MALLOC_PERTURB_="165", MALLOC_CHECK_="3")
    assert done.returncode == 0 and done.stdout.endswith("fine\n") and done.stderr == "", done.stderr


def test_a_process_ends_well_at_any_moment() -> None:
    """Threads that still run, arrays and models that outlive the module's other objects."""
    assert_python(
        SETUP
        + """
kept = model.run(tokens, capture="z")["z", 0]
def work():
    while True:
        model.run(tokens)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.05)
print("fine")
"""
    )


def test_importing_twice_is_harmless() -> None:
    assert_python("""
import importlib, sys
import clew
from clew import _core, memory
first = _core.Model
del sys.modules["clew._core"]
again = importlib.import_module("clew._core")
model = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=5))
assert model.run([1, 2]).logits.shape == (1, 2, 5)
print("fine")
""")


# ---- threadpoolctl --------------------------------------------------------------------------------------------------


def test_threadpoolctl_sees_and_limits_the_pool() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    clew.set_num_threads(3)
    (ours,) = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "clew"]
    assert ours["num_threads"] == 3 and ours["version"] == clew.__version__
    with threadpoolctl.threadpool_limits(1, user_api="clew"):
        assert clew.get_num_threads() == 1
    assert clew.get_num_threads() == 3


# ---- Idle memory ----------------------------------------------------------------------------------------------------


def test_the_idle_limit_is_kept() -> None:
    model, _ = make(zoo()["gpt2"])
    try:
        memory.set_idle_limit(1 << 30)
        model.run([1, 2, 3])
        assert _core.idle_bytes() > 0
        memory.set_idle_limit(0)
        assert _core.idle_bytes() == 0
        model.run([1, 2, 3])
        assert _core.idle_bytes() == 0
        memory.set_idle_limit(10**30)  # as much as there is
        model.run([1, 2, 3])
        assert _core.idle_bytes() > 0
        with pytest.raises(clew.ConfigError, match=r"set_idle_limit\(-1\): must not be negative"):
            memory.set_idle_limit(-1)
    finally:
        memory.set_idle_limit(1 << 30)
