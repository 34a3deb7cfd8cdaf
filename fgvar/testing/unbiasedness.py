"""Unbiasedness: checks that E ĝ is the target, of any loss, in any order of the batch, exactly or by a verdict."""

from collections.abc import Callable

import torch
from torch import Tensor

from fgvar.testing.comparisons import (
    OWN_LOSS,
    difference,
    own_loss,
    reordered,
    require_declared_noise,
    telling,
    telling_draws,
    with_loss,
    without_loss,
)
from fgvar.testing.exact_moments import claim, mean, resolving
from fgvar.testing.polynomials import largest
from fgvar.testing.under_test import EstimatorUnderTest, Failure, Finding, NotApplicable, Undecided

ZERO_DRAWS = 8
ROUNDING = 1e-2  # of an estimate: what no more is off by may be rounding over a small step


def linear_in_loss(tested: EstimatorUnderTest) -> str:
    """ĝ of 1000·L is 1000 ĝ of L, and ĝ of L + L² the sum of theirs: for the same noise, or else in the mean.

    But for what is added whatever the loss, which ĝ of 0·L tells.
    """
    if own_loss(tested):
        raise NotApplicable(OWN_LOSS)
    if not getattr(getattr(tested.estimator, "sample", None), "linear", True):
        raise NotApplicable(
            "it draws by the loss, which no estimate is linear in then; its mean is tried by unbiased"
        )
    one = tested.one(telling(tested))

    def changed(change: Callable[[Tensor], Tensor]) -> EstimatorUnderTest:
        return tested.on(with_loss(tested.problem, change))

    large, both = changed(lambda loss: 1000 * loss), changed(lambda loss: loss + loss**2)
    flat = without_loss(tested)
    plain, square = tested.estimate(one), changed(lambda loss: loss**2).estimate(one)
    scaled = {name: 1000 * value for name, value in plain.items()}
    summed = {name: value + square[name] for name, value in plain.items()}
    notes = []
    for what, other, expected, times in (("1000·L", large, scaled, 999), ("L + L²", both, summed, 1)):
        found = other.estimate(one)
        off, name = difference(tested, expected, found)
        if not off <= resolving(tested) and (added := flat.estimate(one, finite=False, may_refuse=True)):
            less = {k: value - times * added[k] for k, value in expected.items()}
            off, name = min((off, name), difference(tested, less, found))
        if not off <= resolving(tested):
            notes.append(
                _in_the_mean(other, f"ĝ of {what} is off by {off:.2g} of its size in {name!r}{_hint(tested, off)}")
            )
    allowed = resolving(tested)
    return "; ".join(notes) or Finding(f"1000·L and L + L² to {allowed:.1g}", allowed, exact=True)


def batch_order(tested: EstimatorUnderTest) -> str:
    """Examples in another order, with their own noise, give the same estimate, or one of the same mean."""
    require_declared_noise(tested, empty=True)
    problem = tested.problem
    n = problem.batch_size
    if n == 1:
        raise NotApplicable("a batch of one has one order")
    order = torch.arange(n).roll(1)
    one = tested.one(telling(tested))
    moved = reordered(tested, one, order)
    permuted = tested.on(problem.rows(order))
    off, name = difference(tested, tested.target, permuted.target)
    if not off <= resolving(tested):
        raise Failure(f"the target of {name!r} changes by {off:.2g} of its size with the order of the batch")
    off, name = difference(tested, tested.estimate(one), permuted.estimate(moved))
    if not off <= resolving(tested):
        return _in_the_mean(permuted, f"the estimate of {name!r} changes by {off:.2g} with the order of the batch")
    return f"{n} examples, rolled by one"


