"""Audit: do "lower variance, higher cosine" claims of zeroth-order estimators hold on a language model?

Question   Of two dozen published zeroth-order and forward estimators: which has less variance, which points nearer to
           the gradient, at equal queries and at equal cost, at which stage of training, for all weights and for LoRA?
Claim      One query along a direction of length 1 has E cos² = ∇′M∇/‖∇‖² with tr M = 1: no law of directions is better
           than any other (1/d) but by knowing where the gradient is. Low rank, orthogonality, lazy or random
           subspaces, pools and roundings lower variance or keep it, and buy no direction; what buys direction is
           density: blocks, layers or spans that hold more of ‖∇‖² than of the d numbers.
Verdicts   By `figures.audit.verdict`, of the claims in `studies.published.claims`, from the dataset alone. In every
           cell (set × stage × seed) a ratio of two rows is "yes" where it is on the claimed side by a factor of 1.05,
           "no" where it is not; drawn ones with an interval at a level of 5 % over all cells. Holds: yes in all cells;
           does not hold: no in all; holds only in …: yes in some, which are named. So "higher cosine" is refuted by an
           efficiency below 1.05 times the other row's, "lower variance" by a variance above 1/1.05 times,
           "as good" by an efficiency off by more than 1.05, "no bias" by a relative bias above 0.05.
Shown      The language model of `studies/language_model.py` (GPT-2 of 3.2M numbers), full and LoRA, at four stages:
           random weights, pretrained on sources, twice in fine-tuning on help topics. Lines: exact, from closed
           forms of mean and second moment given the gradient of a probe batch. Points: drawn, derivatives replayed as
           inner products with that gradient, but of one- and two-sided differences, which take forward passes.
Cost       About two hours on one core; --smoke: seconds. Needs the extra [hf].
Run        python studies/audit.py            writes results/audit.nc, .pdf, .png and .tex; the same command goes on
"""

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from studies import common
from studies.common import RESULTS, Options, Run
from studies.language_network import Base, rank_of

SETS = ("full", "LoRA 4")
PARTS = ("isotropic", "low rank", "subspaces", "sparse", "queries", "passes")
LARGE = 10**6  # numbers, above which rows are drawn a quarter as often


@dataclass(frozen=True)
class Config:
    """Measure published estimators on a small language model, and judge what their papers say."""

    trainable: tuple[str, ...] = SETS
    """Full, or LoRA RANK."""
    stages: tuple[str, ...] = ("pretrained", "fine-tuned", "initial", "half fine-tuned")
    """In the order in which they are computed."""
    parts: tuple[str, ...] = PARTS
    """Groups of estimators."""
    width: int = 256
    depth: int = 4
    positions: int = 64
    pretraining: int = 4096
    fine_tuning: int = 1024
    batch: int = 16
    lr: float = 2e-3
    fine_lr: float = 1e-3
    probe_batch: int = 4
    draws: int = 512
    """Of one query; a quarter of them where all weights move, and for more queries."""
    run: Run = Options(RESULTS / "audit.nc")


