"""Small and large networks: `measure` beside a plain torch loop, JAX where it is installed, and MeZO by hand.

python -m tests.benchmarks.networks fgvar MeZO 16 1024 measures one of the large ones, in a process of its own.
"""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional

import fgvar
from tests.benchmarks.timing import Row, Work, interleaved, ratio, seconds

BATCH, INPUTS, CLASSES, CHUNK = 64, 64, 10, 64
DRAWS = {32: 1024, 64: 1024, 128: 1024, 256: 1024, 1024: 64}  # by width
LAYERS, WIDE = 27, 1024  # of the large network: 28 million numbers
BLOCK, PIECE = 16, 1 << 15


# ---- small networks --------------------------------------------------------------------------------------------


def small(draws_of: Mapping[int, int] = DRAWS) -> Iterator[Row]:
    """A further draw of FG-W on an MLP 64-W-W-10, batch 64: all of fgvar's statistics beside sums alone."""
    for width, draws in draws_of.items():
        net = mlp(INPUTS, width, width)
        problem = fgvar.Problem(net, "cross_entropy", (torch.randn(BATCH, INPUTS), torch.randint(CLASSES, (BATCH,))))
        works = {"torch": torch_loop(problem, draws), **jax_loop(problem, draws)}
        for oracle in (fgvar.Jvp(), fgvar.oracles.Replay()):
            one = {"one": fgvar.scheme("FG-W", oracle=oracle)}
            for n in (CHUNK, CHUNK + draws):  # what is done once is in both
                works[f"{oracle}, {n}"] = lambda one=one, n=n: fgvar.measure(one, problem, draws=n)  # noqa: B023
        times = interleaved(works, 5 if width < WIDE else 3)
        what = f"64-{width}-{width}-10, FG-W"
        for peer in ("torch", "JAX"):
            yield Row(f"{what}: {peer}, a draw", [1e6 * t / draws for t in times.get(peer, ())], unit="µs")
        for oracle in ("Jvp()", "Replay()"):
            all_draws, once = times[f"{oracle}, {CHUNK + draws}"], times[f"{oracle}, {CHUNK}"]
            times[oracle] = [more - few for more, few in zip(all_draws, once, strict=True)]
            yield Row(f"{what}: {oracle}, a further draw", [1e6 * t / draws for t in times[oracle]], unit="µs")
            goal = 1.5 if width <= 64 else 1.0
            for peer, bound in (("JAX", goal), ("torch", None)):
                found = ratio(times, oracle, peer) if peer in times else []
                yield Row(f"{what}: {oracle} / {peer}", found, bound)


