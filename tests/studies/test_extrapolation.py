"""Extrapolation: the study's control variate and exact lines against enumeration, its stored run and its text."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import fgvar
from fgvar import points, sampling
from fgvar.plot import venues
from fgvar.testing import CHECKS, default_problems, expectation
from figures import extrapolation as figure
from studies import extrapolation as study

ROOT = Path(__file__).parents[2]
KINDS = list(study.ORDERS)


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return fgvar.open_dataset(ROOT / "figures/data/extrapolation.nc")


@pytest.fixture(scope="module")
def few() -> tuple[fgvar.Problem, dict[str, torch.Tensor]]:
    """The study's network with few enough examples for all pairs of minibatches."""
    problem, kept = study.halfway(0)
    return problem.rows(slice(0, 3)), kept


def flat(gradient: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([g.flatten() for g in gradient.values()])


@pytest.mark.parametrize("kind", [study.FRESH, study.KEPT, study.SAM])
def test_a_control_variate_keeps_the_mean_and_exact_lines_are_of_it(kind: str, few) -> None:
    problem, kept = few
    one, g = study.row(kind, 0.3, kept), flat(problem.backprop())
    mean = flat(expectation(one, problem, method="support"))
    torch.testing.assert_close(
        flat(expectation(study.Controlled(one), problem, method="support")), mean, rtol=0, atol=1e-12
    )
    torch.testing.assert_close(flat(study.bias(one, problem)), mean - g, rtol=0, atol=1e-12)
    spread, controlled = (study.trace(e, problem) for e in (one, study.Controlled(one)))
    assert study.variance(one, problem) == pytest.approx(spread, rel=1e-10)
    assert controlled < spread
    short = study.row(kind, 1e-4, kept)
    law = study.law(kind, 1e-4, problem, kept)
    assert study.square(study.bias(short, problem)) == pytest.approx(law, rel=0.01)


def test_pairs_of_noise_are_means_of_two(few) -> None:
    problem, kept = few
    one = study.row(study.NOISE, 0.2, kept)
    noise = {k: u[0] for k, u in one.randomness(problem).sample(0, [0], dtype=torch.float64).items()}
    turned = {k: -u if k.startswith("at") else u for k, u in noise.items()}
    found = flat(study.Controlled(one, pairs=True).estimate(problem, noise).gradient)
    each = [flat(study.Controlled(one).estimate(problem, u).gradient) for u in (noise, turned)]
    torch.testing.assert_close(found, (each[0] + each[1]) / 2, rtol=0, atol=1e-12)


def test_the_trace_of_the_hessian_is_that_of_the_matrix() -> None:
    problem = default_problems()["linear"]
    (name,) = [name for name, p in problem.params.items() if p.ndim == 2]
    hessian = torch.func.hessian(lambda w: problem.loss({**problem.params, name: w}))(problem.params[name])
    other = torch.func.hessian(lambda b: problem.loss({**problem.params, "bias": b}))(problem.params["bias"])
    expected = hessian.flatten(0, 1).flatten(1).trace() + other.trace()
    torch.testing.assert_close(study.trace_of_hessian(problem, problem.params), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_orders_are_those_that_points_declare_and_hold(kind: str) -> None:
    """On a small problem of its own, as normal numbers of a whole network have too many nodes."""
    problem = default_problems()["linear"]
    one = replace(study.row(kind, 0.1, problem.backprop()), sample=sampling.Everything())
    assert one.at.bias_order == study.ORDERS[kind]
    row = CHECKS["bias_order"](one, {"linear": problem})[0]
    assert (row.outcome, row.note[:13]) == ("passed", f"bias ~ step^{study.ORDERS[kind]}")


def test_workers_keep_the_mean_and_divide_the_variance(few) -> None:
    problem = few[0].rows(slice(0, 2))
    draw = sampling.Draw(1)
    one, two = (
        fgvar.Stochastic(at=points.Ahead(by=fgvar.Stochastic(sample=draw), step=0.4), sample=draw, workers=k)
        for k in (1, 2)
    )
    means = [flat(expectation(e, problem, method="support")) for e in (one, two)]
    torch.testing.assert_close(means[0], means[1], rtol=0, atol=1e-12)
    spreads = [study.trace(e, problem) for e in (one, two)]
    assert spreads[0] == pytest.approx(2 * spreads[1], rel=1e-10)


def test_too_few_steps_for_a_slope_are_told(tmp_path: Path) -> None:
    config = study.Config(steps=(0.1,), run=study.Options(tmp_path / "a.nc"))
    with pytest.raises(ValueError, match=r"steps are \[0\.1\], expected two positive ones at least, for a slope"):
        study.main(config)


def test_stored_draws_lie_on_exact_lines(stored: xr.Dataset) -> None:
    """21 biases, 7 variances and 7 biases of workers: one beyond 4.5 errors has a probability of 3e-4."""
    assert (stored["status"] == "done").all()
    assert not stored.attrs["commit"].endswith("+"), "made from a clean commit"
    assert stored.sizes["seed"] == 10

    def z(name: str, exact: xr.DataArray) -> xr.DataArray:
        error = (stored[f"{name}_se"] ** 2).sum("seed") ** 0.5 / 10
        return abs(stored[name].mean("seed") - exact.mean("seed")) / error

    assert float(z("sq_bias", stored["exact"]).max()) < 4.5
    assert float(z("variance", stored["variance_of_one"] / stored["workers"]).max()) < 4.5
    assert float(z("shared_bias", stored["bias_of_one"]).max()) < 4.5
    short = stored.isel(step=0)
    np.testing.assert_allclose(short["exact"].sel(row=KINDS[:2]), short["law"].sel(row=KINDS[:2]), rtol=0.1)


def test_the_header_and_the_text_say_what_the_dataset_has(stored: xr.Dataset) -> None:
    means = [figure.slope_of(stored, kind)[0] for kind in KINDS]
    told = f"{means[0]:.2f}, {means[1]:.2f}, {means[2]:.2f} and {means[3]:.2f}"
    assert f"Fitted slopes are {told}" in " ".join((study.__doc__ or "").split())
    assert f"slopes are {told}" in section()
    last = stored.isel(step=-1)
    found, exact, law = ((figure.share(last, name) ** 0.5).to_series() for name in ("sq_bias", "exact", "law"))
    one, here, squared = (figure.share(stored, k).item() for k in ("variance_of_one", "variance_here", "bias_of_one"))
    text = section()
    for words in (
        f"{found[study.NOISE]:.2f} of the gradient's norm for {law[study.NOISE]:.2f}",
        f"gradient ({exact[study.KEPT]:.2f}) biases more than fresh ones ({exact[study.FRESH]:.2f}), whose",
        f"variance of {one:.2f}/K ({here:.2f}/K without extrapolation)",
        f"squared bias of {squared:.2f} whatever K, the larger part from K = {one / squared:.0f} on",
    ):
        assert words in text, words
    assert "fresh ones' in 8 of 10 networks" in figure.caption(stored)
    assert "in eight of ten networks and for minibatches of 2" in text


def section() -> str:
    text = (ROOT / "studies/README.md").read_text()
    found = re.search(r"^## [^\n]*\n\n`extrapolation\.py`.*?(?=^## |\Z)", text, re.M | re.S)
    assert found, "studies/README.md has no section on extrapolation.py"
    return " ".join(found[0].split())


@pytest.mark.parametrize(("venue", "columns"), [("iclr", 2), ("icml", 1)])
def test_what_is_drawn(stored: xr.Dataset, venue: venues.Venue, columns: venues.Columns) -> None:
    bias, slopes, workers = figure.draw(stored, venue=venue, columns=columns).axes
    assert (bias.get_xscale(), bias.get_yscale(), workers.get_yscale()) == ("log", "log", "log")
    assert [label.get_text() for label in slopes.get_xticklabels()] == ["fresh", "kept", "random", "SAM"]
    drawn = [c.lines[0].get_ydata().astype(float) for c in bias.containers]
    np.testing.assert_allclose(drawn[0], figure.share(stored, "sq_bias").sel(row=study.FRESH) ** 0.5)
    np.testing.assert_allclose(
        workers.lines[0].get_ydata(), figure.share(stored, "variance_of_one").item() / stored["workers"]
    )
