"""Small networks: build them of drawn numbers, so that a falsifying example can be rebuilt: float64, with sites."""

from collections.abc import Sequence

from torch import nn
from torch.nn.utils import skip_init

from fgvar.networks import MLP, LocalMixer
from fgvar.networks.local_mixer import GroupedLinear
from fgvar.nn.heads import blank_linear
from fgvar.nn.sites import with_sites
from fgvar.testing.problems import randomise

IMAGE = (1, 4, 4)  # what convolutional networks and LocalMixers look at


def linear(inputs: int, classes: int, seed: int) -> nn.Module:
    return _with_weights(with_sites(blank_linear(inputs, classes)), seed, (inputs,))


def perceptron(inputs: int, widths: Sequence[int], classes: int, act: type[nn.Module], seed: int) -> nn.Module:
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip([inputs, *widths[:-1]], widths, strict=True):
        layers += [blank_linear(fan_in, fan_out), act()]
    net = nn.Sequential(*layers, blank_linear(widths[-1], classes))
    return _with_weights(with_sites(net), seed, (inputs,))


def mlp(inputs: int, width: int, depth: int, classes: int, activation: str, seed: int) -> nn.Module:
    net = MLP(inputs, width=width, depth=depth, classes=classes, activation=activation)
    return _with_weights(net, seed, (inputs,))


def convolutional(channels: int, classes: int, act: type[nn.Module], seed: int) -> nn.Module:
    conv: nn.Module = skip_init(nn.Conv2d, IMAGE[0], channels, 3)
    net = nn.Sequential(conv, act(), nn.Flatten(), blank_linear(channels * 4, classes))
    return _with_weights(with_sites(net), seed, IMAGE)


def grouped(inputs: int, groups: tuple[int, int], classes: int, act: type[nn.Module], seed: int) -> nn.Module:
    width = groups[0] * groups[1]
    net = nn.Sequential(
        blank_linear(inputs, width), act(), nn.Unflatten(1, groups), GroupedLinear(groups[0], groups[1], groups[1]),
        nn.Flatten(), act(), blank_linear(width, classes),
    )  # fmt: skip
    return _with_weights(with_sites(net), seed, (inputs,))


def local_mixer(blocks: int, patches: int, groups: tuple[int, int], classes: int, seed: int) -> nn.Module:
    channels = groups[0] * groups[1]
    net = LocalMixer(IMAGE, classes, blocks=blocks, patches=patches, channels=channels, groups=groups[0])
    return _with_weights(net, seed, IMAGE)


def _with_weights(network: nn.Module, seed: int, input_shape: tuple[int, ...]) -> nn.Module:
    network = network.double()
    randomise(network, seed)
    network.input_shape = input_shape  # type: ignore[assignment]
    return network
