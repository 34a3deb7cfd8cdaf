"""Declared checks: hold what an estimator declares of itself against what it does; not applicable without.

A declaration is an attribute of the estimator, or of its ``noise`` or ``oracle``: ``directions``,
``antithetic``, ``shared``, and a method ``variance(problem)``, the variance of
every weight. Composed estimators declare all of it. To vary a declaration (one direction, two), the estimator
has to be a dataclass; of a function that draws its own noise, what it declares is held against drawn estimates.
"""

import math
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

import fgvar
from fgvar.estimators.estimator import Estimator
from fgvar.estimators.protocol import GradientEstimator
from fgvar.problem import Problem
from fgvar.stochastic.sentence import Stochastic
from fgvar.testing.comparisons import batch_axes, difference, telling
from fgvar.testing.exact_moments import claim, resolving, variances
from fgvar.testing.polynomials import Gradients
from fgvar.testing.sampled_checks import drawn_directions, drawn_pair, of_traces, traces
from fgvar.testing.under_test import EstimatorUnderTest, Failure, Finding, NotApplicable, Undecided
from fgvar.testing.verdict import MAX_DETECTABLE, advice
from fgvar.theory import closed_forms

VARIANCE_DRAWS = 4096


def variance(tested: EstimatorUnderTest) -> str:
    """The variance of every weight is the declared one: exactly where it can be enumerated, else as a trace."""
    return require_variance(tested, declared_variance(tested.estimator, tested.problem))


def require_variance(tested: EstimatorUnderTest, declared: Gradients) -> str:
    """How the variance of every weight has been found to be the declared one; a `Failure` where it is not."""
    dtype = tested.problem.dtype
    cast = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in declared.items()}
    tested.require_gradient("the declared variance", cast)
    for name, value in declared.items():
        if not bool((value >= 0).all() and value.isfinite().all()):
            raise Failure(f"the declared variance of {name!r} holds NaN, infinity or numbers below 0")
    if (exact := variances(tested)) is not None:
        largest = max(max(float(value.max()) for value in declared.values()), tested.size**2, 1e-300)
        for name, found in exact.items():
            off = float((found.reshape(declared[name].shape) - declared[name]).abs().max()) / largest
            if not off <= resolving(tested):
                ratio = float(found.sum()) / max(float(declared[name].sum()), 1e-300)
                raise Failure(f"the variance of {name!r} is {ratio:.4g} times the declared one (exact, by its trace)")
        allowed = resolving(tested)
        return Finding(f"exact, every weight to {allowed:.1g}", allowed, exact=True)
    names = list(declared)
    expected = torch.stack([declared[name].double().sum() for name in names]).cpu()
    squares = traces(tested, names)
    verdict = of_traces(squares, expected, tested)
    if not verdict.passed:
        name, ratio = names[verdict.worst], float(squares[:, verdict.worst].mean() / expected[verdict.worst])
        raise Failure(f"the variance of {name!r} is {ratio:.4g} times the declared one: {verdict}")
    positive = expected.clamp_min(1e-300)  # a declared 0 that was met divides 0
    share = torch.where(verdict.detectable > 0, verdict.detectable / positive, 0.0)
    if float(share.max()) >= MAX_DETECTABLE:
        raise Undecided(
            f"would not have caught twice the declared variance of {names[int(share.argmax())]!r}; "
            f"{advice(float(verdict.enough(positive).max()))}"
        )
    told = f"{verdict}; an error of {float(share.max()):.1%} in every trace"
    return Finding(told, *share[share > 0].tolist())


