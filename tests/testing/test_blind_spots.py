"""Wrong estimators, laws and declarations that passed once, each refuted; right ones beside them that failed once."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fgvar
from fgvar.testing import check_estimator, expectation, from_function, mean_test
from fgvar.testing.mutants import MUTANTS

LINEAR = fgvar.testing.default_problems()["linear"]


class Forward:
    """A forward gradient along noise of any law."""

    def __init__(self, law: Any = fgvar.Gaussian()) -> None:  # noqa: B008
        self.law = law

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        return fgvar.Randomness({k: fgvar.Leaf(tuple(p.shape), self.law) for k, p in problem.params.items()})

    def estimate(self, problem: fgvar.Problem, noise) -> fgvar.Estimate:
        along = torch.func.jvp(problem.loss, (problem.params,), (dict(noise),))[1]
        return fgvar.Estimate({k: along * u for k, u in noise.items()})

    def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        return problem.backprop()


class Exact(Forward):
    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:  # noqa: ARG002
        return fgvar.Randomness({})


def faults(estimator, problem=LINEAR, *checks: str, **words) -> dict[str, str]:
    report = check_estimator(estimator, problem, checks=checks or None, **words)
    return {row.check: row.note for row in report.rows if row.outcome in ("failed", "undecided")}


# ---- what is kept from a call before ---------------------------------------------------------------------------


def test_a_gradient_that_is_kept_is_refuted_at_other_parameters() -> None:
    found = faults(MUTANTS["kept"].estimator)
    assert set(found) == {"parameters"}
    assert "'weight' is equal to the bit at 16 other parameters, where its target is another" in found["parameters"]


def test_a_function_that_closes_over_a_model_is_refuted() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    problem = fgvar.Problem(model, "cross_entropy", (torch.randn(4, 3), torch.tensor([0, 1, 1, 0])))

    def captured(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
        own = {k: p.detach() for k, p in model.named_parameters()}  # not problem.params
        u = {k: torch.randn(p.shape, generator=generator) for k, p in own.items()}
        along = torch.func.jvp(problem.loss, (own,), (u,))[1]
        return {k: along * value for k, value in u.items()}

    assert "takes a model's parameters" in faults(from_function(captured), problem, "parameters")["parameters"]


def test_what_need_not_change_with_the_parameters_is_let_off() -> None:
    signs = fgvar.Stochastic(then=(fgvar.transforms.Sign(),))
    rows = check_estimator(signs, LINEAR, checks=["parameters"]).rows
    assert [row.note for row in rows] == ["its estimates are signs or 0, which need not change with the parameters"]
    batch = torch.arange(6.0, dtype=torch.float64).reshape(2, 3), torch.ones(2)
    flat = fgvar.Problem(nn.Linear(3, 1).double(), lambda out, _: out.sum(1), batch)
    rows = check_estimator(fgvar.scheme("BP"), flat, checks=["parameters"]).rows
    assert rows[0].note.startswith("its target does not change with the parameters")


@pytest.mark.parametrize("keeps", [False, True])
def test_parameters_with_a_domain_are_moved_within_it(keeps: bool) -> None:
    """A loss of log p is NaN below 0, where half of the larger moves go."""

    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.tensor([2.0, 3.0], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.p.log()

    batch = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64), torch.ones(2)
    problem = fgvar.Problem(Log(), lambda out, _: (out**2).sum(1), batch)
    estimator = MUTANTS["kept"].estimator if keeps else fgvar.scheme("FG-W")
    assert set(faults(estimator, problem, "parameters")) == ({"parameters"} if keeps else set())


class Buffer(Exact):
    """One buffer for all calls, into which each writes, or adds, as where zero_grad was forgotten."""

    def __init__(self, *, add: bool = False) -> None:
        self.own: dict[torch.dtype, dict[str, Tensor]] = {}
        self.add = add

    def estimate(self, problem: fgvar.Problem, noise) -> fgvar.Estimate:  # noqa: ARG002
        zeros = {k: torch.zeros_like(p) for k, p in problem.params.items()}
        own = self.own.setdefault(problem.dtype, zeros)
        for k, g in problem.backprop().items():
            own[k].mul_(float(self.add)).add_(g.nan_to_num())
        return fgvar.Estimate(own)


def test_a_buffer_hides_nothing_from_comparisons() -> None:
    assert set(faults(Buffer())) == {"non_finite"}
    assert "two calls with the same noise differ" in faults(Buffer(add=True))["deterministic"]


@pytest.mark.filterwarnings("ignore:.*does not run under torch.func.vmap")
@pytest.mark.parametrize("chunk", [1, None])
def test_a_buffer_measures_as_what_returns_tensors_of_its_own(chunk: int | None) -> None:
    class Kept(Forward):
        own: dict[str, Tensor] | None = None

        def estimate(self, problem: fgvar.Problem, noise) -> fgvar.Estimate:
            found = super().estimate(problem, noise).gradient
            self.own = self.own or {k: torch.empty_like(p) for k, p in problem.params.items()}
            for k, g in found.items():
                self.own[k].copy_(g)
            return fgvar.Estimate(self.own)

    both = fgvar.measure({"kept": Kept(), "fresh": Forward()}, LINEAR, draws=64, chunk=chunk)
    one, other = both["relative_variance"].sel(layer="perturbed").values
    assert one == pytest.approx(other, rel=1e-12)
    assert one > 1


def test_parameters_that_require_a_gradient_afterwards_are_not_pure() -> None:
    class Recording(Exact):
        def estimate(self, problem: fgvar.Problem, noise) -> fgvar.Estimate:  # noqa: ARG002
            for p in problem.params.values():
                p.requires_grad_(True)
            found = torch.autograd.grad(problem.loss(), tuple(problem.params.values()))
            return fgvar.Estimate(dict(zip(problem.params, found, strict=True)))

    assert "require a gradient; work on copies" in faults(Recording(), LINEAR, "pure")["pure"]


# ---- exact means of what is quadratic nowhere else --------------------------------------------------------------


@dataclass(frozen=True)
class TwoExamples(Forward):
    """Two examples, put back; where they differ the direction has length √d, and its derivative has not: wrong."""

    law: Any = fgvar.Gaussian()
    right: bool = False

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        n = problem.batch_size
        which = fgvar.Leaf((2,), fgvar.noise.Choice(torch.full((n,), 1 / n, dtype=torch.float64)))
        return fgvar.Randomness({"at": which, **super().randomness(problem).leaves})

    def estimate(self, problem: fgvar.Problem, noise) -> fgvar.Estimate:
        at, u = noise["at"], {k: v for k, v in noise.items() if k != "at"}
        slopes = problem.per_example(lambda one: torch.func.jvp(one.loss, (problem.params,), (u,))[1])
        length = sum(v.square().sum() for v in u.values()).sqrt()
        d = sum(v.numel() for v in u.values())
        factor = 1.0 if self.right else torch.where(at[0] != at[1], d**0.5 / length.clamp_min(1e-300), 1.0)
        return fgvar.Estimate({k: slopes[at].mean() * factor * v for k, v in u.items()})


def test_nodes_stand_for_noise_where_it_is_quadratic_at_every_value_of_the_rest() -> None:
    """At five evenly spaced pairs of five examples the two are one: of a slope of 0.91 they said 1, "exact"."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 1, generator=generator, dtype=torch.float64)
    problem = fgvar.Problem(nn.Linear(1, 1).double(), "mse", (x, y))
    with pytest.raises(ValueError, match="not quadratic in its noise"):
        expectation(TwoExamples(), problem)
    wrong = check_estimator(TwoExamples(), problem, checks=["scale"], draws=65536)
    assert wrong.failures
    assert "exact" not in wrong.rows[0].note
    right = check_estimator(TwoExamples(right=True), problem, checks=["scale"]).rows[0]
    assert (right.outcome, right.exact) == ("passed", True)


