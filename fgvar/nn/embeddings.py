"""Embeddings whose backward pass is the derivative of what they return, as forward mode and differences have it."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def use_true_derivatives(module: nn.Module) -> None:
    """Let the backward pass of embeddings in ``module`` leave nothing out, weigh nothing, and be dense.

    Torch's own drops the row of ``padding_idx`` and divides by how often a token is there (``scale_grad_by_freq``),
    though the values, forward mode and finite differences do not. Sparse gradients hardly add, and do not stack.
    """
    for child in module.modules():
        if isinstance(child, nn.Embedding | nn.EmbeddingBag):
            child.sparse = child.scale_grad_by_freq = False
        # A bag without its padding is another value, whose derivative is torch's. Of an embedding the index itself
        # stays, since networks read it to make masks and positions.
        if isinstance(child, nn.Embedding) and child.padding_idx is not None:
            child.forward = partial(_unpadded, child.forward)  # type: ignore[method-assign]


def _unpadded(forward: Callable[..., Any], *inputs: Any, **keywords: Any) -> Any:
    with _Unpadded():
        return forward(*inputs, **keywords)


class _Unpadded(TorchFunctionMode):
    """Within, lookups know of no padding: in the forward of a subclass, too, which may do anything around them."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return (_lookup if func is functional.embedding else func)(*args, **(kwargs or {}))


def _lookup(
    input: Tensor,
    weight: Tensor,
    _padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    *_: Any,
    **__: Any,
) -> Tensor:
    return functional.embedding(input, weight, max_norm=max_norm, norm_type=norm_type)
