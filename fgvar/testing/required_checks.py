"""Required checks: hold every estimator to its contract: what it returns, what it leaves alone, what its noise is.

Each check takes an `EstimatorUnderTest` and returns how it passed, or raises `Failure`, `Undecided` or
`NotApplicable`, with a sentence. That its mean is the target is in `fgvar.testing.unbiasedness`.
"""

import random
from collections.abc import Mapping

import numpy as np
import torch
from scipy import special
from torch import Tensor

from fgvar.measurement.mutation_guard import same_values
from fgvar.problem import Problem
from fgvar.testing.comparisons import OWN_LOSS, difference, gap, own_loss, require_declared_noise, single, with_loss
from fgvar.testing.exact_moments import by_step, tolerance
from fgvar.testing.mean_tests import MARGIN, MIN_MOVED, MeanTest, mean_test
from fgvar.testing.statistical import PILOT_SEED
from fgvar.testing.under_test import EstimatorUnderTest, Failure, NotApplicable, Undecided
from fgvar.testing.verdict import MAX_DRAWS, advice, rounded

NOISE_DRAWS = 8192
MANY = 1024  # random numbers, of which half as many draws are looked at
NUMBERS = 1 << 27  # of all noise that is looked at together
PRECISION_DRAWS = 8
FLIPPED = 2  # of them may differ: rounding turns a comparison, or the order of two numbers
FEW = 200  # weights of a problem on which a function's mean in float32 is drawn
PILE = 10  # draws of one value, of a law of hundreds, that are no coincidence


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
    number = float(found) if isinstance(found, Tensor) and found.numel() == 1 else None
    # Wide enough for float32, in which the estimate may be: the mistake to find is a sum, or another batch's.
    share = 1e-3 + 4 * torch.finfo(dtype).eps
    if found is not None and (number is None or abs(number - expected) > share * abs(expected) + 1e-6):
        shown = found if number is None else number
        raise Failure(f"the estimate's loss is {shown!r}, expected {expected:.6g}, the batch mean, or None")


def deterministic(tested: EstimatorUnderTest) -> str:
    """The same noise gives the same estimate, to the bit."""
    noise = tested.one(tested.noise(range(1)))
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
    problem, one = tested.problem, tested.one(tested.noise(range(1)))
    before = {name: value.clone() for name, value in _tensors(problem, one).items()}
    states = _random_states(problem)
    tested.estimate(one)
    _ = tested.target
    tensors = _tensors(problem, one)
    changed = [name for name in {**before, **tensors} if not same_values(before.get(name), tensors.get(name))]
    if changed:
        raise Failure(f"estimate changed {', '.join(changed)}; work on copies")
    after = _random_states(problem)
    if moved := [name for name, state in states.items() if state != after[name]]:
        raise Failure(f"estimate moved the global random state of {', '.join(moved)}; use the noise it is given")
    return "inputs and global random states untouched"


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
    allowed = (1e-12 if tested.problem.dtype == torch.float64 else 1e-5) + by_step(tested)
    plain = tested.estimates(together, chunk=1)
    for chunk in (2, 5):
        off = difference(tested, plain, tested.estimates(together, chunk=chunk))
        if off[0] > allowed:
            raise Failure(f"estimates of {off[1]!r} in chunks of {chunk} differ from plain calls by {off[0]:.2g}")
    return f"noise is bit-identical, estimates agree to {allowed:.2g}"


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
    allowed = tolerance(coarse)
    if allowed >= 0.5:
        raise NotApplicable("float32 cannot resolve its step: rounding alone is as large as an estimate")
    drawn = tested.noise(range(PRECISION_DRAWS)) if tested.randomness.size else {}
    draws = range(PRECISION_DRAWS if drawn else 1)
    fine = [tested.estimate(tested.one(drawn, draw)) for draw in draws]
    sizes = {name: max(float(one[name].abs().max()) for one in fine) for name in fine[0]}
    # A small tensor is not let off by a large one, but what is all but dead is left out.
    sizes = {name: max(size, 1e-2 * max(sizes.values()), 1e-300) for name, size in sizes.items()}
    found = []
    for draw in draws:
        less = {k: u.float() if u.is_floating_point() else u for k, u in tested.one(drawn, draw).items()}
        rough = coarse.estimate(less)
        found.append(max((gap(value, rough[name]) / sizes[name], name) for name, value in fine[draw].items()))
    off, name = sorted(found)[-1 - FLIPPED if len(found) > FLIPPED else -1]
    if off > allowed:
        raise Failure(f"the estimate of {name!r} in float32 is off by {off:.2g} of its size in float64")
    return f"float32 agrees with float64 to {allowed:.1g}"


