"""Problem: module + loss + batch as pure functions of named tensors."""

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from fgvar.errors import NonFiniteError, unknown
from fgvar.map import Map
from fgvar.network import Network

Loss = Callable[[Any, Tensor], Tensor]


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


class Problem:
    """A network, a loss and one batch: everything that a gradient is a gradient of.

    ``loss(params)`` is the *mean* over the batch, and every gradient in fgvar is of batch means. The module
    is read once; later changes to it are not seen. Nothing here reads or moves the global random state.

    Args:
        module: any network of one input tensor in which examples do not influence each other. All of its
            parameters take part, whatever their ``requires_grad``.
        loss: "cross_entropy", "mse" (mean over the outputs of an example) or a callable
            ``(outputs, targets) -> per-example loss`` of shape [batch].
        batch: inputs and targets, batch axis first.

    Raises:
        ValueError: BatchNorm or dropout in train mode, random numbers in the forward pass, targets out of
            range, a loss that is not one number an example.
        TypeError: a loss that is not floating point.
        NonFiniteError: parameters, inputs or losses with NaN or infinity.

    Example:
        >>> x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
        >>> problem = Problem(nn.Linear(3, 2), "cross_entropy", (x, y))
        >>> {name: tuple(g.shape) for name, g in problem.backprop().items()}
        {'weight': (2, 3), 'bias': (2,)}
    """

    params: dict[str, Tensor]
    inputs: Tensor
    targets: Tensor
    map: Map
    single: Map  # of the first example alone
    coupled = False  # does a loss term depend on other examples than its own?

    def __init__(self, module: nn.Module, loss: str | Loss, batch: tuple[Tensor, Tensor]) -> None:
        if isinstance(loss, str) and loss not in LOSSES:
            raise ValueError(unknown("loss", loss, LOSSES))
        self.loss_function: Loss = LOSSES[loss] if isinstance(loss, str) else loss
        self.inputs, self.targets = _checked_batch(batch)
        self.params = {k: p.detach().clone() for k, p in module.named_parameters()}
        self.buffers = {k: b.detach().clone() for k, b in module.named_buffers()}
        if not self.params:
            raise ValueError(f"{type(module).__name__} has no parameters, so there is no gradient to estimate")
        _refuse_coupled_or_random(module)
        _require_finite("parameters", self.params)
        self.network = Network(module)
        self.map, self.single = self._look(loss == "cross_entropy")

    @property
    def batch_size(self) -> int:
        return int(self.inputs.shape[0])

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.params.values())).dtype

    @property
    def perturbed(self) -> tuple[str, ...]:
        """Names of the parameters that schemes estimate: all but those of heads and read-outs."""
        return tuple(name for name in self.params if name not in self.network.exact)

    def at(self, params: Mapping[str, Tensor] | None = None, batch: tuple[Tensor, Tensor] | None = None) -> "Problem":
        """The same network and loss with other parameters or another batch, without checking them again."""
        other = copy.copy(self)
        if params is not None:  # a model's own parameters would record a graph
            other.params = {name: p.detach() if isinstance(p, nn.Parameter) else p for name, p in params.items()}
        if batch is not None:
            other.inputs, other.targets = batch
        return other

    def clone(self) -> "Problem":
        """The same problem with tensors of its own: whatever is done to them stays there."""
        other = copy.copy(self)
        other.params = {name: p.clone() for name, p in self.params.items()}
        other.buffers = {name: b.clone() for name, b in self.buffers.items()}
        other.inputs, other.targets = self.inputs.clone(), self.targets.clone()
        return other

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that an estimator sees, by what they are."""
        return {
            **{f"parameter {k!r}": v for k, v in self.params.items()},
            **{f"buffer {k!r}": v for k, v in self.buffers.items()},
            "inputs": self.inputs,
            "targets": self.targets,
        }

    def to(self, dtype: torch.dtype) -> "Problem":
        """The problem in another floating-point precision."""
        other = copy.copy(self)
        other.params = {name: p.to(dtype) for name, p in self.params.items()}
        other.buffers = {name: _cast(b, dtype) for name, b in self.buffers.items()}
        other.inputs, other.targets = _cast(self.inputs, dtype), _cast(self.targets, dtype)
        return other

    def weighted(self, weights: Tensor) -> "Problem":
        """The problem whose examples' losses are multiplied by ``weights`` [batch]."""
        other = copy.copy(self)
        other.loss_function = lambda outputs, targets: weights * self.loss_function(outputs, targets)
        return other

    def example(self, index: int) -> "Problem":
        """The problem of one example, as a batch of one."""
        return self.at(batch=(self.inputs[index : index + 1], self.targets[index : index + 1]))

    def per_example(self, function: "Callable[[Problem], Any]") -> Any:
        """``function`` of every example's own problem, stacked along a new first axis (one vmap)."""
        return vmap(lambda x, y: function(self.at(batch=(x[None], y[None]))))(self.inputs, self.targets)

    def run(
        self,
        params: Mapping[str, Tensor],
        taps: Mapping[str, Tensor] | None = None,
        *,
        watch: Collection[str] = (),
        cut: Collection[str] = (),
        push: Mapping[str, Tensor] | None = None,
        put: Mapping[str, Tensor] | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Forward pass with sites perturbed by ``taps``: output and watched values (see `Network.run`)."""
        tensors = {**self.buffers, **params, **{f"{site}.tap": u for site, u in (taps or {}).items()}}
        return self.network.run(tensors, self.inputs, watch=watch, cut=cut, push=push, put=put)

    def probe(
        self,
        params: Mapping[str, Tensor],
        shifts: Mapping[str, Tensor],
        *,
        cut: Collection[str] = (),
        put: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Any, Any]]]:
        """Values at ``cut`` with the outputs of modules shifted; inputs and outputs of those modules."""
        return self.network.probe({**self.buffers, **params}, self.inputs, shifts, cut=cut, put=put)

    def losses(self, outputs: Any) -> Tensor:
        """Per-example loss [batch] of outputs of the network or of a local head."""
        return self.loss_function(outputs, self.targets)

    def local_losses(self, params: Mapping[str, Tensor], end: str, features: Tensor) -> Tensor:
        """Per-example loss [batch] of the local head at ``end`` for the features there."""
        return self.losses(self.logits(params, end, features))

    def logits(self, params: Mapping[str, Tensor], end: str, features: Tensor) -> Tensor:
        """What the local head at ``end`` says of the features there: [batch, classes]."""
        head = self.map.ends[end]
        prefix = f"{head}."
        own = {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
        found: Tensor = functional_call(self.network.modules[head], own, (features,))
        return found

    def right(self, outputs: Any) -> Tensor | None:
        """Is the largest output the target's? [batch]; None where targets are no classes."""
        if self.targets.is_floating_point() or not isinstance(outputs, Tensor) or outputs.ndim != 2:
            return None
        return outputs.argmax(1) == self.targets

    def loss(self, params: Mapping[str, Tensor] | None = None) -> Tensor:
        """Batch-mean loss of the network's output."""
        return self.losses(self.run(self.params if params is None else params)[0]).mean()

    def backprop(self) -> dict[str, Tensor]:
        """The end-to-end gradient of `loss`; zero for local heads, which the output does not use."""
        gradient: dict[str, Tensor] = grad(self.loss)(self.params)
        return gradient

    def _look(self, classification: bool) -> tuple[Map, Map]:
        """Maps of the batch and of its first example alone, and checks of outputs, targets and losses."""
        tensors = {**self.buffers, **self.params}
        with torch.no_grad():
            try:
                outputs, found = self.network.map(tensors, self.inputs)
                first, single = self.network.map(tensors, self.inputs[:1])
            except RuntimeError as error:
                if "random" not in str(error):
                    raise
                raise ValueError(
                    "the network draws random numbers in its forward pass (functional dropout?), so its "
                    "gradient is not defined; switch that off, for instance with module.eval()"
                ) from error
            if classification:
                _check_classes(outputs, self.targets)
                _check_heads(self.network, found, self.targets)
            losses = self.losses(outputs)
        if not isinstance(losses, Tensor) or not losses.is_floating_point():
            kind = losses.dtype if isinstance(losses, Tensor) else type(losses).__name__
            raise TypeError(f"the loss is {kind}, expected a floating-point tensor; an integer has no gradient")
        if tuple(losses.shape) != (self.batch_size,):
            raise ValueError(
                f"the loss has shape {tuple(losses.shape)}, expected one number an example, "
                f"({self.batch_size},); return the per-example loss (reduction='none', other axes averaged)"
            )
        _require_finite("the loss", {"per example": losses})
        with torch.no_grad():
            _require_independence(losses[0], self.example(0).losses(first)[0])
        if found.ends:
            one = self.example(0)
            found.flow = single.flow = self.network.flow(single, tensors, self.params, one.inputs, one.losses)
        return found, single


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _checked_batch(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)):
        raise TypeError(f"batch is {type(batch).__name__}, expected a pair (inputs, targets) of tensors")
    inputs, targets = batch
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets) or len(inputs) == 0:
        raise ValueError(
            f"inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)} "
            "need the same, nonzero number of examples along the first axis"
        )
    _require_finite("the batch", {"inputs": inputs, "targets": targets})
    return inputs.detach(), targets.detach()


