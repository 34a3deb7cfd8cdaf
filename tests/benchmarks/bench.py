"""How fast is the honest computation? Ratios to what else a user would do, and to the machine's limit.

Run   make bench        or a part: python -m tests.benchmarks.bench --only steps measure
      writes results/bench.md, too; JAX is timed where it is installed (pip install jax)

Medians and quartiles of interleaved repeats, in one process; nothing here is a test. OMP_NUM_THREADS=2 is two cores.
"""

import argparse
import importlib.util
import itertools
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import fgvar
from fgvar import allocator
from fgvar.measurement.arguments import BUDGET
from fgvar.measurement.budget import default_chunk
from fgvar.measurement.cost import Flops
from fgvar.training.gradients import gradient_of
from fgvar.training.loop import RunConfig, TrainingLoop
from fgvar.training.objectives import task_of
from tests.benchmarks.loops import by_torch_alone, loop
from tests.benchmarks.networks import in_a_child, large, small
from tests.benchmarks.timing import HEAD, Row, Work, in_a_process, interleaved, product_rate, ratio, seconds

LONG = 10**6  # updates of a schedule whose end nobody sees


def problem_of(preset: str, batch: int, head_init: str = "kaiming") -> fgvar.Problem:
    """A LocalMixer on random images of the size that it is for."""
    model = fgvar.networks.LocalMixer.preset(preset, head_init=head_init)
    return fgvar.Problem(
        model, "cross_entropy", (torch.randn(batch, *model.image_shape), torch.randint(10, (batch,)))
    )


def step(problem: fgvar.Problem, scheme: fgvar.GradientEstimator, compile: bool, running: ExitStack) -> Work:
    """A training step: noise, estimate, watch, update; while ``running``, with memory and noise as in `train`."""
    schedule = fgvar.Schedule(epochs=1, lr=1e-4, batch=problem.batch_size)
    task = task_of("cross_entropy", None, 0, problem.batch_size)
    gradient = gradient_of(problem, scheme, autocast=False, compile=compile)
    going = TrainingLoop(problem, scheme, gradient, task, RunConfig(schedule, LONG, seed=0))
    running.enter_context(allocator.keep_freed_memory())
    running.enter_context(going.noise.in_thread())
    return lambda: going.update((problem.inputs, problem.targets))


# ---- training steps --------------------------------------------------------------------------------------------


def steps() -> Iterator[Row]:
    """An LG-FG-A step beside the LG-BP step of the same code path."""
    signs = fgvar.Rademacher()
    schemes = {
        "LG-BP": fgvar.scheme("LG-BP"),
        "LG-FG-A, signs": fgvar.scheme("LG-FG-A", noise=signs),
        "LG-FG-A, normal": fgvar.scheme("LG-FG-A"),
        "LG-FG-W, signs": fgvar.scheme("LG-FG-W", noise=signs),
    }
    for compiled in (False, True):
        how = "compiled" if compiled else "eager"
        problem = problem_of("M/8/16", 128)
        with ExitStack() as running:
            times = interleaved({name: step(problem, one, compiled, running) for name, one in schemes.items()}, 7)
        yield Row(f"M/8/16, batch 128, {how}: LG-BP step", times["LG-BP"], unit="s")
        yield Row(f"{how}: LG-FG-A step, signs", times["LG-FG-A, signs"], unit="s")
        for name in list(schemes)[1:]:
            goal = 1.2 if name == "LG-FG-A, signs" and compiled else None
            yield Row(f"{how}: {name} / LG-BP", ratio(times, name, "LG-BP"), goal)


def noise() -> Iterator[Row]:
    """Normal numbers for all weights of M/8/16, beside NumPy's own and torch's."""
    randomness = fgvar.scheme("FG-W").randomness(problem_of("M/8/16", 8))
    draws, generator = range(16), np.random.Generator(np.random.SFC64(0))
    times = interleaved(
        {
            "fgvar": lambda: randomness.sample(0, draws),
            "NumPy": lambda: generator.standard_normal(len(draws) * randomness.size, dtype=np.float32),
            "torch": lambda: torch.randn(len(draws) * randomness.size),
        },
        7,
    )
    yield Row("normal noise, a number", [1e9 * t / len(draws) / randomness.size for t in times["fgvar"]], unit="ns")
    for other in ("NumPy", "torch"):
        yield Row(f"normal noise: {other} on one core / fgvar", ratio(times, other, "fgvar"))


