"""The contract checks: what passes, what fails with which sentence, and the pytest face."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from cases import mixer

import fgvar
from fgvar.testing import CHECKS, check_estimator, default_problems, from_function, parametrize_with_checks
from fgvar.testing.mutants import MUTANTS

pytest_plugins = ("pytester",)

NOT_APPLICABLE = {"antithetic", "bias_order", "stream", "weights", "sensitivity"}  # to a plain scheme


def outcomes(report: Any) -> dict[str, set[str]]:
    return {name: {row.outcome for row in report.rows if row.check == name} for name in CHECKS}


@pytest.mark.parametrize("name", ["FG-W", "FG-A", "LG-FG-W", "LG-FG-A"])
def test_the_field_s_schemes_pass(name: str) -> None:
    report = check_estimator(fgvar.scheme(name))
    assert report.passed, report
    for check, found in outcomes(report).items():
        assert ("passed" in found) == (check not in NOT_APPLICABLE), (check, found)


@pytest.mark.parametrize(
    "words",
    [
        {"noise": fgvar.Rademacher(), "shared": True, "directions": 3, "antithetic": True},
        {"shared": False},
        {"oracle": fgvar.oracles.CentralDifference(), "noise": fgvar.Rademacher()},
        {"oracle": fgvar.oracles.ForwardDifference(1e-4), "antithetic": True},
    ],
    ids=lambda words: "-".join(type(word).__name__ for word in words.values()),
)
@pytest.mark.parametrize("name", ["FG-W", "FG-A"])
def test_other_words_pass_and_their_claims_are_tested(name: str, words: dict[str, Any]) -> None:
    estimator = fgvar.scheme(name, **words)
    report = check_estimator(estimator, {"linear": default_problems()["linear"]})
    assert report.passed, report
    found = outcomes(report)
    assert ("passed" in found["antithetic"]) == estimator.antithetic
    assert ("passed" in found["bias_order"]) == ("oracle" in words)


def test_exact_gradients_pass_and_need_no_noise() -> None:
    report = check_estimator(fgvar.scheme("LG-BP"))
    assert report.passed, report
    assert outcomes(report)["noise"] == {"not applicable"}


def test_published_credit_is_refuted() -> None:
    report = check_estimator(fgvar.scheme("LG-FG-W", credit="published"))
    assert not report.passed
    assert report.failures == ("unbiased", "scale")
    assert "channel.weight" in str(report)
    assert "it does not fit this problem: the network has no local heads" in str(report)


def test_the_report_is_a_table() -> None:
    report = check_estimator(fgvar.scheme("FG-W"), checks=["structure", "unbiased", "bias_order"])
    lines = str(report).splitlines()
    assert lines[0] == repr(fgvar.scheme("FG-W"))
    assert lines[1].split() == ["linear", "conv", "relu", "mixer"]
    assert lines[3] == "unbiased    yes     yes   yes   yes    exact: 280 nodes, to 1e-09"
    assert lines[4].split()[:5] == ["bias_order", "–", "–", "–", "–"]
    assert lines[5] == "8 passed, 0 failed, 0 undecided, 4 not applicable"
    assert [row.check for row in report.rows] == [
        name for name in ("structure", "unbiased", "bias_order") for _ in "1234"
    ]


# ---- bad estimators: a failed check with a sentence, never a traceback -------------------------------------------


def spsa(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, torch.Tensor]:
    v = {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in problem.params.items()}
    along = torch.func.jvp(problem.loss, (problem.params,), (v,))[1]
    return {k: along * u for k, u in v.items()}


def changed(**tensors: Any):
    """SPSA whose result is changed on the way out."""
    return lambda problem, generator: spsa(problem, generator) | tensors


def in_place(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, torch.Tensor]:
    problem.params["bias"].add_(1e-3)
    return spsa(problem, generator)


def rebound(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, torch.Tensor]:
    problem.params["bias"] = problem.params["bias"] + 1e-3
    return spsa(problem, generator)


def tracked(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {k: g * problem.params[k].clone().requires_grad_() for k, g in spsa(problem, generator).items()}


def in_double(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        k: g + torch.zeros((), dtype=torch.float64)[None].expand(g.shape) for k, g in spsa(problem, generator).items()
    }


def global_numbers(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, torch.Tensor]:  # noqa: ARG001
    return spsa(problem, torch.default_generator)


BAD = {
    "nothing": (lambda problem, generator: None, "structure", "estimate is NoneType, expected a dict"),  # noqa: ARG005
    "no key": (lambda problem, generator: {}, "structure", "lacks 'weight', 'bias'; give every"),  # noqa: ARG005
    "a key more": (changed(extra=torch.ones(2)), "structure", "has 'extra' beside problem.params"),
    "a number": (changed(bias=3.0), "structure", "'bias' is float, expected a tensor"),
    "a shape": (changed(bias=torch.zeros(1, 2).double()), "structure", r"shape \(1, 2\), expected \(2,\)"),
    "a dtype": (changed(bias=torch.zeros(2)), "structure", "dtype torch.float32, expected torch.float64"),
    "NaN": (changed(bias=torch.full((2,), torch.nan).double()), "structure", "'bias' holds NaN or infinity"),
    "an error": (lambda problem, generator: problem.nope, "structure", "raised AttributeError: .*nope"),  # noqa: ARG005
    "in place": (in_place, "pure", "changed parameter 'bias'; work on copies"),
    "rebound": (rebound, "pure", "changed parameter 'bias'; work on copies"),
    "a graph": (tracked, "structure", "'weight' requires grad, and keeps its whole graph; detach it"),
    "double alone": (in_double, "structure", "dtype torch.float64, expected torch.float32"),
    "global numbers": (global_numbers, "deterministic", "two calls with the same noise differ"),
}


@pytest.mark.parametrize(("function", "check", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_functions_fail_with_a_sentence(function: Any, check: str, sentence: str) -> None:
    problem = default_problems()["linear"]
    report = check_estimator(from_function(function), problem, checks=["structure", "deterministic", "pure"])
    assert check in report.failures, report
    with pytest.raises(AssertionError, match=f"{check}, problem: .*{sentence}"):
        CHECKS[check](from_function(function), problem)


def test_moved_global_state_is_named() -> None:
    problem = default_problems()["linear"]
    with pytest.raises(AssertionError, match="moved the global random state of torch; use the noise it is given"):
        CHECKS["pure"](from_function(global_numbers), problem)


@dataclass(frozen=True)
class Broken(fgvar.Estimator):
    """A composed estimator with one method that answers something else."""

    method: str = "randomness"
    answer: Any = None

    def __post_init__(self) -> None:
        def answered(*_: Any) -> Any:
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        object.__setattr__(self, self.method, answered)


@pytest.mark.parametrize(
    ("method", "answer", "sentence"),
    [
        ("randomness", {}, "randomness returned dict, expected fgvar.Randomness"),
        ("randomness", fgvar.Randomness({"w": 3}), "leaf 'w' is int, expected fgvar.Leaf"),
        ("randomness", KeyError("w"), "randomness raised KeyError: 'w'"),
        ("estimate", {}, "estimate returned dict, expected fgvar.Estimate"),
        ("estimate", RuntimeError("first\nsecond"), "estimate raised RuntimeError: first$"),
        ("target", None, "the target is NoneType, expected a dict"),
        ("target", ZeroDivisionError(), r"target raised ZeroDivisionError: \(no message\)"),
    ],
)
def test_bad_methods_fail_with_a_sentence(method: str, answer: Any, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        CHECKS["structure"](Broken(method=method, answer=answer), default_problems()["linear"])


class Law:
    """Gaussian noise with another way to fill."""

    def __init__(self, seed: Any = None, draw: Any = None) -> None:
        self.seed, self.draw = seed, draw

    def sample(self, stream: Any, shape: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        seed = stream.seed if self.seed is None else self.seed
        draw = stream.draw if self.draw is None else self.draw(stream.draw)
        return replace(stream, seed=seed, draw=draw).normal(shape, dtype, device)


@dataclass(frozen=True)
class Drawn(fgvar.Estimator):
    """Weight perturbation with noise by another law."""

    law: Any = None

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        leaves = super().randomness(problem).leaves
        return fgvar.Randomness({name: fgvar.Leaf(leaf.shape, self.law) for name, leaf in leaves.items()})


@pytest.mark.parametrize(
    ("law", "sentence"),
    [
        (Law(seed=0), "another seed gives the same noise"),
        (Law(draw=lambda draw: draw // 2), "has not draws that are uncorrelated with each other"),
    ],
    ids=["seed", "draw"],
)
def test_noise_that_repeats_itself_is_caught(law: Law, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        CHECKS["noise"](Drawn(law=law), default_problems()["linear"])


def test_a_wrong_loss_is_caught() -> None:
    @dataclass(frozen=True)
    class Boastful(fgvar.Estimator):
        told: Any = None

        def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
            return replace(super().estimate(problem, noise), loss=self.told)

    for told in ("ha", torch.tensor(12.5), torch.ones(2)):
        with pytest.raises(AssertionError, match=r"loss is .*, expected 0\.598.*, the batch mean, or None"):
            CHECKS["structure"](Boastful(told=told), default_problems()["linear"])
    CHECKS["structure"](Boastful(), default_problems()["linear"])


def test_nan_hidden_in_some_tensors_is_caught() -> None:
    """Heads still show the NaN of the loss; what is perturbed does not."""
    silent = MUTANTS["silent-nan"].estimator
    with pytest.raises(AssertionError, match=r"NaN loss gives a finite estimate of 'layer0\.weight'"):
        CHECKS["non_finite"](silent, default_problems()["relu"])


def test_an_unsound_estimator_is_tried_no_further() -> None:
    report = check_estimator(from_function(BAD["no key"][0]), default_problems()["linear"])
    assert report.failures == ("structure",)
    assert {row.outcome for row in report.rows if row.check != "structure"} == {"not applicable"}


def test_what_fits_no_problem_fails() -> None:
    report = check_estimator(fgvar.scheme("LG-FG-A"), default_problems()["linear"], checks=["unbiased"])
    assert report.failures == ("unbiased",)
    assert "the network has no local heads" in report.rows[0].note


def test_an_estimator_s_mess_stays_its_own() -> None:
    problem = default_problems()["linear"]
    before = {name: p.clone() for name, p in problem.params.items()}
    check_estimator(from_function(in_place), problem, checks=["structure", "pure"])
    assert all(torch.equal(p, before[name]) for name, p in problem.params.items())


# ---- black boxes -----------------------------------------------------------------------------------------------


def test_a_black_box_is_drawn_and_its_undeclared_noise_is_never_passed() -> None:
    report = check_estimator(from_function(spsa), default_problems()["linear"], draws=1024)
    assert report.passed, report
    found = outcomes(report)
    for name in ("chunking", "noise", "batch_order", "directions", "antithetic", "shared_noise", "repr", "variance"):
        assert found[name] == {"not applicable"}, name
    for name in ("deterministic", "pure", "precision", "linear_in_loss", "zero_gradient", "unbiased", "scale"):
        assert found[name] == {"passed"}, name
    assert "nominal" in str(report)


def test_a_black_box_of_the_wrong_scale_is_caught() -> None:
    """Twice the gradient: far beyond the detectable size that the verdict prints."""
    twice = from_function(lambda problem, generator: {k: 2 * g for k, g in spsa(problem, generator).items()})
    report = check_estimator(twice, default_problems()["linear"], checks=["unbiased", "scale"], draws=1024)
    assert "scale" in report.failures, report


def test_black_boxes_are_measured_too() -> None:
    ds = fgvar.measure({"spsa": from_function(spsa)}, default_problems()["linear"], draws=32, chunk=1)
    assert bool(ds["variance"].sel(layer="total") > 0)


def test_a_black_box_can_have_another_target() -> None:
    zero = from_function(
        lambda problem, generator: {k: 0 * g for k, g in spsa(problem, generator).items()},
        target=lambda problem: {k: torch.zeros_like(p) for k, p in problem.params.items()},
    )
    assert check_estimator(zero, default_problems()["linear"], checks=["structure", "unbiased"], draws=1024).passed


# ---- arguments and the pytest face --------------------------------------------------------------------------------


def test_wrong_arguments() -> None:
    fg_w = fgvar.scheme("FG-W")
    with pytest.raises(TypeError, match="'estimator' is the text 'FG-W', expected an estimator"):
        check_estimator("FG-W")
    with pytest.raises(ValueError, match="unknown check 'unbaised'; did you mean 'unbiased'"):
        check_estimator(fg_w, checks=["unbaised"])
    with pytest.raises(ValueError, match="level is 5, expected a false-alarm rate between 0 and 1"):
        check_estimator(fg_w, level=5)
    with pytest.raises(ValueError, match="no problem to check on"):
        check_estimator(fg_w, [])
    with pytest.raises(TypeError, match=r"problem 'problem0' is int, expected fgvar\.Problem"):
        check_estimator(fg_w, [3])
    with pytest.raises(TypeError, match="function is int, expected"):
        from_function(3)
    with pytest.raises(ValueError, match="unknown check 'scales'; did you mean 'scale'"):
        parametrize_with_checks([fg_w], {"scales": "why"})
    with pytest.raises(AttributeError, match="unknown name 'check_estimators'; did you mean 'check_estimator'"):
        fgvar.testing.check_estimators  # noqa: B018


@parametrize_with_checks(
    {
        "FG-A": fgvar.scheme("FG-A", noise=fgvar.Rademacher()),
        "published": fgvar.scheme("LG-FG-W", credit="published"),
    },
    {
        "published-unbiased": "its channel layers lack the credit of other groups",
        "published-scale": "so its slope is off",
    },
    problems={"mixer": mixer(blocks=1)},
)
def test_the_pytest_face(estimator, check) -> None:
    check(estimator)


def test_expected_failures_are_strict(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import fgvar
        from fgvar.testing import parametrize_with_checks

        @parametrize_with_checks([fgvar.scheme("BP")], {"scale": "it is not wrong, though"})
        def test_contract(estimator, check):
            check(estimator)
        """
    )
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-rs")
    found = result.parseoutcomes()
    assert found["failed"] == 1
    assert found["skipped"] == 10
    result.stdout.fnmatch_lines(["*test_contract*ExactGradient-scale*", "*needs no noise*"])


