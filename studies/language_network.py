"""The language model that is fine-tuned in parts: a small GPT-2, its local heads, and the texts that Python ships."""

import copy
import functools
import hashlib
import io
import platform
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

VOCABULARY = 256  # bytes
APART = {"test", "tests", "idlelib", "lib2to3", "pydoc_data", "site-packages", "dist-packages"}  # of the library
TESTED = 256  # windows of each text that are not trained on


@dataclass(frozen=True)
class Sizes:
    """Of the network, its two trainings and its probes: of every study of it."""

    width: int = 256
    depth: int = 4
    positions: int = 64
    """Bytes of one example."""
    pretraining: int = 4096
    """Examples of sources, each trained on once."""
    fine_tuning: int = 1024
    """Examples of help topics, each trained on once."""
    batch: int = 16
    lr: float = 2e-3
    """Of Adam in pretraining; it decays to 0."""
    fine_lr: float = 1e-3
    """The same in fine-tuning."""
    probe_batch: int = 4


class Base(NamedTuple):
    """All that the pretrained network depends on."""

    width: int
    depth: int
    positions: int
    pretraining: int
    batch: int
    lr: float
    seed: int


def gpt2(its: Base) -> Any:
    """A causal transformer of Hugging Face's classes without dropout, with random weights."""
    import torch
    import transformers as hf

    config = hf.GPT2Config(
        vocab_size=VOCABULARY, n_positions=its.positions, n_embd=its.width, n_layer=its.depth, n_head=4,
        use_cache=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=()):  # which these classes draw from
        torch.manual_seed(its.seed)
        return hf.GPT2LMHeadModel(config).eval()


@functools.cache  # for the cells of a sweep
def pretrained(its: Base, folder: Path) -> Any:
    """The network trained on sources by backprop."""
    return _trained("pretrained", gpt2(its), backprop(), its, its.pretraining, folder)


@functools.cache
def with_heads(its: Base, folder: Path) -> Any:
    """The pretrained network with a local head behind every block but the last, trained on sources, too."""
    import torch

    import fgvar

    after = [f"transformer.h.{block}" for block in range(its.depth - 1)]
    inputs = torch.zeros(2, its.positions, dtype=torch.long)
    net = fgvar.with_local_heads(pretrained(its, folder), after=after, classes=VOCABULARY, inputs=inputs, pool=False)
    return _trained("heads", net, fgvar.scheme("frozen"), its, max(its.batch, its.pretraining // 4), folder)


def _trained(name: str, net: Any, estimator: Any, its: Base, count: int, folder: Path) -> Any:
    """The network after one pass through sources: its file in the folder, if an earlier run left one, else a run.

    Cells that are computed side by side read the file, where a checkpoint has one reader at a time.
    """
    import torch

    import fgvar
    from fgvar.storage import replace

    key = hashlib.sha256(f"{its} {origin()}".encode()).hexdigest()[:16]
    file = folder / f"{name}_{key}.pt"
    if not file.exists():
        data, schedule = examples(sources(), its.positions, count, its.seed), schedule_of(its.batch, its.lr)
        run = fgvar.train(
            net, estimator, data, schedule, loss="causal_lm", seed=its.seed, device="cpu", name=name,
            checkpoint=file.with_suffix(".checkpoint"),
        )  # fmt: skip
        torch.save(run.params, buffer := io.BytesIO())
        replace(file, [buffer.getvalue()])
    net.load_state_dict(torch.load(file, weights_only=True))
    return net


def trained_in_part(net: Any, its: Base, trainable: str) -> Any:
    """A copy of the network of which only this set, beside local heads, requires a gradient."""
    import torch

    net = copy.deepcopy(net)
    if rank := rank_of(trainable):
        import peft

        adapters = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["c_attn"], fan_in_fan_out=True)
        with torch.random.fork_rng(devices=()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a name on its way out
            torch.manual_seed(its.seed)
            net = peft.get_peft_model(net, adapters).eval()
    last = f"transformer.h.{its.depth - 1}."
    for name, parameter in net.named_parameters():
        mine = {"full": True, "last block": name.startswith(last)}.get(trainable, "lora_" in name)
        parameter.requires_grad_(mine or ".local" in name)
    return net


def with_linear(net: Any, layer: str) -> Any:
    """The same network, with a `torch.nn.Linear`, which closed forms know, in place of a Conv1D, its transpose."""
    import torch
    from transformers.pytorch_utils import Conv1D

    old = net.get_submodule(layer)
    if isinstance(old, Conv1D):
        new = torch.nn.Linear(*old.weight.shape)
        new.load_state_dict({"weight": old.weight.T, "bias": old.bias})
        net.set_submodule(layer, new)
    return net


def rank_of(trainable: str) -> int:
    """The rank of a LoRA set; 0 of others."""
    name, _, rank = trainable.partition(" ")
    return int(rank) if name == "LoRA" and rank.isdigit() else 0


def backprop() -> Any:
    """Local heads learn beside it, behind a stop-gradient, so that local losses mean something."""
    import fgvar

    return fgvar.scheme("BP", losses=fgvar.GlobalLoss(heads=True))


def schedule_of(batch: int, lr: float) -> Any:
    """One pass through the examples by Adam."""
    import fgvar

    return fgvar.Schedule(epochs=1, batch=batch, lr=lr, optimiser="adam", weight_decay=0.0)


# ---- texts ---------------------------------------------------------------------------------------------------


@functools.cache
def sources() -> bytes:
    """The standard library's sources, without tests and what was installed beside them."""
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in library.rglob("*.py") if not APART & {*path.relative_to(library).parts})
    return b"\n".join(path.read_bytes() for path in paths)


@functools.cache
def help_topics() -> bytes:
    """What ``help("if")`` and the like print."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)).encode()


def examples(text: bytes, positions: int, count: int, seed: int) -> Any:
    """So many windows of a text, which do not overlap, in an order that depends on the seed; others as test set."""
    import torch

    import fgvar

    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    windows = tokens[: len(tokens) // positions * positions].reshape(-1, positions)
    if len(windows) < count + TESTED:
        raise ValueError(f"{count} examples of {positions} bytes asked for, {len(windows) - TESTED} are there")
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    test, train = windows[order[:TESTED]], windows[order[TESTED : TESTED + count]]
    return fgvar.data.Examples(train, train, test=(test, test), name="bytes")


def origin() -> dict[str, str]:
    """Which texts these are, for the dataset."""
    texts = {"sources": sources(), "help_topics": help_topics()}
    found = {f"{name}_sha256": hashlib.sha256(text).hexdigest() for name, text in texts.items()}
    return {"text": f"Python {platform.python_version()}'s own", **found}