def directions(tested: EstimatorUnderTest) -> str:
    """One estimate is the mean over K independent directions, so that its variance falls as 1/K."""
    if claim(tested.estimator, "directions") is None:
        raise NotApplicable("declares no number of directions")
    if tested.opaque:
        return drawn_directions(tested, claim(tested.estimator, "directions"))
    one, two = (varied(tested, directions=k) for k in (1, 2))
    if one is None or two is None:
        raise NotApplicable("declares directions, but is no dataclass in which they can be 1 or 2")
    notes = []
    k = claim(tested.estimator, "directions")
    for several, count in ((two, 2), *([(tested, k)] if k > 2 else [])):
        axis = _directions_axis(one, several, count)
        if axis is None:
            break
        noise = several.one(telling(several))
        # A leaf of one direction may have an axis of length 1 for it, or none.
        each = [
            one.estimate({k: u[index : index + 1] if axis else u[index] for k, u in noise.items()})
            for index in range(count)
        ]
        _require_mean(tested, each, several.estimate(noise), f"{count} directions", "each direction alone")
        notes.append(f"the mean of {count} directions to {resolving(tested):.1g}")
    # A mean of independent estimates needs no look at its variance, which is costly; that they are independent is
    # the check of the noise.
    if not notes and (of_one := variances(one)) is not None and (of_two := variances(two)) is not None:
        for name, found in of_one.items():
            trace, half = float(found.sum()), float(of_two[name].sum())
            if not abs(trace - 2 * half) <= resolving(tested) * max(trace, tested.size**2):
                raise Failure(
                    f"2 directions divide the variance of {name!r} by {trace / max(half, 1e-300):.4g}, not 2"
                )
        notes.append("variance of 2 directions is half of that of 1, exactly")
    if not notes:
        raise NotApplicable(
            "too many random numbers for the exact variance, and leaves without an axis of directions"
        )
    return "; ".join(notes)


def antithetic(tested: EstimatorUnderTest) -> str:
    """A pair averages u and −u. With an exact derivative it repeats one estimate: of use to finite differences."""
    if not claim(tested.estimator, "antithetic"):
        raise NotApplicable("declares no antithetic pairs")
    if tested.opaque:
        return drawn_pair(tested)
    noise = tested.one(telling(tested))
    turned = {name: -u for name, u in noise.items()}
    pair = tested.estimate(noise)
    _require_mean(tested, [tested.estimate(turned)], pair, "u with −u", "−u with u")
    plain = varied(tested, antithetic=False)
    if plain is None:
        allowed = resolving(tested)
        return Finding(f"the pair of u is that of −u, to {allowed:.1g}", allowed, exact=True)
    if {k: v.shape for k, v in plain.randomness.leaves.items()} != {n: u.shape for n, u in noise.items()}:
        raise Failure(
            "an antithetic pair needs the noise of one direction, its negative is the other; it asks for more"
        )
    _require_mean(tested, [plain.estimate(noise), plain.estimate(turned)], pair, "the pair", "u and −u alone")
    alone = difference(tested, pair, plain.estimate(noise))[0] <= resolving(tested)
    exact = alone and not claim(tested.estimator, "step")
    return "the mean of u and −u" + (", which repeats one estimate (its derivative is exact)" if exact else "")


def shared_noise(tested: EstimatorUnderTest) -> str:
    """Shared noise has no batch axis, independent noise has one, and ĝ is the mean of the examples' own ĝ."""
    declared = claim(tested.estimator, "shares_noise")  # what a composed estimator's shared=None comes to
    declared = claim(tested.estimator, "shared") if declared is None else declared
    problem = tested.problem
    if declared is None or tested.randomness.size == 0:
        raise NotApplicable("does not declare whether noise is shared by the batch")
    if problem.batch_size == 1:
        raise NotApplicable("a batch of one shares with nobody")
    axes = batch_axes(tested)
    for name, axis in axes.items():
        if declared and axis is not None:
            raise Failure(f"declares noise that the batch shares, but leaf {name!r} grows with the batch")
        if not declared and axis is None:
            raise Failure(f"declares independent noise, but leaf {name!r} does not grow with the batch")
    noise = tested.one(telling(tested))
    each = []
    for n in range(problem.batch_size):
        own = {k: u if (axis := axes[k]) is None else u.narrow(axis, n, 1) for k, u in noise.items()}
        each.append(tested.on(problem.example(n)).estimate(own))
    _require_mean(tested, each, tested.estimate(noise), "the batch", "each example alone")
    return f"{'shared' if declared else 'independent'}: the mean of {problem.batch_size} examples' own estimates"


