"""Networks of Hugging Face transformers and peft, as people have them: right, or refused by a sentence."""

import contextlib
import warnings
from typing import Any

import pytest
import torch
from cases import labels
from right import assert_right
from torch import Tensor, nn
from torch.nn import functional

import fgvar

pytest.importorskip("transformers")
pytest.importorskip("peft")
import hf_nets as hf

pytestmark = pytest.mark.hf

IDS, CLASSES = hf.token_ids(), labels(2, hf.CLASSES)
MASK = (torch.arange(hf.POSITIONS) < torch.tensor([[hf.POSITIONS], [4]])).long()
MASKED = {"input_ids": IDS.masked_fill(MASK == 0, hf.PADDING), "attention_mask": MASK}


def by_hand(outputs: Any, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.logits, targets, reduction="none")


def token_mean(out: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
    """[batch] losses and the weight of each: Σ wℓ / Σ w."""
    ce = functional.cross_entropy(
        out.logits[:, :-1].transpose(1, 2), targets[:, 1:], reduction="none", ignore_index=-100
    )
    n = (targets[:, 1:] != -100).sum(1)
    return ce.sum(1) / n.clamp_min(1), n


def plain_calls(module: str) -> Any:
    """One warning, which names the module; none of torch's text."""
    return pytest.warns(UserWarning, match=rf"^'{module}' \(\w+\) does not run under torch\.func\.vmap")


def right(module: nn.Module, loss: Any, batch: tuple[Any, Any], plain: str = "", **words: float) -> None:
    with plain_calls(plain) if plain else contextlib.nullcontext([]) as caught:
        assert_right(module, loss, batch, **words)
    assert len(caught) == bool(plain)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("build", [hf.gpt2, hf.llama, hf.qwen2])
def test_language_models_from_ids_alone(build: Any, attention: str) -> None:
    right(hf.built(build, attn_implementation=attention), "causal_lm", (IDS, IDS))


@pytest.mark.parametrize(
    ("build", "loss", "targets", "module"),
    [
        (hf.bert, "cross_entropy", CLASSES, "bert"),
        (hf.gpt2, "causal_lm", IDS, "transformer"),
        (hf.llama, "causal_lm", IDS, "model"),
    ],
    ids=["BERT", "GPT-2", "Llama"],
)
def test_masks(build: Any, loss: str, targets: Tensor, module: str) -> None:
    """With scaled dot-product attention, transformers asks mask.all(), which vmap over examples cannot."""
    right(hf.built(build), loss, (MASKED, targets), module)


def test_adapters_of_a_masked_classifier() -> None:
    adapted = hf.lora(hf.built(hf.bert), ["query", "value"])
    right(adapted, "cross_entropy", (MASKED, CLASSES), r"base_model\.model\.bert")


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # GPT-2's layers are transposed, which peft says aloud
@pytest.mark.parametrize(("build", "targets"), [(hf.gpt2, ["c_attn"]), (hf.llama, ["q_proj", "v_proj"])])
def test_adapters_of_language_models(build: Any, targets: list[str]) -> None:
    right(hf.lora(hf.built(build), targets), "causal_lm", (IDS, IDS))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_mixture_of_experts(dtype: torch.dtype) -> None:
    """By default one kernel multiplies all experts, without float64 or forward mode: here they are called."""
    model, plain = hf.built(hf.mixtral, dtype=dtype), r"model\.layers\.0\.mlp\.experts"
    if dtype == torch.float64:
        with pytest.raises(RuntimeError, match="Expected mat_a to be"):
            model(IDS)
        model.set_experts_implementation("eager")
    right(model, "causal_lm", (IDS, IDS), plain, tolerance=1e-9 if dtype == torch.float64 else 1e-4)
    assert model.config._experts_implementation == ("eager" if dtype == torch.float64 else "grouped_mm")


@pytest.mark.parametrize("name", hf.IMAGES)
def test_images(name: str) -> None:
    right(hf.built(hf.IMAGES[name]), "cross_entropy", (hf.images(), CLASSES))


def test_a_loss_by_hand() -> None:
    right(hf.built(hf.bert), by_hand, (IDS, CLASSES))


def test_the_mean_over_tokens() -> None:
    targets = IDS.clone()
    targets[1, :3] = -100
    right(hf.built(hf.gpt2), token_mean, (IDS, targets))
    problem = fgvar.Problem(hf.built(hf.gpt2), "causal_lm", (IDS, targets))
    torch.testing.assert_close(problem.loss(), fgvar.Problem(hf.built(hf.gpt2), token_mean, (IDS, targets)).loss())


def test_cross_entropy_of_positions() -> None:
    """Of logits [batch, positions, classes]: positions averaged for each example, −100 ignored."""
    targets, model = IDS.clone(), hf.built(hf.llama)
    targets[1, :3] = -100
    problem = fgvar.Problem(model, "cross_entropy", (IDS, targets))
    logits = model(IDS).logits
    each = [functional.cross_entropy(logits[n], targets[n], ignore_index=-100) for n in range(len(IDS))]
    torch.testing.assert_close(problem.loss(), torch.stack(each).mean().detach())


def test_checks_of_what_vmap_cannot_warn_once() -> None:
    problem = fgvar.Problem(hf.built(hf.bert), "cross_entropy", (MASKED, CLASSES))
    with plain_calls("bert") as caught:
        report = fgvar.testing.check_estimator(
            fgvar.scheme("FG-W", shared=False), problem, checks=["structure", "chunking"]
        )
    assert report.passed
    assert len(caught) == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_is_named(reentrant: bool) -> None:
    model = hf.built(hf.llama)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers has a new name for it, older ones have not
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    with pytest.raises(ValueError, match=r"gradient checkpointing does.*gradient_checkpointing_disable\(\)"):
        fgvar.Problem(model.train(), "causal_lm", (IDS, IDS))


def test_token_numbers_of_another_kind() -> None:
    with pytest.raises(ValueError, match=r"an embedding looks up what is no integer"):
        fgvar.Problem(hf.built(hf.gpt2), "causal_lm", (IDS.double(), IDS))
