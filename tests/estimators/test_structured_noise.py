"""Structured noise: E u = 0 and E uuᵀ = I, its geometry, and the closed forms of its variance."""

import math

import pytest
import torch
from cases import CASES

import fgvar
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.measurement.draws import Enumeration, estimates
from fgvar.testing import CHECKS, check_estimator, default_problems

LAWS = {
    "sphere": fgvar.noise.Sphere(),
    "coordinate": fgvar.noise.Coordinate(),
    "orthogonal": fgvar.noise.Orthogonal(),
    "sparse": fgvar.noise.Sparse(0.5),
    "low-rank": fgvar.noise.LowRank(2),
}


def rows(randomness: Randomness, draws: int, seed: int = 0) -> torch.Tensor:
    noise = randomness.sample(seed, range(draws), dtype=torch.float64)
    return torch.cat([u.flatten(1) for u in noise.values()], dim=1)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
@pytest.mark.parametrize(
    ("space", "shared"),
    [(fgvar.WeightSpace(), True), (fgvar.WeightSpace(), False), (fgvar.ActivitySpace(), False)],
    ids=["weights", "weights of examples", "activities"],
)
def test_zero_mean_and_identity(law, shared, space) -> None:
    """4096 draws against E u = 0 and E uuᵀ = I, Bonferroni at 1e-7 in all: the noise check of the kit."""
    estimator = fgvar.Estimator(space, law, shared=shared, directions=2 if law == fgvar.noise.Orthogonal() else 1)
    CHECKS["noise"](estimator, {"linear": default_problems()["linear"]}, level=4e-7)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
def test_schemes_stay_unbiased_and_keep_the_contract(law) -> None:
    problem = default_problems()["linear"]
    checks = ("structure", "chunking", "batch_order", "unbiased", "scale", "shared_noise", "repr")
    for scheme in ("FG-W", "FG-A"):
        report = check_estimator(fgvar.scheme(scheme, noise=law), problem, checks=checks, draws=1024)
        assert report.passed, report


def test_spheres_have_one_radius_over_all_leaves() -> None:
    problem = CASES["mlp_relu"]()
    shared = rows(fgvar.scheme("FG-W", noise=fgvar.noise.Sphere()).randomness(problem), 5)
    torch.testing.assert_close(shared.square().sum(1), torch.full((5,), float(shared.shape[1])).double())
    own = fgvar.scheme("FG-A", noise=fgvar.noise.Sphere(), directions=2).randomness(problem)
    noise = own.sample(0, range(5), dtype=torch.float64)
    square = sum(u.square().sum(-1) for u in noise.values())  # of each draw, direction and example
    assert square.shape == (5, 2, 4)
    torch.testing.assert_close(square, torch.full_like(square, 12.0))


def test_coordinates_are_one_number_each() -> None:
    u = rows(fgvar.scheme("FG-W", noise=fgvar.noise.Coordinate()).randomness(CASES["linear"]()), 200)
    d = u.shape[1]
    assert ((u != 0).sum(1) == 1).all()
    torch.testing.assert_close(u.abs().max(1).values, torch.full((200,), math.sqrt(d)).double())
    assert (u != 0).any(0).all(), "each of 8 numbers occurs: missed with probability 8 (7/8)^200 < 1e-10"


@pytest.mark.parametrize("shared", [True, False])
def test_directions_are_orthogonal(shared: bool) -> None:
    estimator = fgvar.scheme("FG-A", noise=fgvar.noise.Orthogonal(), shared=shared, directions=4)
    noise = estimator.randomness(CASES["mlp_relu"]()).sample(0, range(3), dtype=torch.float64)
    frame = torch.cat(list(noise.values()), dim=-1)  # [draws, K, (examples), 12]
    frame = frame if shared else frame.movedim(1, 2)
    gram = frame @ frame.mT
    torch.testing.assert_close(gram, 12 * torch.eye(4).double().expand_as(gram), rtol=0, atol=1e-12)


