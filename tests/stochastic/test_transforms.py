"""Transforms: exact means and variances, of the whole and of each term, in every precision and of zero gradients."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from shaping import bowl, exact, flat, line, rows, shaped
from torch import Tensor, nn
from torch.func import vmap

import fgvar
from fgvar import sampling
from fgvar import transforms as t
from fgvar.measurement.draws import estimates
from fgvar.stochastic.transforms import Moments
from fgvar.testing import CHECKS

V = [3.0, -4.0, 0.5, 0.0, 2.0]
NOISELESS = {"clip": t.Clip(2.0), "top": t.TopK(2), "sign": t.Sign(), "scaled": t.Sign(scaled=True)}
NOISY = {"noise": t.AddNoise(0.5), "random": t.RandomK(3), "rounding": t.Quantise(4)}
ALL = {**NOISELESS, **NOISY}
every = pytest.mark.parametrize("transform", ALL.values(), ids=ALL.keys())


def close(found: Tensor, expected: Tensor | list[float], atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


# ---- one by one, against loops ---------------------------------------------------------------------------------


def test_clip_shortens_all_tensors_together() -> None:
    norm = math.sqrt(sum(x * x for x in V))
    close(shaped(t.Clip(2.0), V), [2 / norm * x for x in V])
    assert float(shaped(t.Clip(2.0), V).norm()) == pytest.approx(t.Clip(2.0).bound, rel=1e-15)
    close(shaped(t.Clip(6.0), V), V)
    close(shaped(t.Clip(math.inf), V), V)
    assert t.Clip(2.0).bias_reason
    assert not t.Clip(math.inf).bias_reason


def test_lengths_are_told_that_the_gradient_s_own_floats_do_not_hold() -> None:
    """Of many numbers in float16, of small and of large ones in float32; scalars keep their dtype, too."""
    many = {"w": torch.full((90_000,), 300.0).half(), "a": torch.tensor(300.0).half()}
    for g in (many, {"w": torch.full((4,), 1e-30)}, {"w": torch.full((4,), 1e25)}):
        wide, exact = {name: value.double() for name, value in g.items()}, t.Sign(scaled=True)
        length = float(flat(wide).norm())
        levels = {name: torch.full_like(value, 3**0.5) for name, value in g.items()}  # of uniform noise: never up
        for transform in (t.Clip(length / 2), t.Quantise(2**20), exact):
            found = transform(g, bowl(), levels)
            assert {name: value.dtype for name, value in found.items()} == {name: v.dtype for name, v in g.items()}
            right = flat(transform(wide, bowl(), levels))
            assert float((flat(found).double() - right).norm()) < 2e-3 * length, transform


def test_clipping_the_whole_is_torch_s_own() -> None:
    """Which divides by the norm and 1e-6; its bias, measured: a shorter gradient of the same direction."""
    problem = bowl()
    clipped = {name: g.clone().requires_grad_() for name, g in problem.backprop().items()}
    for g in clipped.values():
        g.grad = g.detach().clone()
    norm = float(nn.utils.clip_grad_norm_(list(clipped.values()), 0.5))
    assert norm > 1
    row = fgvar.Stochastic(then=(t.Clip(0.5),))
    close(flat(row.estimate(problem, {}).gradient), flat({name: g.grad for name, g in clipped.items()}), 1e-6)
    ds = fgvar.measure({"clip": row}, problem, draws=2).sel(layer="total", reference="target", estimator="clip")
    assert float(ds["cosine"]) == pytest.approx(1, abs=1e-12)
    assert float(ds["sq_bias"]) == pytest.approx((norm - 0.5) ** 2, rel=1e-12)


def test_the_largest_k_are_kept() -> None:
    close(shaped(t.TopK(2), V), [3, -4, 0, 0, 0])
    close(shaped(t.TopK(0.6), V), [3, -4, 0, 0, 2])
    close(shaped(t.TopK(1.0), V), V)
    close(shaped(t.TopK(0.01), V), [0, -4, 0, 0, 0])  # of few numbers at least one


def test_signs() -> None:
    close(shaped(t.Sign(), V), [1, -1, 1, 0, 1])
    close(shaped(t.Sign(scaled=True), V), [1.9, -1.9, 1.9, 0, 1.9])


def test_random_k_is_unbiased_with_the_variance_of_its_share() -> None:
    """(d/k − 1)‖g‖², by all choices: a loop, and the whole estimator."""
    problem = line()
    g, d = flat(problem.backprop()), 4
    for k in range(1, d + 1):
        found = exact(fgvar.Stochastic(then=(t.RandomK(k),)), problem)
        close(found.mean[""], g)
        close(found.variance[""].sum(), (d / k - 1) * g @ g)
    choices = [[i, j] for i in range(5) for j in range(5) if i != j]
    draws = torch.stack([shaped(t.RandomK(2), V, **{"": torch.tensor(c)}) for c in choices])
    close(draws.mean(0), V)
    close(draws.var(0, unbiased=False).sum(), 1.5 * sum(x * x for x in V))


def rounded(vector: list[float], levels: int, up: list[bool]) -> list[float]:
    norm = math.sqrt(sum(x * x for x in vector))
    return [
        norm / levels * math.copysign(math.floor(levels * abs(x) / norm) + b, x)
        for x, b in zip(vector, up, strict=True)
    ]


@pytest.mark.parametrize("levels", [1, 4, 7])
def test_rounding_is_unbiased_with_the_variance_of_its_fractions(levels: int) -> None:
    """A number goes up just where its uniform noise is below its fraction f, so with probability f: exact moments."""
    norm = math.sqrt(sum(x * x for x in V))
    f = [levels * abs(x) / norm % 1 for x in V]
    edges = torch.tensor([3**0.5 * (2 * x - 1) for x in f], dtype=torch.float64)  # the noise runs from −√3 to √3

    def noise(u: Tensor) -> dict[str, Tensor]:
        return {"one": u[:2].reshape(1, 2), "two": u[2:]}

    moves = [x > 0 for x in f]  # a number on a level stays there
    high, low = (shaped(t.Quantise(levels), V, **noise(edges + e)) for e in (-1e-9, 1e-9))
    close(high, rounded(V, levels, moves))
    close(low, rounded(V, levels, [False] * 5))
    p = torch.tensor(f, dtype=torch.float64)
    close(p * high + (1 - p) * low, V)
    variance = p * (1 - p) * (high - low) ** 2
    found = moments(t.Quantise(levels), torch.tensor(V).double(), torch.zeros(5).double())
    close(found.variance["w"], variance)
    close(variance.sum(), sum(norm**2 / levels**2 * x * (1 - x) for x in f))


def test_noise_adds_its_variance_to_every_number() -> None:
    problem = line()
    found = exact(fgvar.Stochastic(then=(t.AddNoise(0.3),)), problem, "support × hermite")
    close(found.mean[""], flat(problem.backprop()))
    close(found.variance[""], [0.09] * 4)


def test_private_gradients_are_clipped_sampled_and_noised() -> None:
    """DP-SGD by loops over all batches: ḡ of the clipped, Σ(1 − q)/q ‖c_n‖²/N² + d s²."""
    problem, clip, rate, std = line(), 0.8, 0.3, 0.2
    c = torch.stack([g * min(1, clip / float(g.norm())) for g in rows(problem)])
    assert (rows(problem).norm(dim=1) > clip).sum() == 3, "some are clipped, not all"
    estimator = fgvar.Stochastic(sample=sampling.Poisson(rate), each=(t.Clip(clip),), then=(t.AddNoise(std),))
    found = exact(estimator, problem, "support × hermite")
    close(found.mean[""], c.mean(0))
    close(found.variance[""], (1 - rate) / rate * c.square().sum(0) / 16 + std**2)


@pytest.mark.parametrize(
    "sample",
    [sampling.Draw(2), sampling.Draw(2, replace=False), sampling.Draw(2, top=1), sampling.Poisson(0.3, "sampled")],
    ids=repr,
)
def test_a_sampler_s_closed_form_holds_of_clipped_gradients(sample) -> None:
    problem = line()
    c = torch.stack([g * min(1, 0.8 / float(g.norm())) for g in rows(problem)])
    found = exact(fgvar.Stochastic(sample=sample, each=(t.Clip(0.8),)), problem)
    close(found.mean[""], sample.mean(c, problem))
    close(found.variance[""], sample.spread(c, problem))


def test_noise_of_each_term_is_the_term_s_own() -> None:
    """Rounded one by one: the mean over N examples has the sum of their variances over N²."""
    problem = line(batch=3)
    found = exact(fgvar.Stochastic(each=(t.RandomK(2),)), problem)
    close(found.mean[""], rows(problem).mean(0))
    close(found.variance[""], rows(problem).square().sum(0) / 9)  # d/k − 1 = 1


# ---- moments ---------------------------------------------------------------------------------------------------


def moments(transform: t.Clip, mean: Tensor, variance: Tensor, problem: fgvar.Problem | None = None) -> Moments:
    return transform.moments({"w": mean}, {"w": variance}, problem or line())


@pytest.mark.parametrize("transform", NOISELESS.values(), ids=NOISELESS.keys())
def test_moments_without_noise_are_what_becomes_of_the_gradient(transform) -> None:
    v = torch.tensor(V).double()
    found = moments(transform, v, torch.zeros(5).double())
    close(found.mean["w"], shaped(transform, V))
    close(found.variance["w"], [0.0] * 5)


@pytest.mark.parametrize("transform", [*NOISELESS.values(), t.Quantise(4), t.Carriers(1), t.Retained(line(), 1, 0.1)])
def test_moments_of_a_random_gradient_are_refused_where_they_do_not_follow(transform) -> None:
    problem = line()
    g = problem.backprop()
    with pytest.raises(ValueError, match="of a random gradient does not follow from the mean and variance"):
        transform.moments(g, g, problem)


@pytest.mark.parametrize("transform", [t.AddNoise(0.3), t.RandomK(3), t.Mask(t.Magnitude(0.5))], ids=repr)
def test_moments_of_a_random_gradient(transform) -> None:
    """Of a sampled one: mean and variance before and after, all by enumeration."""
    problem, sample = line(), sampling.Draw(2)
    method = "support × hermite" if transform == t.AddNoise(0.3) else "support"
    after = exact(fgvar.Stochastic(sample=sample, then=(transform,)), problem, method)
    before = {"mean": problem.backprop(), "variance": {}}
    spread = sample.spread(rows(problem), problem)
    for name, piece in zip(before["mean"], spread.split([3, 1]), strict=True):
        before["variance"][name] = piece.reshape(before["mean"][name].shape)
    found = transform.moments(**before, problem=problem)
    close(flat(found.mean), after.mean[""])
    close(flat(found.variance), after.variance[""])


SENTENCES = {
    "private": fgvar.Stochastic(sample=sampling.Poisson(0.3), each=(t.Clip(0.8),), then=(t.AddNoise(0.2),)),
    "random": fgvar.Stochastic(sample=sampling.Draw(2), then=(t.RandomK(2),)),
    "random each": fgvar.Stochastic(sample=sampling.Draw(2), each=(t.RandomK(2),)),
    "masked": fgvar.Stochastic(of=fgvar.scheme("FG-W"), sample=sampling.Draw(1), then=(t.Mask(t.Magnitude(0.5)),)),
    "carried": fgvar.Stochastic(sample=sampling.Draw(2), each=(t.Carriers(1), t.Clip(0.5), t.Carriers(1).back)),
    "workers": fgvar.Stochastic(then=(t.RandomK(2), t.AddNoise(0.1)), workers=2),
}


@pytest.mark.parametrize("estimator", SENTENCES.values(), ids=SENTENCES.keys())
def test_theory_knows_what_transforms_make(estimator) -> None:
    """Mean and variance of every number in closed form, against one worker's by enumeration."""
    problem, one = line(inputs=2, batch=3), replace(estimator, workers=1)
    gaussian = any(not leaf.is_finite for leaf in one.randomness(problem).leaves.values())
    found = exact(one, problem, "support × hermite" if gaussian else "support")
    close(flat(fgvar.theory.mean(estimator, problem)), found.mean[""])
    close(flat(fgvar.theory.variance(estimator, problem)), found.variance[""] / estimator.workers, 1e-11)


