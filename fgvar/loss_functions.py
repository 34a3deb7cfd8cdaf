"""Loss functions: those that have a name, and what any one must return: one number an example.

Of float16 and bfloat16 all three are computed in float32, whose steps a finite difference can see.

- "mse": mean over the outputs of an example.
- "cross_entropy": outputs, or their ``.logits``, [batch, classes] against classes [batch]; or [batch, positions,
  classes] or [batch, classes, positions] against [batch, positions], by the axis that the targets lack: the mean over
  an example's positions, without those whose target is −100.
- "causal_lm": logits at position t against labels [batch, positions] at t + 1, without those of −100: the mean over
  all tokens of the batch, Σ w ℓ / Σ w for the mean ℓ over an example's tokens and their number w.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgvar.errors import unknown
from fgvar.problem_checks import require_finite

# (outputs, targets) → loss of each example [batch], or (losses [batch], weights [batch])
Loss = Callable[[Any, Any], Tensor | tuple[Tensor, Tensor]]

IGNORED = -100  # the target of a position that has none, as torch has it


def _mse(outputs: Any, targets: Any) -> Tensor:
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or outputs.shape != targets.shape:
        raise ValueError(
            f"mse needs targets of the outputs' shape {_shape(outputs)}, the targets are {_shape(targets)}; "
            "reshape them (broadcasting would compare an example with the targets of others)"
        )
    per_example: Tensor = (_wide(outputs) - _wide(targets)).square().reshape(len(outputs), -1).mean(1)
    return per_example


def _cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Outputs, or their ``.logits``: [batch, classes], [batch, positions, classes] or [batch, classes, positions].

    The axis of classes is the one that the targets [batch] or [batch, positions] lack. Of an example with positions
    the mean over those whose target is not −100; 0 if there is none.
    """
    logits = _classes_last(getattr(outputs, "logits", outputs), targets)
    if targets.ndim > 1:
        return _mean_ce(logits, targets)
    return functional.cross_entropy(_wide(logits), targets.long(), reduction="none")