def zero_gradient(tested: EstimatorUnderTest) -> str:
    """Where the loss does not depend on anything, the estimate's mean is 0."""
    if own_loss(tested):
        raise NotApplicable(OWN_LOSS)
    flat = without_loss(tested)
    draws = telling_draws(tested, ZERO_DRAWS) if flat.randomness.size else [0]
    drawn = flat.noise(draws)
    found = [flat.estimate(flat.one(drawn, index)) for index in range(len(draws))]
    if all(not bool(value.any()) for one in found for value in one.values()):
        return "every estimate is 0"
    if (exact := mean(flat)) is not None:
        worst = largest(exact.gradient)
        if worst > 1e-9 * tested.size:
            raise Failure(f"a loss that is 0 everywhere has an estimate of mean {worst:.2g} ({exact.how})")
        return exact.how
    _ = flat.target  # whose own numbers may be none
    verdict = flat.verdict(size=sum(float(value.square().sum()) for value in tested.target.values()) ** 0.5)
    for kind in ("bias", "scale"):
        if verdict.failed(kind):
            raise Failure(f"a loss that is 0 everywhere has an estimate whose mean is not 0: {verdict}")
        if verdict.undecided(kind):
            raise Undecided(f"of a loss that is 0 everywhere it {verdict.sentence(kind)}")
    return Finding(str(verdict), *verdict.sizes("bias"))


def unbiased(tested: EstimatorUnderTest) -> str:
    """E ĝ is the target: exactly where its noise can be enumerated, else by a statistical verdict."""
    _ = tested.size  # where the target is rounding, a bias is, too
    exact = mean(tested)
    if exact is None:
        order = claim(tested.estimator, "bias_order")
        found = _drawn(tested, "bias")
        told = f"{found}; below that, it declares a bias of order step^{order}" if order else found
        return Finding(told, *(found.caught or ()))
    target = tested.target
    off = {name: float((exact.gradient[name] - value).abs().max()) / tested.size for name, value in target.items()}
    worst = max(off, key=lambda name: off[name])
    if not off[worst] <= exact.allowed:
        share = float((exact.gradient[worst] - target[worst]).norm() / target[worst].norm().clamp_min(1e-300))
        raise Failure(f"E ĝ of {worst!r} is off its target by {share:.3g} of the target's norm ({exact.how})")
    return Finding(f"{exact.how}, to {exact.allowed:.1g}", exact.allowed, exact=True)


def scale(tested: EstimatorUnderTest) -> str:
    """The slope ⟨E ĝ, g⟩/‖g‖² is 1 in every parameter, which a cosine cannot see."""
    _ = tested.size
    exact = mean(tested)
    if exact is None:
        return _drawn(tested, "scale")
    for name, value in tested.target.items():
        length = float(value.double().square().sum())
        if length**0.5 <= 1e-6 * tested.size:
            continue
        slope = float((exact.gradient[name] * value).sum()) / length
        if not abs(slope - 1) <= exact.allowed * tested.size / length**0.5:
            raise Failure(f"the slope of {name!r} is {slope:.6g}, expected 1 ({exact.how})")
    return Finding(f"{exact.how}, to {exact.allowed:.1g}", exact.allowed, exact=True)


def _drawn(tested: EstimatorUnderTest, kind: str) -> Finding:
    verdict = tested.verdict()
    if verdict.failed(kind):
        raise Failure(verdict.sentence(kind))
    if verdict.undecided(kind):
        raise Undecided(verdict.sentence(kind))
    return Finding(str(verdict), *verdict.sizes(kind))


def _in_the_mean(tested: EstimatorUnderTest, what: str) -> str:
    """What differs draw by draw can be right all the same: random rounding, noise that is added, weights by loss."""
    for check in (unbiased, scale):
        try:
            how = check(tested)
        except Failure as failure:
            raise Failure(f"{what}, and its mean is wrong: {failure}") from failure
        except Undecided as reason:
            raise Undecided(f"{what}, and of its mean it {reason}") from reason
    return f"{what}, but not in the mean ({how})"


def _hint(tested: EstimatorUnderTest, off: float) -> str:
    if off > ROUNDING or claim(tested.estimator, "step"):
        return ""
    return f" (as rounding over a step of {100 * torch.finfo(tested.problem.dtype).eps / off:.0e} is: declare step=)"
