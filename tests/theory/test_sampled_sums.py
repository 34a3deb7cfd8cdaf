"""Sums of which some terms are drawn: inclusion probabilities and second moments, against all that can be drawn."""

import itertools

import pytest
import torch
from cases import randn
from torch import Tensor, nn

import fgvar
from fgvar import noise, sampling, theory


def listed(p: Tensor, size: int) -> Tensor:
    """Inclusion probabilities by the list of all orders."""
    values, chances = noise.Choice(p, replace=False).support((size,))
    return chances @ torch.zeros(len(values), len(p)).double().scatter_(1, values, 1.0)


@pytest.mark.parametrize(("terms", "power"), [(3, 1), (5, 4), (7, 4)])
def test_inclusion_is_what_all_orders_say(terms: int, power: int) -> None:
    """With probabilities down to 10⁻⁶, and a term that is never drawn."""
    p = torch.rand(terms, generator=torch.Generator().manual_seed(0)).double() ** power
    p[1] = 0
    p /= p.sum()
    for size in range(1, terms):
        torch.testing.assert_close(theory.inclusion(7 * p, size), listed(p, size), rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [2, 190, 1990])
def test_inclusion_of_many_sums_to_the_size(size: int) -> None:
    p = (1.5 * randn(2000)).softmax(0)
    found = theory.inclusion(p, size)
    assert float(found.sum()) == pytest.approx(size, rel=1e-10)
    order = p.argsort()
    assert bool((found[order].diff() > -1e-10).all()), "likely terms are drawn more often"
    assert float((found / (size * p))[order[-1]]) < 1 < float((found / (size * p))[order[0]])


def test_inclusion_of_even_probabilities_is_even() -> None:
    torch.testing.assert_close(theory.inclusion(torch.ones(40), 7), torch.full((40,), 7 / 40).double())


@pytest.mark.parametrize(
    ("p", "size", "message"),
    [
        (torch.tensor([0.5, 0.5, 0]), 3, r"3 terms of probabilities \(3,\), 2 of them positive"),
        (
            torch.ones(2, 3),
            1,
            r"1 terms of probabilities \(2, 3\), not one population of them positive; expected one",
        ),
        (torch.ones(3), 0, "size is 0, expected"),
    ],
)
def test_what_cannot_be_drawn_is_refused(p: Tensor, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        theory.inclusion(p, size)


def test_the_pair_recursion_takes_the_products_of_any_law() -> None:
    """Steps without likeness, ω of four values each: E Ẑ² is the sum over their product."""
    steps, states, values = 3, 3, 4
    emissions, transitions = randn(steps, states), randn(states, states, seed=1)
    omega = randn(steps, values, states, seed=2).abs()
    chances = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    second = 0.0
    for drawn in itertools.product(range(values), repeat=steps):
        alpha = omega[0, drawn[0]] * emissions[0].exp()
        for t in range(1, steps):
            alpha = (alpha @ transitions.exp()) * omega[t, drawn[t]] * emissions[t].exp()
        second += float(chances[list(drawn)].prod() * alpha.sum() ** 2)
    products = torch.einsum("v,tvi,tvj->tij", chances, omega, omega)
    assert float(theory.log_second_moment(emissions, transitions, products).exp()) == pytest.approx(second, rel=1e-13)


def test_the_pair_recursion_of_large_potentials_is_finite() -> None:
    steps, states = 6, 4
    large = torch.full((steps, states), 500.0).double()
    found = theory.log_second_moment(
        large, 300 + torch.zeros(states, states).double(), torch.ones(steps, states, states)
    )
    expected = 2 * (steps * 500 + (steps - 1) * 300 + steps * torch.tensor(4.0).double().log())
    torch.testing.assert_close(found, expected)


class Chain(nn.Module):
    """Four terms, with scores of which some are 0."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.f, self.z, self.q = nn.Linear(2, 4), fgvar.Terms(), nn.Identity()
        self.register_buffer("scores", torch.tensor(scores).double())

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(self.scores.expand(len(x), -1))
        terms: Tensor = self.z(self.f(x) + 0 * scores)
        return terms.sum(1)


@pytest.mark.parametrize("top", [0, 1, 2])
@pytest.mark.parametrize("scores", [[0.5, 0.0, 1.5, 0.0], [0.5, 0.2, 1.5, 0.0], [0.5, 0.2, 1.5, 0.1]])
def test_products_are_those_of_all_draws_also_of_what_is_never_drawn(scores: list[float], top: int) -> None:
    problem = fgvar.Problem(Chain(scores).double(), lambda outputs, _: outputs, (randn(1, 2), torch.zeros(1)))
    draw = sampling.Draw(2, top=top, by=sampling.Outputs("q"), over="z")
    choice, certain, others = draw.law(problem, "z")
    values, chances = choice.support((1, 2))
    omega = (
        torch.zeros(len(values), 4)
        .double()
        .scatter_add_(
            1, values[:, 0], choice.weights(values)[:, 0] * others.expand(len(values), -1).gather(1, values[:, 0])
        )
    )
    omega[:, certain[0]] = 1
    expected = torch.einsum("v,vi,vj->ij", chances, omega, omega)
    torch.testing.assert_close(draw.products(problem, "z")[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shapes", [((3,), (3, 3), (3, 3)), ((2, 3), (3, 3), (3, 3, 3)), ((2, 3), (2, 3), (2, 3, 3))])
def test_shapes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(
        ValueError, match=r"expected \[steps, states\], \[states, states\] and \[steps, states, states\]"
    ):
        theory.log_second_moment(*(torch.zeros(shape) for shape in shapes))


def test_a_sum_that_is_0_for_certain_has_a_second_moment_of_0() -> None:
    """No state may come first, none may be followed, or none is ever drawn."""
    zeros, nothing, all_alike = torch.zeros(2, 2), torch.full((2, 2), -torch.inf), torch.ones(2, 2, 2)
    never = torch.stack([torch.zeros(2, 2), torch.ones(2, 2)])
    for arguments in ((nothing, zeros, all_alike), (zeros, nothing, all_alike), (zeros, zeros, never)):
        assert float(theory.log_second_moment(*arguments)) == -torch.inf
    assert float(theory.log_second_moment(zeros[:1], nothing, all_alike[:1]).exp()) == pytest.approx(4)
    assert torch.isnan(theory.log_second_moment(zeros, zeros, all_alike * torch.nan))
