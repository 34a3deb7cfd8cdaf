"""Steps on another problem: rounds of them, in minibatches, and the powers of I − hH that they are."""

import pytest
import torch
from cases import randn
from shaping import flat
from torch import nn

import fgvar
from fgvar import targets
from fgvar import transforms as t
from fgvar.testing import CHECKS, default_problems, expectation
from fgvar.testing.enumeration import variances
from fgvar.testing.mutants.broken_unlearning import KEPT


def pair(net: nn.Module, forgotten: int = 4, kept: int = 6) -> tuple[fgvar.Problem, fgvar.Problem]:
    """What is forgotten, and what is retained, of one network."""
    forget = fgvar.Problem(net.double(), "mse", (randn(forgotten, 3), randn(forgotten, 2, seed=1)))
    return forget, forget.at(batch=(randn(kept, 3, seed=2), randn(kept, 2, seed=3)))


def identity(problem: fgvar.Problem) -> torch.Tensor:
    return torch.eye(sum(p.numel() for p in problem.params.values()), dtype=torch.float64)


def two_paths(forget: fgvar.Problem, retain: list[fgvar.Problem], steps: int, rounds: int, lr: float) -> torch.Tensor:
    """The naive twin: both paths to their ends, through these batches, and their difference."""
    g = forget.backprop()
    paths = [dict(forget.params), dict(forget.params)]
    for turn in range(rounds):
        paths[0] = {k: p + lr * g[k] for k, p in paths[0].items()}
        for step in range(steps):
            batch = retain[turn * steps + step]
            paths = [{k: p - lr * batch.at(path).backprop()[k] for k, p in path.items()} for path in paths]
    return (flat(paths[0]) - flat(paths[1])) / lr


@pytest.mark.parametrize("rounds", [1, 2, 4])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_rounds_on_a_quadratic_are_sums_of_powers(steps: int, rounds: int) -> None:
    """Σ_r (I − lr H)^(rK) g exactly, as a loop of two paths and `Propagated` have it, too."""
    forget, retain = pair(nn.Linear(3, 2))
    transform = t.Retained(retain, steps, 0.1, rounds)
    found = flat(fgvar.Stochastic(then=(transform,)).estimate(forget, {}).gradient)
    one = torch.linalg.matrix_power(identity(forget) - 0.1 * targets.hessian(retain), steps)
    g = flat(forget.backprop())
    expected = sum(torch.linalg.matrix_power(one, r) @ g for r in range(1, rounds + 1))
    for other in (
        expected,
        two_paths(forget, [retain] * (steps * rounds), steps, rounds, 0.1),
        flat(targets.Propagated(retain, steps, 0.1, rounds)(forget)),
    ):
        torch.testing.assert_close(found, other, rtol=0, atol=1e-12)
    assert bool(transform.bias_reason) == (steps > 0 or rounds > 1)


def test_many_rounds_are_near_an_inverse() -> None:
    """Σ_r P^r = P (I − P)⁻¹ of P = (I − lr H)^K where all curvatures are positive: (K lr H)⁻¹ for small ones."""
    forget, retain = pair(nn.Linear(3, 2), kept=12)
    h, g = targets.hessian(retain), flat(forget.backprop())
    assert float(torch.linalg.eigvalsh(h)[0]) > 0.1
    found = flat(targets.Propagated(retain, 2, 0.05, rounds=2000)(forget))
    p = torch.linalg.matrix_power(identity(forget) - 0.05 * h, 2)
    torch.testing.assert_close(found, p @ torch.linalg.solve(identity(forget) - p, g), rtol=0, atol=1e-10)
    newton = flat(targets.Newton(retain, 0.0)(forget))
    assert float(torch.cosine_similarity(found, newton, dim=0)) > 0.99


