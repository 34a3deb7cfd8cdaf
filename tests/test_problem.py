"""Problems: networks without a gradient, with batch norm or random numbers, and batches that are none."""

import math

import pytest
import torch
from refusals import Calls, X, Y, net, problem, says
from torch import Tensor, nn
from torch.nn import functional

from fgvar import Problem
from fgvar.errors import NonFiniteError


def test_a_network_without_parameters() -> None:
    with pytest.raises(ValueError, match=says("ReLU has no parameters", "no gradient")):
        problem(nn.ReLU())


def layered(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), layer).double()


BATCH_NORMS = {
    "train": layered(nn.BatchNorm1d(2)),
    "without statistics": layered(nn.BatchNorm1d(2, track_running_stats=False)).eval(),
    "lazy": layered(nn.SyncBatchNorm(2)),
}


@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_batch_norm_in_train_mode(kind: str) -> None:
    with pytest.raises(ValueError, match=says(r"'1' \(\w*BatchNorm\w*\) couples the examples", r"module\.eval\(\)")):
        problem(BATCH_NORMS[kind])


DROPOUTS = {
    "Dropout": layered(nn.Dropout(0.1)),
    "AlphaDropout": layered(nn.AlphaDropout(0.1)),
    "RNN": Calls(lambda m, x: m.deep(x)[0], deep=nn.RNN(3, 2, num_layers=2, dropout=0.1)),
    "MultiheadAttention": Calls(lambda m, x: m.deep(x, x, x)[0], deep=nn.MultiheadAttention(3, 1, dropout=0.1)),
}


@pytest.mark.parametrize("kind", DROPOUTS)
def test_dropout_in_train_mode(kind: str) -> None:
    name = "1" if isinstance(DROPOUTS[kind], nn.Sequential) else "deep"
    message = says(rf"'{name}' \({kind}\) draws random numbers in train mode", r"module\.eval\(\)", "rate to 0")
    with pytest.raises(ValueError, match=message):
        problem(DROPOUTS[kind])


RANDOM = {
    "functional dropout": Calls(lambda m, x: functional.dropout(m.layer(x), 0.1)),
    "functional dropout, by mode": Calls(lambda m, x: functional.dropout(m.layer(x), 0.1, m.training)),
    "added noise": Calls(lambda m, x: m.layer(x) + torch.randn(2, dtype=torch.float64)),
    "noise like": Calls(lambda m, x: torch.randn_like(m.layer(x))),
    "one number": Calls(lambda m, x: m.layer(x) * torch.rand(1).item()),
    "random slopes": layered(nn.RReLU()),
}


@pytest.mark.parametrize("kind", RANDOM)
def test_random_numbers_in_the_forward_pass(kind: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=says("draws random numbers", r"module\.eval\(\)")):
        problem(RANDOM[kind])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["BatchNorm", "Dropout", "functional", "rate 0"])
def test_what_does_nothing_is_accepted(kind: str) -> None:
    modules = {
        "BatchNorm": layered(nn.BatchNorm1d(2)).eval(),
        "Dropout": layered(nn.Dropout(0.1)).eval(),
        "functional": Calls(lambda m, x: functional.dropout(m.layer(x), 0.1, m.training)).eval(),
        "rate 0": layered(nn.Dropout(0)),
    }
    assert problem(modules[kind]).loss().isfinite()


def test_errors_of_the_network_itself_pass_through() -> None:
    def forward(_: object, x: Tensor) -> Tensor:
        raise RuntimeError(f"mine, of {len(x)}")

    with pytest.raises(RuntimeError, match=r"^mine, of 4$"):
        problem(Calls(forward))
    with pytest.raises(IndexError, match="index 4 is out of bounds"):
        problem(Calls(lambda m, x: m.layer(x[torch.tensor([4])])))


