"""Functions that draw their own noise: what they declare is held against draws, and no seed comes twice."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import fgvar
from fgvar.testing import (
    CHECKS,
    default_problems,
    from_function,
)
from fgvar.testing.mutants.published_gradients import normal, times

PROBLEMS = default_problems()
LINEAR = PROBLEMS["linear"]


def test_a_function_s_declared_variance_is_held_against_draws() -> None:
    def noisy(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
        u = normal(problem, generator)
        return {k: g + 0.1 * u[k] for k, g in problem.backprop().items()}

    def declared(problem: fgvar.Problem, size: float = 0.1) -> dict[str, Tensor]:
        return {k: torch.full_like(p, size**2) for k, p in problem.params.items()}

    assert CHECKS["variance"](from_function(noisy, variance=declared), LINEAR)[0].outcome == "passed"
    with pytest.raises(AssertionError, match=r"the variance of '\w+' is 0\.2[45]\d* times the declared one"):
        CHECKS["variance"](from_function(noisy, variance=lambda problem: declared(problem, 0.2)), LINEAR)


def test_a_wrong_number_of_directions_is_refuted_whatever_the_power_and_undecided_without() -> None:
    """One direction declared as 40; and as 1, with draws that would not see half of that."""

    def one(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
        u = normal(problem, generator)
        return times(torch.func.jvp(problem.loss, (problem.params,), (u,))[1], u)

    with pytest.raises(AssertionError, match=r"that of 40 independent directions of 6 weights is 0\.125 to 0\.175"):
        CHECKS["directions"](from_function(one, directions=40), LINEAR, draws=1024)
    row = CHECKS["directions"](from_function(one, directions=1), LINEAR, draws=64)[0]
    assert row.outcome == "undecided"
    assert "would not have caught a wrong number of directions" in row.note


def test_a_pair_that_takes_some_of_the_examples_has_no_even_loss_to_try() -> None:
    def part(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
        at = torch.randint(problem.batch_size, (3,), generator=generator)
        return problem.rows(at).backprop()

    row = CHECKS["antithetic"](from_function(part, antithetic=True), LINEAR)[0]
    assert (row.outcome, "no even loss to try" in row.note) == ("not applicable", True)


def test_wrong_declarations_of_functions() -> None:
    def f(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
        return normal(problem, generator)

    with pytest.raises(
        TypeError, match=r"variance is dict, expected a function problem -> dict like problem\.params"
    ):
        from_function(f, variance={})
    with pytest.raises(TypeError, match="target is int, expected a function"):
        from_function(f, target=3)
    with pytest.raises(ValueError, match="directions is 0, expected an integer of at least 1"):
        from_function(f, directions=0)
    with pytest.raises(ValueError, match="step is 0, expected a positive number"):
        from_function(f, step=0)
    assert repr(from_function(f, directions=2, step=1e-3)) == "from_function(f, directions=2, step=0.001)"


class Called:
    def __call__(self, problem: fgvar.Problem, generator: torch.Generator, scale: float = 1.0) -> dict[str, Tensor]:
        return times(torch.tensor(scale), normal(problem, generator))


def test_what_is_called_has_its_own_name() -> None:
    assert repr(from_function(Called())) == "from_function(Called)"
    assert repr(from_function(functools.partial(Called(), scale=2.0))) == "from_function(Called)"
    assert repr(from_function(functools.partial(functools.partial(normal)))) == "from_function(normal)"
    assert repr(from_function(Called().__call__)) == "from_function(__call__)"


@pytest.mark.parametrize(
    ("wrong", "words", "sentence"),
    [
        (lambda problem: problem.backprop(), {}, r"function <lambda>\(problem\) cannot be called so \(too many pos"),
        (lambda p, g, lr: normal(p, g), {}, r"function <lambda>\(p, g, lr\) .*'lr'\), expected \(problem, gen"),  # noqa: ARG005
        (normal, {"target": lambda: normal}, r"target <lambda>\(\) cannot be called so .*, expected a function"),
        (normal, {"variance": normal}, r"variance normal\(.*\) .*'generator'\), expected a function problem -> dict"),
    ],
)  # fmt: skip
def test_functions_of_other_arguments(wrong: Any, words: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        from_function(wrong, **words)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_as_many_different_draws_as_are_asked_for(dtype: torch.dtype) -> None:
    """A seed is an integer of its own dtype; its lowest 32 bits, all that the CPU's generator takes, never repeat."""
    draws = 20_000
    randomness = from_function(normal).randomness(LINEAR)
    seeds = randomness.sample(0, range(draws), dtype=dtype)["seed"]
    assert seeds.dtype == torch.int64
    assert len((seeds & 0xFFFFFFFF).unique()) == draws
    numbers = [torch.randn((), generator=torch.Generator().manual_seed(int(seed))).item() for seed in seeds[:4096]]
    assert len(set(numbers)) > 4090, "float32 has 2 to the 24 of them near 0"
    other = randomness.sample(1, range(draws), dtype=dtype)["seed"]
    assert not bool((seeds == other).any())


def test_a_bare_function_is_told_where_to_go() -> None:
    with pytest.raises(TypeError, match=r"goes into fgvar\.testing\.from_function"):
        fgvar.testing.check_estimator(lambda problem, generator: {})  # noqa: ARG005
