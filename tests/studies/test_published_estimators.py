"""Published estimators: each proved or refuted exactly, and their closed forms of mean and second moment."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

import fgvar
from fgvar.testing import check_estimator, covariance, default_problems, expectation
from studies import audit as study
from studies.published import anchored, coordinates, layers, moments, queries, rows, subspaces
from studies.published.directional import Declared, Directional, along, squares

PROBLEM = default_problems()["linear"]
GRADIENT = PROBLEM.backprop()
BLOCKS = {"weight": 0, "bias": 1}
BASIS = torch.linalg.qr(torch.tensor([[1.0, 2.0], [3.0, -1.0]]).double())[0][:, :1]
BY_EXACT_SUMS = {
    "MeZO-BCD": layers.Layers(BLOCKS, (0.3, 0.7), weigh=False),
    "AdaLeZO": layers.Layers(BLOCKS, (0.3, 0.7)),
    "SubZero": subspaces.Subspaces({"weight": BASIS}, {"weight": BASIS}),
    "AGZO": subspaces.Subspaces({}, {"weight": BASIS}),
}
DRAWS = 4096


def plain_scene() -> rows.Scene:
    module = torch.nn.Linear(3, 2).double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.linspace(-1, 2, p.numel(), dtype=torch.float64).reshape(p.shape))
    batch = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.7, -1.0]]).double(), torch.tensor([0, 1])
    return rows.Scene(fgvar.Problem(module, "cross_entropy", batch), module)


# ---- each estimator, proved or refuted ------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_EXACT_SUMS)
def test_laws_are_exact_sums_over_their_noise(name: str) -> None:
    """Mean and second moment by enumeration; unbiased where nothing else is declared, else refuted."""
    law: Any = BY_EXACT_SUMS[name]
    estimator = Directional(law)
    known, mean = law.moments(GRADIENT), expectation(estimator, PROBLEM)
    for key, g in known.mean.items():
        torch.testing.assert_close(mean[key], g, rtol=0, atol=1e-10)
    if name in ("SubZero", "AGZO"):
        variances = covariance(estimator, PROBLEM)
        second = {key: float(v.trace() + mean[key].square().sum()) for key, v in variances.items()}
    else:
        second = _second_by_blocks(law)
    assert second == pytest.approx(known.second, rel=1e-9)
    _verdict(estimator, unbiased=not law.bias_reason)
    _verdict(fgvar.Against(estimator, Declared(law)), unbiased=True)


def _second_by_blocks(law: layers.Layers) -> dict[str, float]:
    """Block by block the polynomials of normal numbers, by three Gauss-Hermite points in each."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    found = dict.fromkeys(GRADIENT, 0.0)
    for name, g in GRADIENT.items():
        flat = g.flatten().tolist()
        for at in itertools.product(range(3), repeat=len(flat)):
            u = [nodes[i] for i in at]
            c = sum(x * y for x, y in zip(u, flat, strict=True))
            chance = math.prod(weights[i] for i in at) * law.probabilities[BLOCKS[name]]
            omega = 1 / law.probabilities[BLOCKS[name]] if law.weigh else 1
            found[name] += chance * sum((c * omega * x) ** 2 for x in u)
    return found


def _verdict(estimator: Any, *, unbiased: bool) -> None:
    report = check_estimator(
        estimator, PROBLEM, checks=["structure", "deterministic", "chunking", "unbiased", "scale"]
    )
    outcome = {row.check: row.outcome for row in report.rows}
    assert {outcome["unbiased"], outcome["scale"]} == ({"passed"} if unbiased else {"failed"}), report
    assert all(outcome[name] == "passed" for name in ("structure", "deterministic", "chunking")), report


def test_a_pool_of_seeds_is_biased_by_what_it_does_not_span() -> None:
    """Exactly: E ĝ = (1/S) Σ u uᵀ∇ over the pool, and (d + 1)/S in the mean over 200 pools (within 5 errors)."""
    law = queries.SeedPool(8)
    mean = expectation(Directional(law), PROBLEM)
    pool = law.pool(PROBLEM)
    c = torch.stack([u.flatten(1) @ GRADIENT[name].flatten() for name, u in pool.items()]).sum(0) / 8
    for name, u in pool.items():
        torch.testing.assert_close(mean[name], torch.tensordot(c, u, 1), rtol=0, atol=1e-10)
    _verdict(Directional(law), unbiased=False)
    total, found = sum(squares(GRADIENT).values()), []
    for key in range(200):
        pool = queries.SeedPool(8, key).pool(PROBLEM)
        c = torch.stack([u.flatten(1) @ GRADIENT[name].flatten() for name, u in pool.items()]).sum(0) / 8
        off = [torch.tensordot(c, u, 1) - GRADIENT[name] for name, u in pool.items()]
        found.append(sum(float(one.square().sum()) for one in off) / total)
    known = sum(law.moments(GRADIENT).kept.values()) / total
    assert known == pytest.approx(7 / 8)
    assert abs(np.mean(found) - known) < 5 * np.std(found) / 200**0.5, "false alarm 6e-7"


