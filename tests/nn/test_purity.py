"""What networks and losses may not do while they run: draw, own, couple, write, and leave torch.func."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases import randn
from refusals import Calls, X, Y, assert_measured, net, of_each, problem
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import fgvar


def states() -> tuple[object, ...]:
    numpy = np.random.get_state()
    return torch.get_rng_state().tolist(), numpy[1].tolist(), numpy[2:], random.getstate()


# ---- random numbers ----------------------------------------------------------------------------------------

DRAWING_LOSSES = {
    "tiny": lambda o, t: of_each(o, t) + 1e-12 * torch.randn(len(o)),
    "one factor": lambda o, t: of_each(o, t) * torch.rand(()),
    "actions": lambda o, _: of_each(o, torch.multinomial(o.softmax(1), 1)[:, 0]),
    "a distribution": lambda o, _: of_each(o, torch.distributions.Categorical(logits=o).sample()),
    "a generator": lambda o, t: of_each(o, t) * torch.rand((), generator=torch.Generator().manual_seed(0)),
    "NumPy": lambda o, t: of_each(o, t) * np.random.rand(),
    "NumPy, seldom": lambda o, t: of_each(o, t) + (np.random.rand() < 0.01),
    "Python": lambda o, t: of_each(o, t) * random.random(),
}


@pytest.mark.parametrize("kind", DRAWING_LOSSES)
def test_a_loss_that_draws_is_refused_whatever_the_seed(kind: str) -> None:
    module = net()
    for seed in range(20):
        torch.manual_seed(seed)
        before = states()
        with pytest.raises(ValueError, match=r"(?s)the loss draws random numbers.*part of the batch, as inputs"):
            problem(module, DRAWING_LOSSES[kind])
        assert states() == before


@pytest.mark.parametrize("draw", [torch.randn, np.random.rand], ids=["torch", "NumPy"])
def test_a_network_that_draws_is_told_both_cures(draw: Callable[[int], object]) -> None:
    module = Calls(lambda m, x: m.layer(x) * torch.as_tensor(draw(1)))
    before = states()
    with pytest.raises(
        ValueError, match=r"the network draws random.*module\.eval\(\).*make them part of the batch's in"
    ):
        problem(module)
    assert states() == before


def test_a_network_that_draws_and_returns_an_object_is_not_called_a_loss_that_couples() -> None:
    module = Calls(lambda m, x: Holder(m.layer(x) * np.random.rand()))
    with pytest.raises(ValueError, match=r"the (loss|network) draws random numbers"):
        problem(module, lambda o, t: of_each(o.z, t))


def test_a_problem_of_a_loss_that_draws_nothing_moves_no_state() -> None:
    module, before = net(), states()
    problem(module, of_each)
    assert states() == before


def test_noise_that_is_part_of_the_inputs_is_accepted() -> None:
    module = Calls(lambda m, x: m.layer(x[:, :3] * (x[:, 3:] > 0)))
    assert_measured(module, "FG-W", batch=(torch.cat([X, randn(*X.shape, seed=1)], 1), Y))


# ---- parameters of others ----------------------------------------------------------------------------------


def test_a_loss_with_parameters_of_its_own_is_refused() -> None:
    module, scale = net(), nn.Parameter(torch.ones((), dtype=torch.float64))
    decayed = lambda o, t: of_each(o, t) + sum(p.square().sum() for p in module.parameters())  # noqa: E731
    for loss in (decayed, lambda o, t: of_each(o / scale, t)):
        with torch.no_grad(), pytest.raises(ValueError, match=r"the loss .* parameters of its own.*from its forward"):
            problem(module, loss)
    frozen = scale.detach()
    assert problem(module, lambda o, t: of_each(o / frozen, t)).loss().isfinite()


def test_weight_decay_returned_from_forward_is_measured() -> None:
    module = Calls(lambda m, x: (m.layer(x), m.layer.weight.square().sum().expand(len(x))))
    where = problem(module, lambda o, t: of_each(o[0], t) + o[1])
    plain = problem(Calls(lambda m, x: m.layer(x), layer=module.layer))
    added = where.backprop()["layer.weight"] - plain.backprop()["layer.weight"]
    torch.testing.assert_close(added, 2 * module.layer.weight.detach())


def test_a_network_with_parameters_that_it_does_not_own_is_refused() -> None:
    other = nn.Linear(3, 3).double()
    listed = Calls(lambda m, x: m.layer(m.stack[0](x)))
    listed.stack = [nn.Linear(3, 3).double()]
    for module in (Calls(lambda m, x: m.layer(other(x))), listed):
        with pytest.raises(ValueError, match=r"parameters that it does not own.*nn\.ModuleList"):
            problem(module)
    other.requires_grad_(False)
    assert problem(Calls(lambda m, x: m.layer(other(x)))).loss().isfinite()


# ---- coupling ----------------------------------------------------------------------------------------------


class Holder:
    """An output that nobody can look into."""

    def __init__(self, z: Tensor) -> None:
        self.z = z


def neighbours(x: Tensor, step: int) -> Tensor:
    """What each example gets from the one ``step`` before it; the first ones get nothing."""
    return torch.cat([0 * x[:step], x[:-step]]) if len(x) > step else 0 * x


COUPLING_NETS = {
    "the one before": lambda m, x: m.layer(x) + neighbours(m.layer(x), 1),
    "the one after": lambda m, x: m.layer(x) + neighbours(m.layer(x).flip(0), 1).flip(0),
    "two before": lambda m, x: m.layer(x) + neighbours(m.layer(x), 2),
    "three before": lambda m, x: m.layer(x) + neighbours(m.layer(x), 3),
    "the first": lambda m, x: m.layer(x) * m.layer(x[:1]),
    "the last": lambda m, x: m.layer(x) * m.layer(x[-1:]),
    "the mean": lambda m, x: m.layer(x - x.mean(0)),
    "its place": lambda m, x: m.layer(x) * torch.arange(1, len(x) + 1)[:, None],
}


@pytest.mark.parametrize("kind", COUPLING_NETS)
@pytest.mark.parametrize("batch", [3, 4, 5, 6])
def test_a_network_that_couples_any_examples_is_refused(kind: str, batch: int) -> None:
    if kind == "three before" and batch == 3:
        return  # there is no such neighbour
    with pytest.raises(
        ValueError, match=r"example \d is .* among fewer: the network couples examples.*batch_first=True"
    ):
        problem(Calls(COUPLING_NETS[kind]), batch=(X[:batch], Y[:batch]))


def test_a_network_that_fails_on_one_example_alone_is_refused() -> None:
    module = Calls(lambda m, x: functional.batch_norm(m.layer(x), None, None, training=True))
    with pytest.raises(ValueError, match=r"takes the batch, and not its first example alone \(Expected more than 1"):
        problem(module)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_time_along_the_batch_is_refused(kind: type[nn.Module]) -> None:
    """Example i sees example i − 1, and the first one sees nobody."""
    batch = randn(len(X), 5, 3), Y
    turned, right = (
        Calls(lambda m, x: m.fc(m.rnn(x)[0][:, -1]), rnn=kind(3, 5, batch_first=first), fc=nn.Linear(5, 2))
        for first in (False, True)
    )
    with pytest.raises(ValueError, match=r"example 1 is .*the network couples examples"):
        problem(turned, batch=batch)
    assert problem(right, batch=batch).loss().isfinite()


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, t: of_each(o, t) - functional.cross_entropy(o, t),
        lambda o, t: of_each(o, t) / of_each(o, t).detach().max(),
        lambda o, t: of_each(o, t) + (o - o.roll(1, 0)).square().sum(1),
        lambda o, t: of_each(o, t) + neighbours(of_each(o, t), 1),
    ],
)
def test_a_loss_that_couples_is_called_the_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"the loss couples examples.*without statistics of the batch"):
        problem(loss=loss)


def test_a_loss_in_more_digits_than_its_network_is_not_said_to_couple() -> None:
    """Kernels round by how many examples there are: float32 by 1e-7, whatever the loss is computed in."""

    def rounded(x: Tensor) -> Tensor:
        return x * (1 + 1e-7 * len(x))

    module, batch = Calls(lambda m, x: rounded(m.layer(x))).float(), (X.float(), Y)
    assert problem(module, lambda o, t: of_each(o.double(), t), batch=batch).loss().dtype == torch.float64
    wide = Calls(lambda m, x: rounded(m.layer(x)).double()).float()
    assert problem(wide, of_each, batch=batch).loss().dtype == torch.float64
    with pytest.raises(ValueError, match="the loss couples examples"):
        problem(module, lambda o, t: of_each(o.double(), t) * (1 + 0.01 * len(o)), batch=batch)


def test_who_couples_cannot_be_told_of_outputs_that_are_no_tensors() -> None:
    module = Calls(lambda m, x: Holder(m.layer(x)))
    assert problem(module, lambda o, t: of_each(o.z, t)).loss().isfinite()
    with pytest.raises(ValueError, match=r"the network or the loss couples examples.*return tensors"):
        problem(module, lambda o, t: of_each(o.z, t) * o.z.mean())


def test_who_remembers_its_calls_is_not_said_to_couple() -> None:
    def counting(m: Calls, x: Tensor) -> Tensor:
        m.count = getattr(m, "count", 0) + 1
        return m.count * m.layer(x)

    with pytest.raises(ValueError, match=r"two passes of one batch differ: the network draws.*nor may it remember"):
        problem(Calls(counting))
    calls: list[int] = []
    with pytest.raises(ValueError, match=r"two calls of one batch differ: the loss draws.*nor may it remember"):
        problem(loss=lambda o, t: (calls.append(1), len(calls) * of_each(o, t))[1])


def test_one_and_two_examples_are_looked_at_too() -> None:
    coupling = Calls(COUPLING_NETS["the one before"])
    assert problem(coupling, batch=(X[:1], Y[:1])).batch_size == 1
    with pytest.raises(ValueError, match=r"example 1 is .*the network couples examples"):
        problem(coupling, batch=(X[:2], Y[:2]))


# ---- changes in place --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        lambda: Calls(lambda m, x: m.layer(x.mul_(2))),
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)).double(),
        lambda: Calls(lambda m, x: (x[:, 1].zero_(), m.layer(x))[1]),
    ],
    ids=["mul_", "ReLU", "a view"],
)
def test_a_network_that_writes_into_its_inputs_gets_a_copy(module: Callable[[], nn.Module]) -> None:
    inputs = X.clone()
    assert_measured(fgvar.with_sites(module()), "FG-W", "FG-A", batch=(inputs, Y))
    fgvar.measure({"MeZO": fgvar.scheme("MeZO")}, problem(module(), batch=(inputs, Y)), draws=4)
    assert torch.equal(inputs, X)


def test_a_loss_that_writes_into_the_targets_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the loss changes 'targets' in place.*torch\.where"):
        problem(loss=lambda o, t: of_each(o, t.clamp_(0, 1)), batch=(X, Y.clone()))


def test_a_loss_that_writes_into_the_outputs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the loss changes 'outputs' in place"):
        problem(loss=lambda o, t: of_each(o.clamp_(-1, 1), t))
    pair = Calls(lambda m, x: (x, m.layer(x)))
    with pytest.raises(ValueError, match=r"the loss changes 'outputs\[1\]' in place"):
        problem(pair, lambda o, t: of_each(o[1].mul_(2), t))


def test_a_network_that_writes_into_its_buffers_is_refused() -> None:
    counting = Calls(lambda m, x: (m.count.add_(1), m.layer(x))[1])
    counting.register_buffer("count", torch.zeros(()))
    spectral = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2))).double()
    for module, name in ((counting, "'count'"), (spectral, r"'0\.parametrizations\.weight\.0\._u'")):
        with pytest.raises(ValueError, match=rf"the network changes {name}.* in place.*module\.eval\(\)"):
            problem(module)
    assert problem(spectral.eval()).loss().isfinite()


# ---- what torch.func cannot follow -------------------------------------------------------------------------


class Doubled(torch.autograd.Function):
    """In the older style, whose forward has the context."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # noqa: ARG004
        return 2 * x

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG004
        return 2 * g


