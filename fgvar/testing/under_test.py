"""The estimator under test: asks it on one problem so carefully that whatever it does wrong becomes a sentence."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from fgvar.estimators.protocol import GradientEstimator
from fgvar.estimators.randomness import Randomness
from fgvar.measurement.draws import ranges
from fgvar.measurement.protocol_checks import ZEROS, require_estimate, require_mapping, require_randomness
from fgvar.problem import Problem
from fgvar.testing.black_box import estimates
from fgvar.testing.polynomials import Gradients, largest
from fgvar.testing.resources import largest_chunk
from fgvar.testing.statistical import Draws, unbiased
from fgvar.testing.verdict import Verdict

T = TypeVar("T")


MISFIT = "it does not fit this problem"


class Failure(AssertionError):
    """A check that failed; the message is the sentence of the report."""


class Finding(str):
    """What a check found where it passed: its sentence, with the sizes of the errors that it would have caught.

    Attributes:
        caught: the smallest and the largest of them over layers, each a share of what it is an error of; None where
            it has no size, as of what is equal to the bit.
        exact: caught for certain, up to rounding; else with probability 0.95.
    """

    caught: tuple[float, float] | None
    exact: bool

    def __new__(cls, text: str, *sizes: float, exact: bool = False) -> "Finding":
        found = super().__new__(cls, text)
        found.caught, found.exact = (min(sizes), max(sizes)) if sizes else None, exact
        return found


class Undecided(Exception):
    """A check that could not have failed here: neither passed nor failed; the message says what would do."""


class NotApplicable(Exception):
    """A check that has nothing to test here; the message says why."""


@dataclass
class EstimatorUnderTest:
    """An estimator and a problem of its own.

    Attributes:
        estimator, problem: what is tried; the problem is a copy that the estimator may spoil.
        level: nominal false-alarm rate of each statistical verdict.
        draws: of the statistical verdicts; None takes their default, "enough" as many as a pilot says.
        memo: what is shared by the checks of one estimator on one problem.
    """

    estimator: GradientEstimator
    problem: Problem
    level: float
    draws: Draws | None = None
    memo: dict[str, Any] = field(default_factory=dict)

    def fresh(self) -> "EstimatorUnderTest":
        return EstimatorUnderTest(self.estimator, self.problem.clone(), self.level, self.draws, self.memo)

    def on(self, problem: Problem, estimator: GradientEstimator | None = None) -> "EstimatorUnderTest":
        """The same, or another, estimator on another problem."""
        return EstimatorUnderTest(self.estimator if estimator is None else estimator, problem, self.level, self.draws)

    @property
    def opaque(self) -> bool:
        """Does it draw its own noise from a seed (`from_function`)?"""
        return bool(getattr(self.estimator, "opaque", False))

    @cached_property
    def randomness(self) -> Randomness:
        try:
            found = self.estimator.randomness(self.problem)
            randomness = _required(lambda: require_randomness(found))
            randomness.sample(0, [0])  # a joint law may not fit so few numbers, and says so when it is drawn
            _ = [leaf.values for leaf in randomness.leaves.values()]
        except Failure:
            raise
        except ValueError as error:
            raise NotApplicable(f"{MISFIT}: {_line(error)}") from error
        except Exception as error:
            raise _raised("randomness", error) from error
        return randomness

    @cached_property
    def target(self) -> Gradients:
        found = self.ask("target", lambda: self.estimator.target(self.problem))
        target = self.require_gradient("the target", found)
        for name, value in target.items():
            if not bool(value.isfinite().all()):
                raise Failure(f"the target of {name!r} holds NaN or infinity, though the loss is finite")
        return {name: value.detach().clone() for name, value in target.items()}

    @property
    def size(self) -> float:
        """The largest entry of the target, in units of which errors are told.

        A `NotApplicable` where that is rounding: at an optimum examples' gradients are there, and cancel.
        """
        if self._at_rest:
            raise NotApplicable(
                "its target is 0 within rounding here, to which nothing is relative; move the parameters"
            )
        return max(largest(self.target), 1e-300)

    @cached_property
    def _at_rest(self) -> bool:
        found, eps = largest(self.target), torch.finfo(self.problem.dtype).eps
        if not 0 < found <= eps**0.5 * max(1.0, abs(float(self.problem.loss()))):
            return False
        try:
            alone: Gradients = self.problem.per_example(lambda one: one.backprop())
        except Exception:  # a loss may need the whole batch
            return False
        return found <= 1e3 * eps * largest(alone)

    @cached_property
    def vmaps(self) -> bool:
        """Does it run under torch.func.vmap? A plain call is tried first: its errors are the estimator's own."""
        if self.randomness.size == 0:
            return True
        self.estimate(self.one(self.noise(range(1))))
        self.ask("estimate", lambda: estimates(self.estimator, self.problem.clone(), self.noise(range(2))))
        return not self.problem.network.stack.is_plain(self.estimator)

    @cached_property
    def chunk(self) -> int:
        """Estimates that are computed at once."""
        return largest_chunk(self.estimator, self.problem, self.randomness) if self.vmaps else 1

    def noise(self, draws: Sequence[int], seed: int = 0) -> Gradients:
        def sample() -> Gradients:
            return self.randomness.sample(seed, draws, dtype=self.problem.dtype, device=self.problem.device)

        return self.ask("the noise", sample) if self.randomness.size else {}

    @staticmethod
    def one(noise: Mapping[str, Tensor], index: int = 0) -> Gradients:
        return {name: u[index] for name, u in noise.items()}

    def estimate(self, noise: Mapping[str, Tensor], *, finite: bool = True, may_refuse: bool = False) -> Gradients:
        """One estimate, by a plain call, as a dict of the parameters' shapes; empty where it refused and may."""
        try:
            found = self.estimator.estimate(self.problem, dict(noise))
        except Exception as error:
            if may_refuse:
                return {}
            raise _raised("estimate", error) from error
        gradient = self.require_gradient("the estimate", _required(lambda: require_estimate(found)))
        for name, value in gradient.items():
            if finite and not bool(value.isfinite().all()):
                raise Failure(f"the estimate of {name!r} holds NaN or infinity")
        # A buffer of its own, which the next call overwrites, would be equal to whatever it is compared with.
        return {name: value.detach().clone() for name, value in gradient.items()}

    def estimates(self, noise: Mapping[str, Tensor], chunk: int | None = None) -> Gradients:
        """Estimates for a batch of noise, stacked."""
        count, chunk = len(next(iter(noise.values()))), chunk or self.chunk
        pieces = [_take(noise, window) for window in ranges(0, count, chunk)]
        parts = self.ask("estimate", lambda: [estimates(self.estimator, self.problem, piece) for piece in pieces])
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def drawn(self, draws: range, seed: int) -> Iterator[Gradients]:
        """Stacked estimates of these draws, as many at a time as are computed at once."""
        for window in ranges(draws.start, draws.stop, self.chunk):
            yield self.estimates(self.noise(window, seed=seed))

    def require_gradient(self, what: str, found: object) -> Gradients:
        """A gradient as a dict; a `Failure` where it has not the parameters' keys, shapes, dtype and device."""
        gradient = _required(lambda: require_mapping(what, found))
        params = self.problem.params
        missing, extra = [k for k in params if k not in gradient], [k for k in gradient if k not in params]
        if missing or extra:
            lacks = f"lacks {_listed(missing)}" if missing else f"has {_listed(extra)} beside problem.params"
            raise Failure(f"{what} {lacks}; {ZEROS}")
        tensors: Gradients = {}
        for name, p in params.items():
            g = gradient[name]
            if not isinstance(g, Tensor):
                remedy = f"; {ZEROS}" if g is None else ""
                raise Failure(f"{what} of {name!r} is {type(g).__name__}, expected a tensor{remedy}")
            if g.layout is not torch.strided:
                raise Failure(f"{what} of {name!r} is {g.layout}, expected a dense tensor; give .to_dense()")
            tensors[name] = g
            for kind, got, wanted in (
                ("shape", tuple(g.shape), tuple(p.shape)),
                ("dtype", g.dtype, p.dtype),
                ("device", g.device, p.device),
            ):
                if got != wanted:
                    raise Failure(f"{what} of {name!r} has {kind} {got}, expected {wanted}, that of the parameter")
        return {name: tensors[name] for name in gradient}

    def verdict(self, size: float = 1.0) -> Verdict:
        """The statistical verdict on bias and scale; drawn once for all checks of this problem."""
        more: dict[str, Any] = {} if self.draws is None else {"draws": self.draws}

        def drawn() -> Verdict:
            return unbiased(self.estimator, self.problem, level=self.level, chunk=self.chunk, size=size, **more)

        return self.once("verdict", lambda: self.ask("estimate", drawn))

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """What ``compute`` returns, computed once for all checks of this estimator on this problem."""
        if name not in self.memo:
            self.memo[name] = compute()
        found: T = self.memo[name]
        return found

    def ask(self, what: str, call: Callable[[], T]) -> T:
        """What ``call`` returns; what it raises becomes a sentence."""
        try:
            return call()
        except (Failure, NotApplicable):
            raise
        except Exception as error:
            raise _raised(what, error) from error


def _required(check: Callable[[], T]) -> T:
    """What ``check`` returns; the sentence of its TypeError is a failure of the estimator's."""
    try:
        return check()
    except TypeError as error:
        raise Failure(str(error)) from None


def _raised(what: str, error: Exception) -> Failure:
    return Failure(f"{what} raised {type(error).__name__}: {_line(error)}")


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "(no message)"


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _take(noise: Mapping[str, Tensor], window: range) -> Gradients:
    return {name: u[window.start : window.stop] for name, u in noise.items()}
