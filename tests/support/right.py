"""What it means that a network is right: autograd's gradient, schemes measured, the variance of theory."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fgvar


def loss_by_torch(module: nn.Module, loss: Any, batch: tuple[Any, Any]) -> Tensor:
    """The loss as a user of torch alone would write it."""
    inputs, targets = batch
    tensors = {dict: lambda: module(**inputs), tuple: lambda: module(*inputs)}
    outputs = tensors.get(type(inputs), lambda: module(inputs))()
    logits = getattr(outputs, "logits", outputs)
    if loss == "cross_entropy":
        return functional.cross_entropy(logits, targets)
    if loss == "causal_lm":
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
    found = loss(outputs, targets)
    losses, weights = found if isinstance(found, tuple) else (found, torch.ones_like(found))
    return (losses * weights).sum() / weights.sum()


def assert_right(module: nn.Module, loss: Any, batch: tuple[Any, Any], *, tolerance: float = 1e-9) -> fgvar.Problem:
    """Its gradient is autograd's, schemes run in default chunks, and FG-W has relative variance d + 1."""
    problem = fgvar.Problem(module, loss, batch)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss_by_torch(module, loss, batch), list(trained.values()), allow_unused=True)
    found = problem.backprop()
    assert list(found) == list(trained)
    size = max(float(g.abs().max()) for g in found.values())
    for (name, g), expected in zip(found.items(), gradients, strict=True):
        dense = torch.zeros_like(g) if expected is None else expected.to_dense()
        torch.testing.assert_close(g, dense, rtol=0, atol=tolerance * size, msg=lambda m, n=name: f"{n}: {m}")
    schemes = {name: fgvar.scheme(name) for name in ("FG-W", "MeZO", "EGGROLL")}
    assert bool(fgvar.measure(schemes, problem, draws=4)["variance"].notnull().all())
    exact = fgvar.measure({"FG-W": schemes["FG-W"]}, problem, route="exact")["relative_variance"]
    count = sum(p.numel() for p in trained.values())
    assert exact.sel(layer="total").item() == pytest.approx(count + 1, rel=tolerance)
    return problem
