"""Guesses, crossed with combinations, targets and spaces: against loops by hand, and by enumeration."""

from dataclasses import replace

import pytest
import torch
from cases import CASES, labels, mixer, randn
from torch import Tensor, nn

import fgvar
from fgvar.estimators.subspace_guesses import _newton_schulz, _svd
from fgvar.testing import CHECKS, default_problems, expectation

NORMALISED = fgvar.combine.Normalised()


def one(estimator, problem: fgvar.Problem, draw: int = 0) -> dict[str, Tensor]:
    randomness = estimator.randomness(problem)
    noise = randomness.sample(0, [draw], dtype=torch.float64) if randomness.size else {}
    return estimator.estimate(problem, {name: u[0] for name, u in noise.items()}).gradient


def close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def sequential() -> fgvar.Problem:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for index, p in enumerate(net.parameters()):
            p.copy_(0.6 * randn(*p.shape, seed=index))
    return fgvar.Problem(fgvar.with_sites(net), "cross_entropy", (randn(3, 3, seed=9), labels(3, 2)))


# ---- guesses that need no noise ------------------------------------------------------------------------------


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("space", [fgvar.WeightSpace, fgvar.ActivitySpace])
@pytest.mark.parametrize("shared", [True, False])
def test_a_perfect_guess_gives_the_gradient_itself(space, per_tensor: bool, shared: bool) -> None:
    """The end-to-end gradient for the global target, the local one for local losses."""
    problem = mixer()
    words = {"space": space(per_tensor=per_tensor), "shared": shared, "combine": NORMALISED}
    for losses, guess in (
        (fgvar.GlobalLoss(), fgvar.guesses.BackpropGradient()),
        (fgvar.LocalLosses(patch=False, group=False), fgvar.guesses.LocalGradient()),
    ):
        estimator = fgvar.Estimator(losses=losses, guess=guess, **words)
        assert estimator.randomness(problem).size == 0
        close(one(estimator, problem), estimator.target(problem))


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize(
    "guess", [fgvar.guesses.LocalGradient(), fgvar.guesses.NTK(), fgvar.guesses.BackpropGradient()]
)
def test_one_sided_differences_along_a_guess_without_noise_are_of_order_1(guess, antithetic: bool) -> None:
    """No noise averages their error out, but a pair of opposites does."""
    problem, order = mixer(), 2 if antithetic else 1
    exact = fgvar.Estimator(
        fgvar.ActivitySpace(per_tensor=True), guess=guess, combine=NORMALISED, antithetic=antithetic
    )
    expected, off = one(exact, problem), []
    for step in (2e-3, 1e-3):
        found = one(replace(exact, oracle=fgvar.oracles.ForwardDifference(step)), problem)
        off.append(sum(float((found[name] - g).square().sum()) for name, g in expected.items()) ** 0.5)
    assert off[0] / off[1] == pytest.approx(2**order, rel=0.05)
    estimator = replace(exact, oracle=fgvar.oracles.ForwardDifference())
    assert estimator.bias_reason.endswith(f"; of order step^{order}")
    assert replace(exact, oracle=fgvar.oracles.CentralDifference()).bias_order == 2
    assert replace(estimator, guess=fgvar.guesses.Isotropic()).bias_order == 2


def test_the_order_is_checked_beside_the_bias_of_a_guess() -> None:
    estimator = fgvar.scheme("local-guess", oracle=fgvar.oracles.ForwardDifference())
    (row,) = CHECKS["bias_order"](estimator, {"mixer": default_problems()["mixer"]})
    assert row.note.startswith("bias ~ step^1")


