"""Networks that people have, without a library: each is right, by vmap or plain calls, or refused by a sentence."""

import contextlib
from collections.abc import Callable

import pytest
import torch
from cases import labels, randn
from nets import fixed
from refusals import Calls
from right import assert_right
from torch import Tensor, nn
from torch.nn import functional

import fgvar

X, Y = randn(4, 3, seed=1), labels(4, 2)
IMAGES, TOKENS = randn(2, 1, 4, 4, seed=1), torch.tensor([[0, 1, 4], [2, 0, 3]])


def calls(function: Callable[..., object], **modules: nn.Module) -> nn.Module:
    """A function between a first layer, tanh, and a last one, `layer`."""
    net = Calls(lambda m, x: m.layer(function(m, torch.tanh(m.first(x)))), first=nn.Linear(3, 3), **modules)
    return fixed(net)


class UNet(nn.Module):
    """Down, up, and a connection around both; a loss of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(2, 2, 2, stride=2), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        around = functional.gelu(self.down(x))
        inside = functional.gelu(self.inner(functional.max_pool2d(around, 2)))
        return self.last(torch.cat([around, self.up(inside)], 1))


class Residual(nn.Module):
    """A physics-informed network: u'' + u at each point, by `torch.func` in its forward."""

    def __init__(self, *, vmapped: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.vmapped = vmapped

    def forward(self, x: Tensor) -> Tensor:
        if self.vmapped:
            second = torch.func.vmap(torch.func.jacrev(torch.func.grad(lambda one: self.body(one).sum())))(x)
            return second.diagonal(dim1=1, dim2=2)[:, :2] + self.body(x)
        slope = torch.func.grad(lambda points: self.body(points).sum())
        return torch.func.grad(lambda points: slope(points).sum())(x)[:, :2] + self.body(x)


class Experts(nn.Module):
    """Two experts, mixed by a router: all of them densely, or the better one by torch.where."""

    def __init__(self, *, dense: bool) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(3, 2), nn.ModuleList(nn.Linear(3, 2) for _ in range(2))
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(1)
        if self.dense:
            return torch.stack([w[:, None] * e(x) for w, e in zip(weights.T, self.experts, strict=True)]).sum(0)
        out = x.new_zeros(len(x), 2)
        for number, expert in enumerate(self.experts):
            chosen = torch.where(weights.argmax(1) == number)[0]
            out = out.index_add(0, chosen, weights[chosen, number, None] * expert(x[chosen]))
        return out


class Constant(nn.Module):
    """A tensor that is an attribute, neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 2), torch.tensor([0.5, 2.0], dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


class Tied(nn.Module):
    """Token and position embeddings; the read-out is the token embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions, self.out = nn.Embedding(5, 3), nn.Embedding(3, 3), nn.Linear(3, 5, bias=False)
        self.out.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.tokens(ids) + self.positions.weight))


def pixels(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().flatten(1).mean(1)


def module_compiled() -> nn.Module:
    net = fixed(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    net[0].compile(backend="eager")
    net.compile(backend="eager")
    return net


ROWS: dict[str, tuple[Callable[[], nn.Module], object, tuple[Tensor, Tensor]]] = {
    "U-Net": (lambda: fixed(UNet()), pixels, (IMAGES, IMAGES.tanh())),
    "residual of an equation": (lambda: fixed(Residual(vmapped=False)), "cross_entropy", (X, Y)),
    "residual by vmap": (lambda: fixed(Residual(vmapped=True)), "cross_entropy", (X, Y)),
    "dense experts": (lambda: fixed(Experts(dense=True)), "cross_entropy", (X, Y)),
    "plain tensor": (lambda: fixed(Constant()), "cross_entropy", (X, Y)),
    "tied embeddings": (lambda: fixed(Tied()), "causal_lm", (TOKENS, TOKENS)),
    "compiled": (lambda: torch.compile(calls(lambda _, h: h), backend="eager"), "cross_entropy", (X, Y)),
    "compiled inside": (
        lambda: calls(lambda m, h: m.body(h), body=torch.compile(nn.Linear(3, 3), backend="eager")),
        "cross_entropy",
        (X, Y),
    ),
    "compiled in place": (module_compiled, "cross_entropy", (X, Y)),
    "compiled function": (
        lambda: calls(lambda _, h: torch.compile(torch.sin, backend="eager")(h)), "cross_entropy", (X, Y)
    ),
    "loops of vmap": (lambda: calls(lambda _, h: h * torch.histc(h.detach()[0]).sum() / 3), "cross_entropy", (X, Y)),
}  # fmt: skip


def chosen_rows(_: nn.Module, h: Tensor) -> Tensor:
    where = (h.detach() > 0).nonzero(as_tuple=True)
    return torch.zeros_like(h).index_put(where, h[where])


def into_zeros(_: nn.Module, h: Tensor) -> Tensor:
    out = torch.zeros(h.shape, dtype=h.dtype)
    out[:, :2] = h[:, :2]
    return out


def asking(m: nn.Module, h: Tensor) -> Tensor:
    return m.inner(h) if bool((m.inner.weight.sum() > 0) | (h.sum() < 1e9)) else h


NOT_BY_VMAP: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "experts by torch.where": (lambda: fixed(Experts(dense=False)), r"the network \(Experts\)"),
    "an if on a tensor": (lambda: calls(asking, inner=nn.Linear(3, 3)), r"the network \(Calls\)"),
    "nonzero": (lambda: calls(chosen_rows), r"the network \(Calls\)"),
    "write into a new tensor": (lambda: calls(into_zeros), r"the network \(Calls\)"),
    "list of numbers": (lambda: calls(lambda _, h: h * len(h.tolist()) / len(h)), r"the network \(Calls\)"),
    "no batching rule": (lambda: calls(lambda m, h: m.relu(h), relu=nn.RReLU()), r"'relu' \(RReLU\)"),
}


@pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor")  # by Dynamo, in the user's own pass
@pytest.mark.parametrize("row", ROWS)
def test_right(row: str) -> None:
    build, loss, batch = ROWS[row]
    assert_right(build(), loss, batch)


@pytest.mark.parametrize("row", NOT_BY_VMAP)
def test_right_by_plain_calls(row: str) -> None:
    build, module = NOT_BY_VMAP[row]
    with pytest.warns(UserWarning, match=rf"^{module} does not run under torch\.func\.vmap") as caught:
        problem = assert_right(build().eval(), "cross_entropy", (X, Y))
    assert len(caught) == 1
    checks = ["structure", "unbiased", "chunking"]
    report = fgvar.testing.check_estimator(fgvar.scheme("FG-W"), problem, checks=checks)
    assert report.passed, str(report)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    problem = fgvar.Problem(calls(lambda _, h: h).to(dtype), "cross_entropy", (X.to(dtype), Y))
    schemes = {name: fgvar.scheme(name) for name in ("FG-W", "MeZO")}
    assert bool(fgvar.measure(schemes, problem, draws=4)["variance"].notnull().all())


def test_training_by_plain_calls_warns_once() -> None:
    class Branching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x)
            return out if out.sum().item() < 1e9 else 2 * out

    images = [fgvar.data.load("digits", split).subset(range(32)) for split in ("train", "test")]
    net = Branching(nn.Flatten(), nn.Linear(64, 10))
    probe = fgvar.Probe({"FG-W": fgvar.scheme("FG-W")}, images[0].batch(torch.arange(4)), (0, 2), draws=4)
    schedule = fgvar.Schedule(epochs=1, batch=16)
    with pytest.warns(UserWarning, match=r"^the network \(Branching\) does not run under") as caught:
        fgvar.train(net, fgvar.scheme("FG-W", shared=False), images, schedule, device="cpu", probe=probe)
    assert len([one for one in caught if "vmap" in str(one.message)]) == 1


# ---- without forward mode ----------------------------------------------------------------------------------


class Sine(torch.autograd.Function):
    """In the style that torch.func takes, with a derivative backward alone."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].cos()


class Mapped(Sine):
    generate_vmap_rule = True


class OwnLSTM(nn.LSTM):
    """Of a subclass nobody knows what it computes: it keeps torch's fused kernel."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs, width, batch_first=True)


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.last = nn.EmbeddingBag(5, 3), nn.Linear(3, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.bag(ids))


NO_FORWARD_MODE: dict[str, tuple[Callable[[], nn.Module], Tensor, str, bool]] = {
    "EmbeddingBag": (lambda: fixed(Bag()), TOKENS, r"_embedding_bag in 'bag' \(EmbeddingBag\)", False),
    "distances": (
        lambda: calls(lambda _, h: h + torch.cdist(h[:, None], h.new_ones(len(h), 1, 3))[:, 0]),
        X[:2], r"_cdist_forward in the network \(Calls\)", False,
    ),
    "a kernel by name": (
        lambda: calls(lambda _, h: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *(h[:, None, None],) * 3)[0][:, 0, 0]),
        X[:2], r"_scaled_dot_product_flash_attention_for_cpu in the network \(Calls\)", False,
    ),
    "subclass of a recurrent layer": (
        lambda: fixed(Calls(lambda m, x: m.layer(m.lstm(x[:, None])[0][:, 0]), lstm=OwnLSTM(3, 3))).float(),
        X[:2].float(), r"mkldnn_rnn_layer in 'lstm' \(OwnLSTM\)", True,
    ),
    "quantised": (
        lambda: calls(lambda _, h: torch.fake_quantize_per_tensor_affine(h, 0.1, 0, -128, 127)),
        X[:2], r"fake_quantize_\w+ in the network \(Calls\)", False,
    ),
    "Function": (
        lambda: calls(lambda _, h: Mapped.apply(h)), X[:2],
        r"the torch\.autograd\.Function in the network \(Calls\).*or give the Function a jvp", False,
    ),
    "Function without vmap": (
        lambda: calls(lambda _, h: Sine.apply(h)), X[:2],
        r"the torch\.autograd\.Function in the network \(Calls\).*or give the Function a jvp", True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", NO_FORWARD_MODE)
def test_no_forward_mode_names_the_operation_and_what_works(row: str) -> None:
    build, x, operation, plain = NO_FORWARD_MODE[row]
    problem = fgvar.Problem(build(), "cross_entropy", (x, labels(2, 2)))
    for words in ({}, {"shared": False}, {"directions": 2}):
        with pytest.raises(NotImplementedError, match=rf"^torch has no forward mode of {operation}"):
            fgvar.measure({"FG-W": fgvar.scheme("FG-W", **words)}, problem, draws=4)
    rows = fgvar.testing.check_estimator(fgvar.scheme("FG-W"), problem, checks=["structure", "unbiased"])
    assert len(rows.failures) == 1  # once, with the reason
    # What the sentence says works.
    replay = fgvar.scheme("FG-W", oracle=fgvar.oracles.Replay())
    cures = {"MeZO": fgvar.scheme("MeZO"), "FG-W": replay}
    expected = pytest.warns(UserWarning, match="does not run under") if plain else contextlib.nullcontext()
    with expected:
        assert bool(fgvar.measure(cures, problem, draws=4)["variance"].notnull().all())
    exact = fgvar.measure({"FG-W": replay}, problem, route="exact")["relative_variance"].sel(layer="total").item()
    assert exact == pytest.approx(sum(p.numel() for p in problem.params.values()) + 1)


def test_no_second_derivative_names_the_operation() -> None:
    def distance(m: nn.Module, x: Tensor) -> Tensor:
        ones = x.new_ones(len(x), 1, 3)
        return torch.func.grad(lambda y: torch.cdist(m.body(y)[:, None], ones, p=3.0).sum())(x)[:, :2]

    problem = fgvar.Problem(Calls(distance, body=nn.Linear(3, 3)), "cross_entropy", (X, Y))
    with pytest.raises(NotImplementedError, match=r"^torch has no derivative of _cdist_backward, which"):
        problem.backprop()


def test_a_write_that_the_gradient_misses_is_named() -> None:
    problem = fgvar.Problem(calls(lambda _, h: h.mul_(2)), "cross_entropy", (X, Y))
    with pytest.raises(ValueError, match=r"changes a tensor in place that its own gradient needs.*a new one"):
        problem.backprop()