def test_numbers_of_a_pool_are_normal_and_apart() -> None:
    """32,768 numbers of two seeds: four moments within 5 errors, and no correlation (false alarms 3e-6 in all)."""
    module = torch.nn.Linear(1 << 15, 1, bias=False).double()
    problem = fgvar.Problem(module, "mse", (torch.ones(1, 1 << 15).double(), torch.ones(1, 1).double()))
    pool = queries.SeedPool(2).pool(problem)["weight"].reshape(2, -1)
    n = pool.shape[1]
    for u in pool:
        for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            assert abs(float((u**power).mean()) - mean) < 5 * (variance / n) ** 0.5, power
        assert abs(float((u[1:] * u[:-1]).mean())) < 5 / n**0.5
    assert abs(float((pool[0] * pool[1]).mean())) < 5 / n**0.5


@pytest.mark.parametrize("twice", [True, False])
def test_roundings_by_quadrature(twice: bool) -> None:
    """Mean and second moment of one number among two, with sums over all roundings and a fine grid of the law."""
    law, u = queries.Quantised(1.0, twice=twice), torch.linspace(-7, 7, 2801, dtype=torch.float64)
    density = torch.exp(-(u**2) / 2) / torch.exp(-(u**2) / 2).sum()
    low = torch.floor(u)
    f = u - low
    values, chances = torch.stack([low, low + 1]), torch.stack([1 - f, f])
    g, d = 0.8, 1
    slope = second = 0.0
    for i, j in itertools.product(range(2), repeat=2):
        if not twice and i != j:
            continue
        chance = density * (chances[i] * chances[j] if twice else chances[i])
        q, w = values[i], values[j]
        slope += float((chance * q * w).sum())
        second += float((chance * (g * q * w) ** 2).sum())
    known = law.moments({"a": torch.full((d,), g, dtype=torch.float64)})
    assert float(known.mean["a"]) == pytest.approx(slope * g, rel=2e-4)
    assert known.second["a"] == pytest.approx(second, rel=2e-3)
    v = float((density * (chances * values**2).sum(0)).sum())
    two = law.moments({"a": torch.full((d,), g, dtype=torch.float64), "b": torch.zeros(3).double()})
    assert two.second["b"] == pytest.approx(3 * v**2 * g**2, rel=2e-4)


def test_clipped_derivatives_by_quadrature() -> None:
    law = queries.ClippedDerivative(0.7 * sum(squares(GRADIENT).values()) ** 0.5)
    n = torch.linspace(-9, 9, 180_001, dtype=torch.float64)
    density = torch.exp(-(n**2) / 2) / torch.exp(-(n**2) / 2).sum()
    clip = n.clamp(-0.7, 0.7)
    known, each = law.moments(GRADIENT), squares(GRADIENT)
    total = sum(each.values())
    assert float(along(GRADIENT, known.mean)) / total == pytest.approx(float((density * clip * n).sum()), rel=1e-6)
    for name, g in GRADIENT.items():
        rest = (g.numel() - each[name] / total) * float((density * clip**2).sum())
        expected = total * rest + each[name] * float((density * clip**2 * n**2).sum())
        assert known.second[name] == pytest.approx(expected, rel=1e-6)


def test_an_anchor_takes_away_what_examples_differ_by() -> None:
    """SVRG is unbiased and equals its closed form; with the anchor at hand only MeZO's own noise is left."""
    for anchor in (None, anchored.one_step_back(PROBLEM, 0.1)):
        estimator = anchored.Anchored(anchor)
        mean = expectation(estimator, PROBLEM)
        for name, g in GRADIENT.items():
            torch.testing.assert_close(mean[name], g, rtol=0, atol=1e-10)
        _verdict(estimator, unbiased=True)
    here = {name: p.detach() for name, p in PROBLEM.params.items()}
    plain = rows.of_gaussian_mean(rows.Scene(PROBLEM, None))
    assert anchored.Anchored(here).moments_at(PROBLEM).second == pytest.approx(plain.second)
    step = anchored.one_step_back(PROBLEM, 0.25)
    moved = sum(float((step[name] - p).square().sum()) for name, p in here.items()) ** 0.5
    assert moved == pytest.approx(0.25 * sum(squares(here).values()) ** 0.5)


