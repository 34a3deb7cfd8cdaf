"""Networks that torch itself handles in a way of its own: each is right, or refused by a sentence with the cure."""

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from cases import labels, randn
from nets import fixed
from right import assert_right
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import fgvar

X, Y = randn(4, 3), labels(4, 2)
TOKENS = torch.tensor([[0, 1], [2, 0], [3, 3], [1, 2]])


def chain(first: nn.Module) -> nn.Module:
    return nn.Sequential(first, nn.Tanh(), nn.Linear(4, 2))


def older_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return chain(nn.utils.weight_norm(nn.Linear(3, 4)))


def older_spectral_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return chain(nn.utils.spectral_norm(nn.Linear(3, 4)))


def called_once(net: nn.Module, x: Tensor = X) -> nn.Module:
    net.double()(x)
    return net


def two_names() -> nn.Module:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(3, 2))


def embedding(sparse: bool) -> nn.Module:
    return nn.Sequential(nn.Embedding(5, 3, sparse=sparse), nn.Flatten(), nn.LazyLinear(2))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.out, self.reentrant = nn.Linear(3, 4), nn.Linear(4, 2), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.out(checkpoint(self.inner, x, use_reentrant=self.reentrant))


def scripted(whole: bool) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        compiled = torch.jit.trace(nn.Linear(3, 4).double(), X)
    return compiled if whole else chain(compiled)


def owning(parameter: Tensor) -> nn.Module:
    net = nn.Linear(3, 2)
    net.register_parameter("own", nn.Parameter(parameter))
    return net


def frozen_float() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.Tanh(), nn.Linear(4, 2).double())


def frozen_sparse() -> nn.Module:
    net = owning(torch.eye(2).to_sparse())
    net.own.requires_grad_(False)
    return net


def mixed() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4).float(), nn.Tanh(), nn.Linear(4, 2).double())


# ---- right -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "x"),
    [
        (older_weight_norm, X),
        (lambda: chain(parametrizations.weight_norm(nn.Linear(3, 4))), X),
        (lambda: chain(parametrizations.spectral_norm(nn.Linear(3, 4))), X),
        (older_spectral_norm, X),
        (lambda: called_once(chain(nn.LazyLinear(4))), X),
        (two_names, X),
        (lambda: called_once(embedding(sparse=True), TOKENS), TOKENS),
    ],
    ids=["older weight_norm", "weight_norm", "spectral_norm", "older spectral_norm", "lazy", "two names", "sparse"],
)
def test_right(build: Callable[[], nn.Module], x: Tensor) -> None:
    assert_right(build().double().eval(), "cross_entropy", (x, Y))


def test_activities_behind_a_sparse_embedding() -> None:
    net = fgvar.with_sites(called_once(embedding(sparse=True), TOKENS))
    problem = fgvar.Problem(net, "cross_entropy", (TOKENS, Y))
    report = fgvar.testing.check_estimator(fgvar.scheme("FG-A"), problem, checks=["structure", "unbiased", "scale"])
    assert report.passed


def test_older_weight_norm_is_trained() -> None:
    images = [fgvar.data.load("digits", split).subset(range(32)) for split in ("train", "test")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net = nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(64, 10)))
    run = fgvar.train(net, fgvar.scheme("BP"), images, fgvar.Schedule(epochs=1, batch=16), device="cpu")
    assert all(not torch.equal(run.params[name], p) for name, p in net.named_parameters())
    net.load_state_dict(run.params, strict=True)


# ---- refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "x", "message"),
    [
        (lambda: scripted(True), X, "the network (TopLevelTracedModule) is compiled by torch.jit"),
        (lambda: scripted(False), X, "'0' (TopLevelTracedModule) is compiled by torch.jit"),
        (lambda: chain(nn.LazyLinear(4)), X, "'0' (LazyLinear) has parameters without a shape yet; call"),
        (lambda: fixed(Checkpointed(False)), X, "checkpoints its activations, which torch.func cannot differentiate"),
        (lambda: fixed(Checkpointed(True)), X, "(or gradient checkpointing by one: switch that off)"),
        (lambda: nn.DataParallel(nn.Linear(3, 2)), X, "spreads batches over devices; give the network inside"),
        (lambda: owning(torch.eye(2).to_sparse()), X, "'own' is torch.sparse_coo, expected a dense tensor"),
        (frozen_sparse, X, "'own' is torch.sparse_coo, expected a dense tensor"),
        (lambda: nn.Sequential(nn.DataParallel(nn.Linear(3, 2))), X, "'0' (DataParallel) spreads batches over"),
        (lambda: nn.Sequential(nn.Linear(3, 2), FakeQuantize()).double().eval(), X, "disable_observer"),
        (frozen_float, X.float(), "'2' (Linear) does not compute in torch.float32 here"),
        (mixed, X, "parameters are of several dtypes ('0.weight' is torch.float32, '2.weight' is torch.float64)"),
        (lambda: fixed(nn.Linear(3, 2)), X.float(), "inputs are torch.float32, the network's parameters"),
        (lambda: fixed(nn.Linear(3, 2)), X.long(), "give inputs.to(torch.float64)"),
        (
            lambda: called_once(embedding(sparse=False), TOKENS),
            TOKENS.double(),
            "an embedding looks up what is no integer",
        ),
    ],
    ids=["jit", "jit inside", "lazy", "checkpoint", "reentrant checkpoint", "DataParallel", "sparse",
         "frozen sparse", "DataParallel inside", "observer", "frozen dtype",
         "mixed dtypes", "other dtype", "integer inputs", "floating-point tokens"],
)  # fmt: skip
def test_refused_by_a_sentence(build: Callable[[], nn.Module], x: Tensor, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        fgvar.Problem(build(), "cross_entropy", (x, Y))
