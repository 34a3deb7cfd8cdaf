"""The check of streams: what an optimiser that has seen several estimates declares of its last output."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fgvar.stochastic.past import recalls
from fgvar.testing.comparisons import difference, telling
from fgvar.testing.declared_checks import declared_variance, require_variance
from fgvar.testing.exact_moments import resolving, variances
from fgvar.testing.polynomials import Gradients
from fgvar.testing.under_test import EstimatorUnderTest, Failure, NotApplicable

FIELDS = {"of", "through", "steps", "lr"}  # of `fgvar.History`
STEPS = 3  # the fewest after which a state that is shared has been read


def stream(tested: EstimatorUnderTest) -> str:
    """No state is written to, nothing owed is lost; one estimate passes as it is, and several have ``gain``."""
    history: Any = tested.estimator
    if not getattr(history, "__dataclass_fields__", {}).keys() >= FIELDS:
        raise NotApplicable("is no stream of estimates")
    rest = replace(history, lr=0.0)
    _require_own_state(tested.on(tested.problem, rest))
    notes = ["its states are its own"]
    if hasattr(history.through, "owed"):
        _require_balance(tested.on(tested.problem, rest))
        notes.append("what it owes comes later")
    if recalls(history.of):
        return "; ".join([*notes, "its estimates depend on its outputs"])
    if not hasattr(history.through, "gain"):
        return "; ".join([*notes, "it declares no gain"])
    alone, factor = tested.ask("gain", lambda: [float(history.through.gain(n)) for n in (1, history.steps)])
    if math.isclose(alone, 1):
        _require_identity(tested.on(tested.problem, replace(rest, steps=1)))
        notes.append("one step is the estimate")
    if (known := _variance(tested.on(tested.problem, history.of))) is not None:
        declared = {name: factor * value for name, value in known.items()}
        notes.append(f"{factor:.4g} of its variance ({require_variance(tested.on(tested.problem, rest), declared)})")
    return "; ".join(notes)


def _require_own_state(tested: EstimatorUnderTest) -> None:
    """The stream is the same where nobody else has, and nobody writes to, what the optimiser is given and keeps."""
    history: Any = tested.estimator
    shared, copied = (
        tested.on(tested.problem, replace(history, through=_Fed(history.through, copies), steps=STEPS))
        for copies in (False, True)
    )
    noise = shared.one(telling(shared))
    off, name = difference(tested, copied.estimate(noise), shared.estimate(noise))
    if not off <= resolving(tested):
        raise Failure(
            "its state shares memory with gradients that come, or is written to: given copies of both, its output of "
            f"{name!r} after {STEPS} steps is off by {off:.2g}"
        )


class _Fed:
    """An optimiser fed with gradients that differ from step to step, of a stream without noise, too.

    Args:
        through: the optimiser.
        copies: hand it copies of gradients and states, so that it shares memory with nobody, itself included.
    """

    def __init__(self, through: Any, copies: bool) -> None:
        self.through, self.copies = through, copies

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.through, name)  # an optimiser needs not have ``leaves`` and ``on``
        return found if name != "on" else lambda *given: _Fed(found(*given), self.copies)

    def start(self, gradient: Gradients) -> tuple[float, Any]:
        return 1.0, self.through.start(gradient)

    def __call__(self, gradient: Gradients, state: tuple[float, Any]) -> tuple[Gradients, Any]:
        factor, own = state
        # The first gradient is the very one that the optimiser has been started with, which it may have kept.
        scaled = gradient if factor == 1 else {name: factor * g for name, g in gradient.items()}
        given: Any = scaled, own
        if self.copies:
            given = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, given)
        output, following = self.through(*given)
        return output, (-2 * factor, following)


def _require_balance(tested: EstimatorUnderTest) -> None:
    """What has come in is what has gone out and what is owed."""
    history: Any = tested.estimator
    kept, owed = (
        tested.on(tested.problem, replace(history, through=_Account(history.through, history.through.owed, says)))
        for says in (False, True)
    )
    noise = kept.one(telling(kept))
    off, name = difference(tested, kept.estimate(noise), owed.estimate(noise))
    if not off <= resolving(tested):
        raise Failure(
            f"what it owes of {name!r} is off by {off:.2g} from what came in less what went out: it is lost"
        )


class _Account:
    """An optimiser whose output is what it owes: gradients so far less outputs, or as it says itself."""

    def __init__(self, through: Any, owed: Any, says: bool) -> None:
        self.through, self.owed, self.says = through, owed, says

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.through, name)
        return found if name != "on" else lambda *given: _Account(found(*given), self.owed, self.says)

    def start(self, gradient: Gradients) -> tuple[Gradients, Any]:
        return {name: torch.zeros_like(g) for name, g in gradient.items()}, self.through.start(gradient)

    def __call__(self, gradient: Gradients, state: tuple[Gradients, Any]) -> tuple[Gradients, Any]:
        kept, own = state
        output, following = self.through(gradient, own)
        kept = {name: kept[name] + g - output[name] for name, g in gradient.items()}
        return (self.owed(following) if self.says else kept), (kept, following)


def _require_identity(tested: EstimatorUnderTest) -> None:
    """One estimate passes unchanged. Of one step the leaves of what it is of come first, each with an axis of 1."""
    history: Any = tested.estimator
    noise = tested.one(telling(tested))
    of = tested.on(tested.problem, history.of)
    own = {name: u[0] for name, u in zip(of.randomness.leaves, noise.values(), strict=False)}
    off, name = difference(tested, of.estimate(own), tested.estimate(noise))
    if not off <= resolving(tested):
        raise Failure(f"declares that one gradient passes unchanged, but {name!r} is off by {off:.2g}")


def _variance(of: EstimatorUnderTest) -> Mapping[str, Tensor] | None:
    """Of what the stream is of, where that is known exactly."""
    if (exact := variances(of)) is not None:
        return {name: exact[name].reshape(p.shape).to(p.dtype) for name, p in of.problem.params.items()}
    try:
        return declared_variance(of.estimator, of.problem)
    except NotApplicable:
        return None
