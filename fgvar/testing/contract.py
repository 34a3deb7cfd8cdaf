"""The contract of every gradient estimator: what it returns, what it leaves alone, and that it is unbiased.

Each check takes a `Subject` and returns how it passed, or raises `Failure` or `NotApplicable`, with a sentence.
"""

import random
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy import special
from torch import Tensor

from fgvar.problem import Problem
from fgvar.testing.problems import fresh
from fgvar.testing.statistical import means
from fgvar.testing.subject import Failure, Gradients, NotApplicable, Subject, claim
from fgvar.testing.trials import batch_axes, difference, gap, single, tolerance, with_loss

NOISE_DRAWS = 4096


def structure(subject: Subject) -> str:
    """Randomness, estimates and target have the right form: the parameters' keys, shapes, dtype and device."""
    loss = float(subject.problem.loss())
    for one in (subject, subject.on(single(subject.problem))):
        _ = one.target
        noise = one.one(one.noise(range(1)))
        one.estimate(noise)
        found = one.estimator.estimate(one.problem, noise)
        for name, value in found.gradient.items():
            if value.requires_grad:
                raise Failure(f"the estimate of {name!r} requires grad, and keeps its whole graph; detach it")
        told = found.loss
        if told is None:
            continue
        if not isinstance(told, Tensor) or told.numel() != 1 or abs(float(told) - loss) > 1e-3 * abs(loss) + 1e-6:
            shown = float(told) if isinstance(told, Tensor) and told.numel() == 1 else told
            raise Failure(f"the estimate's loss is {shown!r}, expected {loss:.6g}, the batch mean, or None")
    return f"{len(subject.problem.params)} tensors, like problem.params, in float32 too"


def deterministic(subject: Subject) -> str:
    """The same noise gives the same estimate, to the bit."""
    noise = subject.one(subject.noise(range(1)))
    one, two = subject.estimate(noise), subject.estimate(noise)
    for name, value in one.items():
        if not torch.equal(value, two[name]):
            raise Failure(
                f"two calls with the same noise differ in {name!r} by {gap(value, two[name]):.2g}; draw nothing "
                "inside estimate, declare it in randomness"
            )
    return "two calls are equal to the bit"


def pure(subject: Subject) -> str:
    """Parameters, buffers, batch, noise and every global random state are as they were."""
    problem, one = subject.problem, subject.one(subject.noise(range(1)))
    before = {name: value.clone() for name, value in _tensors(problem, one).items()}
    states = _random_states(problem)
    subject.estimate(one)
    _ = subject.target
    tensors = _tensors(problem, one)
    changed = [name for name in {**before, **tensors} if not _same(before.get(name), tensors.get(name))]
    if changed:
        raise Failure(f"estimate changed {', '.join(changed)}; work on copies")
    after = _random_states(problem)
    if moved := [name for name, state in states.items() if state != after[name]]:
        raise Failure(f"estimate moved the global random state of {', '.join(moved)}; use the noise it is given")
    return "inputs and global random states untouched"


def chunking(subject: Subject) -> str:
    """Noise is bit-identical and estimates agree to 1e-12 (float64; 1e-5 in float32), whatever the chunk."""
    _require_declared_noise(subject)
    whole = subject.noise(range(5))
    for draw in range(5):
        for name, u in subject.noise(range(draw, draw + 1)).items():
            if not torch.equal(u[0], whole[name][draw]):
                raise Failure(f"noise {name!r} of draw {draw} depends on which draws are made with it")
    if not subject.vmaps:
        return "noise is bit-identical; it does not run under vmap: measure it with chunk=1"
    allowed = 1e-12 if subject.problem.dtype == torch.float64 else 1e-5
    plain = subject.estimates(whole, chunk=1)
    for chunk in (2, 5):
        off = difference(subject, plain, subject.estimates(whole, chunk=chunk))
        if off[0] > allowed:
            raise Failure(f"estimates of {off[1]!r} in chunks of {chunk} differ from plain calls by {off[0]:.2g}")
    return f"noise is bit-identical, estimates agree to {allowed:g}"