# ---- every one -------------------------------------------------------------------------------------------------


def drawn(transform, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, count: int = 3) -> dict[str, Tensor]:
    found = fgvar.Randomness(transform.leaves(line(), shapes))
    return found.sample(0, range(count), dtype=dtype) if found.size else {}


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_precision_and_zero_gradients(transform, dtype) -> None:
    """The same as in double precision to the dtype's own, and 0 of 0 without NaN, but for noise that is added."""
    v = torch.tensor(V, dtype=dtype)
    noise = {k: u[0] for k, u in drawn(transform, {"w": (5,)}, dtype).items()}
    found = transform({"w": v}, line(), noise)["w"]
    assert found.dtype == dtype
    double = {k: u.double() if u.is_floating_point() else u for k, u in noise.items()}
    expected = transform({"w": v.double()}, line(), double)["w"]
    torch.testing.assert_close(found.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=0)
    nothing = transform({"w": torch.zeros(5, dtype=dtype)}, line(), noise)["w"]
    close(nothing.double(), transform.std * noise["w"].double() if transform == t.AddNoise(0.5) else [0.0] * 5, 1e-3)


@every
def test_every_transform_runs_under_vmap(transform) -> None:
    """Of a stack of gradients and of their noise, without a warning: as one by one."""
    stack = torch.stack([torch.tensor(V), torch.zeros(5), torch.arange(5.0)]).double()
    noise, problem = drawn(transform, {"w": (5,)}, torch.float64), line()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = vmap(lambda g, u: transform({"w": g}, problem, u)["w"])(stack, noise)
    for i, g in enumerate(stack):
        one = transform({"w": g}, problem, {k: u[i] for k, u in noise.items()})["w"]
        torch.testing.assert_close(found[i], one, rtol=0, atol=1e-15)


