"""Finite laws: probabilities of every value, draws that follow them, and factors with E ω = 1."""

import itertools

import naive_sampling as naive
import numpy as np
import pytest
import torch
from cases import randn
from fgvar.noise import Bernoulli, Choice
from scipy import stats
from torch import Tensor

import fgvar
from fgvar.estimators.randomness import MOST_VALUES, Leaf, Randomness, combinations

P = torch.tensor([0.4, 0.05, 0.3, 0.0, 0.25], dtype=torch.float64)
EVEN = torch.full((4,), 0.25, dtype=torch.float64)
LAWS = {
    "put back": (Choice(P), 2),
    "not put back": (Choice(P, replace=False), 3),
    "even, not put back": (Choice(EVEN, replace=False, even=True), 2),
    "one": (Choice(P), 1),
}


def by_hand(p: Tensor, replace: bool, m: int) -> dict[tuple[int, ...], float]:
    outcomes = naive.put_back(p.tolist(), m) if replace else naive.not_put_back(p.tolist(), m)
    return {tuple(i for i, _ in weights): chance for chance, weights in outcomes}


@pytest.mark.parametrize("name", LAWS)
def test_a_choice_says_the_probability_of_every_value(name: str) -> None:
    law, m = LAWS[name]
    values, probabilities = law.support((m,))
    expected = by_hand(law.probabilities, law.replace, m)
    found = {tuple(v): c for v, c in zip(values.tolist(), probabilities.tolist(), strict=True)}
    assert found == pytest.approx(expected, abs=1e-15)
    assert values.dtype == torch.int64
    assert 3 not in values or name.startswith("even"), "a term of probability 0"


def test_no_digits_are_lost_where_little_is_left() -> None:
    """By 1 − Σ of what was drawn, 10⁻¹⁵ beside two halves made the probabilities sum to 0.9."""
    law = Choice(torch.tensor([0.5, 0.5, 1e-15], dtype=torch.float64), replace=False)
    values, probabilities = law.support((3,))
    found = {tuple(v): c for v, c in zip(values.tolist(), probabilities.tolist(), strict=True)}
    rare = {(0, 2, 1): 1e-15, (1, 2, 0): 1e-15, (2, 0, 1): 5e-16, (2, 1, 0): 5e-16}
    assert found == pytest.approx({(0, 1, 2): 0.5, (1, 0, 2): 0.5} | rare, rel=1e-13)
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("name", LAWS)
def test_sampled_frequencies_are_those_probabilities(name: str) -> None:
    """Chi-squared over the values, and none besides: false alarms 1e-7 in each of four cases."""
    law, m = LAWS[name]
    drawn = Randomness({"i": Leaf((m,), law)}).sample(7, range(8192))["i"]
    expected = by_hand(law.probabilities, law.replace, m)
    counts = dict.fromkeys(expected, 0)
    for row in drawn.tolist():
        counts[tuple(row)] += 1  # a KeyError: a value that cannot be
    observed, wanted = np.array([*counts.values()]), 8192 * np.array([*expected.values()])
    likely = wanted >= 5  # where chi-squared holds; the rest together
    observed, wanted = (np.append(a[likely], a[~likely].sum()) for a in (observed, wanted))
    keep = wanted > 0
    assert stats.chisquare(observed[keep], wanted[keep] * observed.sum() / wanted.sum()).pvalue > 1e-7


def test_the_law_of_torch_multinomial() -> None:
    """20,000 of its draws against our exact probabilities: false alarms 1e-7."""
    law, count = Choice(P, replace=False), 20_000
    drawn = torch.multinomial(P.expand(count, -1), 2, generator=torch.Generator().manual_seed(0))
    values, probabilities = law.support((2,))
    observed = [int((drawn == value).all(1).sum()) for value in values]
    assert sum(observed) == count
    assert stats.chisquare(observed, (count * probabilities).numpy()).pvalue > 1e-7


def test_rows_are_populations_of_their_own() -> None:
    rows, of_two = torch.stack([P, P.roll(1)]), itertools.product
    for replace in (True, False):
        values, probabilities = Choice(rows, replace).support((2, 2))
        expected = {
            (one, two): a * b for (one, a), (two, b) in of_two(*(by_hand(row, replace, 2).items() for row in rows))
        }
        found = {tuple(map(tuple, v)): c for v, c in zip(values.tolist(), probabilities.tolist(), strict=True)}
        assert found == pytest.approx(expected, abs=1e-15)
        drawn = Randomness({"i": Leaf((2, 2), Choice(rows, replace))}).sample(0, range(200))["i"]
        assert {tuple(map(tuple, v)) for v in drawn.tolist()} <= set(expected)
        assert not (drawn[:, 0] == drawn[:, 1]).all(), "rows draw by themselves"
        assert Choice(rows, replace).weights(drawn).shape == drawn.shape