def test_minibatches_are_those_drawn() -> None:
    """Behind a tanh, draw by draw: a loop over the same minibatches, put back, and twice the same noise."""
    torch.manual_seed(0)
    forget, retain = pair(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    row = fgvar.Stochastic(then=(t.Retained(retain, 2, 0.1, rounds=3, size=4),))
    noise = {name: u[0] for name, u in row.randomness(forget).sample(0, [5], dtype=torch.float64).items()}
    assert {name: tuple(u.shape) for name, u in noise.items()} == {"then.0": (3, 2, 4)}
    batches = [retain.rows(drawn) for drawn in noise["then.0"].flatten(0, 1)]
    found = flat(row.estimate(forget, noise).gradient)
    torch.testing.assert_close(found, two_paths(forget, batches, 2, 3, 0.1), rtol=0, atol=1e-11)


def test_minibatches_keep_the_mean_of_a_quadratic_and_add_variance() -> None:
    """Minibatches of different steps are independent, so that E Π(I − lr H_b) = (I − lr H)^K: all 9² of them."""
    forget, retain = pair(nn.Linear(3, 2), kept=3)
    row = fgvar.Stochastic(then=(t.Retained(retain, 2, 0.1, size=2),))
    found = flat(expectation(row, forget, method="support"))
    torch.testing.assert_close(found, flat(targets.Propagated(retain, 2, 0.1)(forget)), rtol=0, atol=1e-12)
    assert float(flat(variances(row, forget, method="support")).sum()) > 1e-3
    with pytest.raises(ValueError, match=r"draws its minibatches, and the mean over them is not known"):
        fgvar.theory.variance(row, forget)


@pytest.mark.parametrize("words", [{}, {"rounds": 2}, {"size": 1}], ids=["once", "rounds", "minibatches"])
def test_checks_hold_retained_steps_against_their_power(words: dict[str, int]) -> None:
    """On a quadratic they are exact, as the mutant of the same problems, with one momentum for all, is not."""
    steps = fgvar.Stochastic(then=(t.Retained(KEPT, 2, 0.1, **words),))
    against = fgvar.Against(steps, targets.Propagated(KEPT, 2, 0.1, words.get("rounds", 1)))
    for name in ("unbiased", "scale"):
        rows = CHECKS[name](against, {"linear": default_problems()["linear"]})
        assert [one.outcome for one in rows] == ["passed"]
        assert rows[0].note.startswith("exact: ")


def test_shuffled_saliency_keeps_as_many_at_other_places() -> None:
    forget, retain = pair(nn.Linear(3, 2))
    plain, one, two = (t.Saliency(retain, 1.0, 2, shuffled=s).mask(forget) for s in (None, 3, 4))
    assert {k: int(m.sum()) for k, m in plain.items()} == {k: int(m.sum()) for k, m in one.items()}
    assert not torch.equal(flat(one), flat(two))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda retain: t.Retained(retain, 1, 0.1, rounds=0), "rounds is 0, expected an integer of at least 1"),
        (lambda retain: t.Retained(retain, 1, 0.1, size=0), "size is 0, expected an integer of at least 1"),
        (lambda retain: t.Saliency(retain, 1.0, shuffled=-1), "shuffled is -1, expected a non-negative integer"),
        (lambda retain: targets.Propagated(retain, -1, 0.1), "steps is -1, expected a non-negative integer"),
        (lambda retain: targets.Propagated(retain, 1, 0.1, rounds=0), "rounds is 0, expected an integer of at"),
    ],
)
def test_refused_values(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(pair(nn.Linear(3, 2))[1])


def test_keys_move_along_the_paths() -> None:
    net = nn.Linear(3, 2).double()
    retain = fgvar.contrastive.Contrastive(net, fgvar.contrastive.InfoNCE(1.0), (randn(4, 3), randn(4, 3, seed=1)))
    forget = fgvar.Problem(net, "mse", (randn(4, 3, seed=2), randn(4, 2, seed=3)))
    found = t.Retained(retain, steps=3, lr=0.2, rounds=2)(forget.backprop(), forget, {})
    torch.testing.assert_close(flat(found), two_paths(forget, [retain] * 6, 3, 2, 0.2), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="holds its keys, which move along the path"):
        targets.Propagated(retain, steps=3, lr=0.2)
    coupled = fgvar.contrastive.InfoNCE(1.0, stop_gradient=False)
    targets.Propagated(fgvar.contrastive.Contrastive(net, coupled, (randn(4, 3), randn(4, 3, seed=1))), 3, 0.2)
