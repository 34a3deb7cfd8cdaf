"""The problems on which the checks try an estimator: float64, with few enough numbers to enumerate."""

import copy

import torch
from torch import Tensor, nn

from fgvar.heads import blank_linear
from fgvar.networks import MLP, LocalMixer
from fgvar.problem import Problem
from fgvar.sites import with_sites


def default_problems() -> dict[str, Problem]:
    """Three problems that between them have what estimators get wrong.

    "linear": one linear layer and two examples, small enough for sign vectors. "relu": an `MLP` with inactive
    units, two layers of different shape and three examples. "mixer": a `LocalMixer` of two blocks, four
    patches and two groups with local heads, tensors of equal shape and nonzero biases.

    Example:
        >>> [problem.batch_size for problem in default_problems().values()]
        [2, 3, 2]
    """
    linear = blank_linear(2, 2).double()
    mixer = LocalMixer((1, 4, 4), 3, blocks=2, patches=2, channels=6, groups=2, seed=1).double()
    relu = MLP(4, width=5, depth=2, classes=3, init="constant", head_init="constant", seed=1).double()
    for seed, module in enumerate((linear, relu, mixer)):
        randomise(module, seed)
    return {
        "linear": Problem(with_sites(linear), "cross_entropy", (randn(2, 2, seed=3), torch.tensor([0, 1]))),
        "relu": Problem(relu, "cross_entropy", (randn(3, 4, seed=4), torch.tensor([0, 1, 2]))),
        "mixer": Problem(mixer, "cross_entropy", (randn(2, 1, 4, 4, seed=5), torch.tensor([0, 1]))),
    }


def fresh(problem: Problem) -> Problem:
    """A copy whose tensors are its own: whatever an estimator does to them stays there."""
    other = copy.copy(problem)
    other.params = {name: p.clone() for name, p in problem.params.items()}
    other.buffers = {name: b.clone() for name, b in problem.buffers.items()}
    other.inputs, other.targets = problem.inputs.clone(), problem.targets.clone()
    return other


def randomise(module: nn.Module, seed: int) -> None:
    """Weights of unit gain and biases of 0.3, all of them large enough to matter."""
    with torch.no_grad():
        for index, p in enumerate(module.parameters()):
            scale = 0.3 if p.ndim == 1 else p.shape[-1] ** -0.5
            p.copy_(scale * randn(*p.shape, seed=100 * seed + index))


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