def mlp(*widths: int) -> nn.Sequential:
    hidden = [layer for fan in itertools.pairwise(widths) for layer in (nn.Linear(*fan), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(widths[-1], CLASSES))


def torch_loop(problem: fgvar.Problem, draws: int) -> Work:
    """Mean, variance and cosine by vmap of jvp, in chunks, with noise from one generator."""
    params, exact = problem.params, problem.backprop()
    net, (x, y) = mlp(INPUTS, *(len(b) for b in list(params.values())[1:-1:2])), (problem.inputs, problem.targets)

    def loss(params: Mapping[str, Tensor]) -> Tensor:
        return functional.cross_entropy(functional_call(net, dict(params), (x,)), y)

    def work() -> dict[str, list[Any]]:
        sums: dict[str, list[Any]] = {name: [0, 0, 0] for name in params}
        for _ in range(draws // CHUNK):
            u = {name: torch.randn(CHUNK, *p.shape) for name, p in params.items()}
            c = vmap(lambda v: jvp(loss, (params,), (v,))[1])(u)
            for name, v in u.items():
                estimates = v.flatten(1) * c[:, None]
                squares, along = estimates.square().sum(1), estimates @ exact[name].flatten()
                cosine = along / (squares.sqrt() * exact[name].norm())
                own = (estimates.sum(0), squares.sum(), cosine.sum())
                sums[name] = [total + part for total, part in zip(sums[name], own, strict=True)]
        return sums

    return work


def jax_loop(problem: fgvar.Problem, draws: int) -> dict[str, Work]:
    """The same by jit of vmap of jvp, where JAX is installed."""
    if importlib.util.find_spec("jax") is None:
        return {}
    import jax
    from jax import numpy as jnp

    point = [jnp.asarray(p.numpy()) for p in problem.params.values()]
    x, y = jnp.asarray(problem.inputs.numpy()), jnp.asarray(problem.targets.numpy())
    exact = [jnp.asarray(g.numpy()).ravel() for g in problem.backprop().values()]

    def loss(params: Any) -> Any:
        h = x
        for weight, bias in zip(params[:-2:2], params[1:-2:2], strict=True):
            h = jax.nn.relu(h @ weight.T + bias)
        logits = h @ params[-2].T + params[-1]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

    def step(sums: Any, key: Any) -> Any:
        keys = jax.random.split(key, len(point))
        u = [jax.random.normal(k, (CHUNK, *p.shape)) for k, p in zip(keys, point, strict=True)]
        c = jax.vmap(lambda *v: jax.jvp(loss, (point,), (list(v),))[1])(*u)
        found = []
        for (total, square, cosine), v, g in zip(sums, u, exact, strict=True):
            estimates = v.reshape(CHUNK, -1) * c[:, None]
            squares, along = (estimates**2).sum(1), estimates @ g
            own = along / (jnp.sqrt(squares) * jnp.linalg.norm(g))
            found.append((total + estimates.sum(0), square + squares.sum(), cosine + own.sum()))
        return found

    compiled, keys = jax.jit(step), list(jax.random.split(jax.random.key(0), draws // CHUNK))

    def work() -> object:
        sums: Any = [(jnp.zeros(g.shape), 0.0, 0.0) for g in exact]
        for key in keys:
            sums = compiled(sums, key)
        return jax.block_until_ready(sums)

    return {"JAX": work}


# ---- large networks --------------------------------------------------------------------------------------------


def large(draws: int = 16, width: int = WIDE) -> Iterator[Row]:
    """28 million numbers, and GPT-2's 124: draws in seconds, and in copies beyond network and imports."""
    what, found = f"{LAYERS}-layer MLP of width {width}", {}
    for who, name in (("by hand", "MeZO"), ("fgvar", "MeZO"), ("fgvar", "FG-W")):
        found[who, name] = one = in_a_child(who, name, draws, width)
        yield Row(f"{what}: {draws} draws of {name}, {who}", [one["seconds"]], unit="s")
        yield Row(f"{what}: its copies of the parameters", [one["copies"]], 8.0 if who == "fgvar" else None)
    for name in ("MeZO", "FG-W"):
        taken = found["fgvar", name]["seconds"] / found["by hand", "MeZO"]["seconds"]
        yield Row(f"{what}: {name} by fgvar / MeZO by hand", [taken], 1.5)
    there = importlib.util.find_spec("transformers") is not None
    for name in ("MeZO", "FG-W"):
        of_gpt2 = [in_a_child("GPT-2", name, draws, 0)] if there else []
        yield Row(
            f"GPT-2 small, 2 × 32 tokens: {draws} draws of {name}", [o["seconds"] for o in of_gpt2], 45.0, unit="s"
        )
        yield Row("GPT-2 small: its copies of the parameters", [o["copies"] for o in of_gpt2], 8.0)


def in_a_child(who: str, name: str, draws: int, width: int) -> dict[str, float]:
    command = [sys.executable, "-m", __name__, who, name, str(draws), str(width)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def alone(who: str, name: str, draws: int, width: int) -> dict[str, float]:
    """Seconds of a large measurement, and what it takes in resident memory, in copies of the parameters."""
    x, y = torch.randn(BATCH, width or 8), torch.randint(CLASSES, (BATCH,))

    def measured(net: nn.Module, loss: str, batch: tuple[Tensor, Tensor], draws: int) -> object:
        return fgvar.measure({"one": fgvar.scheme(name)}, fgvar.Problem(net, loss, batch), draws=draws)

    measured(mlp(8, 8), "cross_entropy", (x[:, :8], y), 2)  # imports are no copy
    if who == "GPT-2":
        net, ids = gpt2(), torch.randint(30_000, (2, 32))
        work: Work = lambda: measured(net, "causal_lm", (ids, ids), draws)  # noqa: E731
    else:
        net = mlp(*[width] * (LAYERS + 1))
        works: dict[str, Work] = {
            "fgvar": lambda: measured(net, "cross_entropy", (x, y), draws),
            "by hand": lambda: mezo_by_hand(net, x, y, draws),
        }
        work = works[who]
    before = resident()
    took = seconds(work)
    copy = 4 * sum(p.numel() for p in net.parameters())
    return {"seconds": took, "copies": (resident() - before) / copy}


def gpt2() -> nn.Module:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers as hf

    net: nn.Module = hf.GPT2LMHeadModel(hf.GPT2Config()).eval()
    return net


def report(name: str) -> dict[str, float]:
    """Seconds and resident bytes of a report on a Llama of 5,456 numbers, with 2 × 6 tokens."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers as hf

    size = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1}
    net, ids = hf.LlamaForCausalLM(hf.LlamaConfig(**size, **heads)).double().eval(), torch.randint(32, (2, 6))
    problem = fgvar.Problem(fgvar.with_sites(net, inputs=ids), "causal_lm", (ids, ids))
    before = resident()
    took = seconds(lambda: fgvar.testing.check_estimator(fgvar.scheme(name), problem))
    return {"seconds": took, "bytes": float(resident() - before)}


def resident() -> int:
    """The most bytes that the process has held; what getrusage tells begins with those of the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def mezo_by_hand(net: nn.Module, x: Tensor, y: Tensor, draws: int, step: float = 1e-3) -> list[Tensor]:
    """Mean and Gram matrices of 16 draws of c·u, c a central difference: directions are drawn twice, never held."""
    params = {name: p.detach() for name, p in net.named_parameters()}

    def loss(params: Mapping[str, Tensor]) -> Tensor:
        return functional.cross_entropy(functional_call(net, dict(params), (x,)), y)

    def pieces(leaf: int, draw: int) -> Iterator[tuple[slice, Tensor]]:
        flat = list(params.values())[leaf].view(-1)
        for start in range(0, flat.numel(), 1 << 20):
            generator = torch.Generator().manual_seed((draw * len(params) + leaf) << 12 | start >> 20)
            at = slice(start, start + (1 << 20))
            yield at, torch.randn(len(flat[at]), generator=generator)

    def move(draw: int, by: float) -> None:
        for leaf, p in enumerate(params.values()):
            for at, u in pieces(leaf, draw):
                p.view(-1)[at].add_(u, alpha=by)

    exact, c = grad(loss)(params), []
    with torch.no_grad():
        for draw in range(draws):
            move(draw, step)
            ahead = loss(params)
            move(draw, -2 * step)
            c.append((ahead - loss(params)) / (2 * step))
            move(draw, step)
        found, mean = [], {name: torch.zeros(p.numel(), dtype=torch.float64) for name, p in params.items()}
        for first in range(0, draws, BLOCK):
            for leaf, (name, g) in enumerate(exact.items()):
                some, gram = range(first, min(first + BLOCK, draws)), torch.zeros((), dtype=torch.float64)
                for parts in zip(*(pieces(leaf, draw) for draw in some), strict=True):
                    at = parts[0][0]
                    rows = torch.stack([*(c[d] * u for d, (_, u) in zip(some, parts, strict=True)), g.view(-1)[at]])
                    mean[name][at] += rows[:-1].sum(0)
                    gram = gram + sum((one @ one.T).double() for one in rows.split(PIECE, dim=1))
                found.append(gram)
    return found


if __name__ == "__main__":
    of, which, several, wide = sys.argv[1:]
    print(json.dumps(report(which) if of == "report" else alone(of, which, int(several), int(wide))))
