"""Embeddings whose backward pass torch changes by options: one derivative for all who differentiate."""

import pickle

import pytest
import torch
from cases import labels
from nets import assert_unbiased, fixed
from torch import Tensor, nn
from torch.nn import functional

import fgvar
from fgvar.nn.forward_mode import jvp
from fgvar.training.gradients import gradient_of

IDS = torch.tensor([[0, 1, 1], [3, 0, 1]])  # of four tokens: 0 is padding, 1 is there more than once, 2 never


class Scaled(nn.Embedding):
    """As in Hugging Face's translators: torch's own lookup, scaled, and a mask by the index of the padding."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * (1 + (ids == self.padding_idx)[..., None])


class Direct(nn.Embedding):
    """As in fairseq: a lookup of its own, with torch's options."""

    def forward(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self.weight, self.padding_idx, None, 2.0, self.scale_grad_by_freq)


class Words(nn.Module):
    """Classes of a bag of tokens; ``tied`` to the embedding, which is then the output's weight, too."""

    def __init__(self, tokens: nn.Module, *, tied: bool = False) -> None:
        super().__init__()
        self.tokens, self.out = tokens, nn.Linear(2, 4, bias=False)
        if tied:
            self.out.weight = tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        z = torch.tanh(self.tokens(ids))
        return self.out(z.sum(1) if z.ndim == 3 else z)


NETWORKS = {
    "padding": lambda: Words(nn.Embedding(4, 2, padding_idx=0)),
    "frequency": lambda: Words(nn.Embedding(4, 2, scale_grad_by_freq=True)),
    "both, sparse": lambda: Words(nn.Embedding(4, 2, padding_idx=-4, scale_grad_by_freq=True, sparse=True)),
    "subclass": lambda: Words(Scaled(4, 2, padding_idx=0)),
    "own lookup": lambda: Words(Direct(4, 2, padding_idx=0, scale_grad_by_freq=True)),
    "tied": lambda: Words(nn.Embedding(4, 2, padding_idx=0), tied=True),
}
BAGS = {
    "bag, frequency": lambda: Words(nn.EmbeddingBag(4, 2, mode="sum", scale_grad_by_freq=True)),
    "bag, padding": lambda: Words(nn.EmbeddingBag(4, 2, padding_idx=0)),
}


def problem_of(net: nn.Module) -> fgvar.Problem:
    return fgvar.Problem(net, "cross_entropy", (IDS, labels(2, 4)))


@pytest.mark.parametrize("name", NETWORKS | BAGS)
def test_backprop_is_the_derivative_of_the_loss(name: str) -> None:
    """Along each basis vector, by forward mode (which bags lack) and by differences."""
    net = fixed((NETWORKS | BAGS)[name]())
    problem = problem_of(net)
    assert torch.equal(problem.run(problem.params)[0], net(IDS)), "the values are the user's"
    for key, gradient in problem.backprop().items():
        for index, slope in enumerate(gradient.flatten()):
            along = torch.zeros_like(gradient)
            along.view(-1)[index] = 1

            def loss(p: Tensor, key: str = key) -> Tensor:
                return problem.loss({**problem.params, key: p})

            at, step = problem.params[key], 1e-5 * along
            torch.testing.assert_close((loss(at + step) - loss(at - step)) / 2e-5, slope, rtol=1e-7, atol=1e-9)
            if name in NETWORKS:
                torch.testing.assert_close(jvp(loss, (at,), (along,))[1], slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scheme", ["FG-W", "FG-A"])
def test_schemes_are_unbiased(name: str, scheme: str) -> None:
    assert_unbiased(fgvar.scheme(scheme), problem_of(fgvar.with_sites(fixed(NETWORKS[name]()))))


def test_padding_has_a_gradient_unless_the_network_drops_it() -> None:
    """As the README says: in all of them, or, by a mask, in none."""

    class Masked(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * (ids != 0)[..., None]

    for kind, learns in ((nn.Embedding, True), (Masked, False)):
        gradient = problem_of(fixed(Words(kind(4, 2, padding_idx=0)))).backprop()["tokens.weight"]
        assert bool(gradient[0].any()) == learns
        assert gradient[1].all()


def test_the_users_own_keeps_its_options() -> None:
    net = fixed(NETWORKS["both, sparse"]())
    problem = problem_of(net)
    problem.backprop()
    assert "forward" not in vars(net.tokens)
    assert (net.tokens.padding_idx, net.tokens.scale_grad_by_freq, net.tokens.sparse) == (0, True, True)


def test_networks_can_be_pickled_and_their_gradients_compiled() -> None:
    torch._dynamo.reset()
    problem = problem_of(fixed(Words(nn.Embedding(4, 2, padding_idx=0))))
    expected = problem.backprop()
    again = pickle.loads(pickle.dumps(problem.network))
    torch.testing.assert_close(problem._with(network=again).backprop(), expected, rtol=0, atol=0)
    eager = gradient_of(problem, fgvar.scheme("BP"), autocast=False, compile=False)
    found, _ = torch.compile(eager, backend="eager", fullgraph=True)(problem.params, (IDS, labels(2, 4)), {})
    torch.testing.assert_close(dict(found), expected, rtol=1e-12, atol=1e-12)
