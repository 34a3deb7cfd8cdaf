"""Language model: what does a smaller trainable set buy fine-tuning by zeroth-order or forward gradients?

Question   By how much do LoRA, or the last block alone, raise the cosine and lower the variance of gradient estimates
           at equal cost? Is the relative variance d + 1 as theory says? Is perturbing activities less noisy than
           perturbing weights where ρ is below the fan-in (`fgvar.theory.activity_ratio`)?
Claim      For d trained numbers FG-W and MeZO have a relative variance of d + 1 and a mean cosine of √(2/πd), that is
           |cos| of a random direction, before, during and after fine-tuning. EGGROLL's matrices of rank 1 have
           d − 1 + Σ_k s_k e_k: s_k is tensor k's share of ‖∇‖², e_k = 2(rows + columns) + 4, of vectors 2. MeZO costs
           three forward passes in every set, so that what a small one buys at equal cost is its d; forward mode,
           which follows what lies behind the trained numbers alone, costs less there. Of one layer alone ρ < fan-in
           says whether FG-A or FG-W is less noisy.
Shown      A causal transformer of Hugging Face's GPT-2 classes, 3.2M numbers, bytes as tokens, trained by backprop on
           the sources of Python's standard library, then fine-tuned by backprop on its help topics: everything, LoRA
           of rank 16, 4 and 1 on c_attn of every block (α = 2·rank), or the last block alone (the output layer is
           tied to the embedding, no layer of its own). One probe batch of topics that are not trained on; before,
           during and after fine-tuning: drawn. Each linear layer alone, before and after: exact. LG-FG-A is probed in
           runs of its own, where local heads (behind each block but the last) learn beside, from features alone.
Text       What the running Python ships, so that another version has another text: its version and hashes of the text
           are attributes of the dataset. Nothing is downloaded.
Cost       About 25 minutes on one core; --smoke: seconds. Needs the extra [hf].
Run        python studies/language_model.py            writes results/language_model.nc, .pdf, .png and .tex
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from studies import common
from studies import language_network as networks
from studies.common import RESULTS, Options, Run
from studies.language_network import Base, Sizes, rank_of

SETS = ("full", "last block", "LoRA 16", "LoRA 4", "LoRA 1")
SCHEMES = {"global": ("MeZO", "FG-W", "EGGROLL", "FG-A"), "local": ("LG-FG-A",)}  # by their losses
STAGES = ("before", "during", "after")
ALONE = {
    "ratio": "ρ = ‖X‖² ‖∂L/∂Z‖² / ‖G‖², each example with its own loss",
    "fan_in": "inputs of one position, a bias among them",
    "variance_ratio": "tr Cov of FG-A over that of FG-W, of the layer alone",
}


@dataclass(frozen=True)
class Config(Sizes):
    """Fine-tune parts of a small language model, and measure estimators of their gradients."""

    trainable: tuple[str, ...] = SETS
    """What is fine-tuned: full, last block, LoRA RANK."""
    draws: int = 128
    run: Run = Options(RESULTS / "language_model.nc")


def main(config: Config) -> None:
    import xarray as xr

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
            networks.with_heads(Base(**{name: (settings | {"seed": seed})[name] for name in Base._fields}), scratch)
    parts = [
        common.sweep(
            cell, {"trainable": config.trainable}, settings | {"losses": losses}, config.run, losses, scratch
        )
        for losses in SCHEMES
    ]
    # What has no estimators is the same in both parts, but that layers are looked at in the first alone.
    dataset = xr.concat(parts, "estimator", data_vars="minimal", coords="minimal", compat="override", join="override")
    statuses = [part["status"] for part in parts]  # of a pair of cells, that of the one that is not done
    dataset["status"] = statuses[0].where(statuses[0] != "done", statuses[1])
    common.publish(dataset, config, language_model)


def cell(
    *, trainable: str, losses: str, fine_tuning: int, fine_lr: float, probe_batch: int, draws: int, seed: int,
    scratch: Path, **base: Any,
) -> Any:  # fmt: skip
    """One set: a run of fine-tuning by backprop, schemes on the way, and with global losses its layers one by one."""
    import pandas as pd
    import xarray as xr

    import fgvar
    from fgvar.measurement import ENDS
    from fgvar.training import steps_of

    its = Base(**base, seed=seed)
    data = networks.examples(networks.help_topics(), its.positions, fine_tuning, seed)
    batch = data.test.sample(probe_batch, seed=seed)
    base_net = (networks.with_heads if losses == "local" else networks.pretrained)(its, scratch.parent)
    net = networks.trained_in_part(base_net, its, trainable)
    model = fgvar.with_sites(net, inputs=batch[0])
    schedule = networks.schedule_of(its.batch, fine_lr)
    total = steps_of(schedule, len(data))
    steps = (0, total // 2, total)
    probe = fgvar.Probe({name: fgvar.scheme(name) for name in SCHEMES[losses]}, batch, steps, draws=draws, seed=seed)
    run = fgvar.train(
        model, networks.backprop(), data, schedule, loss="causal_lm", seed=seed, probe=probe, device="cpu",
        name=trainable, checkpoint=scratch / "run.checkpoint",
    )  # fmt: skip
    found = run.dataset.assign_coords(step=list(STAGES)).rename(step="stage")
    found["predicted"] = predicted(found, {name: tuple(p.shape) for name, p in net.named_parameters()})
    kept = [f"{name}{end}" for name in ("relative_variance", "cosine") for end in ("", *ENDS)]
    kept += ["gradient_norm", "size", "cost", "predicted", "test_perplexity"]
    found = found[kept].sel(layer="perturbed", drop=True).assign_attrs(found.attrs | networks.origin())
    if losses == "local":
        return found
    ends = {"before": model.state_dict(), "after": run.params}
    alone = [one_by_one(net, at, batch) for at in ends.values()]
    return found.merge(xr.concat(alone, pd.Index(ends, name="end"), join="outer"))


def predicted(found: Any, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Relative variance as theory says, over (stage, estimator): d − 1 + Σ_k s_k e_k; NaN of other schemes."""
    import xarray as xr

    layers = [name for name in found["layer"].values if name in shapes]
    norms = found["gradient_norm"].sel(reference="backprop", drop=True).isel(estimator=0, drop=True)
    squares = norms.sel(layer=layers) ** 2
    matrix = [
        2 * (shape[0] + math.prod(shape[1:])) + 4 if shape[1:] else 2 for shape in map(shapes.__getitem__, layers)
    ]
    excess = {"EGGROLL": matrix, **dict.fromkeys(("MeZO", "FG-W"), [2] * len(layers))}
    table = [excess.get(name, [math.nan] * len(layers)) for name in found["estimator"].values]
    e = xr.DataArray(table, {"estimator": found["estimator"].values, "layer": layers}, ("estimator", "layer"))
    d = found["size"].sel(layer="perturbed", drop=True)
    return d - 1 + (e * squares).sum("layer", skipna=False) / squares.sum("layer")


