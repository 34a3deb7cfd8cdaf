"""Points: where a gradient is taken."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fgvar.errors import require_type, require_word
from fgvar.estimators.activity_space import require_site
from fgvar.estimators.declared import declared
from fgvar.estimators.laws import LAW, Law
from fgvar.estimators.lengths import length, rescaled
from fgvar.estimators.noise import Gaussian
from fgvar.estimators.protocol import Estimate, GradientEstimator, require_estimator
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.problem import Problem
from fgvar.stochastic.past import after


class Point(Protocol):
    """Where a gradient is taken. ``bias_reason`` says why not at the parameters; empty where it is there.

    It may declare ``bias_order``, the power of its ``step`` that the bias falls with, which a check holds it to.
    """

    @property
    def bias_reason(self) -> str: ...

    def leaves(self, problem: Problem) -> dict[str, Leaf]:
        """The noise that it needs."""

    def view(self, problem: Problem, noise: Mapping[str, Tensor]) -> Problem:
        """The problem there (`Problem.moved`)."""


@dataclass(frozen=True)
class Here:
    """At the parameters.

    Example:
        >>> Here().bias_reason
        ''
    """

    @property
    def bias_reason(self) -> str:
        return ""

    def leaves(self, problem: Problem) -> dict[str, Leaf]:  # noqa: ARG002
        return {}

    def view(self, problem: Problem, noise: Mapping[str, Tensor]) -> Problem:  # noqa: ARG002
        return problem


@dataclass(frozen=True)
class Ahead:
    """Extrapolated: at θ' = θ − step·z, z an estimate of any estimator's, constant for differentiation.

    Its bias is −step·H E z + O(step²) for the Hessian H; for E z = 0, of estimators that declare
    ``centred = True`` as `Noise` does, ½ step²·∇tr(H Cov z). With ``unit`` and a negative step it is sharpness-aware
    minimisation, of bias +ρ H g/‖g‖ for ρ = −step.

    Args:
        by: whose estimate z is, a dict like ``problem.params``; `Past` for the last output of a stream, `Kept` for a
            gradient that is there already, `Noise` for random numbers.
        step: how far, in units of z.
        unit: z/‖z‖, over all tensors together, in place of z; 0 where z is 0.

    Raises:
        TypeError: ``by`` is no estimator, or ``step`` no number.

    Source: Lin et al. 2020 (extrapolation); Foret et al. 2021 (sharpness-aware minimisation).

    Example:
        >>> from fgvar.estimators.estimator import ExactGradient
        >>> sam = Ahead(by=ExactGradient(), step=-0.05, unit=True)
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> bool(sam.view(problem, {}).loss() > problem.loss())
        True
    """

    by: GradientEstimator
    step: float
    unit: bool = False

    def __post_init__(self) -> None:
        require_estimator("by", self.by)
        require_type("step", self.step, Real, "a number")

    @property
    def bias_order(self) -> int:
        return 2 if declared(self.by, "centred", "randomness", "estimate") else 1

    @property
    def bias_reason(self) -> str:
        return f"taken ahead of the parameters, of order step^{self.bias_order}" if self.step else ""

    def leaves(self, problem: Problem) -> dict[str, Leaf]:
        return dict(self.by.randomness(problem).leaves)

    def view(self, problem: Problem, noise: Mapping[str, Tensor]) -> Problem:
        z = self.by.estimate(problem, noise).gradient
        if self.unit:  # by where, not by if: under vmap no value can be asked
            norm = length(z)
            z = rescaled(z, 1 / norm.where(norm > 0, 1))
        return problem.moved({name: p - self.step * z[name] for name, p in problem.params.items()})

    def after(self, output: Mapping[str, Tensor]) -> "Ahead":
        """The point after a step of a stream (see `after`)."""
        return replace(self, by=after(self.by, output))


@dataclass(frozen=True)
class Noise:
    """Random numbers in the place of a gradient, E ĝ = 0: ``Ahead(by=Noise(), step=σ)`` smooths the loss.

    Args:
        law: of the numbers, of mean 0.

    Raises:
        TypeError: what is no law.
        ValueError: a law of finitely many values that does not declare E uuᵀ = I: it may have any mean.

    Source: Lin et al. 2020.

    Example:
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> {name: leaf.shape for name, leaf in Noise().randomness(problem).leaves.items()}
        {'weight': (2, 3), 'bias': (2,)}
    """

    law: Law = Gaussian()

    centred: ClassVar[bool] = True  # E ĝ = 0

    def __post_init__(self) -> None:
        require_word("law", self.law, ("sample",), "fgvar.Gaussian()")
        if declared(self.law, "support", *LAW) and not declared(self.law, "isotropic", *LAW):
            raise ValueError(
                f"{self.law!r} may have another mean than 0, expected a law that declares isotropic = True, such as "
                "fgvar.Gaussian() or fgvar.Rademacher()"
            )

    @property
    def bias_reason(self) -> str:
        return ""

    def randomness(self, problem: Problem) -> Randomness:
        return Randomness({name: Leaf(tuple(p.shape), self.law) for name, p in problem.params.items()})

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        return Estimate({name: noise[name] for name in problem.params})

    def target(self, problem: Problem) -> dict[str, Tensor]:
        return {name: torch.zeros_like(p) for name, p in problem.params.items()}


@dataclass(frozen=True)
class Tapped:
    """Noise injected: at activities z + scale·u of a site, u ~ noise, each example's its own, as reparameterised.

    Unbiased for the smoothed loss E L(z + scale·u), whose gradient is that of L + ½ scale² tr H + O(scale⁴), H the
    Hessian by the activities.

    Args:
        site: name of the site.
        noise: law of u, of the site's shape.
        scale: standard deviation.

    Raises:
        TypeError: ``noise`` is no law, or ``scale`` no number.
        ValueError: on use, an unknown site, or one that is called twice or carries no batch axis.

    Source: Bishop 1995 (training with noise).

    Example:
        >>> from fgvar.nn.sites import with_sites
        >>> problem = Problem(with_sites(torch.nn.Linear(3, 2)), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> Tapped("site", scale=0.1).leaves(problem)[""].shape
        (4, 2)
    """

    site: str
    noise: Law = Gaussian()
    scale: float = 1.0

    def __post_init__(self) -> None:
        require_word("noise", self.noise, ("sample",), "fgvar.Gaussian()")
        require_type("scale", self.scale, Real, "a number")

    @property
    def bias_reason(self) -> str:
        return f"smoothed by noise on {self.site!r}" if self.scale else ""

    def leaves(self, problem: Problem) -> dict[str, Leaf]:
        require_site(problem, self.site)
        shape = (problem.batch_size, *problem.trace.sites[self.site][1:])
        # A law of several directions together would take examples for them: one direction of each.
        lead = (1,) if self._of_directions else ()
        return {"": Leaf((*lead, *shape), self.noise, batch_dims=len(lead) + 1)}

    @property
    def _of_directions(self) -> bool:
        return bool(declared(self.noise, "couples_directions", *LAW))

    def view(self, problem: Problem, noise: Mapping[str, Tensor]) -> Problem:
        tap = self.scale * (noise[""][0] if self._of_directions else noise[""])
        if self.site in problem.taps:  # noise of several points adds up
            tap = tap + problem.taps[self.site]
        return problem.tapped(self.site, tap)
