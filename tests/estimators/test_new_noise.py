"""Adding a noise touches one file: what a law needs is one small class, and all that there is works on it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from cases import CASES
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fgvar
from fgvar.estimators.random_streams import Stream
from fgvar.testing import check_estimator, default_problems, expectation, strategies


@dataclass(frozen=True)
class Laplace:
    """Independent double exponential numbers: E u = 0, E uuᵀ = I, E u⁴ = 6."""

    isotropic: ClassVar[bool] = True
    kurtosis: ClassVar[float] = 6.0

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        one, other = torch.special.log_ndtr(stream.normal((2, *shape), torch.float64, device))
        return ((one - other) / math.sqrt(2)).to(dtype)


ESTIMATORS = {name: fgvar.scheme(name, noise=Laplace()) for name in ("FG-W", "FG-A")}
by_name = pytest.mark.parametrize("name", ESTIMATORS)


@by_name
def test_it_is_checked_exactly(name: str) -> None:
    report = check_estimator(ESTIMATORS[name], default_problems()["linear"])
    assert report.passed, report
    notes = {row.check: row.note for row in report.rows}
    assert notes["unbiased"].startswith("exact"), "its mean is enumerated, since it declares to be isotropic"


@by_name
@pytest.mark.parametrize("words", [{}, {"directions": 3}, {"antithetic": True}, {"shared": False}], ids=str)
def test_it_is_sampled_alike_whatever_the_chunk(name: str, words: dict) -> None:
    randomness = fgvar.scheme(name, noise=Laplace(), **words).randomness(CASES["mixer_tiny"]())
    whole = randomness.sample(3, range(5))
    for draw in range(5):
        alone = randomness.sample(3, [draw])
        assert all(torch.equal(alone[leaf][0], u[draw]) for leaf, u in whole.items())


def test_its_variance_is_in_closed_form_and_measured() -> None:
    """tr Cov(ĝ) = (d + κ − 2)‖∇‖² for one scalar loss; drawn within its interval of 5 standard errors, seed 0."""
    problem = CASES["linear"]()
    ds = {r: fgvar.measure(ESTIMATORS, problem, draws=1024, route=r).sel(layer="total") for r in ("exact", "drawn")}
    exact, drawn = (ds[route]["relative_variance"] for route in ("exact", "drawn"))
    d = sum(p.numel() for p in problem.params.values())
    assert exact.sel(estimator="FG-W").item() == pytest.approx(d + 4, rel=1e-12)
    error = ds["drawn"]["relative_variance_se"]
    assert (abs(drawn - exact) <= 5 * error).all()
    assert all(name in fgvar.summary(ds["drawn"].expand_dims("layer"), layer="total") for name in ESTIMATORS)


def test_no_number_depends_on_the_chunk() -> None:
    problem = CASES["linear"]()
    one, many = (fgvar.measure(ESTIMATORS, problem, draws=32, chunk=chunk)["variance"] for chunk in (1, 16))
    torch.testing.assert_close(torch.tensor(one.values), torch.tensor(many.values), rtol=1e-9, atol=0)


@given(pair=strategies.pairs(noise=st.just(Laplace())))
def test_strategies_take_it(pair: tuple[fgvar.Estimator, fgvar.Problem]) -> None:
    """In every composition its mean is the target."""
    estimator, problem = pair
    assert "noise=Laplace()" in repr(estimator)
    mean, target = expectation(estimator, problem), estimator.target(problem)
    largest = max(float(value.abs().max()) for value in target.values())
    assert all(torch.allclose(mean[k], target[k], rtol=0, atol=1e-9 * max(largest, 1)) for k in target)


def test_a_law_that_inherits_declares_anew() -> None:
    """The class that is sampled declares, not its base: numbers twice as large are no longer isotropic."""

    class Twice(Laplace):
        def sample(self, *where) -> Tensor:
            return 2 * super().sample(*where)

    checks = ("noise", "unbiased", "scale")
    report = check_estimator(fgvar.scheme("FG-W", noise=Twice()), default_problems()["linear"], checks=checks)
    assert report.failures == checks