def one_by_one(net: Any, state: Mapping[str, Any], batch: tuple[Any, Any]) -> Any:
    """Of each layer alone: ρ (each example with its own loss), fan-in, and FG-A's variance over FG-W's."""
    import torch
    import xarray as xr

    import fgvar

    net = copy.deepcopy(net)
    net.load_state_dict(state)
    rows: dict[str, tuple[float, int, float]] = {}
    for weight, ratio in fgvar.theory.activity_ratio(fgvar.Problem(net, "causal_lm", batch)).items():
        layer, alone = weight.removesuffix(".weight"), copy.deepcopy(net)
        for name, parameter in networks.with_linear(alone, layer).named_parameters():
            parameter.requires_grad_(name.startswith(f"{layer}."))
        problem = fgvar.Problem(fgvar.with_sites(alone, inputs=batch[0]), "causal_lm", batch)
        variances = dict.fromkeys(("FG-A", "FG-W"), torch.tensor(math.nan))
        # Of a weight that is used twice the closed form would take the Jacobian of both uses, gigabytes of it.
        if len(problem.trace.sites) == 1:
            traces = {name: fgvar.theory.trace(fgvar.scheme(name), problem) for name in variances}
            variances = {name: torch.stack(list(its.values())).sum() for name, its in traces.items()}
        name = layer.removeprefix("base_model.model.").removeprefix("transformer.").removesuffix(".default")
        rows[name] = ratio.per_example, ratio.fan_in, float(variances["FG-A"] / variances["FG-W"])
    found = xr.Dataset(coords={"linear": list(rows)})
    for index, (key, long_name) in enumerate(ALONE.items()):
        found[key] = "linear", [row[index] for row in rows.values()], {"long_name": long_name, "units": "1"}
    return found


if __name__ == "__main__":
    common.main(main, Config, __doc__)
