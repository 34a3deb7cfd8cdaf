"""The problems on which the checks try an estimator: float64, with few enough numbers to enumerate."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from fgvar.networks import MLP, LocalMixer
from fgvar.nn.heads import blank_linear
from fgvar.nn.sites import with_sites
from fgvar.problem import Problem

# Of tensors, in the order of their names: with them every gradient that is not 0 has about the same norm, so that an
# estimate that doubles or turns any one of them is seen in the noise of all. Found by descent on the norms' spread.
SCALES = {
    "linear": (0.65, 0.95),
    "conv": (0.36, 0.58, 1.3, 1.0),
    "relu": (4.53, 0.45, 6.22, 0.46, 1.97, 2.18),
    "mixer": (0.95, 1.44, 0.74, 1.18, 1.0, 1.0, 0.42, 1.0, 0.66, 1.68, 0.76, 1.3, 1.0, 1.0, 2.74, 0.66),
}


def default_problems() -> dict[str, Problem]:
    """Four problems that between them have what estimators get wrong.

    "linear": one linear layer and two examples, small enough for sign vectors. "conv": a convolution and a layer of
    128 weights before a squared error near 10⁵, for one example. "relu": an `MLP` with inactive units, two layers of
    different shape, five examples, and a loss near 10⁻⁴. "mixer": a `LocalMixer` of two blocks, four patches and two
    groups with local heads, tensors of equal shape and nonzero biases.

    In each, all tensors have gradients of about one size: of the smallest, a fifth of the whole norm at least.

    Example:
        >>> {name: problem.batch_size for name, problem in default_problems().items()}
        {'linear': 2, 'conv': 1, 'relu': 5, 'mixer': 2}
    """
    linear = blank_linear(2, 2).double()
    mixer = LocalMixer((1, 4, 4), 3, blocks=2, patches=2, channels=6, groups=2, seed=1).double()
    relu = MLP(4, width=5, depth=2, classes=3, init="constant", head_init="constant", seed=1).double()
    image = skip_init(nn.Conv2d, 1, 4, 3)
    conv = nn.Sequential(image, nn.Tanh(), nn.Flatten(), blank_linear(16, 8)).double()
    for seed, (name, module) in {
        0: ("linear", linear),
        1: ("relu", relu),
        3: ("conv", conv),
        54: ("mixer", mixer),
    }.items():
        randomise(module, seed, SCALES[name])
    return {
        "linear": Problem(with_sites(linear), "cross_entropy", (randn(2, 2, seed=3), torch.tensor([0, 1]))),
        "conv": Problem(with_sites(conv), "mse", (0.23 * randn(1, 1, 4, 4, seed=6), 300 * randn(1, 8, seed=7))),
        "relu": Problem(relu, _small_cross_entropy, (0.58 * randn(5, 4, seed=4), torch.tensor([0, 1, 2, 1, 0]))),
        "mixer": Problem(mixer, "cross_entropy", (randn(2, 1, 4, 4, seed=5), torch.tensor([1, 2]))),
    }


def _small_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1e-4 * functional.cross_entropy(outputs, targets, reduction="none")


def randomise(module: nn.Module, seed: int, scales: Sequence[float] = ()) -> None:
    """Weights of unit gain and biases of 0.3, times ``scales``: all of them large enough to matter."""
    parameters = list(module.parameters())
    with torch.no_grad():
        for index, (p, scale) in enumerate(zip(parameters, scales or [1.0] * len(parameters), strict=True)):
            gain = 0.3 if p.ndim == 1 else p.shape[-1] ** -0.5
            p.copy_(scale * gain * randn(*p.shape, seed=100 * seed + index))


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