def test_what_rounds_to_single_precision_within_is_told_so() -> None:
    class Single(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x.float(), self.weight.float(), self.bias.float()).double()

    torch.manual_seed(0)
    problem = fgvar.Problem(Single(2, 3).double(), "cross_entropy", (LINEAR.inputs, LINEAR.targets))
    with pytest.raises(ValueError, match=r"not quadratic.*computes in float32 within.*model.float\(\)"):
        expectation(fgvar.scheme("FG-W"), problem)


# ---- numbers that are none -------------------------------------------------------------------------------------


def test_the_mean_of_what_is_not_finite_is_wrong() -> None:
    for value in (math.nan, math.inf):
        samples = torch.zeros(100, 2)
        samples[7, 1] = value
        found = mean_test(samples, 0.0, level=1e-6)
        assert not found.passed
        assert found.z[0] == 0
        assert not mean_test(torch.zeros(100, 1), value, level=1e-6).passed


class Coarse:
    """Normal numbers by Box and Muller's method from 12 random bits: one in 4096 is the logarithm of 0."""

    isotropic = True

    def sample(self, stream, shape, dtype, device) -> Tensor:
        u, v = torch.special.ndtr(stream.normal((2, *shape), torch.float64, device))
        return ((-2 * ((u * 4096).floor() / 4096).log()).sqrt() * (2 * math.pi * v).cos()).to(dtype)