@every
def test_every_transform_is_measured_of_each_and_of_the_whole(transform) -> None:
    problem = bowl()
    estimators = {
        "then": fgvar.Stochastic(then=(transform,)),
        "each": fgvar.Stochastic(sample=sampling.Draw(3), each=(transform,), workers=2),
    }
    ds = fgvar.measure(estimators, problem, draws=32)
    assert np.isfinite(ds["variance"].sel(layer="total")).all()
    for name, estimator in estimators.items():  # one draw by plain calls is the same as by vmap
        noise = estimator.randomness(problem).sample(0, [0, 1], dtype=problem.dtype) or {"": torch.zeros(2)}
        several = flat({k: g[1] for k, g in estimates(estimator, problem, noise).items()})
        close(several, flat(estimator.estimate(problem, {k: u[1] for k, u in noise.items()}).gradient), 1e-14)
        assert bool(estimator.bias_reason) == bool(transform.bias_reason), name


@every
def test_every_transform_says_what_it_is(transform) -> None:
    assert type(transform).linear == (transform in (t.AddNoise(0.5), t.RandomK(3)))
    assert eval(repr(transform), {name: getattr(t, name) for name in t.__all__}) == transform


def test_a_transform_of_one_s_own_needs_three_methods() -> None:
    """And is told the shapes that it acts on, by the chain."""

    class Half:
        linear, bias_reason = True, "halves"

        def leaves(self, problem, shapes):  # noqa: ARG002
            seen.append(dict(shapes))
            return {}

        def __call__(self, gradient, problem, noise):  # noqa: ARG002
            return {name: g / 2 for name, g in gradient.items()}

    seen: list[dict] = []
    problem = line()
    estimator = fgvar.Stochastic(each=(t.Carriers(1), Half()), then=(Half(), t.Carriers(1).back))
    assert not estimator.randomness(problem).size
    assert seen == [{"weight.left": (1, 1), "weight.right": (1, 3), "bias": (1,)}] * 2
    close(flat(estimator.estimate(problem, {}).gradient), flat(problem.backprop()) / 4)


