"""Fine-tuning of Hugging Face language models on texts: what is frozen stays, and what was learned loads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from broken_runs import stopped_at
from torch import nn
from torch.nn import functional

import fgvar

pytest.importorskip("peft", reason="the extra [hf] is not installed")
import hf_nets

# GPT-2's layers keep their weights transposed, as peft notices by itself.
pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")]

SCHEDULE = fgvar.Schedule(epochs=2, batch=4, lr=0.05)


def texts(batch: int, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Token ids with a mask; every third text ends a token earlier."""
    ids = hf_nets.token_ids(batch, seed=seed)
    mask = torch.ones_like(ids)
    mask[::3, -1] = 0
    return {"input_ids": ids, "attention_mask": mask}, torch.where(mask.bool(), ids, -100)


TEXTS = fgvar.data.Examples(*texts(16, seed=0), test=texts(6, seed=1), name="texts")


def gpt2(*, adapted: bool, tied: bool = True) -> nn.Module:
    net = hf_nets.built(hf_nets.gpt2, dtype=torch.float32, attn_implementation="eager", tie_word_embeddings=tied)
    return hf_nets.lora(net, ["c_attn", "c_proj"]) if adapted else net


def trained(net: nn.Module, scheme: str, **words):
    return fgvar.train(net, fgvar.scheme(scheme), TEXTS, SCHEDULE, loss="causal_lm", device="cpu", **words)


@pytest.mark.parametrize("scheme", ["BP", "MeZO", "FG-W", "EGGROLL", "FG-A"])
def test_lora_learns_and_nothing_else(scheme: str) -> None:
    net = gpt2(adapted=True)
    learning = {name for name, p in net.named_parameters() if p.requires_grad}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    if scheme == "FG-A":
        modules = [name for name, _ in net.named_modules() if name.endswith(("lora_A.default", "lora_B.default"))]
        net = fgvar.with_sites(net, sites=modules)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        learning = {name for name, p in net.named_parameters() if p.requires_grad}
    run = trained(net, scheme)
    assert run.params.keys() == before.keys()
    changed = {name for name, value in run.params.items() if not torch.equal(value, before[name])}
    assert changed == learning
    net.load_state_dict(run.params, strict=True)
    last = [
        float(functional.cross_entropy(net(**x).logits[:, :-1].flatten(0, 1), y[:, 1:].flatten()).detach())
        for x, y in ((TEXTS.inputs, TEXTS.targets), (TEXTS.test.inputs, TEXTS.test.targets))
    ]
    np.testing.assert_allclose([run.dataset[name][-1] for name in ("loss", "test_loss")], last, rtol=1e-5)
    np.testing.assert_allclose(run.dataset["test_perplexity"][-1], np.exp(last[1]), rtol=1e-5)


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_what_was_learned_loads_into_a_fresh_module(adapted: bool, tied: bool) -> None:
    """Strictly, by all names of a tied weight; and into the problem's `at`."""
    net = gpt2(adapted=adapted, tied=tied)
    params = trained(net, "FG-W").params
    fresh = gpt2(adapted=adapted, tied=tied)
    fresh.load_state_dict(params, strict=True)
    base = fresh.get_base_model() if adapted else fresh
    assert (base.lm_head.weight is base.transformer.wte.weight) == tied
    problems = [fgvar.Problem(fresh, "causal_lm", texts(6, seed=1))]
    problems.append(fgvar.Problem(net, "causal_lm", texts(6, seed=1)).at(params))
    assert torch.equal(*(problem.loss() for problem in problems))


def test_it_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.checkpoint"
    stopped_at(5, monkeypatch, lambda: trained(gpt2(adapted=True), "MeZO", checkpoint=path))
    run, whole = trained(gpt2(adapted=True), "MeZO", checkpoint=path), trained(gpt2(adapted=True), "MeZO")
    assert all(torch.equal(value, whole.params[name]) for name, value in run.params.items())
    np.testing.assert_array_equal(run.dataset["test_loss"], whole.dataset["test_loss"])
