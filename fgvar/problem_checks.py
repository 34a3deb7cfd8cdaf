"""Problem checks: which modules, batches and precisions a problem refuses, before anything is computed."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from fgvar.errors import NonFiniteError
from fgvar.nn.structures import arguments, count_rows, named


def require_forward(module: nn.Module) -> None:
    """Raise where gradients cannot be, or a forward pass."""
    if torch.is_inference_mode_enabled():
        raise ValueError("torch.inference_mode() is on, in which there is no gradient; leave it")
    if getattr(module.forward, "__func__", None) is nn.Module.forward:
        raise TypeError(f"{type(module).__name__} has no forward; give a module that calls it, such as nn.Sequential")


def require_arguments(module: nn.Module, inputs: Any) -> None:
    """Raise where the forward does not take these inputs."""
    args, keywords = arguments(inputs)
    try:
        inspect.signature(module.forward).bind(*args, **keywords)
    except ValueError:  # a builtin does not tell
        pass
    except TypeError as error:
        one = isinstance(inputs, Tensor)
        given = "one tensor of inputs" if one else f"inputs that are a {type(inputs).__name__} of {len(inputs)}"
        raise TypeError(
            f"forward{inspect.signature(module.forward)} of {type(module).__name__} cannot be called with {given} "
            f"({error}); a tensor becomes module(x), a tuple module(*x), a dict module(**x): give all that forward "
            "needs, or wrap it in a module that makes the other arguments"
        ) from None


def usable_device(what: str, device: object) -> torch.device:
    """The device, if this machine has it; else a ValueError, as torch says it in several ways."""
    try:
        found = torch.device(device)  # type: ignore[call-overload]
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:  # an AssertionError where torch was built without it
        line = (str(error).strip().splitlines() or ["unknown"])[0]
        raise ValueError(f"{what} is {device!r}, expected a device of this machine, as 'cpu': {line}") from None
    return torch.device(found)


def require_pair(batch: object, what: str = "batch") -> tuple[Any, Any]:
    """The batch, if it is inputs and targets, each a tensor or a structure of tensors."""
    parts = tuple(map(_plain, batch)) if isinstance(batch, tuple | list) else ()
    found = named_leaves(*parts) if len(parts) == 2 else {}
    other = next((name for name, leaf in found.items() if not isinstance(leaf, Tensor)), "")
    if other or len(parts) != 2 or not all(tree_leaves(part) for part in parts):
        kinds = f" of {' and '.join(type(part).__name__ for part in parts)}" if parts else ""
        where = f" ({other} is {type(found[other]).__name__})" if other else ""
        if other.endswith("']") and isinstance(found[other], str | int | float):
            raise TypeError(
                f"{other} is {found[other]!r}, and a batch has tensors alone, with the examples along their first "
                "axis; set it in the model's config, or wrap the module in one whose forward gives it"
            )
        if other.endswith("']") and found[other] is None:
            raise TypeError(f"{other} is None, and a batch has tensors alone: leave the key out")
        raise TypeError(
            f"{what} is {type(batch).__name__}{kinds}, expected a pair (inputs, targets), each a tensor, or a "
            f"tuple or dict of tensors{where}; torch.as_tensor makes one of an array or a list"
        )
    return parts[0], parts[1]


def _plain(part: Any) -> Any:
    """With a dict for every mapping that torch does not take apart, as a tokenizer's result is one."""
    return tree_map(lambda leaf: dict(leaf) if isinstance(leaf, Mapping) else leaf, part)


def named_leaves(inputs: Any, targets: Any) -> dict[str, Any]:
    """All leaves of a batch, by name."""
    return {**named("inputs", inputs), **named("targets", targets)}


