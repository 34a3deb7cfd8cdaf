"""Local heads on features of tokens [batch, positions, channels]: one loss a sequence, or one a position."""

from typing import NamedTuple

import pytest
import torch
from cases import labels, randn
from nets import Last, assert_unbiased, fixed
from refusals import says
from torch import Tensor, nn
from torch.nn import functional

import fgvar
from fgvar.nn.heads import LocalHead

IDS = torch.tensor([[0, 4, 2], [1, 1, 3]])


class Language(nn.Module):
    """A causal network of ids: two blocks of causal means; logits of the next token."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.map = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, h: Tensor) -> tuple[Tensor, None]:
            before = h.cumsum(1) / torch.arange(1, h.shape[1] + 1, dtype=h.dtype)[:, None]
            return h + torch.tanh(self.map(torch.tanh(self.mix(before)))), None

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.block0, self.block1 = self.Block(), self.Block()

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.block1(self.block0(self.embed(ids))[0])[0])


def language(*, pool: bool = False, example: bool = True, **words) -> nn.Module:
    net = fixed(Language())
    if not example:
        net.block0.num_features = net.block1.num_features = 4
    words = {"after": ("block0", "block1"), "classes": 5, "groups": 2, "pool": pool, **words}
    return fgvar.with_sites(fgvar.with_local_heads(net, **words, inputs=IDS if example else None), inputs=IDS)


def test_sites_first() -> None:
    net = fgvar.with_sites(fixed(Language()), sites=["embed", "block0", "block1", "head"], inputs=IDS)
    net = fgvar.with_local_heads(net, after=("block0", "block1"), classes=5, groups=2, pool=False, inputs=IDS)
    assert (net.block1.site.patch_axis, net.block1.site.group_axis) == (1, 2)
    assert_unbiased(fgvar.scheme("LG-FG-A"), fgvar.Problem(net, "causal_lm", (IDS, IDS)))


@pytest.mark.parametrize("loss", ["causal_lm", "cross_entropy"])
@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("name", ["LG-FG-A", "LG-FG-W"])
def test_losses_of_positions(name: str, example: bool, loss: str) -> None:
    assert_unbiased(fgvar.scheme(name), fgvar.Problem(language(example=example), loss, (IDS, IDS)))


def test_a_head_without_pooling_by_hand() -> None:
    """Layer norm within each group, one linear map at every position; the loss is the problem's of these logits."""
    problem = fgvar.Problem(language(), "causal_lm", (IDS, IDS))
    end = "block0.local.head.end"
    features = problem.run(problem.params, watch=[end])[1][end]
    assert features.shape == (2, 3, 2, 2)
    weight, bias = (problem.params[f"block0.local.head.linear.{key}"] for key in ("weight", "bias"))
    logits = functional.layer_norm(features, (2,)).flatten(2) @ weight.T + bias
    by_hand = functional.cross_entropy(logits[:, :-1].transpose(1, 2), IDS[:, 1:], reduction="none").mean(1)
    torch.testing.assert_close(problem.local_losses(problem.params, end, features), by_hand, rtol=0, atol=1e-9)


def test_copies_of_positions_are_credited_apart() -> None:
    """Each token's number at the block's own site moves its own copy: less variance than by the copies' sum."""
    fine, coarse = fgvar.LocalLosses(), fgvar.LocalLosses(patch=False, group=False)
    net = fgvar.with_sites(
        fgvar.with_local_heads(fixed(Language()), after=("block0", "block1"), classes=5, pool=False, inputs=IDS),
        sites=["block0", "block1", "head"],
    )
    for p in net.embed.parameters():
        p.requires_grad_(False)
    problem = fgvar.Problem(net, "causal_lm", (IDS, IDS))
    apart, summed = (
        sum(float(v.sum()) for v in fgvar.theory.trace(fgvar.scheme("LG-FG-A", losses=losses), problem).values())
        for losses in (fine, coarse)
    )
    assert apart < summed


def test_a_tuple_keeps_its_other_parts_and_the_function() -> None:
    net = fixed(Language())
    blocks = fgvar.with_local_heads(net, after=("block0", "block1"), classes=5, pool=False, inputs=IDS)
    torch.testing.assert_close(blocks(IDS), net(IDS), rtol=0, atol=0)
    assert blocks.block0(randn(2, 3, 4))[1] is None
    recurrent = fgvar.with_local_heads(fixed(Last()), after=("rnn",), classes=3, inputs=randn(2, 2, 3))
    problem = fgvar.Problem(fgvar.with_sites(recurrent), "cross_entropy", (randn(2, 2, 3), labels(2, 3)))
    assert_unbiased(fgvar.scheme("LG-FG-A"), problem)


def test_a_dict_of_inputs() -> None:
    class Named(Language):
        def forward(self, *, ids: Tensor, scale: Tensor) -> Tensor:
            return super().forward(ids) * scale[:, None, None]

    inputs = {"ids": IDS, "scale": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    blocks = fgvar.with_local_heads(fixed(Named()), after=("block0",), classes=5, pool=False, inputs=inputs)
    problem = fgvar.Problem(fgvar.with_sites(blocks, inputs=inputs), "cross_entropy", (inputs, IDS))
    assert_unbiased(fgvar.scheme("LG-FG-A"), problem)


def test_a_loss_of_ones_own_gets_the_heads_tensor() -> None:
    class Output(NamedTuple):
        logits: Tensor

    class Named(Language):
        def forward(self, ids: Tensor) -> Output:
            return Output(super().forward(ids))

    def loss(outputs, labels: Tensor) -> Tensor:
        logits = getattr(outputs, "logits", outputs)
        return functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)

    net = fgvar.with_local_heads(fixed(Named()), after=("block0",), classes=5, pool=False, inputs=IDS)
    assert_unbiased(fgvar.scheme("LG-FG-A"), fgvar.Problem(fgvar.with_sites(net), loss, (IDS, IDS)))


# ---- sentences -------------------------------------------------------------------------------------------------


def test_heads_that_pool_under_a_loss_of_positions() -> None:
    with pytest.raises(ValueError, match=says(r"\(2, 3\).*'block0.local.head' returns \[batch, cl", "pool=False")):
        fgvar.Problem(language(pool=True), "causal_lm", (IDS, IDS))


def test_heads_of_positions_under_a_loss_of_sequences() -> None:
    net = fixed(Last())
    blocks = fgvar.with_local_heads(net, after=("rnn",), classes=3, pool=False, inputs=randn(2, 2, 3))
    with pytest.raises(ValueError, match=says(r"\(2,\).*'rnn.local.head' returns \[batch, po", "pool=True")):
        fgvar.Problem(blocks, "cross_entropy", (randn(2, 2, 3), labels(2, 3)))


@pytest.mark.parametrize("example", [True, False])
def test_features_without_positions(example: bool) -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)), torch.ones(2, 3)
    with pytest.raises(ValueError, match=says(r"'0' returned shape \(\d, 4\)", r"\[batch, tokens, channels\], who")):
        fgvar.with_local_heads(net, after=("0",), classes=3, pool=False, inputs=x if example else None)(x)


def test_the_shapes_of_heads() -> None:
    features = torch.ones(2, 3, 2, 2)
    assert LocalHead(4, 5)(features).shape == (2, 5)
    assert LocalHead(4, 5, pool=False)(features).shape == (2, 3, 5)
