"""A physics-informed network: the residual of Poisson's equation in one dimension, and its exact solution."""

import math
from numbers import Real

import torch
from torch import Tensor, nn

from fgvar.errors import require_integer, require_type
from fgvar.nn.sites import Site
from fgvar.nn.traits import declare


class PoissonResidual(nn.Module):
    """The residual −u″ − f of Poisson's equation −u″ = f on (0, 1) with u(0) = u(1) = 0, at every point.

    u(x) = x(1 − x)·N(x) has the boundary values, N a perceptron of ``depth`` hidden layers with tanh; f is the normal
    density around ½ with standard deviation ``source``. With "mse" against zeros the loss is that of a
    physics-informed network, (1/n) Σ (u″ + f)², whose examples are the collocation points. Derivatives by x go
    through the layers beside the value, as one tensor [batch, 3, width] of N, N′ and N″: forward mode, whose sites
    ``site{i}`` perturb all three; the read-out learns exactly.

    Shapes: points ``[batch, 1]`` → residuals ``[batch]``.

    Args:
        width: units of each hidden layer.
        source: standard deviation of f, in the unit of x.
        depth: number of hidden layers.
        seed: of the weights and biases, uniform in ±1/√fan-in.

    Raises:
        TypeError: a source that is no number.
        ValueError: no unit, no layer, or a source that is not above 0.

    Source: Subramanian et al. 2022, Sec. 4 (there in two dimensions, periodic, and with a penalty for the boundary).

    Example:
        >>> net = PoissonResidual(width=4, source=0.1)
        >>> x = torch.tensor([[0.25], [0.5]])
        >>> net(x).shape, net.solution(x).round(decimals=4)
        (torch.Size([2]), tensor([0.1248, 0.2101]))
    """

    def __init__(self, width: int, *, source: float, depth: int = 2, seed: int = 0) -> None:
        super().__init__()
        for what, number in (("width", width), ("depth", depth)):
            require_integer(what, number, 1)
        require_type("source", source, Real, "a standard deviation above 0")
        if not 0 < source < math.inf:
            raise ValueError(f"source is {source!r}, expected a standard deviation above 0")
        self.source, self.depth = source, depth
        generator = torch.Generator().manual_seed(seed)
        for index in range(depth):
            self.add_module(f"layer{index}", JetLinear(1 if index == 0 else width, width, generator))
            self.add_module(f"site{index}", Site())
            self.add_module(f"act{index}", JetTanh())
        self.readout = JetLinear(width, 1, generator)
        declare(self.readout, learns_exactly=True)

    def forward(self, x: Tensor) -> Tensor:
        network, x = self._jet(x), x[:, 0]
        second = x * (1 - x) * network[:, 2] + 2 * (1 - 2 * x) * network[:, 1] - 2 * network[:, 0]
        return -second - self.density(x)

    def u(self, x: Tensor) -> Tensor:
        """What the network has for the solution at points [batch, 1]: x(1 − x)·N(x), [batch]."""
        network, x = self._jet(x), x[:, 0]
        return x * (1 - x) * network[:, 0]

    def solution(self, x: Tensor) -> Tensor:
        """The solution of −u″ = f at points [batch, 1], in closed form: H(0) + (H(1) − H(0)) x − H(x), [batch].

        H is the second antiderivative of f, H(x) = (x − ½) Φ(z) + s φ(z) with z = (x − ½)/s, s the source's
        standard deviation, and Φ and φ the standard normal distribution and density.
        """
        x = x[:, 0]
        start, end = self._second_antiderivative(torch.stack([torch.zeros_like(x), torch.ones_like(x)]))
        return start + (end - start) * x - self._second_antiderivative(x)

    def density(self, x: Tensor) -> Tensor:
        """The source f, of mass 1 up to what lies outside of (0, 1)."""
        z = (x - 0.5) / self.source
        return torch.exp(-0.5 * z**2) / (self.source * math.sqrt(2 * math.pi))

    def _second_antiderivative(self, x: Tensor) -> Tensor:
        return (x - 0.5) * torch.special.ndtr((x - 0.5) / self.source) + self.source**2 * self.density(x)

    def _jet(self, x: Tensor) -> Tensor:
        """N and its first and second derivative at points [batch, 1]: [batch, 3]."""
        jet = torch.stack([x, torch.ones_like(x), torch.zeros_like(x)], 1)
        for index in range(self.depth):
            jet = getattr(self, f"layer{index}")(jet)
            jet = getattr(self, f"act{index}")(getattr(self, f"site{index}")(jet))
        found: Tensor = self.readout(jet)
        return found[..., 0]


class JetLinear(nn.Module):
    """A linear map of a value with its two derivatives: ``[batch, 3, fan_in] → [batch, 3, fan_out]``."""

    def __init__(self, fan_in: int, fan_out: int, generator: torch.Generator) -> None:
        super().__init__()

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(fan_in))

        self.weight, self.bias = uniform(fan_out, fan_in), uniform(fan_out)

    def forward(self, jet: Tensor) -> Tensor:
        value, *derivatives = (jet @ self.weight.T).unbind(1)
        return torch.stack([value + self.bias, *derivatives], 1)  # a constant has no derivative

    def extra_repr(self) -> str:
        fan_out, fan_in = self.weight.shape
        return f"fan_in={fan_in}, fan_out={fan_out}"


class JetTanh(nn.Module):
    """tanh of a value with its two derivatives: t = tanh z, t′ = (1 − t²) z′, t″ = (1 − t²)(z″ − 2 t z′²)."""

    def forward(self, jet: Tensor) -> Tensor:
        z, first, second = jet.unbind(1)
        t = torch.tanh(z)
        slope = 1 - t**2
        return torch.stack([t, slope * first, slope * (second - 2 * t * first**2)], 1)