def require_names(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise unless these are a tensor for every parameter, and none more."""
    if given.keys() != expected.keys():
        lacking = [name for name in expected if name not in given]
        beyond = [name for name in given if name not in expected]
        raise ValueError(
            f"params lack {lacking} and have {beyond} beyond them, expected those of the problem: "
            "{**problem.params, …} takes the rest from there"
        )


def of_state(
    given: Mapping[str, Tensor], params: Mapping[str, Tensor], buffers: dict[str, Tensor], aliases: Collection[str]
) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers of a module's state dict, or of its parameters alone, which leave the buffers."""
    if given.keys() == params.keys():
        return given, buffers
    own = {name: tensor for name, tensor in given.items() if name not in buffers and name not in aliases}
    require_names(own, params)
    return own, {name: given.get(name, buffer) for name, buffer in buffers.items()}


def checked_rows(which: slice | Tensor, count: int) -> slice | Tensor:
    """How examples are indexed by a slice, or a tensor of their numbers, so that they lie one behind the other."""
    if not isinstance(which, slice | Tensor) or (isinstance(which, Tensor) and which.ndim != 1):
        raise TypeError(f"rows are {which!r}, expected a slice or a tensor [rows] of numbers")
    # A slice with steps would be a view with gaps, which .view(-1) in a forward or a loss does not take.
    return torch.arange(*which.indices(count)) if isinstance(which, slice) and which.step not in (None, 1) else which


def checked_factors(factors: object, batch_size: int, dtype: torch.dtype) -> Tensor:
    """The factors of a batch, one for each example, as constants; raise where they are not so many."""
    if not isinstance(factors, Tensor):
        raise TypeError(f"factors are {type(factors).__name__}, expected a tensor [batch]")
    if factors.shape != (batch_size,):
        raise ValueError(f"factors have shape {tuple(factors.shape)}, expected ({batch_size},): one for each example")
    # In float32 at least, as losses are: 1/q rounded to bfloat16 would be off by up to 0.2 %, always to one side.
    return factors.detach().to(torch.promote_types(dtype, torch.float32))


def require_floating_point(dtype: object) -> None:
    """Raise unless this is a dtype in which gradients can be."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype is {dtype!r}, expected a floating-point torch.dtype, such as torch.float64")


def checked_batch(batch: object, what: str = "batch") -> tuple[Any, Any]:
    """Inputs and targets as constants."""
    pair = require_pair(batch, what)
    for name, leaf in named_leaves(*pair).items():
        if leaf.layout is not torch.strided or leaf.is_nested:
            kind = "nested" if leaf.is_nested else str(leaf.layout)
            raise ValueError(f"{name} are {kind}, expected a dense tensor (padded, or by .to_dense())")
    inputs, targets = tree_map(lambda leaf: leaf.clone() if leaf.is_inference() else leaf.detach(), pair)
    found = named_leaves(inputs, targets)
    count_rows(found)
    require_finite(f"the {what}", found)
    return inputs, targets


def require_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise where one of these holds NaN or infinity; a tensor without values (on the meta device) may."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        known = tensor.float() if tensor.itemsize == 1 else tensor  # torch asks no float8 whether it is finite
        if not bool(known.isfinite().all()):
            raise NonFiniteError(f"{what}: {name} holds NaN or infinity")


def params_and_constants(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of the parameters that require a gradient, and of all the rest: frozen ones and buffers."""
    params = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    named = (*module.named_parameters(), *module.named_buffers())
    return params, {name: value.detach().clone() for name, value in named if name not in params}


def require_parameters(module: nn.Module) -> None:
    """Raise unless parameters require a gradient, all of these real and of one dtype, and all are dense."""
    kinds: dict[torch.dtype, str] = {}
    for name, p in module.named_parameters():
        if p.layout is not torch.strided:
            raise ValueError(
                f"parameter {name!r} is {p.layout}, expected a dense tensor; give it as {name}.to_dense()"
            )
        if not p.requires_grad:
            continue
        if not p.is_floating_point():
            raise ValueError(
                f"parameter {name!r} is {p.dtype}, expected floating-point numbers; complex ones are pairs of real "
                "ones (torch.view_as_complex in forward), and a constant is frozen by requires_grad_(False)"
            )
        kinds.setdefault(p.dtype, name)
    if not kinds and next(module.parameters(), None) is not None:
        raise ValueError(
            f"no parameter of {type(module).__name__} requires a gradient, so there is nothing to estimate; call "
            "requires_grad_(True) on the module, or on those of its parameters that are to be trained"
        )
    if not kinds:
        raise ValueError(f"{type(module).__name__} has no parameters, so there is no gradient to estimate")
    if len(kinds) > 1:
        found = ", ".join(f"{name!r} is {kind}" for kind, name in kinds.items())
        raise ValueError(
            f"parameters are of several dtypes ({found}), expected one of all that require a gradient; convert the "
            "network, module.to(torch.float32)"
        )


def require_one_device(tensors: Mapping[str, Tensor]) -> None:
    """Raise where one of these is on another device than the first."""
    first, there = next(iter((name, t.device) for name, t in tensors.items()))
    for name, tensor in tensors.items():
        if tensor.ndim and tensor.device != there:
            raise ValueError(
                f"{name} is on {tensor.device}, {first} on {there}; expected one device: move network and batch "
                f"there with .to({str(tensor.device)!r}) or .to({str(there)!r})"
            )


def refuse_coupled_or_random(module: nn.Module) -> None:
    """Raise where a layer is known to couple examples, to draw random numbers or to change its buffers.

    What own layers do is seen by running them (`fgvar.nn.purity`), and said with less to go by.
    """
    for name, child in module.named_modules():
        label = f"{name!r} ({type(child).__name__})"
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and (child.training or not child.track_running_stats):
            keeps = child.track_running_stats
            how = "in train mode" if keeps else "in any mode, as it keeps no running statistics"
            remedy = "call" if keeps else "let it track them and call"
            raise ValueError(
                f"{label} couples the examples of a batch {how}, so that no loss term credits one "
                f"example alone; {remedy} module.eval(), or use a norm within the example"
            )
        if isinstance(child, nn.modules.instancenorm._InstanceNorm) and child.training and child.track_running_stats:
            raise ValueError(f"{label} changes its running statistics in every forward pass; call module.eval()")
        rate = getattr(child, "p", None) if isinstance(child, nn.modules.dropout._DropoutNd) else None
        if isinstance(child, nn.MultiheadAttention | nn.RNNBase):
            rate = child.dropout
        if isinstance(child, nn.RReLU):
            rate = child.upper - child.lower
        if child.training and rate:
            raise ValueError(f"{label} draws random numbers in train mode; call module.eval() or set its rate to 0")


def require_classes_of_heads(modules: Mapping[str, nn.Module], heads: Collection[str], targets: Tensor) -> None:
    """Raise where a local head has fewer classes than the targets, or positions where these have none, or none."""
    for name in heads:
        head = modules[name]
        pooled, positions = bool(getattr(head, "pool", True)), targets.ndim > 1
        if pooled == positions:
            raise ValueError(
                f"targets are {tuple(targets.shape)}, and the local head {name!r} returns "
                f"{'[batch, classes]' if pooled else '[batch, positions, classes]'}; build it by "
                f"with_local_heads(pool={not positions})"
            )
        # The network's own number of classes does not tell theirs.
        classes = getattr(modules.get(f"{name}.linear"), "out_features", None)
        if classes is not None and not targets.is_meta and int(targets.max()) >= classes:
            raise ValueError(
                f"targets range to {int(targets.max())}, but the local head {name!r} has {classes} classes (0 to "
                f"{classes - 1}); give with_local_heads the classes= of the network"
            )