CHECKPOINTS = {
    reentrant: lambda m, x, r=reentrant: m.layer(checkpoint(m.body, x, use_reentrant=r))
    for reentrant in (True, False)
}
UNDERIVABLE = {
    "checkpointing": (CHECKPOINTS[False], r"checkpoints its activations.*gradient_checkpointing_disable\(\)"),
    "reentrant checkpointing": (CHECKPOINTS[True], "checkpointing by one: switch that off.*setup_context"),
    "old functions": (lambda m, x: m.layer(Doubled.apply(x)), r"the network uses a torch\.autograd\.Function that"),
    "NumPy": (lambda m, x: m.layer(torch.as_tensor(np.sin(x.numpy()))), "without NumPy"),
    "autograd inside": (
        lambda m, x: torch.autograd.grad(m.layer(x.requires_grad_()).sum(), x, create_graph=True)[0],
        r"the network calls requires_grad_\(\) in its forward.*take torch\.func\.grad for derivatives inside",
    ),
    "no gradient": (lambda m, x: m.layer(x).detach(), r"no parameter leads to the network's outputs.*would be 0"),
}


@pytest.mark.parametrize("kind", UNDERIVABLE)
def test_networks_that_cannot_be_differentiated(kind: str) -> None:
    function, message = UNDERIVABLE[kind]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        problem(Calls(function, body=nn.Linear(3, 3)))


