"""What `measure` refuses: estimators that are none, numbers of draws, and values that are not finite."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from cases import mixer, randn
from refusals import problem, says
from torch import Tensor, nn

import fgvar
from fgvar.errors import NonFiniteError
from fgvar.estimators.randomness import Leaf, Randomness


@pytest.mark.parametrize("name", ["perturbed", "total"])
def test_a_parameter_may_not_have_the_name_of_a_sum(name: str) -> None:
    """Where its layer would stand beside the sum's: in measurements, checks, tests and probes."""
    net = nn.Sequential(nn.Linear(3, 2)).double()
    net.register_parameter(name, nn.Parameter(torch.ones(2, dtype=torch.float64)))
    own, scheme = fgvar.Problem(net, "mse", (randn(4, 3), randn(4, 2))), fgvar.scheme("FG-W")
    sentence = f"parameter '{name}' has the name of a layer that every measurement has, .* rename it .* as {name}_"
    for refused in (
        lambda: fgvar.measure({"FG-W": scheme}, own),
        lambda: fgvar.measure({"FG-W": scheme}, own, route="exact"),
        lambda: fgvar.testing.check_estimator(scheme, own),
        lambda: fgvar.testing.unbiased(scheme, own),
        lambda: fgvar.Probe({"FG-W": scheme}, (own.inputs, own.targets), steps=(0,)).check(own, 0),
    ):
        with pytest.raises(ValueError, match=sentence):
            refused()


@pytest.mark.parametrize("draws", [1, 0, -3])
def test_one_draw_has_no_spread(draws: int) -> None:
    with pytest.raises(ValueError, match=says(f"draws is {draws}", "at least 2")):
        fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem(), draws=draws)


@pytest.mark.parametrize("chunk", [0, -1, 3, 12, 17, 24])
def test_chunks_fill_blocks(chunk: int) -> None:
    with pytest.raises(ValueError, match=says(f"chunk is {chunk}", "1, 2, 4, 8 or a multiple of 16")):
        fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem(), draws=4, chunk=chunk)


@pytest.mark.parametrize("name", ["FG-W", "BP"])
def test_a_seed_that_no_file_could_hold_is_refused_as_a_negative_one_is(name: str) -> None:
    for seed, what in ((-1, "non-negative"), (2**64, "less than 2**64")):
        with pytest.raises(ValueError, match=says(f"seed is {seed}", re.escape(what))):
            fgvar.measure({name: fgvar.scheme(name)}, problem(), draws=4, seed=seed)


@pytest.mark.parametrize(
    ("estimators", "kind"),
    [
        (fgvar.scheme("FG-A"), "Estimator"),
        (["FG-A"], "list"),
        ("FG-A", "str"),
        ({}, "dict"),
        (problem(), "Problem"),
        (None, "NoneType"),
    ],
)
def test_estimators_are_a_mapping(estimators: object, kind: str) -> None:
    message = says(f"estimators is {kind}", r'for instance \{"FG-A": fgvar.scheme\("FG-A"\)\}')
    with pytest.raises(TypeError, match=message):
        fgvar.measure(estimators, problem(), draws=2)


def test_a_name_is_no_estimator() -> None:
    with pytest.raises(TypeError, match=says("'mine' is the text 'FG-W'", r"fgvar\.scheme\('FG-W'\)")):
        fgvar.measure({"mine": "FG-W"}, problem(), draws=2)


@pytest.mark.parametrize("wrong", [fgvar.scheme, nn.Linear(3, 2), 3, fgvar.Gaussian()])
def test_what_is_no_estimator_is_named(wrong: object) -> None:
    message = says(f"'mine' is {type(wrong).__name__}", "expected", "randomness, estimate and target methods")
    with pytest.raises(TypeError, match=message):
        fgvar.measure({"FG-W": fgvar.scheme("FG-W"), "mine": wrong}, problem(), draws=2)


def test_a_class_is_no_estimator() -> None:
    with pytest.raises(TypeError, match=says("'mine'", r"instance|class|\(\)")):
        fgvar.measure({"mine": fgvar.Estimator}, problem(), draws=2)


@pytest.mark.parametrize("name", ["FG-A", "LG-FG-W"])
def test_measure_refuses_problems_that_do_not_fit(name: str) -> None:
    with pytest.raises(ValueError, match=r"no site to perturb|no local heads"):
        fgvar.measure({name: fgvar.scheme(name)}, problem(), draws=2)


