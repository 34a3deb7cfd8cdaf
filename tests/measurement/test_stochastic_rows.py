"""Rows of stochastic gradients: measured, compared draw by draw, summarised, and within the budget."""

import gc
import math
from dataclasses import dataclass
from typing import ClassVar

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
    along = fgvar.History(PRIVATE, fgvar.streams.Adam(), steps=5, lr=0.1)
    row, history = PRIVATE, fgvar.History(PRIVATE, fgvar.streams.Adam(), steps=5)
    assert held(fgvar.Against(row, fgvar.ExactGradient())) == held(row)
    noise = row.randomness(problem).size
    assert held(history) == (held(row)[0], held(row)[1] + 2 * 4 * noise + 6 * numbers), "noise of 5 and one gradient"
    assert held(along) == (once, held(history)[1] + 2 * 64 * numbers), "where terms are each draw's own, at its point"
    estimator = fgvar.Stochastic(sample=sampling.Draw(16), each=(FAR,))
    assert default_chunk(estimator, problem, estimator.randomness(problem), 1 << 22) < 16


@pytest.mark.parametrize("steps", [0, 3])
def test_gradients_of_every_example_are_announced(steps: int) -> None:
    """256 examples of 1,893 numbers twice are 3.9 MB, and no more of them are held than of one estimate."""
    each = fgvar.Stochastic(sample=sampling.Draw(256), each=(transforms.Clip(1.0),))
    row = fgvar.History(each, fgvar.streams.Momentum(), steps) if steps else each
    with pytest.warns(UserWarning, match=r"measuring 'private' takes about 0\.0 GB beside the network, more than"):
        fgvar.measure({"plain": fgvar.scheme("FG-W"), "private": row}, layered(256), draws=2, budget=1 << 21)
    fgvar.measure({"plain": fgvar.scheme("FG-W"), "private": row}, layered(256), draws=2, budget=1 << 24)


def test_a_history_holds_the_parameters_of_one_step() -> None:
    """Tensors of so many numbers that Python knows, at every call of its optimiser: from the second on as many."""

    @dataclass(frozen=True)
    class Counting:
        bias_reason: ClassVar[str] = ""

        def start(self, gradient: dict[str, torch.Tensor]) -> None: ...

        def __call__(self, gradient: dict[str, torch.Tensor], state: None) -> tuple[dict[str, torch.Tensor], None]:
            counts.append(sum(type(one) is torch.Tensor and one.numel() == 9973 for one in gc.get_objects()))
            return gradient, state

    counts: list[int] = []
    problem = fgvar.Problem(torch.nn.Linear(9973, 1, bias=False), "mse", (torch.ones(2, 9973), torch.ones(2, 1)))
    fgvar.History(fgvar.ExactGradient(), Counting(), steps=8, lr=0.1).estimate(problem, {})
    assert len(set(counts[1:])) == 1, counts
    assert counts[1] - counts[0] <= 3, "the moved parameters, and the output before"
