"""Feedback: gradients whose way back is random and fixed, in place of the transposed weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.func import grad

from fgvar.estimators.activity_space import ActivitySpace
from fgvar.estimators.guesses import drawn, is_weight
from fgvar.estimators.loss_terms import gradient, gradient_and_loss
from fgvar.estimators.losses import GlobalLoss, Losses
from fgvar.estimators.protocol import Estimate
from fgvar.estimators.random_streams import fixed_normal
from fgvar.estimators.randomness import Randomness
from fgvar.problem import Problem


@dataclass(frozen=True)
class FeedbackAlignment:
    """Backpropagation through fixed random weights B in place of the transposes: FA, L-FA and LG-FA.

    Every module's own weights get their local gradient from the error that arrives; the error goes on through
    the module as if its weights were B, biases and norms as they are. Read-outs and heads, which nothing
    follows, learn exactly, and send their error back through B, too, as frozen modules do. Deterministic, and biased;
    the spread over B is a sweep over ``seed``.

    Args:
        losses: `GlobalLoss` for FA, ``LocalLosses(stop=False)`` for L-FA, `LocalLosses` for LG-FA.
        seed: of B, drawn as weights are initialised: N(0, min(2/√fan-in, 0.1)²).

    Raises:
        ValueError: on use, a network that lacks what the losses need.

    Source: Lillicrap et al. 2016; Ren et al. 2023, Table 3.

    Example:
        >>> FeedbackAlignment(seed=1).seed
        1
    """

    losses: Losses = GlobalLoss()
    seed: int = 0

    additive: ClassVar[bool] = True  # its estimate is the mean of those of each example alone

    @property
    def bias_reason(self) -> str:
        return "the error returns through random weights"

    def randomness(self, problem: Problem) -> Randomness:
        self.losses.check(problem)
        return Randomness({})

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:  # noqa: ARG002
        # The error passes through frozen layers, too.
        back = {
            name: drawn(problem, name, self.seed) if is_weight(value) else value.detach()
            for name, value in {**problem.frozen, **problem.params}.items()
        }
        tied = {alias: back[name] for alias, name in problem.network.aliases.items()}
        whole = {**problem.buffers, **back, **tied}
        weights = {}
        for owner in {path.rpartition(".")[0] for path in (*back, *tied)} - {""}:
            # A module may use parameters of its children without calling them.
            inside = (path for path in whole if path.startswith(f"{owner}."))
            weights[owner] = {path.removeprefix(f"{owner}."): whole[path] for path in inside}
        return Estimate(*gradient_and_loss(self.losses, problem.with_feedback(weights), problem.params))

    def target(self, problem: Problem) -> dict[str, Tensor]:
        return gradient(self.losses, problem, problem.params)


@dataclass(frozen=True)
class DirectFeedback:
    """The output's error ∂L/∂y, sent straight to every site by a fixed random projection: DFA.

    Each site's numbers get (B e) where their unit is active, B ~ N(0, 1/classes), and the layers' own local
    VJPs make gradients of the weights of it. Heads and read-outs learn exactly. Deterministic, and biased; the
    spread over B is a sweep over ``seed``.

    Args:
        space: which sites, and whose ReLUs mask them.
        seed: of B.

    Raises:
        ValueError: on use, a network without sites (see `ActivitySpace`).

    Source: Nøkland 2016; Ren et al. 2023, Table 3.

    Example:
        >>> DirectFeedback(seed=1).seed
        1
    """

    space: ActivitySpace = ActivitySpace()
    seed: int = 0

    additive: ClassVar[bool] = True  # its estimate is the mean of those of each example alone

    @property
    def bias_reason(self) -> str:
        return "the error is projected at random"

    def randomness(self, problem: Problem) -> Randomness:
        self.space.check(problem)
        return Randomness({})

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:  # noqa: ARG002
        outputs = problem.run(problem.params)[0]
        if not isinstance(outputs, Tensor):
            raise TypeError(
                f"the network returns {type(outputs).__name__}, expected one tensor, whose error is sent back; wrap "
                "the network so that it returns what the loss uses"
            )
        classes = outputs[0].numel()
        back = {
            site: fixed_normal(
                self.seed, f"feedback {site}", (classes, math.prod(shape)), problem.dtype, problem.device
            )
            for site, shape in self.space.shapes(problem).items()
        }
        linearised = self.space.linearise(problem, GlobalLoss())
        error = grad(lambda y: problem.losses(y).sum())(outputs.detach()).reshape(problem.batch_size, -1)
        sent = {
            site: (error @ back[site] / error.shape[1] ** 0.5).reshape(value.shape)
            for site, value in linearised.point.items()
        }
        found = linearised.backward(linearised.direction(sent))
        return Estimate({name: found[name] for name in problem.params}, problem.losses(outputs).mean())

    def target(self, problem: Problem) -> dict[str, Tensor]:
        return gradient(GlobalLoss(), problem, problem.params)
