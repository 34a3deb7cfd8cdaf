"""Networks built from torch.nn, without a subclass where torch.nn allows: small, float64, with fixed weights."""

import torch
from cases import labels, randn
from torch import Tensor, nn

import fgvar


class Residual(nn.Module):
    """x + body(x): what torch.nn has no module for."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Around(nn.Module):
    """A connection around the block that ends."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(torch.tanh(h + self.block(h)))


class Last(nn.Module):
    """A recurrent layer's last output."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x)[0][:, -1])


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)
    )


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0, activation=nn.ReLU(), batch_first=True)
    return nn.Sequential(nn.Linear(3, 4), layer, nn.Flatten(), nn.Linear(8, 3))


def residual() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), Residual(4), Residual(4), nn.Linear(4, 3))


SHAPES = {conv: (1, 3, 3), encoder: (2, 3), residual: (3,), Around: (3,), Last: (2, 3)}
BLOCKS = {conv: ("1", "3"), encoder: ("0", "1"), residual: ("1", "2")}
READOUTS = {conv: "5", encoder: "3", residual: "3"}
RELUS = {
    conv: {"0.site": "1", "2.site": "3"},
    encoder: {"1.linear1.site": "1.activation"},
    residual: {"1.body.1.site": "1.body.2", "2.body.1.site": "2.body.2"},
}


def fixed(net: nn.Module, *, train: bool = False) -> nn.Module:
    """In float64, with weights of no particular kind (nonzero biases, gains other than 1)."""
    net = net.double().train(train)
    for index, p in enumerate(net.parameters()):
        p.data = 0.6 * randn(*p.shape, seed=index + 7)
    return net


def inputs_of(build, batch: int = 2) -> Tensor:
    return randn(batch, *SHAPES[build], seed=3)


def problem_of(net: nn.Module, build, batch: int = 2) -> fgvar.Problem:
    return fgvar.Problem(net, "cross_entropy", (inputs_of(build, batch), labels(batch, 3)))


def assert_unbiased(estimator: fgvar.Estimator, problem: fgvar.Problem, *, dead: tuple[str, ...] = ()) -> None:
    """The enumerated mean is the target, which is nonzero (but for ``dead`` parameters)."""
    target, mean = estimator.target(problem), fgvar.testing.expectation(estimator, problem)
    assert set(mean) == set(target)
    for name, value in target.items():
        assert (float(value.abs().max()) > 1e-9) == (name not in dead), f"{name}: 0 would be compared with 0"
        torch.testing.assert_close(mean[name], value, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