@dataclass(frozen=True)
class Spoilt:
    """Backprop with one value in one draw's estimate, or in the target."""

    value: float = math.nan
    draw: int = 0
    target_too: bool = False
    layer: str = "2.bias"

    def randomness(self, where: fgvar.Problem) -> Randomness:  # noqa: ARG002
        return Randomness({"k": Leaf((), fgvar.Gaussian())})

    def estimate(self, where: fgvar.Problem, noise: Mapping[str, Tensor]) -> fgvar.Estimate:
        chosen = self.randomness(where).sample(0, [self.draw], dtype=torch.float64)["k"][0]
        gradient = where.backprop()
        gradient[self.layer] = torch.where(noise["k"] == chosen, self.value, gradient[self.layer])
        return fgvar.Estimate(gradient)

    def target(self, where: fgvar.Problem) -> dict[str, Tensor]:
        gradient = where.backprop()
        return gradient | {self.layer: gradient[self.layer] * (self.value if self.target_too else 1)}


@pytest.mark.parametrize("draw", [0, 5, 21, 39])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("chunk", [1, 16])
def test_a_non_finite_estimate_is_named_by_estimator_layer_and_draw(draw: int, value: float, chunk: int) -> None:
    estimators = {"good": fgvar.scheme("FG-W"), "spoilt": Spoilt(value, draw)}
    with pytest.raises(NonFiniteError, match=says("'spoilt'", "'2.bias'", rf"\bdraw {draw}\b", "NaN or infinity")):
        fgvar.measure(estimators, problem(), draws=40, chunk=chunk)


def test_a_non_finite_estimate_without_noise_is_named() -> None:
    class Once(Spoilt):
        def randomness(self, where: fgvar.Problem) -> Randomness:  # noqa: ARG002
            return Randomness({})

        def estimate(self, where: fgvar.Problem, noise: Mapping[str, Tensor]) -> fgvar.Estimate:  # noqa: ARG002
            return fgvar.Estimate(where.backprop() | {"0.weight": torch.full((4, 3), math.nan, dtype=torch.float64)})

    with pytest.raises(NonFiniteError, match=says("'once'", "'0.weight'", "NaN or infinity")):
        fgvar.measure({"once": Once()}, problem(), draws=2)


def test_a_non_finite_target_is_not_blamed_on_a_draw() -> None:
    with pytest.raises(NonFiniteError, match=says("'spoilt'", "'2.bias'", "target")):
        fgvar.measure({"spoilt": Spoilt(target_too=True, draw=10**6)}, problem(), draws=2)


def test_a_non_finite_backprop_is_an_error() -> None:
    """√|z| at z = 0: the loss is finite and its gradient is not, though the estimator never looks at it."""

    class Zero(Spoilt):
        def estimate(self, where: fgvar.Problem, noise: Mapping[str, Tensor]) -> fgvar.Estimate:  # noqa: ARG002
            return fgvar.Estimate(self.target(where))

        def target(self, where: fgvar.Problem) -> dict[str, Tensor]:
            return {name: torch.ones_like(p) for name, p in where.params.items()}

    flat = nn.Linear(3, 2).double()
    nn.init.zeros_(flat.weight)
    nn.init.zeros_(flat.bias)
    where = problem(flat, lambda outputs, _: outputs.abs().sqrt().sum(1))
    with pytest.raises(NonFiniteError, match=says("weight", "NaN or infinity")):
        fgvar.measure({"zero": Zero()}, where, draws=2)
    with pytest.raises(NonFiniteError, match=says("weight", "NaN or infinity")):
        fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, where, draws=2)


@pytest.mark.parametrize("shape", [(1,), (4, 1), (3, 4), (12,)], ids=str)
def test_an_estimate_of_another_shape_is_named(shape: tuple[int, ...]) -> None:
    """Not broadcast, and not reshaped: (3, 4) for (4, 3) is a forgotten transpose."""

    class Other(Spoilt):
        def estimate(self, where: fgvar.Problem, noise: Mapping[str, Tensor]) -> fgvar.Estimate:  # noqa: ARG002
            return fgvar.Estimate(where.backprop() | {"0.weight": torch.ones(shape, dtype=torch.float64)})

    got = rf"\({', '.join(map(str, shape))},?\)"
    with pytest.raises(ValueError, match=says("'other'", "'0.weight'", got, r"\(4, 3\)")):
        fgvar.measure({"other": Other()}, problem(), draws=2)


def test_a_parameter_without_an_estimate_is_named() -> None:
    class Some(Spoilt):
        def estimate(self, where: fgvar.Problem, noise: Mapping[str, Tensor]) -> fgvar.Estimate:  # noqa: ARG002
            return fgvar.Estimate({k: g for k, g in where.backprop().items() if k != "2.bias"})

    with pytest.raises(ValueError, match=says("'some'", r"2\.bias")):
        fgvar.measure({"some": Some()}, problem(), draws=2)


def test_good_problems_raise_nothing() -> None:
    """The other side of every test above."""
    where = mixer()
    for name in ("BP", "L-BP", "LG-BP", "FG-W", "FG-A", "LG-FG-W", "LG-FG-A"):
        fgvar.measure({name: fgvar.scheme(name)}, where, draws=2)
    assert fgvar.scheme("LG-FG-W", credit="published").losses.credit == "published"