def noise(subject: Subject) -> str:
    """Every number has mean 0, variance 1 and its dtype's precision, and is uncorrelated with all others."""
    _require_declared_noise(subject)
    drawn = subject.noise(range(NOISE_DRAWS), seed=1)
    if all(torch.equal(u, drawn[name][:64]) for name, u in subject.noise(range(64), seed=2).items()):
        raise Failure("another seed gives the same noise")
    u = torch.cat([leaf.flatten(1) for leaf in drawn.values()], dim=1).double()
    owners = [name for name, leaf in subject.randomness.leaves.items() for _ in range(leaf.size)]
    n, d = u.shape
    level = subject.level / 4
    for what, samples, expected in (
        ("mean 0", u, 0.0),
        ("variance 1", u.square(), 1.0),
        ("draws that are uncorrelated with each other", u[0::2] * u[1::2], 0.0),
    ):
        verdict = means(samples, expected, level=level)
        if not verdict.passed:
            name = owners[verdict.worst]
            size = float(drawn[name].double().square().mean().sqrt())
            raise Failure(
                f"a number of leaf {name!r} has not {what}: {verdict} (the leaf's root mean square {size:.3g})"
            )
    product, square = u.T @ u, u.square().T @ u.square()
    z = (product / square.clamp_min(1e-300).sqrt()).fill_diagonal_(0).abs()
    critical = float(special.ndtri(1 - level / max(d * (d - 1), 1)))
    if float(z.max()) > critical:
        i, j = divmod(int(z.argmax()), d)
        raise Failure(
            f"a number of leaf {owners[i]!r} and one of {owners[j]!r} are correlated (z = {float(z.max()):.1f}, "
            f"critical {critical:.1f}): E uuᵀ is not the identity"
        )
    for name, leaf in drawn.items():
        _require_precision(name, leaf)
    caught = (critical + 1.645) / n**0.5
    return f"{n} draws, false alarms {subject.level:.1g} (nominal); caught at 95 %: a correlation of {caught:.2g}"


def non_finite(subject: Subject) -> str:
    """A loss or noise that is not a number gives an estimate that is none, or an error: nothing is hidden."""
    drawn = subject.noise(range(2)) if subject.randomness.size else {}
    one = subject.one(drawn)
    plain = subject.estimate(one)
    trials = {
        "loss": (
            with_loss(subject.problem, lambda loss: loss * float("nan")),
            one,
            [k for k in plain if plain[k].any()],
        )
    }
    if one and not subject.opaque:
        other = subject.estimate(subject.one(drawn, 1))
        moved = [name for name in plain if not torch.equal(plain[name], other[name])]
        trials["noise"] = (fresh(subject.problem), {name: u * float("nan") for name, u in one.items()}, moved)
    for what, (problem, own, names) in trials.items():
        found = subject.on(problem).estimate(own, finite=False, may_refuse=True)
        if hidden := [name for name in names if found and bool(found[name].isfinite().all())]:
            raise Failure(
                f"NaN {what} gives a finite estimate of {hidden[0]!r}; replace nothing, so that the user is told"
            )
    return f"NaN {' and '.join(trials)} shows"


def linear_in_loss(subject: Subject) -> str:
    """ĝ of 1000·L is 1000 ĝ of L, and ĝ of L + L² is the sum of theirs, for the same noise."""
    one = subject.one(subject.noise(range(1)))

    def of(change: Callable[[Tensor], Tensor]) -> Gradients:
        return subject.on(with_loss(subject.problem, change)).estimate(one)

    plain, large = of(lambda loss: loss), of(lambda loss: 1000 * loss)
    both, square = of(lambda loss: loss + loss**2), of(lambda loss: loss**2)
    allowed = tolerance(subject)
    scaled = {name: 1000 * value for name, value in plain.items()}
    summed = {name: value + square[name] for name, value in plain.items()}
    for what, found, expected in (("1000·L", large, scaled), ("L + L²", both, summed)):
        off = difference(subject, expected, found)
        if off[0] > allowed:
            raise Failure(f"ĝ of {what} is off by {off[0]:.2g} of its size in {off[1]!r}: not linear in the loss")
    return f"1000·L and L + L² to {allowed:.1g}"


def batch_order(subject: Subject) -> str:
    """Examples in another order, with their own noise, give the same estimate."""
    _require_declared_noise(subject, empty=True)
    problem = subject.problem
    n = problem.batch_size
    if n == 1:
        raise NotApplicable("a batch of one has one order")
    order = torch.arange(n).roll(1)
    one, axes = subject.one(subject.noise(range(1))), batch_axes(subject)
    moved = {k: u if (axis := axes[k]) is None else u.index_select(axis, order.to(u.device)) for k, u in one.items()}
    permuted = subject.on(problem.at(batch=(problem.inputs[order], problem.targets[order])))
    off = difference(subject, subject.estimate(one), permuted.estimate(moved))
    if off[0] > tolerance(subject):
        raise Failure(f"the estimate of {off[1]!r} changes by {off[0]:.2g} of its size with the order of the batch")
    return f"{n} examples, rolled by one"