def test_one_number_of_false_alarms_is_split() -> None:
    """The levels of all verdicts of a report add up to the level asked for."""
    report = check_estimator(
        fgvar.scheme("FG-W"), {str(i): default_problems()["linear"] for i in range(2)}, checks=["noise"], level=1e-3
    )
    assert all("false alarms 5e-05" in row.note for row in report.rows), report  # 1e-3 over 10 verdicts, 2 problems


def test_checks_hold_in_float32() -> None:
    problem = mixer()
    single = fgvar.Problem(_as_module(problem), "cross_entropy", (problem.inputs.float(), problem.targets))
    report = check_estimator(fgvar.scheme("LG-FG-A"), single)
    assert report.passed, report


def _as_module(problem: fgvar.Problem) -> torch.nn.Module:
    model = fgvar.networks.LocalMixer((1, 4, 4), 3, blocks=2, patches=2, channels=8, groups=2)
    model.load_state_dict({name: p.float() for name, p in problem.params.items()})
    return model


def test_a_scheme_can_be_replaced_in_place_of_its_claims() -> None:
    """Claims are found where they are declared: on the estimator, its noise or its oracle."""
    estimator = replace(fgvar.scheme("FG-W"), directions=5)
    report = check_estimator(estimator, default_problems()["linear"], checks=["directions"])
    assert "5 directions" in report.rows[0].note
