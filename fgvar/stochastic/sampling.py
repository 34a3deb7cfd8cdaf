"""Sampling: which terms of a sum are looked at, and what each counts so that E ω = 1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fgvar.estimators.declared import declared
from fgvar.estimators.randomness import Leaf
from fgvar.problem import Problem

SAMPLE = ("leaves", "chosen", "view")  # what a sampler does, of which its declarations say something


class Sample(Protocol):
    """Which terms of a sum are looked at.

    ``bias_reason`` says why E ω is not 1; empty where it is. ``linear`` says whether Σ ω ĝ is linear in the loss.
    ``whole = True``, which is optional, says that all examples are looked at, whatever is drawn, and weighed.
    """

    @property
    def bias_reason(self) -> str: ...

    @property
    def linear(self) -> bool: ...

    def leaves(self, problem: Problem) -> dict[str, Leaf]:
        """The noise that it needs. Probabilities are those at ``problem``, constant."""

    def batch_size(self, problem: Problem) -> int:
        """Examples of the problem that `view` returns."""

    def view(self, here: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Problem:
        """The sampled problem at ``here``, its terms `weighted`; probabilities are those of ``problem``."""

    # A method ``largest_share(problem)``, the largest ω_n/N whatever is drawn, is optional: what one example may do.

    # What theory asks, of x_n for each of the N terms, [N, …], and of X = (1/N) Σ ω_n x_n; all entry by entry.

    def no_closed_form(self, problem: Problem) -> str | None:
        """Why the following are not known; None where they are."""

    def mean(self, terms: Tensor, problem: Problem) -> Tensor:
        """E X."""

    def spread(self, terms: Tensor, problem: Problem) -> Tensor:
        """Var X."""

    def squares(self, terms: Tensor, problem: Problem) -> Tensor:
        """E (1/N²) Σ ω_n² x_n, one drawn twice counting as two: the variance by own noise, of variance x_n each."""


def looks_at_all(sample: Sample) -> bool:
    """Does it say of what it samples itself that no example is left out?"""
    return bool(declared(sample, "whole", *SAMPLE))


def tells_moments(sample: Sample) -> bool:
    """Does it say of what it samples itself all that theory asks?"""
    return all(declared(sample, what, *SAMPLE) for what in ("no_closed_form", "mean", "spread", "squares"))


@dataclass(frozen=True)
class Everything:
    """The full batch: all terms, each once.

    Example:
        >>> Everything().bias_reason
        ''
    """

    linear: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    @property
    def bias_reason(self) -> str:
        return ""

    def leaves(self, problem: Problem) -> dict[str, Leaf]:  # noqa: ARG002
        return {}

    def batch_size(self, problem: Problem) -> int:
        return problem.batch_size

    def view(self, here: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Problem:  # noqa: ARG002
        return here

    def largest_share(self, problem: Problem) -> float | None:
        return 1 / problem.batch_size

    def no_closed_form(self, problem: Problem) -> str | None:  # noqa: ARG002
        return None

    def mean(self, terms: Tensor, problem: Problem) -> Tensor:  # noqa: ARG002
        return terms.mean(0)

    def spread(self, terms: Tensor, problem: Problem) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(terms[0])

    def squares(self, terms: Tensor, problem: Problem) -> Tensor:  # noqa: ARG002
        return terms.mean(0) / len(terms)