def test_one_point_and_signs_over_sigma() -> None:
    """One point is unbiased, whatever the loss; signs over their deviation are refuted: their length is their own."""
    _verdict(queries.OnePoint(0.1), unbiased=True)
    _verdict(queries.SignBatch(4), unbiased=False)
    noise = queries.SignBatch(4).randomness(PROBLEM).sample(0, [0], dtype=torch.float64)
    one = {name: u[0] for name, u in noise.items()}
    estimate = queries.SignBatch(4).estimate(PROBLEM, one).gradient
    c = torch.stack([u.flatten(1) @ GRADIENT[name].flatten() for name, u in one.items()]).sum(0)
    for name, u in one.items():
        torch.testing.assert_close(estimate[name], sum(x * v for x, v in zip(c, u, strict=True)) / 4 / c.std())
    report = check_estimator(queries.SignBatch(4), PROBLEM, checks=["linear_in_loss"])
    assert report.failures, "its length is not the gradient's"


def test_small_weights_alone() -> None:
    keep = coordinates.Small(0.5)
    estimator = fgvar.scheme("FG-W", space=fgvar.WeightSpace(keep=keep))
    known, mean = coordinates.of_masked(GRADIENT, keep.mask(PROBLEM)), expectation(estimator, PROBLEM)
    for name, g in known.mean.items():
        torch.testing.assert_close(mean[name], g, rtol=0, atol=1e-10)
    second = {
        name: float(v.trace() + mean[name].square().sum()) for name, v in covariance(estimator, PROBLEM).items()
    }
    assert second == pytest.approx(known.second)
    _verdict(estimator, unbiased=False)
    mask = keep.mask(PROBLEM)["weight"]
    weight = PROBLEM.params["weight"].abs()
    assert int(mask.sum()) == 2
    assert weight[mask == 1].max() < weight[mask == 0].min()