@pytest.mark.parametrize("name", LAWS)
def test_a_draw_depends_on_seed_leaf_and_number_alone(name: str) -> None:
    law, m = LAWS[name]
    randomness = Randomness({"i": Leaf((m,), law)})
    together = randomness.sample(3, range(40))["i"]
    for draw in (0, 17, 39):
        assert torch.equal(randomness.sample(3, [draw])["i"][0], together[draw])
    beside = Randomness({"x": Leaf((5,), fgvar.Gaussian()), "i": Leaf((m,), law)})
    assert torch.equal(beside.sample(3, range(40))["i"], together)
    assert not torch.equal(randomness.sample(4, range(40))["i"], together)
    assert not torch.equal(Randomness({"j": Leaf((m,), law)}).sample(3, range(40))["j"], together)
    float64 = randomness.sample(3, range(40), dtype=torch.float64)["i"]
    assert torch.equal(float64, together), "indices have no precision"


def test_draws_of_leading_axes_are_independent() -> None:
    """Of 2,000 pairs of indices below 1,000 two agree on average: 20 or more have probability 6e-14."""
    law = Choice(torch.full((1000,), 1e-3).double(), even=True)
    drawn = Randomness({"i": Leaf((2, 2000), law, batch_dims=1)}).sample(0, [0])["i"][0]
    assert int((drawn[0] == drawn[1]).sum()) < 20


@pytest.mark.parametrize("name", LAWS)
def test_factors_have_mean_one(name: str) -> None:
    law, m = LAWS[name]
    values, probabilities = law.support((m,))
    omega = torch.zeros(len(values), len(law.probabilities), dtype=torch.float64)
    omega.scatter_add_(1, values, law.weights(values))
    expected = (law.probabilities > 0).double()  # what is never drawn counts nothing
    torch.testing.assert_close(probabilities @ omega, expected, rtol=0, atol=1e-12)


def test_factors_of_what_is_not_put_back_follow_des_raj() -> None:
    values, _ = Choice(P, replace=False).support((3,))
    found = Choice(P, replace=False).weights(values)
    expected = {tuple(i for i, _ in w): [x for _, x in w] for _, w in naive.not_put_back(P.tolist(), 3)}
    for value, row in zip(values.tolist(), found.tolist(), strict=True):
        assert row == pytest.approx(expected[tuple(value)], rel=1e-12)
    whole = Choice(torch.tensor([1 - 1e-9, 1e-9 - 1e-12, 1e-12]).double(), replace=False)
    assert whole.weights(torch.tensor([0, 1, 2]))[2] == pytest.approx(1 / 3, rel=1e-12), "where little is left"


def test_not_put_back_varies_as_little_as_the_biased_weighing_and_less_than_put_back() -> None:
    """Five vectors, m = 3. Weighed 1/(m p) as if put back, the mean is Σ π_n/(m p_n) x_n/N, π_n = P(n is drawn)."""
    x, m = randn(5, 4, seed=2), 3
    p = torch.tensor([0.35, 0.1, 0.25, 0.05, 0.25], dtype=torch.float64)
    outcomes = list(naive.not_put_back(p.tolist(), m))
    as_put_back = [(chance, [(i, 1 / (m * p[i].item())) for i, _ in weights]) for chance, weights in outcomes]
    inclusion = np.zeros(5)
    for chance, weights in outcomes:
        for i, _ in weights:
            inclusion[i] += chance
    values, probabilities = Choice(p, replace=False).support((m,))
    counts = torch.zeros(len(values), 5, dtype=torch.float64).scatter_add_(
        1, values, torch.ones_like(values).double()
    )
    np.testing.assert_allclose(probabilities @ counts, inclusion, atol=1e-12)
    assert inclusion.sum() == pytest.approx(m)
    mean, biased, _ = naive.moments(iter(as_put_back), x.numpy())
    np.testing.assert_allclose(mean, (inclusion / (m * p.numpy())) @ x.numpy() / 5, atol=4e-16)
    _, des_raj, _ = naive.moments(iter(outcomes), x.numpy())
    _, back, _ = naive.moments(naive.put_back(p.tolist(), m), x.numpy())
    assert des_raj.sum() < 1.05 * biased.sum()
    assert des_raj.sum() < 0.7 * back.sum()
    # π_n ≈ 1 − exp(−p_n t), with t so that they add up to m: of so few terms to 0.03.
    t = float(min(np.linspace(0, 40, 40_001), key=lambda t: abs((1 - np.exp(-p.numpy() * t)).sum() - m)))
    np.testing.assert_allclose(inclusion, 1 - np.exp(-p.numpy() * t), atol=0.03)


