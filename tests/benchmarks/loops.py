"""Loops that a user writes first: a jvp for each draw, by fgvar's own layers or by torch's alone."""

from collections.abc import Callable
from contextlib import ExitStack
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

import fgvar
from fgvar.nn.forward_mode import EPS
from tests.benchmarks.timing import Work


def loop(scheme: fgvar.Estimator, problem: fgvar.Problem, draws: int) -> Work:
    """What a user writes first: a jvp for each draw, and Welford's mean and sum of squares of every weight."""
    weights = isinstance(scheme.space, fgvar.WeightSpace)
    shapes = scheme.space.shapes(problem)
    zeros = {name: torch.zeros_like(p) for name, p in problem.params.items()}

    def gradient(taps: dict[str, Tensor]) -> dict[str, Tensor]:
        def losses(params: dict[str, Tensor]) -> Tensor:
            return problem.losses(problem.run(params)[0])

        if weights:
            derivative = torch.func.jvp(losses, (problem.params,), ({**zeros, **taps},))[1].mean()
            return {name: derivative * taps[name] for name in taps}

        def perturbed(taps: dict[str, Tensor]) -> Tensor:
            return problem.losses(problem.run(problem.params, taps)[0])

        point = {name: torch.zeros_like(u) for name, u in taps.items()}
        derivative = torch.func.jvp(perturbed, (point,), (taps,))[1]
        credited = {k: u * derivative.view(-1, *[1] * (u.ndim - 1)) / len(u) for k, u in taps.items()}

        def sites(params: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: v for k, v in problem.run(params, cut=tuple(taps))[1].items() if k in taps}

        found: dict[str, Tensor] = torch.func.vjp(sites, problem.params)[1](credited)[0]
        return {name: found[name] for name in problem.perturbed}

    def work() -> dict[str, Tensor]:
        mean = {name: torch.zeros_like(problem.params[name]) for name in problem.perturbed}
        squares = {name: torch.zeros_like(value) for name, value in mean.items()}
        for n in range(1, draws + 1):
            lead = () if weights else (problem.batch_size,)
            found = gradient({name: torch.randn(*lead, *shape) for name, shape in shapes.items()})
            for name, value in found.items():
                before = value - mean[name]
                mean[name] += before / n
                squares[name] += before * (value - mean[name])
        return squares

    return work


def by_torch_alone(work: Work) -> Work:
    """The same by torch's own layers, as in a network that somebody writes without fgvar."""
    plain: dict[str, Callable[..., Tensor]] = {
        "layer_norm": lambda x: functional.layer_norm(x, x.shape[-1:], eps=EPS),
        "linear_jvp": lambda product, x, weight, bias: product(x, weight, bias),
    }
    places = (
        "nn.heads.layer_norm",
        "networks.local_mixer.layer_norm",
        "nn.layers.linear_jvp",
        "networks.local_mixer.linear_jvp",
    )

    def plainly() -> object:
        with ExitStack() as replaced:
            for place in places:
                replaced.enter_context(mock.patch(f"fgvar.{place}", plain[place.rpartition(".")[2]]))
            return work()

    return plainly
