"""Small networks of Hugging Face classes with random weights, in float64 and eval mode, and a batch for each."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it greets small vocabularies with a page of advice

import transformers as hf

VOCABULARY, POSITIONS, CLASSES = 17, 6, 3
PADDING = 1  # which stands behind masks alone: elsewhere torch's own backward pass would leave it out
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA = {**TEXT, "intermediate_size": 12, "num_key_value_heads": 1, "max_position_embeddings": 8}


def gpt2(**config: Any) -> nn.Module:
    small = {"vocab_size": VOCABULARY, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**{**small, **config}))


def llama(**config: Any) -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**LLAMA, **config}))


def qwen2(**config: Any) -> nn.Module:
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**{**LLAMA, **config}))


def mixtral(**config: Any) -> nn.Module:
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    return hf.MixtralForCausalLM(hf.MixtralConfig(**{**LLAMA, **experts, **config}))


def bert(**config: Any) -> nn.Module:
    small = {**TEXT, "intermediate_size": 12, "max_position_embeddings": 8, "num_labels": CLASSES}
    small |= {"pad_token_id": PADDING}
    return hf.BertForSequenceClassification(hf.BertConfig(**{**small, **config}))


def vit(**config: Any) -> nn.Module:
    small = {**TEXT, "image_size": 8, "patch_size": 4, "intermediate_size": 12, "num_labels": CLASSES}
    del small["vocab_size"]
    return hf.ViTForImageClassification(hf.ViTConfig(**{**small, **config}))


def resnet(**config: Any) -> nn.Module:
    small = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    return hf.ResNetForImageClassification(hf.ResNetConfig(**{**small, "num_labels": CLASSES, **config}))


def convnext(**config: Any) -> nn.Module:
    small = {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2, "patch_size": 2, "num_labels": CLASSES}
    return hf.ConvNextForImageClassification(hf.ConvNextConfig(**{**small, **config}))


LANGUAGE = {"GPT-2": gpt2, "Llama": llama, "Qwen2": qwen2, "Mixtral": mixtral}
IMAGES = {"ViT": vit, "ResNet": resnet, "ConvNeXt": convnext}


def built(
    make: Callable[..., nn.Module], *, seed: int = 0, dtype: torch.dtype = torch.float64, **config: Any
) -> nn.Module:
    """The network with weights of this seed: Hugging Face classes draw them from torch's global generator."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return make(**config).to(dtype).eval()


def lora(model: nn.Module, targets: list[str], *, rank: int = 2, seed: int = 0) -> nn.Module:
    """The network with low-rank adapters by peft; B is drawn, too, so that no gradient is zero."""
    import peft

    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a name that is on its way out
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=rank, target_modules=targets, lora_dropout=0.0))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    return adapted.eval()


def token_ids(batch: int = 2, positions: int = POSITIONS, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (batch, positions), generator=torch.Generator().manual_seed(seed))


def images(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
