"""History: estimates one after another, passed through an optimiser; the estimate is its last output."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fgvar.errors import require_integer, require_type, require_word
from fgvar.estimators.protocol import Estimate, GradientEstimator, require_estimator
from fgvar.estimators.randomness import Randomness
from fgvar.problem import Problem
from fgvar.stochastic.past import after
from fgvar.stochastic.streams import Through
from fgvar.stochastic.transforms import Gradient

THROUGH = "through"  # what names of the optimiser's own leaves begin with


@dataclass(frozen=True)
class History:
    """The last output of an optimiser that has seen ``steps`` independent estimates, one after another.

    g_t = of(θ_t); (o_t, s_t) = through(g_t, s_{t−1}); θ_{t+1} = θ_t − lr·o_t; ĝ = o_T, held against ``of``'s target
    at θ_1. With lr = 0 the stream is at rest; along a path its gradients are those of other parameters. A point of
    ``of`` may ask for o_{t−1} (`fgvar.points.Past`), which is 0 for t = 1.

    Noise is ``steps`` times ``of``'s, in front of every leaf. Probabilities of samplers are those of the start, as
    where scores are taken anew every few epochs. Steps are a loop, and parameters of one of them are held.

    Args:
        of: any gradient estimator.
        through: the optimiser (`fgvar.streams`): ``start(gradient) -> state``, and ``(gradient, state) -> (output,
            state)``.
        steps: estimates, T.
        lr: step size along the outputs.

    Raises:
        TypeError: ``of`` is no estimator, ``through`` no optimiser, ``steps`` no integer, ``lr`` no number.
        ValueError: fewer than 1 step.

    Example:
        >>> from fgvar.estimators.schemes import scheme
        >>> from fgvar.stochastic.streams import Momentum
        >>> import torch
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> history = History(scheme("FG-W"), Momentum(0.9), steps=5)
        >>> {name: leaf.shape for name, leaf in history.randomness(problem).leaves.items()}
        {'weight': (5, 2, 3), 'bias': (5, 2)}
    """

    of: GradientEstimator
    through: Through
    steps: int
    lr: float = 0.0

    def __post_init__(self) -> None:
        require_estimator("of", self.of)
        require_word("through", self.through, ("start",), "fgvar.streams.Momentum()")
        require_integer("steps", self.steps, 1)
        require_type("lr", self.lr, Real, "a number")

    @property
    def bias_reason(self) -> str:
        """Why its mean is not its target; empty where it is."""
        path = "gradients along a path" if self.lr and self.steps > 1 else ""
        own = (getattr(word, "bias_reason", "") for word in (self.of, self.through))
        return "; ".join(reason for reason in (*own, path) if reason)

    def randomness(self, problem: Problem) -> Randomness:
        leaves = {
            _outer(name): leaf.within("of") if leaf.group else leaf
            for name, leaf in self.of.randomness(problem).leaves.items()
        }
        own = self.through.leaves(problem) if hasattr(self.through, "leaves") else {}
        leaves |= {f"{THROUGH}.{name}".rstrip("."): leaf.within(THROUGH) for name, leaf in own.items()}
        return Randomness({name: leaf.repeated(self.steps) for name, leaf in leaves.items()})

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        here, state = problem, None
        output: Gradient = {name: torch.zeros_like(p) for name, p in problem.params.items()}
        for step in range(self.steps):
            if step and self.lr:  # `Problem.moved` remembers the start, whose probabilities its samplers keep
                here = here.moved({name: p - self.lr * output[name] for name, p in here.params.items()})
            of, own = _split({name: u[step] for name, u in noise.items()})
            gradient = after(self.of, output).estimate(here, of).gradient
            state = self.through.start(gradient) if step == 0 else state
            through = self.through.on(here, own) if hasattr(self.through, "on") else self.through
            output, state = _passed(self.through, through(gradient, state))
        return Estimate({name: output[name] for name in problem.params})

    def target(self, problem: Problem) -> dict[str, Tensor]:
        return self.of.target(problem)


def _passed(through: Through, found: object) -> tuple[Gradient, Any]:
    """What an optimiser, which may be anybody's, made of a gradient; a dict of two tensors would unpack, too."""
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], dict):
        raise TypeError(
            f"{through!r} returned {type(found).__name__}, expected (output, state), the output a dict like the "
            "gradient that it was given"
        )
    return found


def _outer(name: str) -> str:
    """What a leaf of ``of`` is called here: as it is, unless it begins like what is named here."""
    return f"of.{name}" if name.partition(".")[0] in ("of", THROUGH) else name


def _split(noise: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The noise of ``of`` and of the optimiser, each by its own names."""
    whose = {name: name.partition(".")[0] == THROUGH for name in noise}
    return (
        {name.removeprefix("of."): u for name, u in noise.items() if not whose[name]},
        {name.partition(".")[2]: u for name, u in noise.items() if whose[name]},
    )
