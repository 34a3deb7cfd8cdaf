"""Linear layers that move along a direction of their input by one product."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from fgvar.dual import opened

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def mapped(product: Product, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``product(x, weight, bias)``, where no bias (None) makes it linear in x.

    W(x + εu) + b = (Wx + b) + ε·Wu: where the input moves alone, its tangent is the product of the direction. Torch's
    forward mode multiplies the input by the weight's tangent of zeros, too, eagerly and compiled.

    Example:
        >>> import torch
        >>> x, u, w, b = torch.ones(1, 3), torch.tensor([[1.0, 0.0, 0.0]]), torch.full((2, 3), 2.0), torch.ones(2)
        >>> torch.func.jvp(lambda x: mapped(functional.linear, x, w, b), (x,), (u,))[1]
        tensor([[2., 2.]])
    """
    at, along = opened(x)
    if along is None or any(opened(own)[1] is not None for own in (weight, bias) if own is not None):
        return product(x, weight, bias)
    value = product(at, weight, bias)
    return forward_ad.make_dual(value, product(along, weight, None).to(value.dtype))  # autocast may keep one precise


class Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return mapped(functional.linear, input, self.weight, self.bias)


class _Convolution(_ConvNd):
    def forward(self, input: Tensor) -> Tensor:
        return mapped(self._conv_forward, input, self.weight, self.bias)


class Conv1d(_Convolution, nn.Conv1d):
    pass


class Conv2d(_Convolution, nn.Conv2d):
    pass


class Conv3d(_Convolution, nn.Conv3d):
    pass


MAPPED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Linear,
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
}


def map_linearly(module: nn.Module) -> None:
    """Let torch's linear and convolutional layers in ``module`` compute by `mapped`; subclasses stay as they are."""
    for child in module.modules():
        if own := MAPPED.get(type(child)):
            child.__class__ = own