def twins() -> Iterator[Row]:
    """Compiled estimates beside their eager twins, on a small LocalMixer: to compile takes too long for a test."""
    model = fgvar.networks.LocalMixer((1, 8, 8), classes=10, blocks=2, patches=2, channels=32, groups=4)
    batch = (torch.randn(4, *model.image_shape), torch.randint(10, (4,)))
    for which, (dtype, goal) in itertools.product(
        ("LG-FG-A", "LG-FG-W"), {torch.float64: 1e-12, torch.float32: 1e-6}.items()
    ):
        problem, scheme = fgvar.Problem(model, "cross_entropy", batch).to(dtype), fgvar.scheme(which)
        noise = one_draw(problem, scheme)
        eager, compiled = (
            gradient_of(problem, scheme, autocast=False, compile=how)(
                problem.params, (problem.inputs, problem.targets), noise
            )[0]
            for how in (False, True)
        )
        own, apart = (
            torch.cat([g.flatten() for g in each.values()]).norm().item()
            for each in (eager, {name: g - compiled[name] for name, g in eager.items()})
        )
        yield Row(f"{which}, {dtype}: norm of compiled less eager / of eager", [apart / own], goal, unit="")


class Products(TorchDispatchMode):
    """Collects the shapes (m, k, n) of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm"):
            a, b = args[-2:]
            self.shapes += [(a.shape[-2], a.shape[-1], b.shape[-1])] * (len(a) if name == "bmm" else 1)
        return func(*args, **(kwargs or {}))


def own_products(
    problem: fgvar.Problem, scheme: fgvar.GradientEstimator, noise: dict[str, Tensor]
) -> tuple[int, float]:
    """FLOP of an estimate, and FLOP/s of its matrix products alone, one after another."""
    with Flops() as flops, Products() as products:
        scheme.estimate(problem, noise)
    return flops.count, product_rate(products.shapes)


def one_draw(problem: fgvar.Problem, scheme: fgvar.GradientEstimator) -> dict[str, Tensor]:
    return {name: u[0] for name, u in scheme.randomness(problem).sample(0, [0], dtype=problem.dtype).items()}


def rate() -> Iterator[Row]:
    """The compiled step's FLOP/s beside those of its matrix products alone."""
    square = product_rate([(2048, 2048, 2048)])
    yield Row("machine: products of 2048 × 2048", [square / 1e9], unit="GF/s")
    for preset, batch, goal in (("M/8/16", 128, 0.3), ("L/8/64", 16, 0.5)):
        problem, scheme = problem_of(preset, batch), fgvar.scheme("LG-FG-A", noise=fgvar.Rademacher())
        flops, limit = own_products(problem, scheme, one_draw(problem, scheme))
        with ExitStack() as running:
            times = interleaved({"step": step(problem, scheme, True, running)}, 5)["step"]
        yield Row(f"{preset}, batch {batch}: products of the step's own shapes", [limit / 1e9], unit="GF/s")
        yield Row(f"{preset}: compiled LG-FG-A step / those", [flops / t / limit for t in times], goal, at_most=False)


def epoch() -> Iterator[Row]:
    """Epochs of LG-FG-A on 60,000 images of MNIST's size: with data, evaluation, optimiser and log."""
    for preset in ("S/1/1", "M/1/16"):
        model = fgvar.networks.LocalMixer.preset(preset, head_init="zero")
        pixels = torch.randint(256, (70_000, 1, 28, 28), dtype=torch.uint8)
        images = fgvar.data.Images(pixels, torch.randint(10, (70_000,)), 10, (0.13,), (0.31,), "random", "train")
        train, test = images.subset(range(60_000)), images.subset(range(60_000, 70_000))
        schedule = fgvar.Schedule(epochs=4, batch=128, lr=1e-3)
        ends: list[float] = []
        fgvar.train(
            model, fgvar.scheme("LG-FG-A"), (train, test), schedule, compile=True,
            logger=lambda *_, ends=ends: ends.append(time.perf_counter()),
        )  # fmt: skip
        took = [b - a for a, b in itertools.pairwise(ends)]
        yield Row(
            f"{preset}, batch 128: an epoch of compiled LG-FG-A", took, 1.2 if preset == "S/1/1" else None, unit="s"
        )
        problem, scheme = problem_of(preset, 128), fgvar.scheme("LG-FG-A")
        noise = one_draw(problem, scheme)
        gradient = gradient_of(problem, scheme, autocast=False, compile=True)
        works = {"estimate": lambda: gradient(problem.params, (problem.inputs, problem.targets), noise)}  # noqa: B023
        alone = [468 * t for t in interleaved(works, 50)["estimate"]]
        yield Row(f"{preset}: of it, the 468 compiled estimates alone", alone, unit="s")
        flops, limit = own_products(problem, scheme, noise)
        yield Row(f"{preset}: of them, the matrix products alone", [468 * flops / limit], unit="s")


