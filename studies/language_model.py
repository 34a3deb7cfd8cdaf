"""Language model: what does a smaller trainable set buy a zeroth-order or forward-gradient fine-tuning?

Question   By how much do LoRA and a last block alone raise the cosine, and lower the variance, of gradient estimates at
           equal cost? Is the relative variance d + 1 as theory says? Is perturbing activities less noisy than
           perturbing weights where ρ is below the fan-in (`fgvar.theory.activity_ratio`)?
Claim      FG-W and MeZO have a relative variance of d + 1 for d trained numbers, before, during and after fine-tuning,
           and a cosine of √(2/πd): with Gaussian noise c·u has the mean |cos| of a random direction. EGGROLL's matrices
           of rank 1 have d − 1 + Σ_k s_k e_k, by the share s_k of tensor k in ‖∇‖² and e_k = 2(rows + columns) + 4 of
           a matrix, 2 of a vector. An estimate costs about three forward passes in each set, so that all that a small
           set buys at equal cost is its d. For one layer alone ρ < fan-in says which of FG-A and FG-W is less noisy.
Shown      A causal transformer of Hugging Face's GPT-2 classes, 3.2M numbers, bytes as tokens, trained by backprop on
           the sources of Python's standard library, then fine-tuned by backprop on its help topics: everything, LoRA of
           rank 16, 4 and 1 on the attention's c_attn (α = 2·rank), or the last block alone (the output layer is tied to
           the embedding, which is no layer of its own). One probe batch of help topics that are not trained on;
           before, during and after fine-tuning; drawn. Of each linear layer alone, before and after: exact.
Text       What the running Python ships, so that another version trains on another text: its version and the text's
           hash are attributes of the dataset. Nothing is downloaded.
Cost       About 35 minutes on one core; --smoke: seconds. Needs the extra [hf].
Run        python studies/language_model.py            writes results/language_model.nc, .pdf and .png
"""

import copy
import functools
import hashlib
import math
import platform
import sysconfig
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from studies import common
from studies.common import RESULTS, Options, Run

SETS = ("full", "last block", "LoRA 16", "LoRA 4", "LoRA 1")
SCHEMES = ("MeZO", "FG-W", "EGGROLL", "FG-A")
STAGES = ("before", "during", "after")
ALONE = {
    "ratio": "ρ = ‖X‖² ‖∂L/∂Z‖² / ‖G‖², each example with its own loss",
    "fan_in": "inputs of one position, a bias among them",
    "variance_ratio": "tr Cov of FG-A over that of FG-W, of the layer alone",
}
APART = {"test", "tests", "idlelib", "lib2to3", "pydoc_data", "site-packages", "dist-packages"}  # of the library
TESTED = 256  # windows of each text that are not trained on


@dataclass(frozen=True)
class Config:
    """Fine-tune parts of a small language model, and measure estimators of their gradients."""

    trainable: tuple[str, ...] = SETS
    """What is fine-tuned: full, last block, LoRA RANK."""
    width: int = 256
    depth: int = 4
    positions: int = 64
    """Bytes of one example."""
    pretraining: int = 8192
    """Examples of sources, each trained on once."""
    fine_tuning: int = 2048
    """Examples of help topics, each trained on once."""
    batch: int = 16
    lr: float = 2e-3
    """Of Adam in pretraining; it decays to 0."""
    fine_lr: float = 1e-3
    """The same in fine-tuning."""
    probe_batch: int = 4
    draws: int = 128
    run: Run = Options(RESULTS / "language_model.nc")  # noqa: RUF009 (frozen)


class Base(NamedTuple):
    """All that the pretrained network depends on."""

    width: int
    depth: int
    positions: int
    pretraining: int
    batch: int
    lr: float
    seed: int


def main(config: Config) -> None:
    from figures import language_model

    if unknown := [name for name in config.trainable if name not in SETS and not rank_of(name)]:
        raise ValueError(f"trainable is {unknown[0]!r}, expected full, last block, or LoRA and a rank, as 'LoRA 4'")
    if config.run.smoke:
        small: dict[str, Any] = {"width": 16, "depth": 2, "positions": 8, "pretraining": 16, "fine_tuning": 16}
        config = replace(config, trainable=("full", "LoRA 1"), batch=4, draws=32, **small)
    scratch = common.place(config).with_suffix("") / "scratch"
    settings = {name: value for name, value in asdict(config).items() if name not in ("trainable", "run")}
    if not config.run.collect:
        for seed in config.run.seed:  # once, ahead of all cells
            pretrained(Base(**{name: (settings | {"seed": seed})[name] for name in Base._fields}), scratch)
    dataset = common.sweep(cell, {"trainable": config.trainable}, settings, config.run, scratch=scratch)
    common.publish(dataset, config, language_model)


