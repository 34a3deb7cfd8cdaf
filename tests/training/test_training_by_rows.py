"""Training by the second sentence: each step is the row's own estimate, and runs stop and go on as any other."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rows
import torch
from torch import Tensor
from torch.nn import functional

import fgvar
from fgvar.estimators.protocol import GradientEstimator
from fgvar.training import checkpoint, gradients
from fgvar.training.gradients import by_tensor
from fgvar.training.probes import EXACT
from fgvar.training.train import Run

SCHEDULE = fgvar.Schedule(epochs=2, batch=8, lr=0.1, momentum=0.0, weight_decay=0.0, decay="constant")
SEED, STEPS = 3, 8
STOPPED = ("DP-SGD", "by losses", "terms", "SAM", "momentum", "error feedback", "against", "mask by saliency")
Batch = tuple[Tensor, Tensor]
Params = dict[str, Tensor]


@pytest.fixture(scope="module")
def data():
    train, test = (fgvar.data.load("digits", split) for split in ("train", "test"))
    return train.subset(range(32)), test.subset(range(16))


def problem(data, first: int = 0) -> fgvar.Problem:
    batch = data[1].batch(range(first, first + 8), dtype=torch.float64)
    return fgvar.Problem(rows.network().double(), "cross_entropy", batch)


def row(data, name: str) -> GradientEstimator:
    return rows.rows(problem(data))[name]


def batches(data) -> Iterator[tuple[int, Batch]]:
    found = [b for epoch in range(2) for b in data[0].batches(8, seed=SEED, epoch=epoch, dtype=torch.float64)]
    assert len(found) == STEPS
    return enumerate(found)


def drawn(estimator: GradientEstimator, at: fgvar.Problem, step: int) -> dict[str, Tensor]:
    return {k: u[0] for k, u in estimator.randomness(at).sample(SEED, [step], dtype=at.dtype).items()}


def train(estimator: GradientEstimator, data, **more: object) -> Run:
    return fgvar.train(rows.network().double(), estimator, data, SCHEDULE, seed=SEED, device="cpu", **more)


@pytest.mark.parametrize("name", rows.NAMES)
def test_each_step_is_the_row_s_own_estimate(name: str, data) -> None:
    """By the probabilities, masks and carriers at that step, and by draw number ``step``."""
    estimator, at = row(data, name), problem(data)
    run = train(estimator, data)
    for step, batch in batches(data):
        here = at.at(batch=batch)
        gradient = estimator.estimate(here, drawn(estimator, here, step)).gradient
        at = at.at({key: p - 0.1 * gradient[key] for key, p in at.params.items()})
    for key, value in at.params.items():
        torch.testing.assert_close(run.params[key], value, rtol=1e-9, atol=1e-12)


def outputs(params: Params, x: Tensor) -> Tensor:
    h = torch.tanh(x.flatten(1) @ params["1.weight"].T + params["1.bias"])
    return h @ params["4.weight"].T + params["4.bias"]


def gradient_at(params: Params, x: Tensor, y: Tensor) -> Params:
    own = {key: value.clone().requires_grad_() for key, value in params.items()}
    loss = functional.cross_entropy(outputs(own, x), y)
    return dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))


def norm(gradient: Params) -> float:
    return float(sum(g.square().sum() for g in gradient.values()) ** 0.5)


def private(params: Params, x: Tensor, y: Tensor, noise: Params) -> Params:
    """Poisson(½), clipped to 1 one by one, over the expected size of 4, and noise of 0.01."""
    total = {key: torch.zeros_like(p) for key, p in params.items()}
    for n in noise["sample"].nonzero().flatten().tolist():
        own = gradient_at(params, x[n : n + 1], y[n : n + 1])
        for key, g in own.items():
            total[key] += min(1.0, 1 / norm(own)) * g / 4
    return {key: g + 0.01 * noise[f"then.0.{key}"] for key, g in total.items()}


def sharpness_aware(params: Params, x: Tensor, y: Tensor, noise: Params) -> Params:
    """Along the gradient of the batch by 0.05, and there that of the two examples drawn."""
    whole, chosen = gradient_at(params, x, y), noise["sample"]
    ahead = {key: p + 0.05 * whole[key] / norm(whole) for key, p in params.items()}
    return gradient_at(ahead, x[chosen], y[chosen])


def three_of_momentum(params: Params, x: Tensor, y: Tensor, noise: Params) -> Params:
    """Three gradients of two examples along 0.1 of the decaying mean by ½, in every step from its beginning."""
    mean = {key: torch.zeros_like(p) for key, p in params.items()}
    for t in range(3):
        chosen = noise["sample"][t]
        g = gradient_at(params, x[chosen], y[chosen])
        mean = {key: 0.5 * m + 0.5 * g[key] for key, m in mean.items()}
        output = {key: m / (1 - 0.5 ** (t + 1)) for key, m in mean.items()}
        params = {key: p - 0.1 * output[key] for key, p in params.items()}
    return output


@pytest.mark.parametrize(
    ("name", "loop"), [("DP-SGD", private), ("SAM", sharpness_aware), ("momentum", three_of_momentum)]
)
def test_training_equals_a_plain_loop(name: str, loop, data) -> None:
    estimator = row(data, name)
    run = train(estimator, data)
    params = {key: p.detach().clone() for key, p in rows.network().double().named_parameters()}
    for step, (x, y) in batches(data):
        noise = drawn(estimator, problem(data).at(batch=(x, y)), step)
        gradient = loop(params, x, y, noise)
        params = {key: p - 0.1 * gradient[key] for key, p in params.items()}
    for key, value in params.items():
        torch.testing.assert_close(run.params[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", STOPPED)
def test_stopped_and_resumed_it_ends_with_the_same_bits(name: str, data, tmp_path: Path, monkeypatch) -> None:
    """By a row made anew, as another process would: what it holds is told by its values, not by where it lies."""
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    whole, kept = train(row(data, name), data), tmp_path / "run.checkpoint"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(row(data, name), data, checkpoint=kept, logger=stop)
    resumed = train(row(data, name), data, checkpoint=kept)
    assert all(torch.equal(value, whole.params[key]) for key, value in resumed.params.items())
    np.testing.assert_array_equal(resumed.dataset["loss"], whole.dataset["loss"])


def test_a_checkpoint_of_a_row_that_holds_another_problem_is_refused(data, tmp_path: Path) -> None:
    kept = tmp_path / "run.checkpoint"
    train(row(data, "mask by saliency"), data, checkpoint=kept)
    other = rows.rows(problem(data, first=1))["mask by saliency"]
    with pytest.raises(ValueError, match=r"another run: its estimator is .*<Problem Sequential, cross_entropy, 8 ex"):
        train(other, data, checkpoint=kept)


@pytest.mark.parametrize("name", rows.NAMES)
def test_no_row_is_made_tensor_by_tensor(name: str, data, monkeypatch) -> None:
    """However large its noise: only a composed estimator of weights is."""
    monkeypatch.setattr(gradients, "draws_anew", lambda *_: True)
    at = problem(data)
    estimator = row(data, name)
    assert not by_tensor(estimator, estimator.randomness(at), at.dtype, compile=False)
    plain = fgvar.scheme("FG-W")
    assert by_tensor(plain, plain.randomness(at), at.dtype, compile=False)


def test_a_probe_of_both_routes_draws_what_has_no_closed_form(data) -> None:
    """Errors are 0 where there is a closed form, and no number is NaN where there is none."""
    names = ("DP-SGD", "momentum", "quantised", "SAM", "terms")
    probe = fgvar.Probe(
        {name: row(data, name) for name in names}, data[1].sample(4, seed=0), (0, 4), draws=16, route="both"
    )
    found = train(row(data, "DP-SGD"), data, probe=probe).dataset.sel(layer="total", reference="target")
    assert np.isfinite(found["variance"]).all()
    exact = {name for name in names if (found["variance_se"].sel(estimator=name) == 0).all()}
    assert exact == {"DP-SGD", "SAM"}
    assert set(EXACT) == set(found.attrs["exact"].split(", "))
