"""Required checks: hold every estimator to its contract: what it returns, what it leaves alone, what its noise is.

Each check takes an `EstimatorUnderTest` and returns how it passed, or raises `Failure`, `Undecided` or
`NotApplicable`, with a sentence. That its mean is the target is in `fgvar.testing.unbiasedness`.
"""

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fgvar.measurement.mutation_guard import same_values
from fgvar.problem import Problem
from fgvar.testing.comparisons import (
    OWN_LOSS,
    difference,
    gap,
    own_loss,
    require_declared_noise,
    single,
    telling,
    with_loss,
    without_loss,
)
from fgvar.testing.exact_moments import by_step, resolving
from fgvar.testing.polynomials import largest
from fgvar.testing.under_test import EstimatorUnderTest, Failure, Finding, NotApplicable, Undecided

PRECISION_DRAWS = 8
MOVES = 16  # of all parameters, one of which at least has to move an estimate: of a sign alone, many may not
FLIPPED = 2  # of them may differ: rounding turns a comparison, or the order of two numbers
FEW = 200  # weights of a problem on which a function's mean in float32 is drawn


def structure(tested: EstimatorUnderTest) -> str:
    """Randomness, estimates and target have the right form: the parameters' keys, shapes, dtype and device."""
    loss = float(tested.problem.loss())
    for one in (tested, tested.on(single(tested.problem))):
        _ = one.target
        noise = one.one(one.noise(range(1)))
        one.estimate(noise)
        found = one.estimator.estimate(one.problem, noise)
        for name, value in found.gradient.items():
            if value.requires_grad:
                raise Failure(f"the estimate of {name!r} requires grad, and keeps its whole graph; detach it")
        _require_loss(found.loss, loss, tested.problem.dtype)
    return f"{len(tested.problem.params)} tensors, like problem.params, in float32 too"


def _require_loss(found: object, expected: float, dtype: torch.dtype) -> None:
    """Raise where an estimate states another loss than the batch mean; it need not state any."""
    if isinstance(found, int | float):
        raise Failure(f"the estimate's loss is {found!r}, a {type(found).__name__}, expected a tensor, or None")
    number = float(found) if isinstance(found, Tensor) and found.numel() == 1 else None
    # Wide enough for float32, in which the estimate may be: the mistake to find is a sum, or another batch's.
    share = 1e-3 + 4 * torch.finfo(dtype).eps
    if found is not None and (number is None or abs(number - expected) > share * abs(expected) + 1e-6):
        shown = found if number is None else number
        raise Failure(f"the estimate's loss is {shown!r}, expected {expected:.6g}, the batch mean, or None")


def deterministic(tested: EstimatorUnderTest) -> str:
    """The same noise gives the same estimate, to the bit."""
    noise = tested.one(telling(tested, needed=False))
    one, two = tested.estimate(noise), tested.estimate(noise)
    for name, value in one.items():
        if not torch.equal(value, two[name]):
            raise Failure(
                f"two calls with the same noise differ in {name!r} by {gap(value, two[name]):.2g}; draw nothing "
                "inside estimate, declare it in randomness"
            )
    return "two calls are equal to the bit"


def pure(tested: EstimatorUnderTest) -> str:
    """Parameters, buffers, batch, noise and every global random state are as they were."""
    problem, one = tested.problem, tested.one(telling(tested.fresh(), needed=False))
    before = {name: value.clone() for name, value in _tensors(problem, one).items()}
    states = _random_states(problem)
    tested.estimate(one)
    _ = tested.target
    tensors = _tensors(problem, one)
    changed = [name for name in {**before, **tensors} if not same_values(before.get(name), tensors.get(name))]
    if changed:
        raise Failure(f"estimate changed {', '.join(changed)}; work on copies")
    if recording := [name for name, value in tensors.items() if value.requires_grad or value.grad is not None]:
        raise Failure(
            f"estimate made {', '.join(recording)} require a gradient; work on copies, p.detach().requires_grad_()"
        )
    after = _random_states(problem)
    if moved := [name for name, state in states.items() if state != after[name]]:
        raise Failure(f"estimate moved the global random state of {', '.join(moved)}; use the noise it is given")
    return "inputs and global random states untouched"


