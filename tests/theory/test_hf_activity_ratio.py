"""The activity ratio of language models, whose layers are counted by hand."""

import pytest
import torch
from torch.nn import functional

import fgvar
from fgvar import theory

pytest.importorskip("transformers")
from hf_nets import VOCABULARY, built, gpt2, llama, token_ids

pytestmark = pytest.mark.hf
IDS = token_ids()  # two sequences of six tokens


def test_the_layers_of_gpt2() -> None:
    """Eight channels: inputs and a bias of maps, gain and bias of norms, the vocabulary of the tied embedding."""
    problem = fgvar.Problem(built(gpt2), "causal_lm", (IDS, IDS))
    found = theory.activity_ratio(problem)
    block = "transformer.h.0"
    assert {name: ratio.fan_in for name, ratio in found.items()} == {
        "transformer.wte.weight": VOCABULARY,
        f"{block}.ln_1.weight": 16,
        f"{block}.attn.c_attn.weight": 9,
        f"{block}.attn.c_proj.weight": 9,
        f"{block}.ln_2.weight": 16,
        f"{block}.mlp.c_fc.weight": 9,
        f"{block}.mlp.c_proj.weight": 33,
        "transformer.ln_f.weight": 16,
    }
    assert {ratio.positions for ratio in found.values()} == {6}


def test_of_a_conv1d_by_hand() -> None:
    net = built(gpt2)
    seen = {}
    net.transformer.h[0].mlp.c_fc.register_forward_hook(lambda _m, x, z: seen.update(x=x[0], z=z))
    logits = net(IDS).logits
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    (delta,) = torch.autograd.grad(loss, seen["z"])
    x = torch.cat([seen["x"].detach(), torch.ones(2, 6, 1)], -1)
    gradient = torch.einsum("nti,nto->io", x, delta)
    expected = x.square().sum() * delta.square().sum() / gradient.square().sum()
    found = theory.activity_ratio(fgvar.Problem(net, "causal_lm", (IDS, IDS)))["transformer.h.0.mlp.c_fc.weight"]
    assert found.ratio == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("tied", [True, False])
def test_the_layers_of_llama(tied: bool) -> None:
    problem = fgvar.Problem(built(llama, tie_word_embeddings=tied), "causal_lm", (IDS, IDS))
    found = theory.activity_ratio(problem)
    assert set(found) == set(problem.params)  # no layer has a bias: embedding, maps and RMS norms
    outputs = {name: problem.params[name].numel() / ratio.fan_in for name, ratio in found.items()}
    assert outputs["model.embed_tokens.weight"] == 8
    assert found["model.norm.weight"].fan_in == 8
    assert all(ratio.ratio >= 1 - 1e-9 for ratio in found.values())  # Cauchy and Schwarz


@pytest.mark.parametrize("name", ["transformer.wte", "transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_proj"])
def test_the_ratio_decides(name: str) -> None:
    net = built(gpt2)
    for key, parameter in net.named_parameters():
        parameter.requires_grad_(key.startswith(name))
    problem = fgvar.Problem(fgvar.with_sites(net, inputs=IDS), "causal_lm", (IDS, IDS))
    ((_, found),) = theory.activity_ratio(problem).items()
    weights, activities = (
        sum(float(v.sum()) for v in theory.variance(fgvar.scheme(scheme), problem).values())
        for scheme in ("FG-W", "FG-A")
    )
    assert found.activity_wins == (activities < weights)