def main(config: Config) -> None:
    import numpy as np
    import xarray as xr

    from figures import audit
    from studies.published import claims, rows, stages

    for name, its, known in (("stages", config.stages, stages.STAGES), ("parts", config.parts, PARTS)):
        if unknown := sorted(set(its) - set(known)):
            raise ValueError(f"{name} has {unknown}, expected some of: {', '.join(known)}")
    if unknown := [name for name in config.trainable if name != "full" and not rank_of(name)]:
        raise ValueError(f"trainable is {unknown[0]!r}, expected full, or LoRA and a rank, as 'LoRA 4'")
    if config.run.smoke:
        small: dict[str, Any] = {"width": 16, "depth": 2, "positions": 8, "pretraining": 16, "fine_tuning": 32}
        config = replace(config, stages=("pretrained",), batch=4, draws=32, **small)
    scratch = common.place(config).with_suffix("") / "scratch"
    apart = ("trainable", "stages", "parts", "run")
    settings = {name: value for name, value in asdict(config).items() if name not in apart}
    if not config.run.collect:
        for seed in config.run.seed:  # once, ahead of all cells
            for trainable in config.trainable:
                its = Base(**{name: (settings | {"seed": seed})[name] for name in Base._fields})
                stages.staged(its, trainable, config.fine_tuning, config.fine_lr, scratch)
    axes = {"trainable": config.trainable, "stage": config.stages}
    found = [common.sweep(cell, axes, settings | {"part": part}, config.run, part, scratch) for part in config.parts]
    dataset = xr.concat(
        [part.drop_vars(["status", "traceback"], errors="ignore") for part in found], "estimator",
        data_vars="minimal", coords="minimal", compat="override", join="outer",
    )  # fmt: skip
    status = xr.concat([part["status"] for part in found], xr.IndexVariable("part", list(config.parts)))
    dataset = dataset.assign(status=status).sel(stage=[stage for stage in stages.STAGES if stage in config.stages])
    sources = [rows.ROWS[name].source for name in dataset["estimator"].values]
    dataset["source"] = "estimator", np.array(sources, dtype=str)
    for field in claims.Claim._fields:
        dataset[f"claim_{field}"] = "claim", np.array([getattr(one, field) for one in claims.CLAIMS], dtype=str)
    dataset.attrs |= {"margin": claims.MARGIN, "no_bias": claims.NO_BIAS}
    common.publish(dataset, config, audit)


def cell(
    *, trainable: str, stage: str, part: str, fine_tuning: int, fine_lr: float, probe_batch: int, draws: int,
    seed: int, scratch: Path, **base: Any,
) -> Any:  # fmt: skip
    """One group of estimators on one network: drawn and exact, of each group of layers and in total."""
    import xarray as xr

    import fgvar
    from studies import language_network as networks
    from studies.published import rows, stages

    its = Base(**base, seed=seed)
    state = stages.staged(its, trainable, fine_tuning, fine_lr, scratch.parent)[stage]
    net = stages.network(its, trainable, state)
    batch = networks.examples(networks.help_topics(), its.positions, fine_tuning, seed).test.sample(
        probe_batch, seed=seed
    )
    problem = fgvar.Problem(fgvar.with_sites(net, inputs=batch[0]), "causal_lm", batch)
    scene = rows.Scene(problem, net, seed)
    each = []
    for row in rows.PARTS[part]:
        few = row.queries > 4 or sum(scene.sizes.values()) > LARGE
        count = max(32, draws // 4) if few and draws > 32 else draws
        each.append(measured(row, scene, count, seed))
    found = xr.concat(each, "estimator")
    found["size"] = "group", [sum(scene.sizes[name] for name in names) for names in grouped(scene).values()]
    found["loss"] = float(problem.loss())
    return found.assign_attrs(networks.origin())


def grouped(scene: Any) -> dict[str, list[str]]:
    """Group → its tensors: embeddings (with the last norm), each block, total."""
    found: dict[str, list[str]] = {}
    for name, block in scene.blocks.items():
        found.setdefault(f"block {block}" if block else "embeddings", []).append(name)
    return {name: found[name] for name in sorted(found, key=_order)} | {"total": list(scene.blocks)}


def _order(group: str) -> int:
    number = re.search(r"\d+", group)
    return int(number[0]) if number else 0


def measured(row: Any, scene: Any, draws: int, seed: int) -> Any:
    """One row's drawn numbers with their intervals, and its exact ones, over groups of layers."""
    import xarray as xr

    import fgvar
    from studies.published import moments

    groups = grouped(scene)
    one = {row.name: row.estimator(scene)}
    drawn = fgvar.measure(one, scene.problem, draws=draws, seed=seed, keep_draws=True).isel(estimator=0, drop=True)
    found = moments.drawn(drawn.sel(reference="target", drop=True), groups)
    exact = moments.exact(row.moments(scene) if row.moments else None, scene.gradient, groups)
    values = {name: ("group", value) for name, value in {**found, **exact}.items()}
    dataset = xr.Dataset(values, coords={"group": list(groups)})
    dataset["queries"], dataset["passes"] = float(row.queries), float(row.passes)
    dataset["replayed"], dataset["draws_made"] = float(row.replayed), float(draws)
    return dataset.expand_dims(estimator=[row.name])


if __name__ == "__main__":
    common.main(main, Config, __doc__)
