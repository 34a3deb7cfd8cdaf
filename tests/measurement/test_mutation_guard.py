"""Somebody's estimator gets a copy of the problem; what it does to it, or returns, becomes a sentence."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fgvar
from fgvar.estimators.protocol import is_builtin
from fgvar.measurement.mutation_guard import MutationGuard, same_values
from fgvar.testing import default_problems, from_function
from fgvar.testing.mutants import MUTANTS
from fgvar.testing.mutants.published_gradients import mezo

Gradients = dict[str, Tensor]
RELU = default_problems()["relu"]


MEZO = mezo(in_place=True)  # back up to rounding, as trainers do


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_measure_names_the_draw_that_moved_a_parameter_and_keeps_the_caller_s(dtype: torch.dtype) -> None:
    problem = RELU.to(dtype)
    before = {k: p.clone() for k, p in problem.params.items()}
    sentence = (
        r"estimator 'MeZO' changed parameter 'layer0.weight' in place by draw \d+, so that later draws would be"
    )
    with pytest.raises(ValueError, match=sentence):
        fgvar.measure({"MeZO": MEZO}, problem, draws=64)
    assert all(torch.equal(p, before[k]) for k, p in problem.params.items())


def changing(what: str) -> Any:
    def estimate(problem: fgvar.Problem, generator: torch.Generator) -> Gradients:  # noqa: ARG001
        if what == "data":
            problem.params["layer0.bias"].data.add_(1e-9)
        if what == "rebound":
            problem.params["layer0.bias"] = problem.params["layer0.bias"] + 1e-9
        if what in ("inputs", "targets"):
            getattr(problem, what).add_(1)
        return RELU.backprop()

    return from_function(estimate)


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("data", "parameter 'layer0.bias'"),
        ("rebound", "parameter 'layer0.bias'"),
        ("inputs", "inputs"),
        ("targets", "targets"),
    ],
)
def test_whatever_is_changed_is_named(what: str, named: str) -> None:
    before = RELU.tensors()
    before = {name: value.clone() for name, value in before.items()}
    with pytest.raises(ValueError, match=f"estimator 'a' changed {named} in place by draw 0"):
        fgvar.measure({"a": changing(what)}, RELU, draws=4)
    assert all(torch.equal(value, before[name]) for name, value in RELU.tensors().items())


def test_a_run_keeps_its_parameters_from_the_estimator() -> None:
    """Trained by an estimator that moves weights in place, and by the same one at copies: the same bits."""

    def at_copies(problem: fgvar.Problem, generator: torch.Generator) -> Gradients:
        return MEZO.function(problem.clone(), generator)

    digits = fgvar.data.load("digits")
    model = fgvar.networks.MLP(64, width=4, depth=1, classes=10, seed=0)
    data = (digits, fgvar.data.load("digits", "test"))
    one, two = (
        fgvar.train(model, from_function(f), data, fgvar.Schedule(epochs=1, batch=512), seed=0).params
        for f in (MEZO.function, at_copies)
    )
    assert all(torch.equal(value, two[k]) for k, value in one.items())


def test_fgvar_s_own_estimators_need_no_copy() -> None:
    own = [fgvar.scheme(one.name) for one in fgvar.schemes()]
    assert all(is_builtin(estimator) for estimator in own)
    assert MutationGuard.of("a", own[0], RELU).problem is RELU
    assert not any(is_builtin(MUTANTS[name].estimator) for name in ("not-restored", "forgetful"))


def test_a_sentence_is_fgvar_s_own_if_all_of_its_words_are() -> None:
    clip, mixed = fgvar.transforms.Clip(1.0), fgvar.sampling.Mixed(fgvar.sampling.Losses(), uniform=0.5)
    assert is_builtin(fgvar.Stochastic(sample=fgvar.sampling.Draw(2, by=mixed), each=(clip,)))
    mine = type("Mine", (fgvar.sampling.Uniform,), {})()
    assert not is_builtin(fgvar.Stochastic(sample=fgvar.sampling.Draw(2, by=mine)))
    assert not is_builtin(fgvar.Stochastic(of=MEZO, then=(clip,)))
    assert not is_builtin(fgvar.Estimator(noise=type("Mine", (fgvar.Gaussian,), {})()))


class Returning(fgvar.Estimator):
    """A composed estimator that returns, or declares, something else."""

    def estimate(self, problem: fgvar.Problem, noise: Any) -> Any:
        return ANSWERS[self.answer](super().estimate(problem, noise).gradient)

    answer = ""


ANSWERS: dict[str, Any] = {
    "dict": lambda g: g,
    "none": lambda g: None,  # noqa: ARG005
    "no gradient": lambda g: fgvar.Estimate(None),  # noqa: ARG005
    "number": lambda g: fgvar.Estimate({**g, "layer0.bias": 3.0}),
    "nothing": lambda g: fgvar.Estimate({**g, "layer0.bias": None}),
    "unknown": lambda g: fgvar.Estimate({**g, "other": g["layer0.bias"]}),
    "lacking": lambda g: fgvar.Estimate({k: v for k, v in g.items() if k != "layer0.bias"}),
    "single": lambda g: fgvar.Estimate({k: v.float() for k, v in g.items()}),
}


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        ("dict", TypeError, r"estimate returned dict, expected fgvar\.Estimate\(gradient\)"),
        ("none", TypeError, r"estimate returned NoneType, expected fgvar\.Estimate"),
        ("no gradient", TypeError, r"the estimate is NoneType, expected a dict like problem\.params"),
        ("number", TypeError, r"the estimate has float for 'layer0\.bias', expected a tensor$"),
        (
            "nothing",
            TypeError,
            r"the estimate has NoneType for 'layer0\.bias', expected a tensor; .* zeros where it is",
        ),
        ("unknown", ValueError, r"the estimate of 'a' has 'other' beside problem\.params"),
        ("lacking", ValueError, r"the estimate of 'a' has nothing for 'layer0\.bias', expected \(5,\).* zeros where"),
        ("single", ValueError, r"the estimate of 'a' has dtype torch\.float32 for '.*', expected torch\.float64"),
    ],
)
def test_what_is_no_estimate_is_a_sentence(answer: str, kind: type[Exception], sentence: str, chunk: Any) -> None:
    estimator = Returning()
    object.__setattr__(estimator, "answer", answer)
    with pytest.raises(kind, match=sentence):
        fgvar.measure({"a": estimator}, RELU, draws=4, chunk=chunk)


class Declaring(fgvar.Estimator):
    declared: Any = None

    def randomness(self, problem: fgvar.Problem) -> Any:  # noqa: ARG002
        return self.declared


def test_what_is_no_randomness_is_a_sentence() -> None:
    for declared, sentence in (
        ({"u": (3,)}, r"estimator 'a': randomness returned dict, expected fgvar\.Randomness"),
        (fgvar.Randomness({"u": (3,)}), r"estimator 'a': leaf 'u' is tuple, expected fgvar\.Leaf\(shape, noise\)"),
    ):
        estimator = Declaring()
        object.__setattr__(estimator, "declared", declared)
        with pytest.raises(TypeError, match=sentence):
            fgvar.measure({"a": estimator}, RELU, draws=4)


# ---- draws that are none -----------------------------------------------------------------------------------------


def along(problem: fgvar.Problem, u: Gradients) -> Gradients:
    slope = torch.func.jvp(problem.loss, (problem.params,), (u,))[1]
    return {k: slope * v for k, v in u.items()}


class Averaging:
    """A mean over its own calls, as momentum is."""

    mean: Gradients | None = None

    def __call__(self, problem: fgvar.Problem, generator: torch.Generator) -> Gradients:
        u = {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in problem.params.items()}
        found = along(problem, u)
        self.mean = {k: 0.9 * self.mean[k] + 0.1 * g for k, g in found.items()} if self.mean else found
        return self.mean


class Undeclared:
    """Draws from torch's own generator what it does not declare."""

    def __init__(self, noisy: bool) -> None:
        self.noisy = noisy

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:  # noqa: ARG002
        return fgvar.Randomness({"u": fgvar.Leaf((1,), fgvar.Gaussian())} if self.noisy else {})

    def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:  # noqa: ARG002
        return fgvar.Estimate(along(problem, {k: torch.randn_like(p) for k, p in problem.params.items()}))

    def target(self, problem: fgvar.Problem) -> Gradients:
        return problem.backprop()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "made",
    [lambda: from_function(Averaging()), lambda: Undeclared(noisy=True), lambda: Undeclared(noisy=False)],
    ids=["memory", "generator", "generator of what declares no noise"],
)
def test_what_remembers_or_draws_by_itself_has_no_interval(made: Any, dtype: torch.dtype) -> None:
    """Whose draws are not independent, or are others the next time."""
    sentence = "estimator 'a' gives another estimate for the noise of draw 0 .* draw nothing inside .* keep no state"
    with pytest.raises(ValueError, match=sentence):
        fgvar.measure({"a": made()}, RELU.to(dtype), draws=40, chunk=1)


