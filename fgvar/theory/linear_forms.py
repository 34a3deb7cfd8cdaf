"""Linear forms: guess from type and shapes the linear map that a module is in its parameters, y = Wx + b by position.

Linear layers, grouped ones, convolutions, embeddings, and norms, whose gain multiplies what the norm makes of its
input. Nobody relies on the guess: `fgvar.theory.linear_layers` and `activity_ratio` hold it against what the module
does.
"""

import contextlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fgvar.problem import Problem

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
Layout = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Form:
    """A module as a linear map in its parameters: y[n, r, h, o] = Σ_i x[n, r, h, i] W[h, o, i] + b[h, o].

    Attributes:
        x: inputs at every position r and group h [batch, positions, groups, fan-in].
        rows: the module's output layout → [batch, positions, groups, fan-out].
    """

    x: Tensor
    rows: Layout


def linear_form(problem: Problem, name: str, x: object, y: object) -> Form | None:
    """The module as a linear map in its parameters, guessed from its type and shapes."""
    module = problem.network.skeleton.get_submodule(name)
    own = {key: tuple(p.shape) for key, p in module.named_parameters(recurse=False)}
    if "weight" not in own or not own.keys() <= {"weight", "bias"} or not _is_batch(x) or not _is_batch(y):
        return None
    weight = own["weight"]
    if len(x) != len(y):
        return None
    if isinstance(module, nn.modules.conv._ConvNd) and not module.transposed:
        return Form(_patches(module, x), lambda z: z.flatten(2).unflatten(1, (module.groups, -1)).permute(0, 3, 1, 2))
    # A module of another class with one number a channel may be a norm, too.
    gain = (
        len(weight) == 1 and x.shape == y.shape and x.shape[-1:] == weight and len([*module.parameters()]) == len(own)
    )
    if isinstance(module, NORMS) or gain:
        return _gain(problem, name, module, x, y)
    # Anything else that looks like a product with the last axes; `_verified` tells whether it is one.
    fan_in, fan_out = weight[-1], weight[-2] if len(weight) > 1 else 0
    groups = weight[:-2]
    fits = x.shape[-len(groups) - 1 :] == (*groups, fan_in) and y.shape == (*x.shape[:-1], fan_out)
    # A batch as long as there are groups is none of them.
    if len(weight) in (2, 3) and x.ndim > len(groups) + 1 and fits:
        n, h = len(x), math.prod(groups)
        return Form(x.reshape(n, -1, h, fan_in), lambda z: z.reshape(len(z), -1, h, fan_out))
    return None


def transposed_form(problem: Problem, name: str, x: object, y: object) -> Form | None:
    """The module as a product with a weight that is stored [fan-in, fan-out]: an embedding, or GPT-2's Conv1D.

    Of an embedding the input at a position is 1 at the number that is looked up and 0 elsewhere.
    """
    own = {key: p.shape for key, p in problem.network.skeleton.get_submodule(name).named_parameters(recurse=False)}
    if not isinstance(x, Tensor) or not _is_batch(y) or len(own.get("weight", ())) != 2:
        return None
    fan_in, fan_out = own["weight"]
    if not x.is_floating_point() and y.shape == (*x.shape, fan_out):
        x = nn.functional.one_hot(x.long(), fan_in).to(y.dtype)
    if x.ndim < 2 or x.shape[-1] != fan_in or y.shape != (*x.shape[:-1], fan_out):
        return None
    return Form(x.reshape(len(x), -1, 1, fan_in), lambda z: z.reshape(len(z), -1, 1, fan_out))


def _is_batch(value: object) -> TypeGuard[Tensor]:
    """Has it numbers behind the axis of the examples?"""
    return isinstance(value, Tensor) and value.ndim > 1


def _patches(module: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    """Inputs of every output position of a convolution: [batch, positions, groups, fan-in]."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = nn.functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    axes = list(zip(x.shape[2:], module.kernel_size, module.dilation, module.stride, strict=True))
    sizes = [(size - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, dilation, stride in axes]
    # By narrowing: torch.nn.functional.unfold knows images alone, and a sequence or a volume is the same to us.
    windows = []
    for offset in itertools.product(*(range(kernel) for kernel in module.kernel_size)):
        window = x
        for axis, (at, (_, _, dilation, stride), size) in enumerate(zip(offset, axes, sizes, strict=True), start=2):
            window = window.narrow(axis, at * dilation, stride * (size - 1) + 1)
            window = window[(slice(None),) * axis + (slice(None, None, stride),)]
        windows.append(window.flatten(2))
    stacked = torch.stack(windows, 2).unflatten(1, (module.groups, -1))  # n, groups, channels, kernel, positions
    return stacked.permute(0, 4, 1, 2, 3).flatten(3)


def _gain(problem: Problem, name: str, module: nn.Module, x: Tensor, y: Tensor) -> Form | None:
    """The gain of a norm: one group an entry, whose input is what the norm returns with gain 1 and bias 0."""
    prefix = f"{name}."
    buffers = {k.removeprefix(prefix): b for k, b in problem.buffers.items() if k.startswith(prefix)}
    plain = {
        k: torch.full(p.shape, float(k == "weight"), dtype=problem.dtype, device=problem.device)
        for k, p in module.named_parameters(recurse=False)
    }
    # Gain times what the norm makes of its input, plus bias: linear in both, however the norm works.
    normed: object = None
    with contextlib.suppress(Exception):  # a module of one's own may need more than its first input
        normed = functional_call(module, {**buffers, **plain}, (x,))
    if not isinstance(normed, Tensor) or normed.shape != y.shape:
        return None
    count = plain["weight"].numel()
    if isinstance(module, nn.GroupNorm | nn.modules.batchnorm._NormBase):  # which have their channels second
        return Form(
            normed.reshape(len(x), count, -1, 1).transpose(1, 2),
            lambda z: z.reshape(len(z), count, -1, 1).transpose(1, 2),
        )
    return Form(normed.reshape(len(x), -1, count, 1), lambda z: z.reshape(len(z), -1, count, 1))
