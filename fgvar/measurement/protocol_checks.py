"""Protocol checks: raise where what an estimator returned is not what `GradientEstimator` promises.

The types are `Randomness` of `Leaf`s, `Estimate`, and gradients that are dicts of dense tensors like
``problem.params``. Measuring, training and the testing kit say the same sentences.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fgvar.errors import NonFiniteError
from fgvar.estimators.protocol import Estimate
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.problem import Problem

ZEROS = "give every parameter an entry, zeros where it is not estimated"


def require_randomness(found: object, name: str | None = None) -> Randomness:
    """Raise a TypeError where ``randomness`` (of the estimator with this name) did not return fgvar's."""
    owner = "" if name is None else f"estimator {name!r}: "
    if not isinstance(found, Randomness):
        raise TypeError(f"{owner}randomness returned {type(found).__name__}, expected fgvar.Randomness(name → Leaf)")
    for key, leaf in found.leaves.items():
        if not isinstance(leaf, Leaf):
            raise TypeError(f"{owner}leaf {key!r} is {type(leaf).__name__}, expected fgvar.Leaf(shape, noise)")
    return found


def require_estimate(found: object) -> Mapping[str, object]:
    """The gradient of what ``estimate`` returned, a mapping; a TypeError says what it returned instead."""
    if not isinstance(found, Estimate):
        raise TypeError(f"estimate returned {type(found).__name__}, expected fgvar.Estimate(gradient)")
    return require_mapping("the estimate", found.gradient)


def require_mapping(what: str, gradient: object) -> Mapping[str, object]:
    """Raise a TypeError where a gradient is no mapping; its entries may be anything yet."""
    if not isinstance(gradient, Mapping):
        raise TypeError(f"{what} is {type(gradient).__name__}, expected a dict like problem.params")
    return gradient


def gradient_in(found: object) -> dict[str, Tensor]:
    """The gradient of what ``estimate`` returned, as a dict of tensors; a TypeError says what it returned instead."""
    return tensors_in("the estimate", require_estimate(found))


def tensors_in(what: str, gradient: object) -> dict[str, Tensor]:
    """A gradient as a dict of dense tensors that record no graph; a TypeError says what it is instead."""
    tensors = {}
    for name, value in require_mapping(what, gradient).items():
        if not isinstance(value, Tensor):
            remedy = f"; {ZEROS}" if value is None else ""
            raise TypeError(f"{what} has {type(value).__name__} for {name!r}, expected a tensor{remedy}")
        if value.layout is not torch.strided:
            raise TypeError(f"{what} is {value.layout} for {name!r}, expected a dense tensor; give .to_dense()")
        # An estimator that kept its graph would keep every draw's in the sums of the moments.
        tensors[name] = value.detach()
    return tensors


def require_like(what: str, problem: Problem, gradient: Mapping[str, Tensor]) -> None:
    """Raise where a gradient is not a dict with the parameters' names, shapes, dtype and device."""
    for name, parameter in problem.params.items():
        got = tuple(gradient[name].shape) if name in gradient else "nothing"
        if got != tuple(parameter.shape):
            remedy = "" if name in gradient else f"; {ZEROS}"
            raise ValueError(
                f"{what} has {got} for {name!r}, expected {tuple(parameter.shape)}, as in problem.params{remedy}"
            )
        for kind in ("dtype", "device"):
            found, wanted = getattr(gradient[name], kind), getattr(parameter, kind)
            if found != wanted:
                raise ValueError(f"{what} has {kind} {found} for {name!r}, expected {wanted}, that of the parameter")
    if extra := [name for name in gradient if name not in problem.params]:
        raise ValueError(f"{what} has {extra[0]!r} beside problem.params; give every parameter an entry, and no more")


def require_finite_gradient(what: str, problem: Problem, gradient: Mapping[str, Tensor]) -> None:
    """Raise where a reference is not like the parameters, or not finite: nothing could be measured against it."""
    require_like(what, problem, gradient)
    for name, value in gradient.items():
        if not value.is_meta and not bool(value.isfinite().all()):  # the meta device has shapes and no values
            raise NonFiniteError(
                f"{what}: {name!r} holds NaN or infinity, though the loss is finite; move the parameters"
            )