def noise(tested: EstimatorUnderTest) -> str:
    """Every number has mean 0, variance 1 and its dtype's precision, and is uncorrelated with all others."""
    require_declared_noise(tested)
    drawn = tested.noise(range(_noise_draws(tested)), seed=1)
    if all(torch.equal(u, drawn[name][:64]) for name, u in tested.noise(range(64), seed=2).items()):
        raise Failure("another seed gives the same noise")
    u = torch.cat([leaf.flatten(1) for leaf in drawn.values()], dim=1).double()
    owners = [name for name, leaf in tested.randomness.leaves.items() for _ in range(leaf.size)]
    n, d = u.shape
    level = tested.level / 4
    for what, samples, expected in (
        ("mean 0", u, 0.0),
        ("variance 1", u.square(), 1.0),
        ("draws that are uncorrelated with each other", u[0::2] * u[1::2], 0.0),
    ):
        verdict = mean_test(samples, expected, level=level)
        if samples.shape[0] == n:  # two draws of a sparse law seldom meet, and that they do not is no fault
            _require_moves(verdict, owners)
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
    return f"{n} draws, false alarms {tested.level:.1g} (nominal); caught at 95 %: a correlation of {caught:.2g}"


def non_finite(tested: EstimatorUnderTest) -> str:
    """A loss that is not a number gives an estimate that is none, or an error: nothing is hidden."""
    if own_loss(tested):
        raise NotApplicable(OWN_LOSS)
    one = tested.one(tested.noise(range(1)))
    seen = [name for name, value in tested.estimate(one).items() if value.any()]
    broken = tested.on(with_loss(tested.problem, lambda loss: loss * float("nan")))
    found = broken.estimate(one, finite=False, may_refuse=True)
    if hidden := [name for name in seen if found and bool(found[name].isfinite().all())]:
        raise Failure(f"NaN loss gives a finite estimate of {hidden[0]!r}; replace nothing, so that the user is told")
    return "NaN loss shows" if found else "NaN loss is refused"


def _noise_draws(tested: EstimatorUnderTest) -> int:
    """So many that each number moves often enough for a verdict, by a look at other noise, if that is asked for."""
    if tested.draws != "enough":
        # Products of all pairs of so many numbers take the most of a report's time.
        return max(NOISE_DRAWS // (2 if tested.randomness.size > MANY else 1), tested.draws or 0)
    pilot = torch.cat([u.flatten(1) for u in tested.noise(range(NOISE_DRAWS), seed=PILOT_SEED).values()], dim=1)
    fewest = int((pilot != pilot.median(0).values).sum(0).min())
    most = min(MAX_DRAWS, NUMBERS // pilot.shape[1])
    return max(NOISE_DRAWS, min(most, rounded(MARGIN**2 * NOISE_DRAWS * MIN_MOVED / max(fewest, 1))))


def _require_moves(verdict: MeanTest, owners: list[str]) -> None:
    if bool(verdict.undecided.any()):
        number = int(verdict.undecided.double().argmax())
        raise Undecided(
            f"a number of leaf {owners[number]!r} moved in {int(verdict.moved[number])} of {verdict.draws} draws, "
            f"too few for a verdict on it; {advice(float(verdict.enough(torch.inf)[number]))}"
        )


def _precision_by_drawing(coarse: EstimatorUnderTest) -> str:
    """Of a function that draws its own noise, which need not be the same in float32: its mean there."""
    verdict = coarse.verdict()
    for kind, what in (("scale", "slope"), ("bias", "mean")):
        if verdict.failed(kind):
            raise Failure(f"its {what} in float32: {verdict.sentence(kind)}")
        if verdict.undecided(kind):
            raise Undecided(f"in float32 it {verdict.sentence(kind)}")
    return f"its mean in float32: {verdict}"


def _require_precision(name: str, u: Tensor) -> None:
    if torch.finfo(u.dtype).bits < 32:
        return  # whose own values are few
    pooled = u.flatten()[u.flatten() != 0].unique(return_counts=True)
    if len(pooled[0]) > 64 and int(pooled[1].max()) >= PILE:
        value = float(pooled[0][pooled[1].argmax()])
        raise Failure(
            f"{int(pooled[1].max())} numbers of noise {name!r} are {value:.6g} of {len(pooled[0])} values: it was "
            "clipped, or drawn with less precision than its dtype's"
        )
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
    return {**problem.tensors(), **{f"noise {k!r}": v for k, v in noise.items()}}