def test_zeros_and_ones() -> None:
    values, probabilities = Bernoulli(0.3).support((2, 1))
    assert values.shape == (4, 2, 1)
    assert probabilities.tolist() == pytest.approx([0.49, 0.21, 0.21, 0.09])
    assert Bernoulli(1.0).support((3,))[0].tolist() == [[1, 1, 1]], "what cannot be is no value"
    drawn = Randomness({"b": Leaf((50,), Bernoulli(0.3))}).sample(0, range(400), dtype=torch.float64)["b"]
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert abs(float(drawn.mean()) - 0.3) < 5.5 * (0.21 / drawn.numel()) ** 0.5, "false alarms 4e-8"


def test_signs_have_a_support() -> None:
    values, probabilities = fgvar.Rademacher().support((3,))
    assert sorted(values.tolist()) == [list(map(float, v)) for v in itertools.product((-1, 1), repeat=3)]
    assert (probabilities == 1 / 8).all()


def test_a_leaf_lists_all_combinations_of_its_directions() -> None:
    leaf = Leaf((2, 1), Choice(P), batch_dims=1)
    assert leaf.is_finite
    values, probabilities = leaf.support()
    found = {tuple(v): c for v, c in zip(values.flatten(1).tolist(), probabilities.tolist(), strict=True)}
    assert found == pytest.approx({(i, j): float(P[i] * P[j]) for i in (0, 1, 2, 4) for j in (0, 1, 2, 4)})
    assert Leaf((2, 2), Bernoulli(0.5), batch_dims=1).support()[0].shape == (16, 2, 2)
    assert not Leaf((2,), fgvar.Gaussian()).is_finite


def test_several_thousand_of_several_thousand() -> None:
    """An index each, all different where none is put back, in memory of their number."""
    p = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p /= p.sum()
    for replace in (True, False):
        law = Choice(p, replace)
        drawn = Randomness({"i": Leaf((8_000,), law)}).sample(0, [0])["i"][0]
        assert int(drawn.min()) >= 0
        assert int(drawn.max()) < 20_000
        assert replace or len(drawn.unique()) == 8_000
        omega = law.weights(drawn)
        assert bool((omega.isfinite() & (omega > 0)).all())


def test_what_is_no_law_of_choices() -> None:
    with pytest.raises(ValueError, match=r"4 indices of 3 terms of positive probability, none put back.*Mixed"):
        Choice(P[:4] / P[:4].sum(), replace=False).support((4,))
    with pytest.raises(ValueError, match=r"5 indices of 4 terms of positive probability"):
        Randomness({"i": Leaf((5,), Choice(P, replace=False))}).sample(0, [0])
    with pytest.raises(ValueError, match=r"shape \(6,\) and probabilities \(5,\); expected .* m at most 5"):
        Choice(P, replace=False).support((6,))
    with pytest.raises(ValueError, match=r"shape \(2, 6\) and probabilities \(5,\); expected \('m',\)"):
        Randomness({"i": Leaf((2, 6), Choice(P))}).sample(0, [0])
    with pytest.raises(ValueError, match="9 indices of 20 have too many orders to list; take a smaller problem"):
        Choice(torch.full((20,), 0.05).double(), replace=False).support((9,))
    with pytest.raises(ValueError, match=r"rate is 1\.5, expected a probability between 0 and 1"):
        Bernoulli(1.5)
    with pytest.raises(ValueError, match=rf"2097152 combinations of values, expected at most {MOST_VALUES}"):
        combinations([2] * 21)
    assert combinations([]).shape == (1, 0)


@pytest.mark.parametrize("replace", [True, False])
def test_probabilities_that_do_not_sum_to_one_are_proportions(replace: bool) -> None:
    """As they are drawn, so they are weighed: E ω = 1."""
    law = fgvar.noise.Choice(torch.tensor([0.2, 0.3, 0.4]), replace)
    values, chances = law.support((2,))
    omega = torch.zeros(len(values), 3).double().scatter_add_(1, values, law.weights(values))
    assert torch.allclose(chances @ omega, torch.ones(3).double(), atol=1e-12)
