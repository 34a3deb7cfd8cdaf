"""Loss functions: those that have a name, and what any one must return: one number an example."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgvar.errors import unknown
from fgvar.problem_checks import require_finite

Loss = Callable[[Any, Tensor], Tensor]  # (outputs, targets) → loss of each example [batch]


def _mse(outputs: Any, targets: Tensor) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.shape != targets.shape:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"mse needs targets of the outputs' shape {shape}, the targets are {tuple(targets.shape)}; "
            "reshape them (broadcasting would compare an example with the targets of others)"
        )
    per_example: Tensor = (outputs - targets).square().reshape(len(outputs), -1).mean(1)
    return per_example


def _cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets.long(), reduction="none")


LOSSES: dict[str, Loss] = {"cross_entropy": _cross_entropy, "mse": _mse}


def as_loss_function(loss: object) -> Loss:
    """The loss of that name, or the callable itself if it can be called with outputs and targets."""
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(unknown("loss", loss, LOSSES))
        return LOSSES[loss]
    remedy = 'a callable (outputs, targets) -> loss of each example, or "cross_entropy" or "mse"'
    if isinstance(loss, type):
        raise TypeError(
            f"the loss is the class {loss.__name__}, expected {remedy}; of a class give an instance, "
            f"{loss.__name__}(reduction='none')"
        )
    if not callable(loss):
        raise TypeError(f"the loss is {type(loss).__name__}, expected {remedy}")
    function = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        inspect.signature(function).bind(None, None)
    except ValueError:  # a builtin does not tell
        pass
    except TypeError as error:
        name = getattr(loss, "__name__", type(loss).__name__)
        takes = inspect.signature(function)
        raise TypeError(f"the loss {name}{takes} cannot be called so ({error}), expected {remedy}") from None
    return cast(Loss, loss)


def require_losses(losses: object, count: int) -> None:
    """Raise unless there is one floating-point number an example."""
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        kind = losses.dtype if isinstance(losses, Tensor) else type(losses).__name__
        raise TypeError(
            f"the loss is {kind}, expected a floating-point tensor, made by torch of the outputs; "
            "an integer has no gradient"
        )
    if tuple(losses.shape) != (count,):
        raise ValueError(
            f"the loss has shape {tuple(losses.shape)}, expected one number an example, "
            f"({count},); return the per-example loss (reduction='none', other axes averaged)"
        )
    if losses.requires_grad:
        raise ValueError(
            "the loss of constant outputs requires a gradient: it has parameters of its own, taken for constants; "
            "let the network own them and return them, or what is made of them, from its forward beside its outputs "
            "(or freeze them with requires_grad_(False))"
        )
    require_finite("the loss", {"per example": losses})


def require_classes(outputs: Any, targets: Tensor) -> None:
    """Raise unless targets are numbers of the network's classes."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"cross_entropy needs outputs [batch, classes], the network returned {shape}")
    if targets.is_floating_point() or targets.dtype == torch.bool or targets.ndim != 1:
        raise ValueError(
            f"cross_entropy needs class numbers [batch] as integers, the targets are {targets.dtype} "
            f"of shape {tuple(targets.shape)}"
        )
    if targets.is_meta:  # a tensor without values
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= outputs.shape[1]:
        raise ValueError(
            f"targets range from {low} to {high}, but the network has {outputs.shape[1]} classes (0 to "
            f"{outputs.shape[1] - 1}); check the labels or the size of the last layer"
        )


def require_classes_of_heads(modules: Mapping[str, nn.Module], heads: Collection[str], targets: Tensor) -> None:
    """Raise where a local head has fewer classes than the targets: the network's own number does not tell."""
    for head in heads:
        classes = getattr(modules.get(f"{head}.linear"), "out_features", None)
        if classes is not None and not targets.is_meta and int(targets.max()) >= classes:
            raise ValueError(
                f"targets range to {int(targets.max())}, but the local head {head!r} has {classes} classes (0 to "
                f"{classes - 1}); give with_local_heads the classes= of the network"
            )
