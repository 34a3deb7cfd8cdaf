"""Noise of finitely many values: drawn as often as its law says, in laws that are right and in laws that are not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from cases import randn
from torch import Tensor, nn

import fgvar
from fgvar.estimators.choices import Bernoulli, Choice
from fgvar.estimators.random_streams import Stream
from fgvar.estimators.randomness import MOST_VALUES
from fgvar.testing import CHECKS
from fgvar.testing.frequencies import Frequencies

P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
PROBLEM = fgvar.Problem(nn.Linear(3, 2).double(), "mse", (randn(4, 3), randn(4, 2, seed=1)))


@dataclass(frozen=True)
class Noisy:
    """The gradient plus the first numbers of leaves: an estimator that needs any noise."""

    leaves: Any

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:  # noqa: ARG002
        return fgvar.Randomness(self.leaves)

    def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
        added = sum(u.double().sum() for u in noise.values())
        return fgvar.Estimate({name: g + added for name, g in problem.backprop().items()})

    def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        return problem.backprop()


def noise(*leaves: fgvar.Leaf) -> str:
    row = CHECKS["noise"](Noisy({str(index): leaf for index, leaf in enumerate(leaves)}), PROBLEM)[0]
    return f"{row.outcome}: {row.note}"


RIGHT = {
    "put back": fgvar.Leaf((2,), Choice(P)),
    "not put back": fgvar.Leaf((3,), Choice(P, replace=False)),
    "examples": fgvar.Leaf((3, 2), Choice(P, replace=False), 1),
    "rows": fgvar.Leaf((2, 3), Choice(torch.stack([P, P.flip(0)]))),
    "many of few": fgvar.Leaf((40,), Choice(P)),  # 4⁴⁰ values: of the first two indices
    "few of many": fgvar.Leaf((1,), Choice(torch.full((5000,), 1 / 5000, dtype=torch.float64))),
    "seldom": fgvar.Leaf((30,), Bernoulli(0.02)),
}


@pytest.mark.parametrize("leaf", RIGHT.values(), ids=RIGHT)
def test_right_laws_pass(leaf: fgvar.Leaf) -> None:
    """Seven verdicts, of a false-alarm rate of 1e-7 each."""
    assert noise(leaf).startswith("passed: 8192 draws"), noise(leaf)


class Slanted(Choice):
    """Other probabilities than it declares."""

    support = Choice.support

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        other = replace(Choice(P, self.replace), probabilities=(self.probabilities + 0.02) / 1.08)
        return other.sample(stream, shape, dtype, device)


class Sorted(Choice):
    """The right indices in another order: a weight of each by its place is wrong then."""

    support = Choice.support

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return super().sample(stream, shape, dtype, device).sort(-1).values


class Twice(Choice):
    """The first index again and again: each is right, and no two are independent."""

    support = Choice.support

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return super().sample(stream, shape, dtype, device)[..., :1].expand(tuple(shape))


class Beyond(Choice):
    """Indices from 1 on."""

    support = Choice.support

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return super().sample(stream, shape, dtype, device) + 1


class Same(Choice):
    """One draw for all."""

    support = Choice.support

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return super().sample(replace(stream, name=""), shape, dtype, device)


AS_OFTEN = r"leaf '0' does not draw its values as often as its law's support says: 0\.\d+, expected 0\.\d+ \(z ="


@pytest.mark.parametrize(
    ("law", "sentence"),
    [
        (Slanted(P), AS_OFTEN),
        (Sorted(P, replace=False), AS_OFTEN),
        (Twice(P), "does not draw its values as often"),
        (Beyond(P), r"leaf '0' draws .*4.*, which its law's support lacks"),
    ],
    ids=["slanted", "sorted", "twice", "beyond"],
)
@pytest.mark.parametrize("lead", [(), (3,)], ids=["alone", "examples"])
def test_wrong_laws_are_caught(law: Choice, sentence: str, lead: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match=sentence):
        noise(fgvar.Leaf((*lead, 2), law, len(lead)))


def test_leaves_that_are_drawn_alike_are_caught() -> None:
    with pytest.raises(AssertionError, match="a number of leaf '0' and one of '1' are correlated"):
        noise(fgvar.Leaf((2,), Same(P)), fgvar.Leaf((2,), Same(P)))


def test_one_value_is_no_noise() -> None:
    only = fgvar.Leaf((2,), Choice(torch.ones(1, dtype=torch.float64)))
    assert noise(only) == "not applicable: all of its noise has one value, or too many values to be listed"


def test_products_and_shares_have_the_mean_that_they_are_held_to() -> None:
    """Exactly: of the support itself, each value as often as its probability."""
    for leaf in RIGHT.values():
        law = Frequencies("0", leaf, 8192, torch.float64)
        values, p = law._law
        copies, rest = divmod(leaf.size, values.shape[1])
        if rest or (leaf.batch_dims == 0 and not leaf.elementwise and copies > 1):
            continue  # of the first two numbers alone
        one = values.reshape(len(p), 1, -1).expand(-1, copies, -1).reshape(len(p), *leaf.shape)
        torch.testing.assert_close(p @ law.columns(one), law.expected, rtol=0, atol=1e-12)
        scores = law.scores(one)
        assert float((p @ scores).abs().max()) < 1e-9
        alike = torch.full((law.width,), float(law._group), dtype=torch.float64)  # units that are all the same
        torch.testing.assert_close(p @ scores.square(), alike)


def test_rare_values_are_added_up_before_they_are_correlated() -> None:
    """Products of two numbers of seldom ones are too rare for a verdict: no false alarm in 20 of 1e-7 each."""
    law = Frequencies("0", RIGHT["seldom"], 8192, torch.float64)
    assert (law.width, law._group) == (4, 7)  # kurtosis 48 → 3 + 45/7
    assert noise(fgvar.Leaf((3,), Bernoulli(0.02))).startswith(
        "passed: 8192 draws, false alarms 1e-07 (nominal): values"
    )
    for size in range(30, 50):
        assert noise(fgvar.Leaf((size,), Bernoulli(0.02))).startswith("passed: 8192 draws"), size


@dataclass(frozen=True)
class Constant:
    """A law of values without an end."""

    elementwise: ClassVar[bool] = True


@pytest.mark.parametrize(
    ("leaf", "values"),
    [
        (fgvar.Leaf((2,), Choice(P)), 16),
        (fgvar.Leaf((2,), Choice(P, replace=False)), 12),
        (fgvar.Leaf((3, 2), Choice(P, replace=False), 1), 12**3),
        (fgvar.Leaf((2, 2), Choice(torch.stack([P, P]))), 256),
        (fgvar.Leaf((5,), Bernoulli(0.5)), 32),
        (fgvar.Leaf((7,), Bernoulli(1.0)), 1),
        (fgvar.Leaf((5,), fgvar.Rademacher()), 32),
        (fgvar.Leaf((500,), fgvar.Rademacher()), MOST_VALUES + 1),
        (fgvar.Leaf((40,), Choice(P)), MOST_VALUES + 1),
        (fgvar.Leaf((2,), fgvar.Gaussian()), MOST_VALUES + 1),
        (fgvar.Leaf((2,), Constant()), MOST_VALUES + 1),
    ],
)
def test_how_many_values_a_leaf_has(leaf: fgvar.Leaf, values: int) -> None:
    assert leaf.values == values
    if values <= 12**3:
        assert len(leaf.support()[1]) == values