# ---- measurements ----------------------------------------------------------------------------------------------


def measure() -> Iterator[Row]:
    """256 draws by `measure` beside a loop over 8, times 32; the memory of two chunks beside the budget of one."""
    from studies.fused_losses import peak

    problem = problem_of("M/8/16", 8)
    goals = {"FG-W": 5.0, "FG-A": 3.0}
    for name, goal in goals.items():
        scheme = fgvar.scheme(name)
        one_by_one = loop(scheme, problem, 8)
        works: dict[str, Callable[[], object]] = {"loop": by_torch_alone(one_by_one), "our loop": one_by_one}
        for oracle in (fgvar.Jvp(), fgvar.oracles.Replay()):
            estimator = replace(scheme, oracle=oracle)
            works[repr(oracle)] = lambda e=estimator: fgvar.measure({"one": e}, problem, draws=256)
        times = interleaved(works, 3)
        for oracle, least in ((fgvar.Jvp(), 2.0), (fgvar.oracles.Replay(), goal)):
            yield Row(
                f"M/8/16, batch 8, {name}: loop / measure by {type(oracle).__name__}, 256 draws",
                ratio(times, "loop", repr(oracle), 32), least, at_most=False,
            )  # fmt: skip
            yield Row("of it: the same with the loop over fgvar's layers", ratio(times, "our loop", repr(oracle), 32))
            estimator = replace(scheme, oracle=oracle)
            chunk = default_chunk(estimator, problem, estimator.randomness(problem), BUDGET)
            taken = peak(lambda e=estimator, n=2 * chunk: fgvar.measure({"one": e}, problem, draws=n))
            yield Row("of it: peak memory / budget", [taken / BUDGET], 1.0)


KINDS = {
    "matrix products": ("mm", "bmm", "addmm"),
    "elementwise passes": ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "rsqrt", "threshold_backward"),
    "sums and means": ("sum", "mean"),
    "torch's own layer norm": ("native_layer_norm", "native_layer_norm_backward"),
    "copies and fills": ("copy_", "fill_"),
}