def test_projections_of_weights_are_those_of_every_example_and_tensor() -> None:
    """Fournier et al.: (t·g/|g|²) g for each example and parameter tensor, then the batch mean."""
    problem = mixer()
    estimator = fgvar.Estimator(
        fgvar.WeightSpace(per_tensor=True),
        shared=False,
        guess=fgvar.guesses.LocalGradient(),
        combine=NORMALISED,
    )
    local = fgvar.scheme("LG-BP", losses=fgvar.LocalLosses(patch=False, group=False))
    expected = {name: torch.zeros_like(value) for name, value in problem.params.items()}
    for n in range(problem.batch_size):
        alone = problem.example(n)
        target, guess = fgvar.scheme("FG-W").target(alone), local.target(alone)
        for name in problem.params:
            t, g = target[name], guess[name]
            ratio = 1.0 if name in problem.network.exact or not g.any() else (t * g).sum() / g.square().sum()
            own = t if name in problem.network.exact else ratio * g
            expected[name] += own / problem.batch_size
    found = one(estimator, problem)
    trunk = problem.perturbed  # the last block's guess carries no read-out, so only heads could differ
    close({k: found[k] for k in trunk}, {k: expected[k] for k in trunk})


def test_projections_of_activities_go_through_the_local_vjp() -> None:
    problem = CASES["mlp_relu"]()
    guess = fgvar.Estimator(fgvar.ActivitySpace(per_tensor=True), combine=NORMALISED)
    noise = {k: u[0] for k, u in guess.randomness(problem).sample(1, [0], dtype=torch.float64).items()}
    sites = {name: torch.zeros(4, 6, dtype=torch.float64) for name in ("site0", "site1")}
    credits = torch.func.grad(lambda t: problem.losses(problem.run(problem.params, t)[0]).sum())(sites)
    values = problem.run(problem.params, watch=("site0", "site1", "act0"))[1]
    inputs = {"layer0": problem.inputs, "layer1": values["act0"]}
    found = guess.estimate(problem, noise).gradient
    for index in range(2):
        u = noise[f"site{index}"] * (values[f"site{index}"] > 0)
        ratio = (credits[f"site{index}"] * u).sum(1) / u.square().sum(1)
        expected = (ratio[:, None] * u).T @ inputs[f"layer{index}"] / 4
        torch.testing.assert_close(found[f"layer{index}.weight"], expected, rtol=0, atol=1e-14)


def test_frozen_heads_are_the_seed_s_own_and_never_learn() -> None:
    problem = mixer()
    first, again, other = (
        one(fgvar.scheme("NTK-guess", guess=fgvar.guesses.NTK(seed)), problem) for seed in (0, 0, 1)
    )
    close(first, again, 0)
    assert any(not torch.equal(first[k], other[k]) for k in problem.perturbed)
    moved = problem.at({k: v + 1.0 if ".head." in k else v for k, v in problem.params.items()})
    close(
        {k: one(fgvar.scheme("NTK-guess"), moved)[k] for k in problem.perturbed},
        {k: first[k] for k in problem.perturbed},
    )


# ---- guesses that shape noise --------------------------------------------------------------------------------


def test_transposed_weights_are_mask_times_transpose_times_noise() -> None:
    problem = sequential()
    space = fgvar.ActivitySpace(relu_after={"0.site": "1"})
    estimator = fgvar.Estimator(space, guess=fgvar.guesses.TransposedWeights())
    leaves = estimator.randomness(problem).leaves
    assert {name: leaf.shape for name, leaf in leaves.items()} == {
        "after.2": (3, 4), "after.4": (3, 2), "4.site": (3, 2),
    }  # fmt: skip
    noise = {name: randn(*leaf.shape, seed=3) for name, leaf in leaves.items()}
    linearised = space.linearise(problem, fgvar.GlobalLoss())
    found = estimator.guess.direction(problem, fgvar.GlobalLoss(), linearised, noise)
    z = problem.run(problem.params, watch=("0.site", "2.site"))[1]
    params = problem.params
    close(
        found,
        {
            "0.site": (noise["after.2"] @ params["2.weight"]) * (z["0.site"] > 0),
            "2.site": (noise["after.4"] @ params["4.weight"]) * (1 - z["2.site"].tanh() ** 2),
            "4.site": noise["4.site"],
        },
        1e-14,
    )


