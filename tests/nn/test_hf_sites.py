"""Activity perturbation, by default, of networks of Hugging Face's classes."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fgvar
from fgvar import theory

pytest.importorskip("transformers")
import hf_nets
from hf_nets import bert, built, convnext, gpt2, images, llama, mixtral, qwen2, resnet, token_ids, vit
from refusals import says

pytestmark = pytest.mark.hf

IDS, CLASSES = token_ids(), torch.tensor([0, 2])
TEXT = {"GPT-2": gpt2, "Llama": llama, "Qwen2": qwen2}
NETWORKS = {**TEXT, "BERT": bert, "ViT": vit, "ResNet": resnet, "ConvNeXt": convnext}


def batch_of(name: str) -> tuple[str, Tensor, Tensor]:
    if name in TEXT:
        return "causal_lm", IDS, IDS
    return "cross_entropy", IDS if name == "BERT" else images(), CLASSES


def problem_of(name: str, net: nn.Module) -> fgvar.Problem:
    loss, x, y = batch_of(name)
    return fgvar.Problem(net, loss, (x, y))


def sites_of(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, fgvar.networks.Site)]


def assert_exact(problem: fgvar.Problem) -> None:
    mean = theory.mean(fgvar.scheme("FG-A"), problem)
    for name, gradient in problem.backprop().items():
        torch.testing.assert_close(mean[name], gradient, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_exact_mean_is_the_gradient(name: str) -> None:
    problem = problem_of(name, fgvar.with_sites(built(NETWORKS[name]), inputs=batch_of(name)[1]))
    assert_exact(problem)
    drawn = fgvar.measure({"FG-A": fgvar.scheme("FG-A")}, problem, draws=8, seed=0)
    assert np.isfinite(drawn["relative_variance"].sel(layer="perturbed")).all()


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "ViT", "ResNet", "ConvNeXt"])
def test_without_looking_where_all_outputs_have_a_batch_axis(name: str) -> None:
    net = built(NETWORKS[name])
    assert_exact(problem_of(name, fgvar.with_sites(net)))
    assert sites_of(fgvar.with_sites(net)) == sites_of(fgvar.with_sites(net, inputs=batch_of(name)[1]))


@pytest.mark.parametrize("name", ["GPT-2", "BERT"])
def test_position_embeddings_without_looking(name: str) -> None:
    problem = problem_of(name, fgvar.with_sites(built(NETWORKS[name])))
    with pytest.raises(ValueError, match=says(r"has shape \(1, 6, 8\)", "batch axis", r"with_sites\(inputs=")):
        fgvar.scheme("FG-A").randomness(problem)


def test_the_enumerated_mean_of_gpt2() -> None:
    ids = token_ids(batch=1, positions=2)
    problem = fgvar.Problem(fgvar.with_sites(built(gpt2), inputs=ids), "causal_lm", (ids, ids))
    mean = fgvar.testing.expectation(fgvar.scheme("FG-A"), problem)
    for name, gradient in problem.backprop().items():
        torch.testing.assert_close(mean[name], gradient, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_gpt2_is_perturbed_at_the_sum_of_its_embeddings() -> None:
    looked = sites_of(fgvar.with_sites(built(gpt2), inputs=IDS))
    plain = sites_of(fgvar.with_sites(built(gpt2)))
    assert set(looked) ^ set(plain) == {"transformer.wpe.site", "transformer.drop.site"}


def test_a_mask_beside_the_ids() -> None:
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    net = built(bert, attn_implementation="eager")
    assert_exact(fgvar.Problem(fgvar.with_sites(net, inputs=inputs), "cross_entropy", (inputs, CLASSES)))


def test_a_mixture_of_experts_is_credited_at_the_block_around() -> None:
    net = built(mixtral, experts_implementation="eager")
    with pytest.raises(ValueError, match=says(r"'model.layers.0.mlp.gate.site' has shape \(12, 2\)", "routers")):
        fgvar.scheme("FG-A").randomness(fgvar.Problem(fgvar.with_sites(net), "causal_lm", (IDS, IDS)))
    wrapped = fgvar.with_sites(net, inputs=IDS)
    assert {f"model.layers.0.mlp.{name}site" for name in ("", "gate.", "experts.")} & set(sites_of(wrapped)) == {
        "model.layers.0.mlp.site"
    }
    assert_exact(fgvar.Problem(wrapped, "causal_lm", (IDS, IDS)))


def test_sites_of_a_mixture_of_experts_as_it_comes() -> None:
    """By the kernel of all experts at once it takes no float64."""
    as_it_comes, eager = built(mixtral), built(mixtral, experts_implementation="eager")
    assert sites_of(fgvar.with_sites(as_it_comes, inputs=IDS)) == sites_of(fgvar.with_sites(eager, inputs=IDS))


def test_low_rank_adapters_get_the_sites() -> None:
    pytest.importorskip("peft")
    adapted = hf_nets.lora(built(llama), ["q_proj", "v_proj"])
    wrapped = fgvar.with_sites(adapted, inputs=IDS)
    assert all("lora_" in name for name in sites_of(wrapped))
    assert_exact(fgvar.Problem(wrapped, "causal_lm", (IDS, IDS)))


# ---- local heads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_local_heads_of_positions(tied: bool) -> None:
    """LG-FG-A of a language model: each block's head predicts the next token at every position."""
    ids = token_ids(positions=3)
    net = built(gpt2, n_layer=2, tie_word_embeddings=tied)
    blocks = fgvar.with_local_heads(
        net, after=("transformer.h.0", "transformer.h.1"), classes=hf_nets.VOCABULARY, pool=False, inputs=ids
    )
    problem = fgvar.Problem(fgvar.with_sites(blocks, inputs=ids), "causal_lm", (ids, ids))
    assert len(problem.trace.ends) == 2
    estimator = fgvar.scheme("LG-FG-A")
    mean, target = theory.mean(estimator, problem), estimator.target(problem)
    for name, value in target.items():
        torch.testing.assert_close(mean[name], value, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    drawn = fgvar.measure({"LG-FG-A": estimator}, problem, draws=8, seed=0)
    assert np.isfinite(drawn["relative_variance"].sel(layer="perturbed")).all()


def test_local_heads_of_a_classifier_of_sequences() -> None:
    layers = ("bert.encoder.layer.0", "bert.encoder.layer.1")
    net = built(bert, num_hidden_layers=2)
    blocks = fgvar.with_local_heads(net, after=layers, classes=hf_nets.CLASSES, inputs=IDS, readout="classifier")
    problem = fgvar.Problem(fgvar.with_sites(blocks, inputs=IDS), "cross_entropy", (IDS, CLASSES))
    estimator = fgvar.scheme("LG-FG-A")
    mean, target = theory.mean(estimator, problem), estimator.target(problem)
    for name, value in target.items():
        torch.testing.assert_close(mean[name], value, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