def cell(
    *, trainable: str, fine_tuning: int, fine_lr: float, probe_batch: int, draws: int, seed: int, scratch: Path,
    **base: Any,
) -> Any:  # fmt: skip
    """One set: a run of fine-tuning by backprop, all schemes on the way, and its linear layers one by one."""
    import pandas as pd
    import xarray as xr

    import fgvar
    from fgvar.measurement import ENDS
    from fgvar.training import steps_of

    its = Base(**base, seed=seed)
    data = examples(help_topics(), its.positions, fine_tuning, seed)
    batch = data.test.sample(probe_batch, seed=seed)
    net = trained_in_part(pretrained(its, scratch.parent), its, trainable)
    model = fgvar.with_sites(net, sites=[n for n, c in net.named_modules() if any(p.requires_grad for p in c.parameters(recurse=False)) and not n.endswith("wpe")])
    schedule = schedule_of(its.batch, fine_lr)
    total = steps_of(schedule, len(data))
    steps = (0, total // 2, total)
    probe = fgvar.Probe({name: fgvar.scheme(name) for name in SCHEMES}, batch, steps, draws=draws, seed=seed)
    run = fgvar.train(
        model, backprop(), data, schedule, loss="causal_lm", seed=seed, probe=probe, device="cpu", name=trainable,
        checkpoint=scratch.parent / f"{trainable}_{seed}.checkpoint",
    )  # fmt: skip
    found = run.dataset.assign_coords(step=list(STAGES)).rename(step="stage")
    found["predicted"] = predicted(found, {name: tuple(p.shape) for name, p in net.named_parameters()})
    ends = {"before": model.state_dict(), "after": run.params}
    alone = xr.concat([one_by_one(net, at, batch) for at in ends.values()], pd.Index(ends, name="end"), join="outer")
    kept = [f"{name}{end}" for name in ("relative_variance", "cosine") for end in ("", *ENDS)]
    kept += ["gradient_norm", "size", "cost", "predicted", "test_perplexity"]
    return found[kept].sel(layer="perturbed", drop=True).merge(alone).assign_attrs(found.attrs | origin())


def predicted(found: Any, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Relative variance as theory says, over (stage, estimator): d − 1 + Σ_k s_k e_k; NaN of other schemes."""
    import xarray as xr

    layers = [name for name in found["layer"].values if name in shapes]
    squares = found["gradient_norm"].sel(reference="backprop", drop=True).sel(layer=layers).isel(estimator=0, drop=True) ** 2
    low_rank = [2 * (shape[0] + math.prod(shape[1:])) + 4 if len(shape) > 1 else 2 for shape in map(shapes.get, layers)]
    excess = {"MeZO": [2] * len(layers), "FG-W": [2] * len(layers), "EGGROLL": low_rank}
    table = [excess.get(name, [math.nan] * len(layers)) for name in found["estimator"].values]
    e = xr.DataArray(table, dims=("estimator", "layer"), coords={"layer": layers})
    d = found["size"].sel(layer="perturbed", drop=True)
    return d - 1 + (e * squares).sum("layer", skipna=False) / squares.sum("layer")


def one_by_one(net: Any, state: Mapping[str, Any], batch: tuple[Any, Any]) -> Any:
    """Of each linear layer alone: ρ (each example with its own loss), fan-in, and FG-A's variance over FG-W's."""
    import xarray as xr

    import fgvar

    net = copy.deepcopy(net)
    net.load_state_dict(state)
    rows: dict[str, tuple[float, int, float]] = {}
    for weight in fgvar.theory.activity_ratio(fgvar.Problem(net, "causal_lm", batch)):
        layer, alone = weight.removesuffix(".weight"), copy.deepcopy(net)
        for name, parameter in alone.named_parameters():
            parameter.requires_grad_(name.startswith(f"{layer}."))
        problem = fgvar.Problem(fgvar.with_sites(alone, sites=[layer]), "causal_lm", batch)
        (ratio,) = fgvar.theory.activity_ratio(problem).values()
        variances = [sum(fgvar.theory.trace(fgvar.scheme(name), problem).values()) for name in ("FG-A", "FG-W")]
        name = layer.removeprefix("base_model.model.").removeprefix("transformer.").removesuffix(".default")
        rows[name] = ratio.per_example, ratio.fan_in, float(variances[0] / variances[1])
    found = xr.Dataset(coords={"linear": list(rows)})
    for index, (key, long_name) in enumerate(ALONE.items()):
        found[key] = "linear", [row[index] for row in rows.values()], {"long_name": long_name, "units": "1"}
    return found


# ---- networks ------------------------------------------------------------------------------------------------


def gpt2(its: Base) -> Any:
    """A causal transformer of Hugging Face's classes without dropout, with random weights."""
    import torch
    import transformers as hf

    config = hf.GPT2Config(
        vocab_size=256, n_positions=its.positions, n_embd=its.width, n_layer=its.depth, n_head=4, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=()):  # which these classes draw from
        torch.manual_seed(its.seed)
        return hf.GPT2LMHeadModel(config).eval()


@functools.cache  # for the cells of a sweep
def pretrained(its: Base, folder: Path) -> Any:
    """The network trained on sources by backprop, from its checkpoint if there is one."""
    import fgvar

    net, data = gpt2(its), examples(sources(), its.positions, its.pretraining, its.seed)
    run = fgvar.train(
        net, backprop(), data, schedule_of(its.batch, its.lr), loss="causal_lm", seed=its.seed, device="cpu",
        name="pretraining", checkpoint=folder / f"pretrained_{its.seed}.checkpoint",
    )  # fmt: skip
    net.load_state_dict(run.params)
    return net


def trained_in_part(net: Any, its: Base, trainable: str) -> Any:
    """A copy of the network of which only this set requires a gradient."""
    import torch

    net = copy.deepcopy(net)
    if trainable == "last block":
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name.startswith(f"transformer.h.{its.depth - 1}."))
    if rank := rank_of(trainable):
        import peft

        adapters = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["c_attn"], fan_in_fan_out=True)
        with torch.random.fork_rng(devices=()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a name on its way out
            torch.manual_seed(its.seed)
            net = peft.get_peft_model(net, adapters).eval()
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


if __name__ == "__main__":
    common.main(main, Config, __doc__)