@pytest.mark.parametrize(
    "guess",
    [fgvar.guesses.TransposedWeights(), fgvar.guesses.TransposedWeights("svd"), fgvar.guesses.ActivationSpan()],
)
@pytest.mark.parametrize("space", [fgvar.WeightSpace(), fgvar.ActivitySpace()], ids=["weights", "activities"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_bias_of_shaped_noise_is_enumerated(guess, space, shared: bool) -> None:
    """E ĝ = pullback(BBᵀ∇), with B found column by column: not the target, and the kit says by how much."""
    problem = sequential()
    estimator = fgvar.Estimator(space, shared=shared, guess=guess)
    mean, target = expectation(estimator, problem), estimator.target(problem)
    assert max(float((mean[k] - target[k]).abs().max()) for k in problem.perturbed) > 1e-3
    assert estimator.bias_reason
    if shared or space.per_example:
        close(mean, _by_columns(estimator, problem), 1e-10)


def _by_columns(estimator: fgvar.Estimator, problem: fgvar.Problem) -> dict[str, Tensor]:
    """The mean from B itself: Σ over columns b of the credited b, one column at a time."""
    leaves = estimator.randomness(problem).leaves
    total = {name: torch.zeros_like(value) for name, value in problem.params.items()}
    heads = None
    for name, leaf in leaves.items():
        for index in range(leaf.size):
            noise = {k: torch.zeros(other.shape, dtype=torch.float64) for k, other in leaves.items()}
            noise[name].view(-1)[index] = 1.0
            found = estimator.estimate(problem, noise).gradient
            total = {k: total[k] + found[k] for k in total}
            heads = found
    return {k: heads[k] if k in problem.network.exact else total[k] for k in total}


def test_a_perfect_subspace_has_no_bias() -> None:
    """Orthogonal square weights behind identities: BBᵀ = 1, and the estimate is unbiased after all."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)).double()
    problem = fgvar.Problem(fgvar.with_sites(net), "mse", (randn(2, 3), randn(2, 4, seed=1)))
    estimator = fgvar.Estimator(fgvar.ActivitySpace(), guess=fgvar.guesses.TransposedWeights("svd"))
    close(expectation(estimator, problem), estimator.target(problem), 1e-10)


def test_the_span_of_activations_holds_the_gradient_of_weights() -> None:
    """Every direction is Σ ε_n x_nᵀ, so the part of it at right angles to all inputs is 0."""
    problem = sequential()
    estimator = fgvar.Estimator(fgvar.WeightSpace(), guess=fgvar.guesses.ActivationSpan())
    linearised = estimator.space.linearise(problem, estimator.losses)
    noise = {k: u[0] for k, u in estimator.randomness(problem).sample(0, [0], dtype=torch.float64).items()}
    assert noise["0.site"].shape == (3, 5), "noise of every example, though the direction is one"
    found = estimator.guess.direction(problem, estimator.losses, linearised, noise)
    expected = noise["0.site"].T @ problem.inputs / 3
    torch.testing.assert_close(found["0.weight"], expected, rtol=0, atol=1e-14)
    mixed = fgvar.Estimator(fgvar.ActivitySpace(), guess=fgvar.guesses.ActivationSpan())
    linearised = mixed.space.linearise(problem, mixed.losses)
    noise = {k: u[0] for k, u in mixed.randomness(problem).sample(0, [0], dtype=torch.float64).items()}
    z = problem.run(problem.params, watch=("2.site",))[1]["2.site"]
    found = mixed.guess.direction(problem, mixed.losses, linearised, noise)
    torch.testing.assert_close(found["2.site"], noise["2.site"] @ z / 3**0.5, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 5, 2), (30, 30)])
def test_orthogonalised_matrices(shape: tuple[int, ...]) -> None:
    matrix = randn(*shape, seed=5)
    exact = torch.linalg.svdvals(_svd(matrix, None))
    torch.testing.assert_close(exact, torch.ones_like(exact))
    if shape[-1] != shape[-2]:  # square ones can have a singular value near 0, which five steps do not reach
        roughly = torch.linalg.svdvals(_newton_schulz(matrix))
        assert float(roughly.min()) > 0.6
        assert float(roughly.max()) < 1.3
        # The same directions: polynomials leave the singular vectors.
        cosine = torch.nn.functional.cosine_similarity(
            _svd(matrix, None).flatten(), _newton_schulz(matrix).flatten(), dim=0
        )
        assert float(cosine) > 0.97
    truncated = torch.linalg.svdvals(_svd(matrix, 1))
    assert ((truncated > 0.5).sum(-1) == 1).all()


# ---- the whole matrix ----------------------------------------------------------------------------------------


def test_the_whole_matrix_runs_from_one_call() -> None:
    matrix = fgvar.guesses.guess_matrix()
    assert len(matrix) == 7 * 2 * 2
    ds = fgvar.measure(matrix, mixer(batch=1), draws=4)
    cosine = ds["cosine"].sel(layer="perturbed", reference="target")
    weights = [name for name in matrix if name.startswith("weight")]
    assert bool((cosine.sel(estimator=weights) > -1e-12).all()), "the projection of one example is never uphill"
    for space in ("weight", "activity"):
        assert float(cosine.sel(estimator=f"{space}/global/global")) == pytest.approx(1, abs=1e-9)
        assert float(cosine.sel(estimator=f"{space}/local/local")) == pytest.approx(1, abs=1e-9)
    slopes = ds["slope"].sel(layer="perturbed", reference="target")
    assert float(slopes.sel(estimator=weights).max()) < 1 + 1e-9, "and never longer than the target"


def test_the_matrix_on_anybodys_network_with_local_heads() -> None:
    """The local guess of the local target is that target, on a network of torch.nn as on LocalMixer."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    blocks = fgvar.with_local_heads(net, after=("1", "3"), classes=2, groups=2, readout="4")
    problem = fgvar.Problem(fgvar.with_sites(blocks), "cross_entropy", (randn(1, 3, seed=9), labels(1, 2)))
    matrix = fgvar.guesses.guess_matrix()
    found = {name: one(estimator, problem) for name, estimator in matrix.items()}
    assert all(bool(g.isfinite().all()) for gradients in found.values() for g in gradients.values())
    for name in ("weight/local/local", "activity/local/local", "weight/global/global", "activity/global/global"):
        target = matrix[name].target(problem)
        assert max(float(target[key].abs().max()) for key in problem.perturbed) > 1e-3, name
        close(found[name], target)


def test_the_matrix_without_heads() -> None:
    matrix = fgvar.guesses.guess_matrix(local=False)
    assert len(matrix) == 5 * 2
    assert fgvar.measure(matrix, sequential(), draws=2)["variance"].sizes["estimator"] == 10


# ---- errors --------------------------------------------------------------------------------------------------


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"unknown way to orthogonalise 'SVD'; did you mean 'svd'"):
        fgvar.guesses.TransposedWeights("SVD")
    with pytest.raises(ValueError, match="rank=3 with orthogonal='none': expected a rank ≥ 1 with 'svd'"):
        fgvar.guesses.TransposedWeights(rank=3)
    with pytest.raises(ValueError, match="no local heads"):
        fgvar.Estimator(guess=fgvar.guesses.LocalGradient()).randomness(sequential())
    with pytest.raises(ValueError, match="no local heads"):
        fgvar.Estimator(guess=fgvar.guesses.NTK()).randomness(sequential())
    plain = fgvar.Problem(nn.Linear(3, 2), "mse", (torch.ones(2, 3), torch.ones(2, 2)))
    for guess in (fgvar.guesses.TransposedWeights(), fgvar.guesses.ActivationSpan()):
        with pytest.raises(ValueError, match="no site to perturb"):
            fgvar.Estimator(guess=guess).randomness(plain)
    many = fgvar.Estimator(directions=3, guess=fgvar.guesses.BackpropGradient())
    with pytest.raises(ValueError, match=r"BackpropGradient\(\) needs no noise, so that 3 directions would be one"):
        many.randomness(sequential())
    for words, reason in (
        ({"guess": fgvar.guesses.BackpropGradient()}, "shapes the noise"),
        ({"combine": fgvar.combine.Projection()}, "is not the mean of the directions' estimates"),
        ({"space": fgvar.WeightSpace(per_tensor=True)}, "perturbs one tensor at a time"),
    ):
        with pytest.raises(ValueError, match=f"no closed form: .*{reason}"):
            fgvar.theory.variance(replace(fgvar.Estimator(), **words), sequential())
