"""Naive twins: estimators and statistics as loops written from the papers, without vmap or the library."""

import math

import numpy as np
import torch
from scipy import optimize, stats
from torch import Tensor, nn


def weight_perturbation(net: nn.Module, x: Tensor, y: Tensor, v: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ren et al. 2023, eq. 2: (∇·v) v, the derivative taken by reverse mode and summed by hand."""
    loss = nn.functional.cross_entropy(net(x), y)
    names = [name for name, _ in net.named_parameters()]
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    along = sum(float((g * v[name]).sum()) for name, g in zip(names, gradients, strict=True))
    return {name: along * v[name] for name in names}


def activity_perturbation(
    layers: list[nn.Linear], x: Tensor, y: Tensor, u: list[Tensor], *, mask: bool
) -> list[tuple[Tensor, Tensor]]:
    """Eq. 3 for a ReLU network, example by example: x_i (Σ ∇z·u) u_j, averaged over the batch.

    ``u[l]`` is [batch, fan-out] noise on the pre-activations of layer l; the last layer has no ReLU.
    """
    estimates = [(torch.zeros_like(layer.weight), torch.zeros_like(layer.bias)) for layer in layers]
    for n in range(len(x)):
        inputs, z, h = [], [], x[n]
        for index, layer in enumerate(layers):
            inputs.append(h)
            z.append(layer(h).detach().requires_grad_())
            h = (z[-1].relu() if index < len(layers) - 1 else z[-1]).detach()
        along = 0.0
        for index in range(len(layers)):
            noise = _masked(u[index][n], z[index], mask and index < len(layers) - 1)
            later = z[index]
            for after in range(index, len(layers) - 1):
                later = layers[after + 1](later.relu())
            loss = nn.functional.cross_entropy(later[None], y[n : n + 1])
            along += float(torch.autograd.grad(loss, z[index])[0] @ noise)
        for index in range(len(layers)):
            noise = _masked(u[index][n], z[index], mask and index < len(layers) - 1)
            weight, bias = estimates[index]
            weight += along * torch.outer(noise, inputs[index]) / len(x)
            bias += along * noise / len(x)
    return estimates


def _masked(u: Tensor, z: Tensor, mask: bool) -> Tensor:
    return u * (z.detach() > 0) if mask else u


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Hall's interval of a mean, found by bisection where his transform of Student's statistic reaches ± t."""
    n, centred = len(values), values - values.mean()
    skewness = float((centred**3).mean() / (centred**2).mean() ** 1.5)
    a, t = 1.3 * skewness / math.sqrt(n), float(stats.t.ppf(0.975, n - 1))
    error = standard_error(values) * (1 + skewness**2 / (2 * n) + 1.7 / n)

    def reached(x: float) -> float:
        return x + a * x**2 / 3 + a**2 * x**3 / 27 + a / 6  # a monotone cubic

    low, high = (optimize.brentq(lambda x, end=end: reached(x) - end, -1e3, 1e3) for end in (t, -t))
    return float(values.mean()) - error * low, float(values.mean()) - error * high


def distances(draws: np.ndarray, block: int = 16) -> list[float]:
    """Squared distance of each draw to the mean of all draws up to the end of its block, to have mean tr Cov."""
    found = []
    for start in range(0, len(draws), block):
        stop = min(start + block, len(draws))
        mean = draws[:stop].mean(0)
        found += [float((row - mean) @ (row - mean)) * stop / (stop - 1) for row in draws[start:stop]]
    return found


def plain_statistics(draws: np.ndarray, target: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Textbook statistics of draws [n, d], in two passes and by double loops."""
    n = len(draws)
    mean = draws.mean(0)
    variance = sum(float((row - mean) @ (row - mean)) for row in draws) / (n - 1)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))

    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    signal = sum(float(draws[i] @ draws[j]) for i, j in pairs) / len(pairs)
    found = {"variance": variance, "snr": signal / variance}
    for name, reference in (("target", target), ("backprop", other)):
        deviations = draws - reference
        cosines = [cosine(row, reference) for row in draws]
        inner = draws @ reference
        energy = float((draws**2).sum(1).mean())
        length = float(reference @ reference)
        found |= {
            f"sq_bias {name}": sum(float(deviations[i] @ deviations[j]) for i, j in pairs) / len(pairs),
            f"slope {name}": float(inner.mean()) / length,
            f"slope_se {name}": standard_error(inner) / length,
            f"cosine {name}": float(np.mean(cosines)),
            f"cosine_se {name}": standard_error(np.array(cosines)),
            f"efficiency {name}": (float(inner.mean()) ** 2 - float(inner.var(ddof=1)) / n) / length / energy,
        }
        if n >= 32:
            for kind, values in (("slope", inner / length), ("cosine", np.array(cosines))):
                found[f"{kind}_low {name}"], found[f"{kind}_high {name}"] = interval(values)
    return found