def test_the_first_draws_alone_are_made_twice() -> None:
    """And give the numbers of fgvar's own estimator, that makes none twice."""
    own, made = fgvar.scheme("FG-W"), list[int]()

    class Counting(fgvar.Estimator):
        def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
            made.append(1)
            return own.estimate(problem, noise)

    one, two = (fgvar.measure({"a": e}, RELU, draws=40, chunk=1).drop_vars("seconds") for e in (own, Counting()))
    assert len(made) == 40 + 16 + 1, "one of them for the count of its passes"
    for name in ("variance", "slope", "cosine_low"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-10, err_msg=name)


# ---- plain calls -------------------------------------------------------------------------------------------------


class Looking(fgvar.Estimator):
    """Looks at a number, which vmap does not allow."""

    def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
        found = super().estimate(problem, noise)
        return found if float(found.gradient["layer0.bias"].sum()) < 1e9 else fgvar.Estimate({})


def test_a_black_box_is_measured_by_plain_calls_without_a_warning() -> None:
    def forward(problem: fgvar.Problem, generator: torch.Generator) -> Gradients:
        u = {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in problem.params.items()}
        along = torch.func.jvp(problem.loss, (problem.params,), (u,))[1]
        return {k: along * v for k, v in u.items()}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = fgvar.measure({"mine": from_function(forward)}, RELU, draws=32)
    assert bool((ds["variance"].sel(layer="total") > 0).all())


