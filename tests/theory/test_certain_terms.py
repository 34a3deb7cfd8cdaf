"""Sampled terms that are certain: transforms of each have closed forms, and what cannot be drawn has none."""

import pytest
import torch

import fgvar
from fgvar import sampling, theory
from fgvar import transforms as t
from fgvar.testing import covariance

LINEAR = fgvar.testing.default_problems()["linear"]


@pytest.mark.parametrize("each", [(t.Clip(0.05), t.RandomK(2)), (t.RandomK(2),)], ids=["clipped", "random"])
def test_a_transform_of_each_certain_gradient_has_a_closed_form(each) -> None:
    """What is drawn by later words of ``each`` is no noise of the gradient that an earlier one is given."""
    row = fgvar.Stochastic(sample=sampling.Draw(1), each=each)
    found, exact = theory.variance(row, LINEAR), covariance(row, LINEAR)
    for name, value in found.items():
        torch.testing.assert_close(value.flatten(), exact[name].diagonal(), rtol=1e-10, atol=1e-14)


def test_no_closed_form_of_what_cannot_be_drawn() -> None:
    """Three of two terms that have a loss, none put back: there were a mean and a variance."""
    net = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.ones_(net.weight)
    batch = torch.tensor([[[1.0], [2.0], [3.0], [4.0]], [[0.0], [0.0], [3.0], [4.0]]], dtype=torch.float64)
    problem = fgvar.Problem(net, "mse", (batch[0], batch[1]))
    parts = sampling.Draw(1, replace=False), sampling.Draw(3, by=sampling.Losses(), replace=False)
    row = fgvar.Stochastic(sample=sampling.Union(parts, weigh="none", distinct=True))
    for of in (theory.mean, theory.variance):
        with pytest.raises(ValueError, match="3 indices of 2 terms of positive probability, none put back"):
            of(row, problem)