def _causal_lm(outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Every token after the first, predicted from those before it: the mean over all tokens of the batch.

    Logits [batch, positions, classes] (or outputs with ``.logits``) at t against labels [batch, positions] at t + 1,
    without those of −100. Loss of an example: the mean over its tokens; weight: how many these are.
    """
    following = labels[:, 1:]
    return _mean_ce(getattr(outputs, "logits", outputs)[:, :-1], following), (following != IGNORED).sum(1)


def _wide(x: Tensor) -> Tensor:
    """In float32 if in less: a loss of 3.4 has steps of 0.016 in bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean_ce(logits: Tensor, targets: Tensor) -> Tensor:
    """Of logits [batch, …, classes] the mean over an example's positions with a target: [batch]."""
    # As rows of a matrix: of more axes torch takes another kernel.
    rows, numbers = _wide(logits).reshape(-1, logits.shape[-1]), targets.reshape(-1).long()
    each = functional.cross_entropy(rows, numbers, reduction="none", ignore_index=IGNORED)
    count = (targets != IGNORED).reshape(len(targets), -1).sum(1)
    mean: Tensor = each.reshape(len(targets), -1).sum(1) / count.clamp_min(1)
    return mean


def _classes_last(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits with the axis of classes at the end: it is the axis that the targets lack."""
    last, second = (logits.movedim(axis, -1) for axis in (-1, 1))
    if last.shape[:-1] == targets.shape and second.shape[:-1] == targets.shape and logits.ndim > 2:
        raise ValueError(
            f"cross_entropy cannot tell the axis of classes: outputs {_shape(logits)} fit targets {_shape(targets)} "
            "as [batch, positions, classes] and as [batch, classes, positions]; write the loss as a function of both"
        )
    return last if last.shape[:-1] == targets.shape else second


LOSSES: dict[str, Loss] = {"cross_entropy": _cross_entropy, "causal_lm": _causal_lm, "mse": _mse}


def as_loss_function(loss: object) -> Loss:
    """The loss of that name, or the callable itself if it can be called with outputs and targets."""
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(unknown("loss", loss, LOSSES))
        return LOSSES[loss]
    remedy = 'a callable (outputs, targets) -> loss of each example, or "cross_entropy", "causal_lm" or "mse"'
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


def has_perplexity(loss: str | Loss) -> bool:
    """Is e^loss a perplexity? Only where the loss is known to be the mean over tokens of −log p."""
    return loss == "causal_lm"


def losses_and_weights(returned: Any) -> tuple[Tensor, Tensor | None]:
    """What a loss function returned, as losses and weights; None where it has none."""
    return returned if isinstance(returned, tuple) else (returned, None)


def changed(loss: Loss, change: Callable[[Tensor], Tensor]) -> Loss:
    """The loss function with another function of its losses, and with its weights."""

    def of(outputs: Any, targets: Any) -> Tensor | tuple[Tensor, Tensor]:
        losses, weights = losses_and_weights(loss(outputs, targets))
        return change(losses) if weights is None else (change(losses), weights)

    return of


def even_weights(weights: Tensor, losses: Tensor) -> Tensor:
    """n w / Σw, whose mean is 1: the mean over the batch of their products with the losses ℓ is Σ w ℓ / Σ w.

    All 0 where no example counts, as of a training batch without a token to predict: it moves nothing.
    """
    # Numbers of tokens are exact in float32, where their sum is beyond float16's largest, and bfloat16 has 8 bits.
    wide = weights.to(torch.promote_types(losses.dtype, torch.float32))
    total = wide.sum()
    return (wide * (len(wide) / total.where(total > 0, 1))).to(losses.dtype)


def require_losses(returned: object, count: int) -> tuple[Tensor, Tensor | None]:
    """Losses and weights of a call, if these are one floating-point number an example."""
    pair = isinstance(returned, tuple) and len(returned) == 2
    losses: Any = returned[0] if isinstance(returned, tuple) and pair else returned
    weights: Any = returned[1] if isinstance(returned, tuple) and pair else None
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        kind = losses.dtype if isinstance(losses, Tensor) else type(losses).__name__
        raise TypeError(
            f"the loss is {kind}, expected a floating-point tensor, made by torch of the outputs, or a pair of it "
            "and the examples' weights; an integer has no gradient"
        )
    if tuple(losses.shape) != (count,):
        raise ValueError(
            f"the loss has shape {tuple(losses.shape)}, expected one number an example, "
            f"({count},); return the per-example loss (reduction='none', other axes averaged), and for Σ w ℓ / Σ w a "
            "pair (losses, weights)"
        )
    if losses.requires_grad:
        raise ValueError(
            "the loss of constant outputs requires a gradient: it has parameters of its own, taken for constants; "
            "let the network own them and return them, or what is made of them, from its forward beside its outputs "
            "(or freeze them with requires_grad_(False))"
        )
    require_finite("the loss", {"per example": losses})
    if pair:
        _require_weights(weights, count)
    return losses, weights


def _require_weights(weights: object, count: int) -> None:
    """Raise unless there is one number an example, none negative, and not all of them 0."""
    if not isinstance(weights, Tensor) or tuple(weights.shape) != (count,):
        raise ValueError(
            f"the loss's weights are {_shape(weights)}, expected a tensor of one number an example, ({count},): the "
            "second of a pair (losses, weights)"
        )
    if weights.requires_grad:
        raise ValueError(f"the loss's weights require a gradient; {OF_TARGETS}")
    require_finite("the loss", {"weights": weights})
    if not weights.is_meta and (bool((weights < 0).any()) or not bool(weights.any())):
        raise ValueError(
            f"the loss's weights sum to {float(weights.sum()):.6g} and their least is {float(weights.min()):.6g}, "
            "expected none below 0 and a sum above it, since the loss is Σ w ℓ / Σ w; are all targets ignored?"
        )


OF_TARGETS = (
    "weights are constants of the batch, made of the targets alone; multiply the loss itself with what depends on "
    "the network's outputs"
)


def require_constant_weights(
    weights: Tensor, again: Callable[[Mapping[str, Tensor]], Any], params: Mapping[str, Tensor]
) -> None:
    """Raise where weights depend on the outputs: by a derivative, or, detached, by values at other parameters."""
    depends = False

    def followed(at: Mapping[str, Tensor]) -> Tensor:
        nonlocal depends
        depends = again(at).requires_grad
        return torch.zeros(())

    torch.func.vjp(followed, dict(params))
    with torch.no_grad():
        elsewhere = [again({name: factor * p for name, p in params.items()}) for factor in (0.5, -1.0)]
    if depends or not (weights.is_meta or all(torch.equal(weights, other) for other in elsewhere)):
        raise ValueError(f"the loss's weights depend on the network's outputs; {OF_TARGETS}")


def _require_classes(outputs: Any, targets: Any) -> None:
    """Raise unless targets are numbers of the network's classes."""
    logits = getattr(outputs, "logits", outputs)
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dtype == torch.bool:
        kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(
            f"cross_entropy needs class numbers [batch] as integers, or [batch, positions], the targets are {kind} "
            f"of shape {_shape(targets)}{_one_hot(logits, targets)}"
        )
    fits = isinstance(logits, Tensor) and logits.ndim == targets.ndim + 1
    if not fits or targets.shape not in (logits.shape[:-1], logits.movedim(1, -1).shape[:-1]):
        raise ValueError(
            f"cross_entropy needs outputs [batch, classes] and class numbers [batch] as integers, or outputs [batch, "
            f"positions, classes] and targets [batch, positions]; the network returned {_shape(logits)}, the targets "
            f"are {targets.dtype} of shape {_shape(targets)}{_one_hot(logits, targets)}"
        )
    _require_range(targets if targets.ndim == 1 else targets[targets != IGNORED], _classes_last(logits, targets))


def _one_hot(logits: Any, targets: Any) -> str:
    """What to do about targets that are one row of classes an example."""
    rows = isinstance(targets, Tensor) and isinstance(logits, Tensor) and targets.shape == logits.shape
    return "; of one-hot rows give targets.argmax(1)" if rows and targets.ndim == 2 else ""


def _require_next_tokens(outputs: Any, labels: Any) -> None:
    """Raise unless labels are token numbers of two or more positions, and outputs logits at each."""
    logits = getattr(outputs, "logits", outputs)
    shapes = f"the network returned {_shape(logits)}, the labels are {_shape(labels)}"
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.shape[1] < 2:
        raise ValueError(f"causal_lm needs labels [batch, positions], two positions or more; {shapes}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"causal_lm needs labels that are token numbers, integers; they are {labels.dtype}")
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(f"causal_lm needs outputs, or their .logits, [batch, positions, classes]; {shapes}")
    following = labels[:, 1:]
    _require_range(following[following != IGNORED], logits)


TARGET_CHECKS = {"cross_entropy": _require_classes, "causal_lm": _require_next_tokens}


def _require_range(numbers: Tensor, logits: Tensor) -> None:
    """Raise where one of the numbers is none of the classes along the last axis."""
    if numbers.is_meta or not numbers.numel():  # nothing to look at
        return
    low, high, classes = int(numbers.min()), int(numbers.max()), logits.shape[-1]
    if low == IGNORED:  # of targets of positions they are left out before
        raise ValueError(
            f"targets [batch] hold {IGNORED}, which stands for no target at a position of [batch, positions] alone; "
            "leave those examples out of the batch"
        )
    if low < 0 or high >= classes:
        raise ValueError(
            f"targets range from {low} to {high}, but the network has {classes} classes (0 to "
            f"{classes - 1}); check the labels or the size of the last layer"
        )


def _shape(value: object) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def correct(outputs: Any, targets: Any) -> Tensor | None:
    """Is the largest output the target's? [batch]; None where targets are not one class of several an example."""
    logits = getattr(outputs, "logits", outputs)
    if not (isinstance(logits, Tensor) and logits.ndim == 2 and isinstance(targets, Tensor) and targets.ndim == 1):
        return None
    # One output is a regression, or a classifier by its sign.
    return None if targets.is_floating_point() or logits.shape[1] < 2 else logits.argmax(1) == targets