def zero_gradient(subject: Subject) -> str:
    """Where the loss does not depend on anything, the estimate's mean is 0."""
    flat = subject.on(with_loss(subject.problem, lambda loss: 0 * loss))
    if subject.randomness.size == 0:
        found = [flat.estimate({})]
    else:
        drawn = subject.noise(range(8))
        found = [flat.estimate(flat.one(drawn, draw)) for draw in range(8)]
    if all(not bool(value.any()) for one in found for value in one.values()):
        return "every estimate is 0"
    if flat.mean is not None:
        worst = max(float(value.abs().max()) for value in flat.mean[0].values())
        if worst > 1e-9:
            raise Failure(f"a loss that is 0 everywhere has an estimate of mean {worst:.2g} ({flat.mean[1]})")
        return flat.mean[1]
    verdict = flat.verdict()
    if not verdict.passed:
        raise Failure(f"a loss that is 0 everywhere has an estimate whose mean is not 0: {verdict}")
    return str(verdict)


def unbiased(subject: Subject) -> str:
    """E ĝ is the target: exactly where its noise can be enumerated, else by a statistical verdict."""
    if subject.mean is None:
        verdict = subject.verdict()
        if not verdict.unbiased:
            raise Failure(verdict.sentence("bias"))
        order = claim(subject.estimator, "bias_order")
        return str(verdict) + (f"; below that, it declares a bias of order step^{order}" if order else "")
    found, how = subject.mean
    target = subject.target
    off = {name: float((found[name] - value).abs().max()) / subject.size for name, value in target.items()}
    worst = max(off, key=lambda name: off[name])
    if not off[worst] <= tolerance(subject):
        share = float((found[worst] - target[worst]).norm() / target[worst].norm().clamp_min(1e-300))
        raise Failure(f"E ĝ of {worst!r} is off its target by {share:.3g} of the target's norm ({how})")
    return f"{how}, to {tolerance(subject):.1g}"


def scale(subject: Subject) -> str:
    """The slope ⟨E ĝ, g⟩/‖g‖² is 1 in every parameter, which a cosine cannot see."""
    if subject.mean is None:
        verdict = subject.verdict()
        if not verdict.scaled:
            raise Failure(verdict.sentence("scale"))
        return str(verdict)
    found, how = subject.mean
    for name, value in subject.target.items():
        length = float(value.double().square().sum())
        if length**0.5 <= 1e-6 * subject.size:
            continue
        slope = float((found[name] * value).sum()) / length
        if not abs(slope - 1) <= tolerance(subject) * subject.size / length**0.5:
            raise Failure(f"the slope of {name!r} is {slope:.6g}, expected 1 ({how})")
    return f"{how}, to {tolerance(subject):.1g}"


def _require_declared_noise(subject: Subject, *, empty: bool = False) -> None:
    if subject.opaque:
        raise NotApplicable("needs declared noise; this function draws its own from a seed")
    if not empty and subject.randomness.size == 0:
        raise NotApplicable("needs no noise")


def _require_precision(name: str, u: Tensor) -> None:
    values = u.flatten(1)[:, 0]  # of one number: orthogonal directions share their values with each other
    values = values[values != 0]
    distinct = len(values.unique())
    # A law of a few values is discrete on purpose; one of hundreds that repeat was rounded.
    if 64 < distinct < 0.99 * len(values):
        raise Failure(
            f"{len(values)} draws of a number of noise {name!r} have only {distinct} distinct values: it was drawn "
            f"with less precision than {str(u.dtype).removeprefix('torch.')}"
        )


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
    return {
        **{f"parameter {k!r}": v for k, v in problem.params.items()},
        **{f"buffer {k!r}": v for k, v in problem.buffers.items()},
        **{f"noise {k!r}": v for k, v in noise.items()},
        "inputs": problem.inputs,
        "targets": problem.targets,
    }


def _same(one: Tensor | None, two: Tensor | None) -> bool:
    if one is None or two is None or one.shape != two.shape:
        return False
    return torch.equal(one.nan_to_num(), two.nan_to_num())
