"""CUDA: the same estimates, laws and runs as on the CPU. Most bodies run on the CPU, too, and are known to run.

``pytest -m cuda`` runs these on a machine that has a device; elsewhere they are skipped, and say so.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rows
import torch

import fgvar
from fgvar.testing import from_function
from fgvar.training import checkpoint
from fgvar.training.gradients import gradient_of
from fgvar.training.loop import TrainingLoop

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
SCHEDULE = fgvar.Schedule(epochs=2, batch=32, lr=0.05)
TRAINED = ("BP", "L-BP", "LG-BP", "FA", "L-FA", "LG-FA", "DFA", "FG-W", "FG-A", "LG-FG-W", "LG-FG-A", "frozen")


def network(device: str, dtype: torch.dtype = torch.float32) -> fgvar.networks.LocalMixer:
    net = fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=2, patches=2, channels=32, groups=4, seed=1)
    return net.to(device, dtype)


def problem_on(device: str, dtype: torch.dtype = torch.float64, batch: int = 4) -> fgvar.Problem:
    return fgvar.Problem(
        network(device, dtype),
        "cross_entropy",
        fgvar.data.load("digits").sample(batch, seed=0, device=device, dtype=dtype),
    )


def splits() -> tuple[fgvar.data.Images, fgvar.data.Images]:
    return fgvar.data.load("digits").subset(range(128)), fgvar.data.load("digits", "test").subset(range(64))


# Backward weights and networks at initialisation are drawn on the device, by its own generator.
SAME = [found.name for found in fgvar.schemes() if not any(w in repr(found.estimator) for w in ("Feedback", "NTK"))]


@pytest.mark.cuda
@pytest.mark.parametrize("name", SAME)
def test_every_scheme_estimates_the_same_given_the_same_noise(name: str) -> None:
    estimator = fgvar.scheme(name)
    here, there = problem_on("cpu"), problem_on("cuda")
    noise = {k: u[0] for k, u in estimator.randomness(here).sample(3, [5], dtype=torch.float64).items()}
    expected = estimator.estimate(here, noise).gradient
    found = estimator.estimate(there, {k: u.cuda() for k, u in noise.items()}).gradient
    for key, gradient in expected.items():
        assert found[key].is_cuda
        scale = max(float(gradient.abs().max()), 1e-30)
        torch.testing.assert_close(found[key].cpu(), gradient, rtol=0, atol=1e-9 * scale)


def sampled_on(device: str) -> fgvar.Problem:
    batch = fgvar.data.load("digits").sample(4, seed=0, device=device, dtype=torch.float64)
    return fgvar.Problem(rows.network().double().to(device), "cross_entropy", batch)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", rows.NAMES)
def test_every_row_estimates_the_same_given_the_same_noise(name: str, device: str) -> None:
    here, there = sampled_on("cpu"), sampled_on(device)
    own, other = rows.rows(here)[name], rows.rows(there)[name]
    noise = {k: u[0] for k, u in own.randomness(here).sample(3, [5], dtype=torch.float64).items()}
    expected = own.estimate(here, noise).gradient
    found = other.estimate(there, {k: u.to(device) for k, u in noise.items()}).gradient
    for key, gradient in expected.items():
        assert found[key].device.type == device
        torch.testing.assert_close(found[key].cpu(), gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", rows.NAMES)
def test_rows_are_drawn_and_train_on_the_device(name: str, device: str) -> None:
    problem = sampled_on(device)
    row = rows.rows(problem)[name]
    leaves = row.randomness(problem).sample(0, range(3), dtype=problem.dtype, device=device)
    assert all(u.device.type == device for u in leaves.values())
    run = fgvar.train(rows.network().double(), row, splits(), replace(SCHEDULE, epochs=1, lr=1e-3), device=device)
    assert all(value.device.type == device and bool(value.isfinite().all()) for value in run.params.values())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("noise", [fgvar.Gaussian(), fgvar.Rademacher()], ids=["Gaussian", "Rademacher"])
def test_noise_is_made_on_the_device(noise: object, device: str) -> None:
    """Each moment of 2^16 numbers is within 6 standard errors of its law's: a false alarm is rarer than 1e-8."""
    leaves = fgvar.Randomness({"w": fgvar.Leaf((1 << 16,), noise)})
    u = leaves.sample(0, [7], device=device, dtype=torch.float32)["w"][0]
    assert u.device.type == device
    assert torch.equal(u, leaves.sample(0, range(8), device=device, dtype=torch.float32)["w"][7])
    error = u.numel() ** -0.5
    assert abs(float(u.mean())) < 6 * error
    assert abs(float(u.square().mean()) - 1) < 6 * 2**0.5 * error
    assert abs(float((u[1:] * u[:-1]).mean())) < 6 * error