@pytest.mark.parametrize("batch", [{"x": X}, (X, Y, Y), (X,), X, (X.numpy(), Y.numpy()), (X, [0, 1, 1, 0]), None])
def test_a_batch_is_a_pair_of_tensors(batch: object) -> None:
    with pytest.raises(TypeError, match=rf"batch is {type(batch).__name__}.*expected a pair \(inputs, targets\)"):
        problem(batch=batch)


@pytest.mark.parametrize("batch", [(X, Y[:3]), (X[:0], Y[:0]), (X, Y[0]), (X[0, 0], Y[0])])
def test_inputs_and_targets_have_the_same_examples(batch: tuple[Tensor, Tensor]) -> None:
    shapes = [rf"{name} \({', '.join(map(str, t.shape))},?\)" for name, t in zip(("inputs", "targets"), batch)]  # noqa: B905
    with pytest.raises(ValueError, match=says(*shapes, "same, nonzero number of examples along the first axis")):
        problem(batch=batch)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_problems(value: float) -> None:
    spoilt = net()
    with torch.no_grad():
        spoilt[2].bias[1] = value
    with pytest.raises(NonFiniteError, match=r"parameters: 2\.bias holds NaN or infinity"):
        problem(spoilt)
    inputs = X.clone()
    inputs[1, 2] = value
    with pytest.raises(NonFiniteError, match="batch: inputs holds NaN or infinity"):
        problem(batch=(inputs, Y))
    with pytest.raises(NonFiniteError, match="batch: targets holds NaN or infinity"):
        problem(loss="mse", batch=(X, inputs[:, 1:]))
    with pytest.raises(NonFiniteError, match=r"loss.*holds NaN or infinity"):
        problem(loss=lambda outputs, _: outputs.sum(1) * value)
    assert issubclass(NonFiniteError, ArithmeticError)


def test_another_batch_has_no_origin_among_the_old_examples() -> None:
    """There the probabilities of samplers were declared: of examples that are not there any more."""
    here = problem(net())
    moved = here.moved({name: p + 1 for name, p in here.params.items()})
    assert moved.origin is here
    assert moved.at(batch=(X, Y)).origin is None


def test_a_loss_and_a_forward_that_flatten_by_view() -> None:
    """As those of most language models: rows of a batch lie one behind the other, also every second one."""
    torch.manual_seed(0)
    classes, ids, labels = 5, torch.randint(5, (5, 3)), torch.randint(5, (5, 3))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        each = functional.cross_entropy(outputs.view(-1, classes), targets.view(-1), reduction="none")
        return each.view(targets.shape).mean(1)

    net = Calls(lambda m, x: m.out(m.embedding(x.view(-1)).view(*x.shape, -1)),
                embedding=nn.Embedding(5, 4), out=nn.Linear(4, classes)).double()  # fmt: skip
    whole = Problem(net, loss, (ids, labels))
    plain = functional.cross_entropy(net(ids).flatten(0, 1), labels.flatten())
    assert float(whole.loss()) == pytest.approx(float(plain.detach()), rel=1e-12)
    for which in (slice(1, None, 2), slice(4, None, -2), slice(1, 3)):
        some = whole.rows(which)
        assert some.targets.tolist() == labels.tolist()[which]
        assert all(leaf.is_contiguous() for leaf in (some.inputs, some.targets))
        assert some.loss().isfinite()
    assert whole.rows(slice(1, 3)).inputs.data_ptr() == whole.inputs[1:].data_ptr(), "a range is no copy"
    with pytest.raises(ValueError, match=r"rows slice\(5, None, 2\) are none of the batch of 5"):
        whole.rows(slice(5, None, 2))


def test_factors_of_small_floats_are_not_rounded() -> None:
    """1/0.3 in bfloat16 is 0.16 % short, for every example that a sampler draws with probability 0.3."""
    batch = torch.randn(8, 6).bfloat16(), torch.randn(8, 3).bfloat16()
    small = Problem(torch.nn.Linear(6, 3).bfloat16(), "mse", batch)
    found = small.weighted(torch.full((8,), 1 / 0.3)).loss() / small.loss()
    assert float(found) == pytest.approx(1 / 0.3, rel=1e-6)