def test_draws_in_what_vmap_has_no_rule_for_are_refused() -> None:
    """Torch refuses draws under vmap, and there such an operation itself: the random state tells."""
    leaky = Calls(lambda m, x: m.layer(torch.nn.functional.rrelu(x, training=m.training)))
    with pytest.raises(ValueError, match="the network draws random numbers in its forward pass"):
        problem(leaky)
    assert problem(leaky.eval()).loss().isfinite()


def test_a_precision_without_a_kernel_is_named() -> None:
    values = Calls(lambda m, x: m.layer(torch.linalg.svdvals(x.unflatten(0, (2, -1))).expand(2, -1))).half()
    with pytest.raises(ValueError, match=r"the network \(Calls\) does not compute in torch\.float16 here \("):
        problem(values, batch=(X.half(), Y))
    # Token numbers are not to blame for it.
    tokens = Calls(lambda m, x: m.layer(torch.linalg.svdvals(m.table(x)[:, None])), table=nn.Embedding(3, 3)).half()
    with pytest.raises(ValueError, match=r"does not compute in torch\.float16 here"):
        problem(tokens, batch=(torch.tensor([0, 1, 2, 0]), Y))


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, _: torch.as_tensor(o.detach().sum(1).numpy()),
        lambda o, _: torch.as_tensor(np.square(o.numpy()).sum(1)),
    ],
)
def test_losses_that_cannot_be_differentiated(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"cannot differentiate the loss .*without NumPy"):
        problem(loss=loss)


def test_derivatives_by_torch_func_inside_are_measured() -> None:
    assert_measured(Calls(lambda m, x: torch.func.grad(lambda y: m.layer(y).square().sum())(x)[:, :2]), "FG-W")


def test_a_loss_without_derivative_has_a_value() -> None:
    """0 or 1: of use to finite differences of wide steps."""
    where = problem(loss=lambda o, t: (o.argmax(1) != t).double())
    assert not any(bool(g.any()) for g in where.backprop().values())
