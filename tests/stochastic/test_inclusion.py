"""Which terms are drawn that are not put back: means and variances of their sums, against all orders of drawing."""

import naive_sampling as naive
import numpy as np
import pytest
import torch
from cases import randn

from fgvar.stochastic.inclusion import sum_of_drawn


def shares(count: int, power: float) -> torch.Tensor:
    """From nearly equal ones to some that are hardly ever drawn."""
    p = torch.linspace(1, 3, count, dtype=torch.float64) ** power
    return p / p.sum()


@pytest.mark.parametrize(
    ("count", "size", "power"),
    [(5, 1, 1), (5, 2, 0), (6, 3, 3), (6, 5, 1), (7, 4, 8), (6, 2, 20), (5, 5, 1)],
)
def test_sums_over_every_order(count: int, size: int, power: float) -> None:
    p, x = shares(count, power), randn(count, 3)
    expected = np.zeros((3, 3))
    for chance, drawn in naive.not_put_back(p.tolist(), size):
        chosen = x[[i for i, _ in drawn]].numpy()
        total = chosen.sum(0)
        expected += chance * np.stack([total, total**2, (chosen**2).sum(0)])
    expected[1] -= expected[0] ** 2
    for found, value in zip(sum_of_drawn(p, size, x), expected, strict=True):
        torch.testing.assert_close(found, torch.as_tensor(value), rtol=0, atol=2e-12)


def test_terms_without_a_chance_are_left_out() -> None:
    p, x = torch.tensor([0.5, 0, 0.3, 0.2]).double(), randn(4, 2)
    some = p > 0
    for found, value in zip(sum_of_drawn(p, 2, x), sum_of_drawn(p[some], 2, x[some]), strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=1e-13)
    whole = sum_of_drawn(p, 3, x)
    torch.testing.assert_close(whole.mean, x[some].sum(0))
    assert not whole.variance.any()


@pytest.mark.parametrize("size", [1, 24, 200])
def test_hundreds_of_terms(size: int) -> None:
    """As many are drawn as are asked for, whatever the probabilities, up to 10²⁰ apart: E Σ 1 = m, Var Σ 1 = 0."""
    p = torch.rand(512, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 6
    mean, variance, _ = sum_of_drawn(p / p.sum(), size, torch.ones(512, 1))
    assert float(mean) == pytest.approx(size, rel=1e-11)
    assert abs(float(variance)) < 1e-12 * size**2


def test_equal_probabilities_are_a_simple_sample() -> None:
    """m/N of the sum, and m(1 − m/N) S², S² = Σ(x − x̄)²/(N − 1)."""
    x = randn(200, 4)
    mean, variance, _ = sum_of_drawn(torch.full((200,), 1 / 200), 30, x)
    torch.testing.assert_close(mean, 30 * x.mean(0), rtol=1e-11, atol=0)
    torch.testing.assert_close(variance, 30 * (1 - 30 / 200) * x.var(0), rtol=1e-11, atol=0)