def test_noise_that_is_seldom_infinite_is_refuted() -> None:
    assert "'weight' holds NaN or infinity, in " in faults(Forward(Coarse()), LINEAR, "noise")["noise"]


@pytest.mark.parametrize(
    ("value", "message"),
    [(math.nan, "holds NaN, infinity"), (math.inf, "holds NaN, infinity"), (-1.0, "numbers below 0")],
)
def test_a_declared_variance_is_a_number(value: float, message: str) -> None:
    class Declares(Forward):
        def variance(self, problem: fgvar.Problem) -> dict[str, Tensor]:
            return {k: torch.full_like(p, value) for k, p in problem.params.items()}

    assert message in faults(Declares(), LINEAR, "variance")["variance"]


# ---- laws ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """Says that it draws signs."""

    share: float = 0.5

    isotropic, kurtosis, elementwise = True, 1.0, True

    def support(self, shape) -> tuple[Tensor, Tensor]:
        signs = [torch.tensor([-1.0, 1.0], dtype=torch.float64)] * math.prod(shape)
        values = torch.cartesian_prod(*signs).reshape(-1, *shape)
        return values, torch.full((len(values),), 1 / len(values), dtype=torch.float64)

    def sample(self, stream, shape, dtype, device) -> Tensor:
        return stream.normal(tuple(shape), dtype, device)


def test_isotropic_noise_is_held_to_its_support() -> None:
    assert "which its law's support lacks" in faults(Forward(Listed()), LINEAR, "noise")["noise"]
    assert not faults(Forward(fgvar.Rademacher()), LINEAR, "noise")


@dataclass(frozen=True)
class Written(Listed):
    """Draws signs, and lists them in a form of its own."""

    form: str = "float32"

    def support(self, shape) -> Any:
        values, p = super().support(shape)
        return {"float32": (values, p.float()), "lists": (values.tolist(), p.tolist()), "alone": values}[self.form]

    def sample(self, stream, shape, dtype, device) -> Tensor:
        return stream.signs(tuple(shape), dtype, device)


@pytest.mark.parametrize("form", ["float32", "lists"])
def test_a_support_in_numbers_of_any_form_is_read(form: str) -> None:
    assert not faults(Forward(Written(form=form)), LINEAR, "noise", "unbiased", "scale")


def test_a_support_without_probabilities_is_told() -> None:
    message = "expected a pair (values, probabilities)"
    assert message in faults(Forward(Written(form="alone")), LINEAR, "unbiased")["unbiased"]


def test_nodes_are_of_laws_that_declare_them() -> None:
    class Twice:
        def sample(self, stream, shape, dtype, device) -> Tensor:
            return 2 * stream.normal(tuple(shape), dtype, device)

    with pytest.raises(ValueError, match=r"declares neither E uuᵀ = I .* nor its values .*method='nodes'"):
        expectation(Forward(Twice()), LINEAR)
    assert expectation(Forward(Twice()), LINEAR, method="nodes")


# ---- comparisons that would let anything pass -------------------------------------------------------------------