def test_as_many_orthogonal_directions_as_numbers_have_no_variance() -> None:
    """d/K - 1 = 0: every estimate is the gradient."""
    problem = CASES["linear"]()
    estimator = fgvar.scheme("FG-W", noise=fgvar.noise.Orthogonal(), directions=8)
    noise = {k: u[0] for k, u in estimator.randomness(problem).sample(0, [0], dtype=torch.float64).items()}
    for name, g in estimator.estimate(problem, noise).gradient.items():
        torch.testing.assert_close(g, estimator.target(problem)[name], rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("noise", "directions", "expected"),
    [
        (fgvar.noise.Sphere(), 1, lambda d: d - 1),
        (fgvar.noise.Orthogonal(), 4, lambda d: d / 4 - 1),
        (fgvar.noise.Sparse(0.5), 1, lambda d: d - 2 + 6),
    ],
    ids=["sphere", "orthogonal", "sparse"],
)
def test_total_variance_of_one_loss(noise, directions, expected) -> None:
    """Within 6 standard errors over 2048 draws: false alarms below 1e-8 each, caught are errors of three tenths."""
    problem = CASES["mlp_relu"]()
    scheme = fgvar.scheme("FG-W", noise=noise, directions=directions)
    ds = fgvar.measure({"FG-W": scheme}, problem, draws=2048, seed=3)
    found = ds.sel(layer="perturbed", estimator="FG-W")
    d = int(found["size"])
    assert abs(float(found["relative_variance"]) - expected(d)) < 6 * float(found["relative_variance_se"])
    assert 6 * float(found["relative_variance_se"]) < 0.3 * expected(d)


def test_coordinate_variance_is_exact_over_its_law() -> None:
    """The nodes ±√d·e_i are the whole law of this noise: the mean of squares over them is exact."""
    problem = CASES["linear"]()
    estimator = fgvar.scheme("FG-W", noise=fgvar.noise.Coordinate())
    nodes = Enumeration(estimator.randomness(problem), "nodes")
    target = estimator.target(problem)
    found = estimates(estimator, problem, nodes.take(range(len(nodes))))
    variance = sum(float((found[k] - g).square().sum(tuple(range(1, g.ndim + 1))).mean()) for k, g in target.items())
    square = sum(float(g.square().sum()) for g in target.values())
    assert variance / square == pytest.approx(8 - 1, rel=1e-12)


def test_low_rank_matrices_have_their_rank_and_vectors_are_plain() -> None:
    estimator = fgvar.scheme("FG-W", noise=fgvar.noise.LowRank(2), shared=False, directions=2)
    noise = estimator.randomness(CASES["mlp_relu"]()).sample(0, [0], dtype=torch.float64)
    ranks = torch.linalg.matrix_rank(noise["layer0.weight"][0])
    assert ranks.tolist() == [[2] * 4] * 2
    assert noise["layer0.bias"].unique().numel() == noise["layer0.bias"].numel()


def test_errors() -> None:
    with pytest.raises(ValueError, match="density is 0, expected a share above 0"):
        fgvar.noise.Sparse(0)
    with pytest.raises(ValueError, match="rank is 0, expected at least 1"):
        fgvar.noise.LowRank(0)
    with pytest.raises(ValueError, match="directions is 0, expected an integer of at least 1"):
        fgvar.Estimator(noise=fgvar.noise.Sphere(), directions=0)
    with pytest.raises(ValueError, match="9 directions cannot be orthogonal among 8 perturbed numbers"):
        fgvar.scheme("FG-W", noise=fgvar.noise.Orthogonal(), directions=9).randomness(CASES["linear"]()).sample(
            0, [0]
        )


def test_joint_laws_join_leaves_of_equal_law_alone() -> None:
    leaves = {
        "a": Leaf((2,), fgvar.noise.Sphere()),
        "b": Leaf((2,), fgvar.noise.Sphere()),
        "c": Leaf((2,), fgvar.Gaussian()),
    }
    noise = Randomness(leaves).sample(0, [0], dtype=torch.float64)
    assert float(noise["a"].square().sum() + noise["b"].square().sum()) == pytest.approx(4)
    alone = Randomness({"c": leaves["c"]}).sample(0, [0], dtype=torch.float64)
    assert torch.equal(noise["c"], alone["c"])
