"""Rows of stochastic gradients: measured, compared draw by draw, summarised, and within the budget."""

import math

import numpy as np
import pytest
import torch
from cases import CASES, mixer

import fgvar
from fgvar import sampling, transforms
from fgvar.measurement.budget import default_chunk, needs
from fgvar.measurement.dataset import FLAGS

FAR = transforms.Clip(math.inf)
PRIVATE = fgvar.Stochastic(
    sample=sampling.Poisson(0.5), each=(transforms.Clip(0.1),), then=(transforms.AddNoise(0.01),)
)


@pytest.mark.parametrize("chunk", [1, 4, 32])
def test_chunks_change_nothing(chunk: int) -> None:
    rows = {"FG-W": fgvar.Stochastic(of=fgvar.scheme("FG-W"), sample=sampling.Draw(2)), "private": PRIVATE}
    found, expected = (fgvar.measure(rows, mixer(), draws=32, chunk=size) for size in (chunk, 16))
    np.testing.assert_allclose(found["variance"], expected["variance"], rtol=1e-9, atol=1e-20)
    assert (found["cost"] == expected["cost"]).all()


def test_rows_with_leaves_of_one_name_are_compared_draw_by_draw() -> None:
    """The same examples, and the same directions: what differs by nothing has the difference 0 and no error."""
    plain = fgvar.Stochastic(sample=sampling.Draw(2))
    rows = {"plain": plain, "unclipped": fgvar.Stochastic(sample=sampling.Draw(2), each=(FAR,))}
    rows["clipped"] = fgvar.Stochastic(sample=sampling.Draw(2), each=(transforms.Clip(0.1),))
    found = fgvar.measure(rows, CASES["mlp_relu"](), draws=64, paired=True).sel(layer="total")
    difference, error = found["variance_difference"], found["variance_difference_se"]
    scale = float(found["variance"].sel(estimator="plain"))
    assert abs(float(difference.sel(estimator="unclipped"))) < 1e-12 * scale
    assert float(error.sel(estimator="unclipped")) < 1e-12 * scale
    assert float(difference.sel(estimator="clipped")) < 0
    whole = {"alone": fgvar.scheme("FG-W"), "sentence": fgvar.Stochastic(of=fgvar.scheme("FG-W"))}
    found = fgvar.measure(whole, CASES["mlp_relu"](), draws=64, paired=True).sel(layer="total", estimator="sentence")
    assert abs(float(found["variance_difference"])) < 1e-12 * float(found["variance"])


def test_both_routes_agree_and_a_summary_names_the_rows() -> None:
    """Variances and slopes lie within 5.5 standard errors of the exact ones, of draws of a fixed seed.

    Of these 72 numbers one would be outside, by the normal law, for 3 in a million seeds.
    """
    rows = {
        "minibatch": fgvar.Stochastic(sample=sampling.Draw(2)),
        "FG-A": fgvar.Stochastic(of=fgvar.scheme("FG-A"), sample=sampling.Draw(2, by=sampling.Losses())),
        "private": PRIVATE,
    }
    problem = CASES["mlp_relu"]()
    drawn, exact = fgvar.measure(rows, problem, draws=2048), fgvar.measure(rows, problem, route="exact")
    for name in ("variance", "slope"):
        off = np.abs(drawn[name] - exact[name]) / drawn[f"{name}_se"]
        assert float(off.max()) < 5.5, name
    assert not exact["variance_se"].any()
    assert (exact["flag"].sel(layer="perturbed") & FLAGS["no_closed_form"]).all(), "the mean of cosines has none"
    for name in rows:
        assert name in str(fgvar.summary(exact))
        assert name in str(fgvar.summary(drawn))


def layered(batch: int = 64) -> fgvar.Problem:
    net = fgvar.networks.MLP(20, width=32, depth=2, classes=5, seed=1)
    return fgvar.Problem(net, "cross_entropy", (torch.ones(batch, 20), torch.arange(batch) % 5))


def test_the_budget_counts_the_terms_that_are_shaped() -> None:
    """A gradient of each example, twice, in each draw and worker; once where no draw changes them."""
    problem = layered()
    numbers = sum(p.numel() for p in problem.params.values())

    def held(estimator: fgvar.Stochastic) -> tuple[int, int]:
        found = needs(estimator, problem, estimator.randomness(problem), 1 << 30)
        return found.once, found.each

    once, each = held(fgvar.Stochastic(sample=sampling.Draw(16)))
    assert held(fgvar.Stochastic(sample=sampling.Draw(16), each=(FAR,))) == (once, each + 2 * 16 * numbers)
    whole_once, whole = held(fgvar.Stochastic(sample=sampling.Poisson(0.5)))
    assert held(fgvar.Stochastic(sample=sampling.Poisson(0.5), each=(FAR,))) == (whole_once + 2 * 64 * numbers, whole)
    of = fgvar.scheme("FG-A")
    own = needs(
        fgvar.Stochastic(of=of, sample=sampling.Poisson(0.5), each=(FAR,)), problem, of.randomness(problem), 0
    )
    assert own.each > 2 * 64 * numbers, "terms with noise of their own are the draw's own"
    single = held(fgvar.Stochastic(sample=sampling.Draw(16), each=(FAR,)))[1]
    four = held(fgvar.Stochastic(sample=sampling.Draw(16), each=(FAR,), workers=4))[1]
    assert four == 4 * single
    estimator = fgvar.Stochastic(sample=sampling.Draw(16), each=(FAR,))
    assert default_chunk(estimator, problem, estimator.randomness(problem), 1 << 22) < 16