@pytest.mark.parametrize("device", DEVICES)
def test_examples_of_any_structure_train_as_on_the_cpu(device: str) -> None:
    """Token ids stay integers wherever they are."""

    class Pairs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.of = torch.nn.Embedding(5, 3)

        def forward(self, ids: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return (self.of(ids) * scale[:, None, None]).mean(1)

    ids, net = torch.arange(64).reshape(32, 2) % 5, Pairs()
    inputs = {"ids": ids, "scale": torch.linspace(0, 1, 32)}
    data = fgvar.data.Examples(inputs, ids[:, 0] % 3, test=(inputs, ids[:, 1] % 3))
    here, there = (
        fgvar.train(net, fgvar.scheme("BP"), data, fgvar.Schedule(2, 8), device=where) for where in ("cpu", device)
    )
    for name in ("loss", "test_loss", "train_error", "test_error"):
        np.testing.assert_allclose(there.dataset[name], here.dataset[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("device", DEVICES)
def test_the_exact_route_agrees_with_the_cpu(device: str) -> None:
    estimators = {name: fgvar.scheme(name) for name in ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A")}
    here, there = (fgvar.measure(estimators, problem_on(where), route="exact") for where in ("cpu", device))
    for name in ("variance", "sq_bias", "slope", "data_variance", "gradient_norm"):
        np.testing.assert_allclose(there[name], here[name], rtol=1e-8, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("device", DEVICES)
def test_drawn_values_agree_with_exact_ones(device: str) -> None:
    """Largest |z| of 4 relative variances below 5: a false alarm has probability 2e-6."""
    problem = problem_on(device, torch.float32)
    estimators = {name: fgvar.scheme(name) for name in ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A")}
    drawn, exact = (
        fgvar.measure(estimators, problem, draws=256, route=route).sel(layer="perturbed")
        for route in ("drawn", "exact")
    )
    z = (drawn["relative_variance"] - exact["relative_variance"]) / drawn["relative_variance_se"]
    assert float(abs(z).max()) < 5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["BP", "LG-FG-A", "FG-W"])
def test_a_run_that_stops_goes_on_with_the_same_bits(name: str, device: str, tmp_path: Path, monkeypatch) -> None:
    """And probing it changes nothing."""
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    images, test = splits()
    probe = fgvar.Probe({"FG-A": fgvar.scheme("FG-A")}, images.sample(4, seed=1), (1, 6), draws=4)
    whole = fgvar.train(network("cpu"), fgvar.scheme(name), (images, test), SCHEDULE, device=device)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for logger in (stop, None):
        try:
            run = fgvar.train(
                network("cpu"), fgvar.scheme(name), (images, test), SCHEDULE, device=device, probe=probe,
                checkpoint=tmp_path / "run.checkpoint", logger=logger,
            )  # fmt: skip
        except KeyboardInterrupt:
            assert logger is stop
    assert all(value.device.type == device for value in run.params.values())
    assert all(torch.equal(value, run.params[key]) for key, value in whole.params.items())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", TRAINED)
def test_autocast_stays_near(name: str, device: str) -> None:
    """bfloat16 keeps 8 bits, and derivatives that are sums of many signs lose more: cosines of 0.987 (FG-A) and up.

    A lost sign, factor or layer is far below 0.95.
    """
    problem, estimator = problem_on(device, torch.float32, batch=32), fgvar.scheme(name)
    noise = {k: u[0] for k, u in estimator.randomness(problem).sample(0, [0], device=device).items()}
    batch = (problem.inputs, problem.targets)
    exact, rounded = (
        gradient_of(problem, estimator, autocast, False)(problem.params, batch, noise)[0]
        for autocast in (False, True)
    )
    one, other = (torch.cat([g.flatten() for g in found.values()]).double() for found in (exact, rounded))
    assert all(g.dtype == torch.float32 for g in rounded.values())
    assert not torch.equal(one, other), "nothing was rounded"
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) > 0.95


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["BP", "LG-FG-A"])
def test_training_by_autocast_keeps_parameters_whole(name: str, device: str) -> None:
    schedule = replace(SCHEDULE, epochs=1)
    run = fgvar.train(network("cpu"), fgvar.scheme(name), splits(), schedule, device=device, autocast=True)
    assert all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in run.params.values())


@pytest.mark.cuda
@pytest.mark.parametrize("name", [*TRAINED, *rows.NAMES])
def test_a_training_step_never_waits_for_the_device(name: str, monkeypatch) -> None:
    """Eagerly; the CPU has no such mode, and the meta device (tests/laws/test_meta.py) stands for it there."""
    net, beside = (network("cpu"), None) if name in TRAINED else (rows.network(), sampled_on("cuda"))
    estimator = fgvar.scheme(name) if beside is None else rows.rows(beside.to(torch.float32))[name]
    update = TrainingLoop.update

    def watched(self: TrainingLoop, *arguments: object) -> None:
        if self.step == 0:  # libraries are loaded
            return update(self, *arguments)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return update(self, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(TrainingLoop, "update", watched)
    fgvar.train(net, estimator, splits(), replace(SCHEDULE, epochs=1), device="cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["BP", "DFA", "FG-W", "LG-FG-A"])
def test_compiled_estimates_agree(name: str) -> None:
    problem, estimator = problem_on("cuda", torch.float32, batch=32), fgvar.scheme(name)
    noise = {k: u[0] for k, u in estimator.randomness(problem).sample(0, [0], device="cuda").items()}
    batch = (problem.inputs, problem.targets)
    eager, compiled = (
        gradient_of(problem, estimator, False, compile)(problem.params, batch, noise)[0] for compile in (False, True)
    )
    for key, gradient in eager.items():
        torch.testing.assert_close(compiled[key], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_black_box_has_as_many_different_draws_as_are_asked_for(device: str, dtype: torch.dtype) -> None:
    """Its seed is an integer, which no floating-point type rounds, and no generator repeats its numbers."""
    draws, found = 2048, []
    randomness = from_function(lambda problem, generator: {}).randomness(problem_on(device))  # noqa: ARG005
    for seed in randomness.sample(0, range(draws), dtype=dtype, device=device)["seed"].tolist():
        generator = torch.Generator(device).manual_seed(seed)
        found.append(torch.randn((), device=device, dtype=torch.float64, generator=generator))
    assert len(torch.stack(found).unique()) == draws