def shares(what: str, work: Work) -> Iterator[Row]:
    """Of the time of a work, what torch's kernels take, and drawing noise; the rest is Python."""
    work()
    drawing = 0.0
    sample = fgvar.Randomness.sample

    def timed(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        nonlocal drawing
        began = time.perf_counter()
        found = sample(*args, **kwargs)
        drawing += time.perf_counter() - began
        return found

    fgvar.Randomness.sample = timed  # type: ignore[method-assign]
    try:
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            whole = seconds(work)
    finally:
        fgvar.Randomness.sample = sample  # type: ignore[method-assign]
    times = {each.key.removeprefix("aten::"): each.self_cpu_time_total / 1e6 for each in profiled.key_averages()}
    yield Row(f"{what}: drawing noise", [100 * drawing / whole], unit="%")
    for kind, names in KINDS.items():
        yield Row(f"{what}: {kind}", [100 * sum(times.get(name, 0.0) for name in names) / whole], unit="%")


def profiles() -> Iterator[Row]:
    """Where the time goes of eager steps, and of measurements."""
    scheme = fgvar.scheme("LG-FG-A", noise=fgvar.Rademacher())
    with ExitStack() as running:
        yield from shares("eager LG-FG-A step", step(problem_of("M/8/16", 128), scheme, False, running))
    problem = problem_of("M/8/16", 8)
    for name, oracle in itertools.product(("FG-W", "FG-A"), (fgvar.Jvp(), fgvar.oracles.Replay())):
        estimator = fgvar.scheme(name, oracle=oracle)
        yield from shares(
            f"measure {name} by {type(oracle).__name__}",
            lambda e=estimator: fgvar.measure({"one": e}, problem, draws=64),
        )


def exact() -> Iterator[Row]:
    """Every weight's noise variance in closed form, beside draws until its standard error is 1 %."""
    problem = problem_of("M/1/16", 32)
    for name in ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A"):
        scheme = fgvar.scheme(name)
        works = {
            "closed": lambda s=scheme: fgvar.theory.variance(s, problem),
            "drawn": lambda s=scheme: fgvar.measure({"one": s}, problem, draws=128),
        }
        times = interleaved(works, 3)
        needed = 2 / 0.01**2  # of normal estimates; theirs have heavier tails and need more
        yield Row(
            f"M/1/16, batch 32, {name}: draws to 1 % / closed form",
            ratio(times, "drawn", "closed", needed / 128), 900.0, at_most=False,
        )  # fmt: skip


def probes() -> Iterator[Row]:
    """The probes of Table 3's runs, in per cent of a run's time."""
    from studies import table3

    for preset in ("S/1/1", "M/1/16"):
        problem = problem_of(preset, 128)
        small = problem.at(batch=(problem.inputs[:32], problem.targets[:32]))
        one = fgvar.Probe(table3.probed(), (small.inputs, small.targets), (1,), draws=32, route="both")
        with ExitStack() as running:
            works = {"step": step(problem, fgvar.scheme("LG-FG-A"), True, running)}
            works["probe"] = lambda one=one, small=small: one.measure(small, 1)
            times = interleaved(works, 5)
        for epochs in (20, 100):
            run = 469 * epochs
            yield Row(
                f"{preset}: 12 probes of six schemes / {epochs} epochs of LG-FG-A",
                ratio(times, "probe", "step", 100 * 12 / run), 20.0, unit="%",
            )  # fmt: skip


def replicated() -> Iterator[Row]:
    """A block's loss for every patch and group, 64 groups beside 1: fused, by copies, and in one copy (ordinary)."""
    from studies import fused_losses

    ways = {groups: fused_losses.ways(groups, 0, 32, 16, 512, 10) for groups in (64, 1)}
    works = {(way, groups): ways[groups][way] for way in ("fused", "ordinary", "naive") for groups in ways}
    times = interleaved({f"{way}, {groups}": work for (way, groups), work in works.items()}, 15)
    for way, goal in (("fused", 1.15), ("ordinary", None), ("naive", None)):
        yield Row(f"replicated losses, {way}: 64 groups / 1", ratio(times, f"{way}, 64", f"{way}, 1"), goal)
        peaks = [fused_losses.peak(works[way, groups]) for groups in (64, 1)]
        yield Row(f"replicated losses, {way}: peak memory, 64 groups / 1", [peaks[0] / peaks[1]], goal)


def start() -> Iterator[Row]:
    """What the interpreter takes to import fgvar, and the command line to say what it can do."""
    yield Row("import fgvar", [in_a_process(["-c", "import fgvar"]) for _ in range(5)], 0.1, unit="s")
    yield Row("python -m fgvar --help", [in_a_process(["-m", "fgvar", "--help"]) for _ in range(5)], 0.5, unit="s")


def reports() -> Iterator[Row]:
    """Reports of `check_estimator`: a black box on the default problems, and FG-A on a Llama of 5,456 numbers."""
    scheme = fgvar.scheme("FG-W")

    def black_box(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
        u = {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in problem.params.items()}
        return scheme.estimate(problem, u).gradient

    took = seconds(lambda: fgvar.testing.check_estimator(fgvar.testing.from_function(black_box)))
    yield Row("check_estimator of FG-W as a black box, default problems", [took], 15.0, unit="s")
    there = importlib.util.find_spec("transformers") is not None
    one = [in_a_child("report", "FG-A", 0, 0)] if there else []
    yield Row("check_estimator of FG-A, Llama of 5,456 numbers", [o["seconds"] for o in one], 30.0, unit="s")
    yield Row("its peak of resident memory", [o["bytes"] / 1e9 for o in one], 2.0, unit="GB")


PARTS = (start, noise, steps, twins, rate, epoch, measure, small, large, profiles, replicated, exact, probes, reports)
ALL = {part.__name__: part for part in PARTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*ALL], default=[*ALL])
    parser.add_argument(
        "--out", type=Path, default=Path("results/bench.md"), help="where the table goes, as Markdown"
    )
    arguments = parser.parse_args()
    machine = f"{platform.processor() or platform.machine()}, torch {torch.__version__}, "
    lines = [f"{machine}{torch.get_num_threads()} threads", "", HEAD]
    print(lines[0])
    for row in itertools.chain.from_iterable(ALL[name]() for name in arguments.only):
        print(row, flush=True)
        lines.append(row.to_markdown())
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    took = seconds(main)
    print(f"{took:.0f} s in all")