def test_what_vmap_cannot_do_is_measured_by_plain_calls_with_one_warning() -> None:
    with pytest.warns(
        UserWarning, match=r"'looking' does not run under torch\.func\.vmap \(.*\), so that it is computed one by one"
    ) as seen:
        ds = fgvar.measure({"looking": Looking(), "FG-W": fgvar.scheme("FG-W")}, RELU, draws=48)
    assert len(seen) == 1
    for name in ("variance", "cosine", "slope"):
        one, two = (ds[name].sel(estimator=e).values for e in ("looking", "FG-W"))
        np.testing.assert_allclose(one, two, rtol=1e-10, err_msg=name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fgvar.measure({"looking": Looking()}, RELU, draws=4, chunk=1)


def test_an_error_of_the_estimator_s_own_is_its_own() -> None:
    class Failing(fgvar.Estimator):
        def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:  # noqa: ARG002
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match=r"^mine$"):
        fgvar.measure({"a": Failing()}, RELU, draws=4)


# ---- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "kind", "sentence"),
    [
        ({"budget": "1GB"}, TypeError, "budget is '1GB', expected an integer of bytes"),
        ({"budget": -1}, ValueError, "budget is -1, expected a positive number of bytes"),
        ({"draws": True}, TypeError, "draws is True, expected an integer"),
        (
            {"noise_device": "gpu"},
            ValueError,
            "noise_device is 'gpu', expected a device of this machine",
        ),
        ({"noise_device": 3.5}, ValueError, r"noise_device is 3\.5, expected a device of this machine"),
        (
            {"noise_device": "meta"},
            ValueError,
            "noise_device is 'meta', which holds no numbers",
        ),
    ],
)
def test_wrong_arguments_of_measure(words: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, RELU, **{"draws": 4, **words})


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="noise_device is 'cuda', expected a device of this machine"):
        fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, RELU, draws=4, noise_device="cuda")


@pytest.mark.parametrize("name", [1, "", "  ", None])
def test_names_of_estimators_are_texts(name: Any) -> None:
    with pytest.raises(TypeError, match=f"an estimator is named {name!r}, expected a text that is not empty"):
        fgvar.measure({name: fgvar.scheme("FG-W")}, RELU, draws=4)


def test_a_clone_has_tensors_of_its_own() -> None:
    inputs, targets = {"input": torch.ones(2, 2)}, (torch.ones(2, 1), torch.ones(2))
    problem = fgvar.Problem(nn.Linear(2, 1), lambda o, t: ((o - t[0]).square().sum(1), t[1]), (inputs, targets))
    other = problem.clone()
    assert (
        other.tensors().keys()
        == problem.tensors().keys()
        == {"parameter 'weight'", "parameter 'bias'", "inputs['input']", "targets[0]", "targets[1]", "weights"}
    )
    for name, value in other.tensors().items():
        assert value.data_ptr() != problem.tensors()[name].data_ptr(), name


def test_a_number_in_place_of_nan_is_a_change() -> None:
    one, nan = torch.tensor([1.0, 0.0]), torch.tensor([1.0, torch.nan])
    assert same_values(one, one.clone())
    assert same_values(nan, nan.clone())
    assert same_values(torch.tensor([1, 2]), torch.tensor([1, 2]))
    assert not same_values(one, nan)
    assert not same_values(torch.tensor([torch.inf]), torch.tensor([torch.finfo(torch.float32).max]))
    assert not same_values(one, one.double())
    assert not same_values(one, None)