@dataclass(frozen=True)
class OneSided(Forward):
    """Declares pairs, and takes the difference along u alone."""

    step: float = 1e-6
    antithetic: bool = True
    law: Any = fgvar.Gaussian()

    def estimate(self, problem: fgvar.Problem, noise) -> fgvar.Estimate:
        ahead = problem.loss({k: p + self.step * noise[k] for k, p in problem.params.items()})
        return fgvar.Estimate({k: (ahead - problem.loss()) / self.step * u for k, u in noise.items()})


def test_a_step_below_what_the_precision_resolves_decides_nothing() -> None:
    checks = ["antithetic", "linear_in_loss", "batch_order", "chunking"]
    rows = check_estimator(OneSided(), LINEAR.to(torch.float32), checks=checks).rows
    assert {row.outcome for row in rows} == {"not applicable"}
    assert all("float32 cannot resolve its step" in row.note for row in rows)
    assert "is not the mean of those" in faults(OneSided(), LINEAR, "antithetic")["antithetic"]


# ---- right ones ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BP", "FG-W", "MeZO"])
def test_at_an_optimum_no_check_fails(name: str) -> None:
    """Examples' gradients cancel to 1e-15 there, in units of which rounding is 10⁷ times the target."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(8, n, generator=generator, dtype=torch.float64) for n in (3, 2))
    best = torch.linalg.lstsq(torch.cat([x, torch.ones(8, 1)], 1), y).solution
    net = nn.Linear(3, 2).double()
    with torch.no_grad():
        net.weight.copy_(best[:3].T)
        net.bias.copy_(best[3])
    report = check_estimator(fgvar.scheme(name), fgvar.Problem(net, "mse", (x, y)))
    assert report.passed
    assert any("its target is 0 within rounding here" in row.note for row in report.rows)


@pytest.mark.parametrize("name", ["BP", "FG-W"])
def test_a_gradient_that_is_exactly_zero_fails_no_check(name: str) -> None:
    net, x = nn.Linear(3, 2).double(), torch.eye(3, dtype=torch.float64)
    report = check_estimator(fgvar.scheme(name), fgvar.Problem(net, "mse", (x, net(x).detach())))
    assert not [row for row in report.rows if row.outcome == "failed"]
    assert all("larger sample" not in row.note for row in report.rows)


# ---- sentences in place of tracebacks --------------------------------------------------------------------------


@dataclass(frozen=True)
class Particular(Forward):
    directions: int = 4
    weights: Any = None
    law: Any = fgvar.Gaussian()

    def __post_init__(self) -> None:
        if self.directions < 2:
            raise ValueError("takes two or more")

    def step(self) -> float:
        return 0.1


def test_what_checks_its_arguments_and_has_methods_of_any_name_is_tried() -> None:
    rows = check_estimator(Particular(), LINEAR, checks=["directions", "precision"]).rows
    assert [row.outcome for row in rows] == ["not applicable", "passed"]
    held = check_estimator(Particular(weights=torch.ones(2)), LINEAR, checks=["repr"]).rows[0]
    assert "holds a problem or tensors" in held.note


class Sparse(Exact):
    def estimate(self, problem: fgvar.Problem, noise) -> fgvar.Estimate:  # noqa: ARG002
        return fgvar.Estimate({k: g.to_sparse() for k, g in problem.backprop().items()})


class Stating(Exact):
    def estimate(self, problem: fgvar.Problem, noise) -> fgvar.Estimate:  # noqa: ARG002
        return fgvar.Estimate(problem.backprop(), float(problem.loss()))


class Declaring(Exact):
    def estimate(self, problem: fgvar.Problem, noise) -> fgvar.Estimate:  # noqa: ARG002
        return fgvar.Estimate(problem.backprop())

    def variance(self, problem: fgvar.Problem) -> dict[str, float]:
        return dict.fromkeys(problem.params, 1.0)


@pytest.mark.parametrize(
    ("estimator", "check", "message"),
    [
        (Sparse(), "structure", r"is torch.sparse_coo, expected a dense tensor; give .to_dense()"),
        (Stating(), "structure", "a float, expected a tensor, or None"),
        (Declaring(), "variance", "the declared variance of 'weight' is float, expected a tensor"),
    ],
)
def test_what_is_no_tensor_is_told(estimator, check: str, message: str) -> None:
    assert message in faults(estimator, LINEAR, check)[check]