# ---- the law of rounding ---------------------------------------------------------------------------------------


def test_uniform_noise_has_its_moments() -> None:
    """E u⁴ = 9/5: ∫ u⁴/(2√3) from −√3 to √3; mean, variance and correlations by the noise check, 1e-7 in all."""
    assert fgvar.noise.Uniform.kurtosis == pytest.approx(2 * 3**2.5 / 5 / (2 * 3**0.5))
    estimator = fgvar.scheme("FG-W", noise=fgvar.noise.Uniform())
    CHECKS["noise"](estimator, {"line": line()}, level=4e-7)
    u = fgvar.Randomness({"w": fgvar.Leaf((1000,), fgvar.noise.Uniform())}).sample(0, range(8), dtype=torch.float64)[
        "w"
    ]
    assert 1.73 < float(u.max()) <= 3**0.5
    assert -(3**0.5) <= float(u.min()) < -1.73


def test_forward_gradients_along_uniform_noise() -> None:
    """(d + κ − 2)‖g‖², in closed form."""
    problem = line()
    g = flat(problem.backprop())
    trace = fgvar.theory.trace(fgvar.scheme("FG-W", noise=fgvar.noise.Uniform()), problem)
    assert float(sum(trace.values())) == pytest.approx(3.8 * float(g @ g), rel=1e-12)


# ---- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: t.Clip(0.0), r"norm is 0\.0, expected a positive number"),
        (lambda: t.AddNoise(-1.0), r"std is -1\.0, expected a number from 0 on"),
        (lambda: t.RandomK(0), "k is 0, expected an integer of at least 1, or a float: a share"),
        (lambda: t.TopK(1.5), r"k is 1\.5, expected an integer of at least 1, or a float: a share"),
        (lambda: shaped(t.TopK(6), V), "k is 6 of the 5 numbers of a gradient, expected at most all of them"),
        (lambda: t.RandomK(9).leaves(line(), {"w": (5,)}), "k is 9 of the 5 numbers"),
        (lambda: t.Quantise(0), "levels is 0, expected an integer of at least 1"),
    ],
)
def test_refused_values(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [lambda: t.Clip("1"), lambda: t.AddNoise(None), lambda: t.RandomK(True)])
def test_refused_types(make) -> None:
    with pytest.raises(TypeError, match="expected"):
        make()


def test_a_chain_that_ends_with_other_tensors_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"each and then end with weight\.left, weight\.right, bias, expected gradients"
    ):
        fgvar.Stochastic(then=(t.Carriers(1),)).randomness(line())