def _require_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.is_meta and not bool(tensor.isfinite().all()):
            raise NonFiniteError(f"{what}: {name} holds NaN or infinity")


def _refuse_coupled_or_random(module: nn.Module) -> None:
    for name, child in module.named_modules():
        label = f"{name!r} ({type(child).__name__})"
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and (child.training or not child.track_running_stats):
            raise ValueError(
                f"{label} couples the examples of a batch in train mode, so that no loss term credits one "
                "example alone; call module.eval(), or use a norm within the example"
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


def _require_independence(among: Tensor, alone: Tensor) -> None:
    tolerance = torch.finfo(among.dtype).eps ** 0.5
    if not among.is_meta and not torch.allclose(among, alone, rtol=tolerance, atol=tolerance):
        raise ValueError(
            f"the first example's loss is {float(among):.6g} in the batch and {float(alone):.6g} alone: the network "
            "couples examples, so that no loss term credits one example alone; use a norm within the example"
        )


def _check_classes(outputs: Any, targets: Tensor) -> None:
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"cross_entropy needs outputs [batch, classes], the network returned {shape}")
    if targets.is_floating_point() or targets.dtype == torch.bool or targets.ndim != 1:
        raise ValueError(
            f"cross_entropy needs class numbers [batch] as integers, the targets are {targets.dtype} "
            f"of shape {tuple(targets.shape)}"
        )
    if targets.is_meta:
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= outputs.shape[1]:
        raise ValueError(
            f"targets range from {low} to {high}, but the network has {outputs.shape[1]} classes (0 to "
            f"{outputs.shape[1] - 1}); check the labels or the size of the last layer"
        )


def _check_heads(network: Network, found: Map, targets: Tensor) -> None:
    for head in found.ends.values():
        classes = getattr(network.modules.get(f"{head}.linear"), "out_features", None)
        if classes is not None and not targets.is_meta and int(targets.max()) >= classes:
            raise ValueError(
                f"targets range to {int(targets.max())}, but the local head {head!r} has {classes} classes (0 to "
                f"{classes - 1}); give with_local_heads the classes= of the network"
            )
