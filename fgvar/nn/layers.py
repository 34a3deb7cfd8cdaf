"""Layers in place of torch's own: the same function of the same parameters, for forward mode and vmap."""

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from fgvar.nn.forward_mode import linear_jvp
from fgvar.nn.recurrent import GRU, LSTM, RNN


class Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return linear_jvp(functional.linear, input, self.weight, self.bias)


class _Convolution(_ConvNd):
    def forward(self, input: Tensor) -> Tensor:
        return linear_jvp(self._conv_forward, input, self.weight, self.bias)


class Conv1d(_Convolution, nn.Conv1d):
    pass


class Conv2d(_Convolution, nn.Conv2d):
    pass


class Conv3d(_Convolution, nn.Conv3d):
    pass


LINEAR_JVP: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Linear,
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
}


def use_linear_jvp(module: nn.Module) -> None:
    """Let torch's linear, convolutional and recurrent layers in ``module`` use `linear_jvp`, but no subclasses."""
    for child in module.modules():
        # By exact type: a subclass may compute something else. The class alone changes, so that names, parameters and
        # hooks stay.
        if replacement := LINEAR_JVP.get(type(child)):
            child.__class__ = replacement