def repr_round_trips(tested: EstimatorUnderTest) -> str:
    """``eval(repr(estimator))`` is an equal estimator, so that a dataset's attributes can rebuild it."""
    estimator = tested.estimator
    if tested.opaque or not is_dataclass(estimator):
        raise NotApplicable("is no dataclass, so that its repr promises nothing")
    types = _types(estimator)
    held = (Problem, Tensor)
    if any(issubclass(kind, held) or getattr(kind, "holds_tensors", False) for kind in types.values()):
        raise NotApplicable("holds a problem or tensors, whose repr tells them from others and rebuilds none")
    names: dict[str, Any] = {n: getattr(fgvar, n) for n in fgvar.__all__} | {"torch": torch, "inf": math.inf, **types}
    try:
        rebuilt = eval(repr(estimator), names)  # the estimator's own text
    except Exception as error:
        raise Failure(f"repr {estimator!r} cannot be evaluated ({type(error).__name__}: {error})") from error
    if rebuilt != estimator:
        raise Failure(f"repr {estimator!r} rebuilds another estimator, {rebuilt!r}")
    return "evaluates to an equal estimator"


# ---- what checks share ---------------------------------------------------------------------------------------


def declared_variance(estimator: GradientEstimator, problem: Problem) -> Gradients:
    """By its method ``variance(problem)``, or in closed form; a `NotApplicable` where there is none."""
    method = getattr(estimator, "variance", None)
    if method is None and isinstance(estimator, Estimator | Stochastic):
        try:
            return closed_forms.variance(estimator, problem)
        except ValueError as error:
            raise NotApplicable(str(error)) from error
    if method is None:
        raise NotApplicable("declares no variance")
    try:
        found = method(problem)
    except Exception as error:
        raise Failure(f"variance raised {type(error).__name__}: {error}") from error
    if not isinstance(found, Mapping):
        raise Failure(f"variance returned {type(found).__name__}, expected a dict like problem.params")
    return dict(found)


def _directions_axis(one: EstimatorUnderTest, several: EstimatorUnderTest, count: int) -> bool | None:
    """Does a leaf of one direction have an axis for it? None where leaves of several have none."""
    single = {name: leaf.shape for name, leaf in one.randomness.leaves.items()}
    found = {name: leaf.shape for name, leaf in several.randomness.leaves.items()}
    if found == {name: (count, *shape) for name, shape in single.items()}:
        return False
    if all(shape[:1] == (1,) for shape in single.values()):
        return True if found == {name: (count, *shape[1:]) for name, shape in single.items()} else None
    return None


def varied(tested: EstimatorUnderTest, **change: Any) -> EstimatorUnderTest | None:
    """The same with a declaration changed where it stands: on the estimator, or on a word of its sentence."""
    found = _changed(tested.estimator, change)
    return None if found is None else tested.on(tested.problem, found)


def _changed(part: Any, change: Mapping[str, Any]) -> Any:
    """The first word that has such a field has it changed; None where there is none."""
    fields = getattr(part, "__dataclass_fields__", {})
    if fields.keys() >= change.keys():
        return _replaced(part, change)
    for word in ("noise", "oracle", "at", "of"):
        inside = _changed(getattr(part, word), change) if word in fields else None
        if inside is not None:
            return _replaced(part, {word: inside})
    return None


def _replaced(value: Any, change: Mapping[str, Any]) -> Any:
    """With other fields; None where it takes none of these, as what checks its arguments may not."""
    try:
        return replace(value, **change)
    except Exception:  # whatever its own __init__ raises
        return None


def _require_mean(tested: EstimatorUnderTest, each: list[Gradients], found: Gradients, what: str, parts: str) -> None:
    expected: dict[str, Tensor] = {k: torch.stack([one[k] for one in each]).mean(0) for k in each[0]}
    off, name = difference(tested, expected, found)
    if not off <= resolving(tested):
        raise Failure(f"the estimate of {what} is not the mean of those of {parts}: {name!r} is off by {off:.2g}")


def _types(value: object) -> dict[str, type]:
    """The classes that occur in a dataclass, its fields and their tuples, by name."""
    found = {type(value).__name__: type(value)}
    fields = [getattr(value, name) for name in getattr(value, "__dataclass_fields__", ())]
    for part in (*fields, *(value if isinstance(value, tuple) else ())):
        found |= _types(part)
    return found