# ---- closed forms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2])
def test_random_matrices_of_low_rank_buy_no_cosine(rank: int) -> None:
    """E‖ĝ‖² = (mn + 2 + 2(m + n + 1)/r)‖G‖² by quadrature of degree 4 in each number; E cos² = 1/mn by symmetry."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    g, (m, n) = np.array([[0.7], [-1.2]]), (2, 1)
    second = 0.0
    for at in itertools.product(range(3), repeat=(m + n) * rank):
        x = nodes[list(at)]
        a, b = x[: m * rank].reshape(m, rank), x[m * rank :].reshape(n, rank)
        u = a @ b.T / rank**0.5
        second += math.prod(weights[list(at)]) * ((g * u).sum() ** 2 * (u**2).sum())
    known = subspaces.of_low_rank({"w": torch.tensor(g)}, rank)["w"]
    assert known == pytest.approx((m * n + 2 + 2 * (m + n + 1) / rank) * (g**2).sum())
    # ĝ² has degree 4 in each number, which three points integrate exactly.
    assert second == pytest.approx(known, rel=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_cosines_do_not_know_the_rank(rank: int) -> None:
    """20,000 directions of 3 × 4 matrices: E cos² = 1/12 within 5 errors (false alarm 6e-7)."""
    leaf = fgvar.Randomness({"w": fgvar.Leaf((3, 4), fgvar.noise.LowRank(rank))})
    u = leaf.sample(0, range(20_000), dtype=torch.float64)["w"].flatten(1)
    g = torch.linspace(-1, 2, 12, dtype=torch.float64)
    cosines = (u @ g) ** 2 / (u.square().sum(1) * g.square().sum())
    assert abs(float(cosines.mean()) - 1 / 12) < 5 * float(cosines.std()) / 20_000**0.5


def test_one_query_has_a_trace_of_one() -> None:
    """E cos² = ∇ᵀM∇/‖∇‖² with tr M = 1: whatever the law, over the axes of any basis it sums up to 1."""
    laws: tuple[Any, ...] = (subspaces.Subspaces({}, {"weight": BASIS}), layers.Layers(BLOCKS, (0.2, 0.8)))
    for law in laws:
        noise = Directional(law).randomness(PROBLEM).sample(0, range(64), dtype=torch.float64)
        for draw in range(64):
            query, _ = law.directions(PROBLEM, {name: u[draw] for name, u in noise.items()})
            flat = torch.cat([q.flatten() for q in query.values()])
            assert float((flat**2 / flat.square().sum()).sum()) == pytest.approx(1)


@pytest.mark.parametrize("count", [2, 3])
def test_a_mean_of_directions_costs_what_it_saves(count: int) -> None:
    """η_K/K over η_1 is (d + 2)/(d + K + 1): the best share of queries goes to one direction each."""
    scene = plain_scene()
    d, total = sum(scene.sizes.values()), sum(squares(scene.gradient).values())
    one, many = (sum(rows.of_gaussian_mean(scene, k).second.values()) / total for k in (1, count))
    assert one / many / count == pytest.approx((d + 2) / (d + count + 1))
    exact = fgvar.measure(
        {"mean": fgvar.scheme("FG-W", directions=count), "signs": fgvar.scheme("FG-W", noise=fgvar.Rademacher(),
         directions=count)}, scene.problem, route="exact",
    )["relative_variance"].sel(layer="total")  # fmt: skip
    assert many - 1 == pytest.approx(float(exact.sel(estimator="mean")))
    signs = sum(rows.of_sign_mean(scene, count).second.values()) / total
    assert signs - 1 == pytest.approx(float(exact.sel(estimator="signs")))
    frame = sum(rows.of_orthogonal_mean(scene, count).second.values()) / total
    assert frame == pytest.approx(d / count)
    assert sum(rows.of_orthogonal_mean(scene, d).second.values()) == pytest.approx(total), "K = d is exact"


def test_layer_sampling_gains_what_densities_differ_by() -> None:
    """Best probabilities give (Σ ‖∇_b‖√(d_b + 2))², and no others do better."""
    best = layers.best_probabilities(GRADIENT, BLOCKS)
    each = squares(GRADIENT)
    least = sum((each[name] * (GRADIENT[name].numel() + 2)) ** 0.5 for name in BLOCKS) ** 2
    assert sum(layers.Layers(BLOCKS, best).moments(GRADIENT).second.values()) == pytest.approx(least)
    for p in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert sum(layers.Layers(BLOCKS, (p, 1 - p)).moments(GRADIENT).second.values()) >= least * (1 - 1e-12)


def test_drawn_rows_follow_their_closed_forms() -> None:
    """All rows on one small linear layer: efficiency and slope within 5 errors (false alarms 5e-5 in all)."""
    scene = plain_scene()
    left_out = {f"mean of {rows.AVERAGED}", f"orthogonal {rows.AVERAGED}", f"{rows.POOL} seeds", "FG-A"}
    for name, row in rows.ROWS.items():
        if row.moments is None or name in left_out or not row.replayed:
            continue
        groups = {"total": list(scene.gradient)}
        known = moments.exact(row.moments(scene), scene.gradient, groups)
        draws = 256 if row.queries > 4 else DRAWS
        found = fgvar.measure({name: row.estimator(scene)}, scene.problem, draws=draws, keep_draws=True)
        drawn = moments.drawn(found.isel(estimator=0, drop=True).sel(reference="target", drop=True), groups)
        for what in ("slope", "relative_variance"):
            exact, value, error = known[f"{what}_exact"][0], drawn[what][0], drawn[f"{what}_se"][0]
            assert abs(value - exact) < 5 * error + 0.02 * abs(exact) + 1e-6, (name, what)


@pytest.mark.hf
def test_spans_are_those_of_what_layers_read() -> None:
    """Gradients of a Conv1D lie in the span of its inputs, which keeps them; a random one of its rank does not."""
    pytest.importorskip("transformers", reason="needs the extra fgvar[hf]")
    from studies import language_network as networks

    its = networks.Base(width=16, depth=2, positions=4, pretraining=4, batch=2, lr=1e-3, seed=0)
    net, ids = networks.gpt2(its), torch.arange(4)[None]
    problem = fgvar.Problem(net, "causal_lm", (ids, ids))
    scene = rows.Scene(problem, net)
    projected = scene.spans(4).project(scene.gradient)
    for name, g in scene.gradient.items():
        torch.testing.assert_close(projected[name], g, rtol=0, atol=1e-5)
    assert {name.split(".")[-2] for name in scene.inputs[0]} == {"c_attn", "c_proj", "c_fc"}
    assert not scene.inputs[1], "none of them has inputs for columns"
    random = scene.random_spans(4).project(scene.gradient)
    wide = "transformer.h.0.mlp.c_fc.weight"
    assert squares(random)[wide] < 0.9 * squares(projected)[wide]
    assert study.grouped(scene)["embeddings"] == [
        "transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight", "transformer.ln_f.bias",
    ]  # fmt: skip
    assert list(study.grouped(scene)) == ["embeddings", "block 1", "block 2", "total"]