def parameters(tested: EstimatorUnderTest) -> str:
    """At other parameters the estimate is another, in every tensor whose target is: none is kept from before."""
    drawn = telling(tested, 4, needed=False)
    count = max((len(u) for u in drawn.values()), default=1)
    here = [tested.estimate(tested.one(drawn, draw)) for draw in range(count)]
    still, tried = _told_apart(here), dict.fromkeys(tested.target, 0)
    if not still:
        raise NotApplicable("its estimates are signs or 0, which need not change with the parameters")
    for move in range(MOVES):
        draw, there = move % count, tested.on(_moved(tested.problem, move))
        try:
            aim = there.target
        except Failure:  # parameters may have a domain, which a smaller move does not leave
            continue
        found = there.estimate(tested.one(drawn, draw), finite=False, may_refuse=True)
        for name in list(still) if found else []:
            tried[name] += not torch.equal(aim[name], tested.target[name])
            if not torch.equal(found[name], here[draw][name]):
                still.remove(name)
        if not still:
            return "at other parameters it is another estimate"
    if kept := [name for name in still if tried[name] >= MOVES // 2]:
        raise Failure(
            f"the estimate of {kept[0]!r} is equal to the bit at {tried[kept[0]]} other parameters, where its target "
            "is another: it keeps what it has computed, or takes a model's parameters in place of problem.params"
        )
    raise NotApplicable("its target does not change with the parameters, or it refuses others")


def _told_apart(estimates: list[dict[str, Tensor]]) -> list[str]:
    """Tensors that have to change with the parameters; none where all numbers of each have one size, as signs do."""
    nonzero = {name: torch.cat([one[name][one[name] != 0].abs() for one in estimates]) for name in estimates[0]}
    live = [name for name, sizes in nonzero.items() if len(sizes)]
    return live if any(len(nonzero[name].unique()) > 1 for name in live if estimates[0][name].numel() > 1) else []


def _moved(problem: Problem, move: int) -> Problem:
    """The problem at parameters that are moved in every number, by up to their root mean square."""
    generator = torch.Generator().manual_seed(move)

    def moved(p: Tensor) -> Tensor:
        size = float(p.double().square().mean().sqrt()) or 0.1
        return p + torch.randn(p.shape, generator=generator).to(p) * (size / 2 ** (move % 4))

    return problem.at({name: moved(p) for name, p in problem.params.items()})


def chunking(tested: EstimatorUnderTest) -> str:
    """Noise is bit-identical and estimates agree to 1e-12 (float64; 1e-5 in float32), whatever the chunk."""
    require_declared_noise(tested)
    together = tested.noise(range(5))
    for draw in range(5):
        for name, u in tested.noise(range(draw, draw + 1)).items():
            if not torch.equal(u[0], together[name][draw]):
                raise Failure(f"noise {name!r} of draw {draw} depends on which draws are made with it")
    if not tested.vmaps:
        return "noise is bit-identical; it does not run under vmap: measure it with chunk=1"
    eps = torch.finfo(tested.problem.dtype).eps
    resolving(tested)  # or there is nothing to compare
    allowed = (1e-12 if tested.problem.dtype == torch.float64 else max(1e-5, 8 * eps)) + by_step(tested)
    together = telling(tested, 5, needed=False)
    plain = tested.estimates(together, chunk=1)
    for chunk in (2, 5):
        off = difference(tested, plain, tested.estimates(together, chunk=chunk))
        if not off[0] <= allowed:
            raise Failure(f"estimates of {off[1]!r} in chunks of {chunk} differ from plain calls by {off[0]:.2g}")
    return Finding(f"noise is bit-identical, estimates agree to {allowed:.2g}", allowed, exact=True)


def precision(tested: EstimatorUnderTest) -> str:
    """Estimates in float32 and in float64 of the same noise agree as far as float32 and a declared step allow."""
    if tested.problem.dtype != torch.float64:
        raise NotApplicable("needs a problem in float64")
    coarse = tested.on(single(tested.problem))
    if tested.opaque and sum(p.numel() for p in tested.problem.params.values()) > FEW:
        raise NotApplicable(
            "it draws its own noise, other numbers in float32: its mean there is tried where weights are few"
        )
    if tested.opaque:
        return _precision_by_drawing(coarse)
    allowed = resolving(coarse)
    drawn = telling(tested, PRECISION_DRAWS)
    draws = range(max((len(u) for u in drawn.values()), default=1))
    fine = [tested.estimate(tested.one(drawn, draw)) for draw in draws]
    sizes = {name: max(largest({name: one[name]}) for one in fine) for name in fine[0]}
    if max(sizes.values()) < 1e-3 * tested.size:
        raise NotApplicable("every estimate is 0 here, to which nothing is relative; move the parameters")
    # A small tensor is not let off by a large one, but what is all but dead is left out.
    sizes = {name: max(size, 1e-2 * max(sizes.values()), 1e-300) for name, size in sizes.items()}
    found = []
    for draw in draws:
        less = {k: u.float() if u.is_floating_point() else u for k, u in tested.one(drawn, draw).items()}
        rough = coarse.estimate(less)
        found.append(max((gap(value, rough[name]) / sizes[name], name) for name, value in fine[draw].items()))
    off, name = sorted(found)[-1 - FLIPPED if len(found) > FLIPPED else -1]
    if not off <= allowed:
        raise Failure(f"the estimate of {name!r} in float32 is off by {off:.2g} of its size in float64")
    return Finding(f"float32 agrees with float64 to {allowed:.1g}", allowed, exact=True)


def non_finite(tested: EstimatorUnderTest) -> str:
    """A loss that is not a number gives an estimate that is none, or an error: nothing is hidden."""
    if own_loss(tested):
        raise NotApplicable(OWN_LOSS)
    one = tested.one(telling(tested))
    flat = without_loss(tested).estimate(one, finite=False, may_refuse=True)  # which need not show it
    seen = [
        n for n, value in tested.estimate(one).items() if value.any() and not (flat and same_values(value, flat[n]))
    ]
    broken = tested.on(with_loss(tested.problem, lambda loss: loss * float("nan")))
    found = broken.estimate(one, finite=False, may_refuse=True)
    if hidden := [name for name in seen if found and bool(found[name].isfinite().all())]:
        raise Failure(f"NaN loss gives a finite estimate of {hidden[0]!r}; replace nothing, so that the user is told")
    return "NaN loss shows" if found else "NaN loss is refused"


def _precision_by_drawing(coarse: EstimatorUnderTest) -> str:
    """Of a function that draws its own noise, which need not be the same in float32: its mean there."""
    verdict = coarse.verdict()
    for kind, what in (("scale", "slope"), ("bias", "mean")):
        if verdict.failed(kind):
            raise Failure(f"its {what} in float32: {verdict.sentence(kind)}")
        if verdict.undecided(kind):
            raise Undecided(f"in float32 it {verdict.sentence(kind)}")
    return f"its mean in float32: {verdict}"


def _random_states(problem: Problem) -> dict[str, object]:
    numpy = np.random.get_state()
    states: dict[str, object] = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (numpy[1].tobytes(), numpy[2:]),  # type: ignore[index]
        "random": random.getstate(),
    }
    if problem.device.type == "cuda":
        states["torch.cuda"] = torch.cuda.get_rng_state(problem.device).numpy().tobytes()
    return states


def _tensors(problem: Problem, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors that an estimator sees, by name."""
    return {**problem.tensors(), **{f"noise {k!r}": v for k, v in noise.items()}}
