"""Audit: do "lower variance, higher cosine" claims of zeroth-order estimators hold on a language model?

Question   Of two dozen published zeroth-order and forward estimators: which has less variance, which points nearer to
           the gradient, at equal queries and at equal cost, at which stage of training, for all weights and for LoRA?
Claim      One query along a direction of length 1 has E cos² = ∇′M∇/‖∇‖² with tr M = 1: no law of directions is
           better than any other (1/d) but by knowing where the gradient is. Low rank, orthogonality, lazy
           subspaces, pools and roundings lower variance or keep it, and buy no direction; what buys direction is
           density: blocks, layers or spans that hold more of ‖∇‖² than of the d numbers.
Found      Efficiency over MeZO's, all weights of a trained network: AGZO 16 13.1 to 13.3, but its control, a
           random span 12.1 to 13.1, and MeZO-BCD 4.24 to 6.97: the embedding, which they leave dense or take
           alone, has the gradient. Against the claim above SubZero has 18.1 to 29.3 at random weights, and the
           variance is 1.36 times MeZO's by roundings, up to thousands of times by signs on LoRA. The table tells
           the rest, and which claims do not hold.
Verdicts   By `figures.verdicts`, of the claims in `studies.published.claims`, from the dataset alone. In every cell
           (set × stage × seed) a ratio of two rows is "yes" where it is on the claimed side by a factor of 1.05, "no"
           where it is not; drawn ones with an interval at a level of 5 % over all cells and claims. Holds: yes in all
           cells; does not hold: no in all; holds only in …: yes in some, which are named. So a "higher cosine" is
           refuted by an efficiency below 1.05 times the other row's, a "lower variance" by one above 1/1.05 times,
           "as good" by an efficiency below 1/1.05 times, "no bias" by a relative bias above 0.05.
Shown      The language model of `studies/language_model.py` (GPT-2 of 3.2M numbers), full and LoRA, at four stages:
           random weights, pretrained on sources, twice in fine-tuning on help topics. Lines: exact, from closed
           forms of mean and second moment given the gradient of a probe batch. Points: drawn, derivatives replayed as
           inner products with that gradient, but of one- and two-sided differences, which take forward passes.
Cost       About two hours on one core a seed, 10 minutes of exact numbers alone; --smoke: seconds. Needs [hf].
Run        python studies/audit.py            writes results/audit.nc, .pdf, .png and .tex; the same command goes on
           --seed of some, --parts (nothing: exact numbers alone), then --onto what is stored: in pieces.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from studies import common
from studies.common import RESULTS, Options, Run
from studies.language_network import Base, Sizes, rank_of

SETS = ("full", "LoRA 4")
PARTS = ("isotropic", "low rank", "subspaces", "sparse", "queries", "passes")
LARGE = 10**6  # numbers, above which rows are drawn a quarter as often


@dataclass(frozen=True)
class Config(Sizes):
    """Measure published estimators on a small language model, and judge what their papers say."""

    trainable: tuple[str, ...] = SETS
    """Full, or LoRA RANK."""
    stages: tuple[str, ...] = ("pretrained", "fine-tuned", "initial", "half fine-tuned")
    """In the order in which they are computed."""
    parts: tuple[str, ...] = PARTS
    """Groups of estimators that are drawn; none: exact numbers alone, of all."""
    draws: int = 256
    """Of one query; a quarter of them where more than a million numbers move, an eighth of more than four queries."""
    onto: Path | None = None
    """A stored dataset of this study, whose seeds are kept where the folder has none."""
    run: Run = Options(RESULTS / "audit.nc")


def main(config: Config) -> None:
    import numpy as np

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
    apart = ("trainable", "stages", "parts", "onto", "run")
    settings = {name: value for name, value in asdict(config).items() if name not in apart}
    if not config.run.collect:
        for seed in config.run.seed:  # once, ahead of all cells
            for trainable in config.trainable:
                base = Base(**{name: (settings | {"seed": seed})[name] for name in Base._fields})
                stages.staged(base, trainable, config.fine_tuning, config.fine_lr, scratch)
    axes = {"trainable": config.trainable, "stage": config.stages}
    parts = ("exact", *config.parts)
    found = [common.sweep(cell, axes, settings | {"part": part}, config.run, part, scratch) for part in parts]
    dataset = combined(dict(zip(parts, found, strict=True)))
    dataset = dataset.sel(stage=[stage for stage in stages.STAGES if stage in config.stages])
    sources = [rows.ROWS[name].source for name in dataset["estimator"].values]
    dataset["source"] = "estimator", np.array(sources, dtype=str)
    for field in claims.Claim._fields:
        dataset[f"claim_{field}"] = "claim", np.array([getattr(one, field) for one in claims.CLAIMS], dtype=str)
    dataset.attrs |= {"margin": claims.MARGIN, "no_bias": claims.NO_BIAS}
    there = (dataset["status"].sel(part="exact") == "done").drop_vars("part")
    dataset = common.onto(config.onto, dataset, there, seed=int)
    dataset["status"] = dataset["status"].where(dataset["status"] != "", "missing")  # of parts of one piece alone
    common.publish(dataset, config, audit)


def combined(parts: Mapping[str, Any]) -> Any:
    """The exact numbers of all rows, the drawn ones of the parts that there are, else NaN, and the cells' status."""
    import xarray as xr

    from studies.published import moments
    from studies.published.rows import ROWS

    status = xr.concat([part["status"] for part in parts.values()], xr.IndexVariable("part", list(parts)))
    exact, *drawn = (part.drop_vars(["status", "traceback"], errors="ignore") for part in parts.values())
    how: Any = {"compat": "override", "join": "outer", "combine_attrs": "override"}
    if drawn:
        every = xr.concat(drawn, "estimator", data_vars="minimal", coords="minimal", **how)
        exact = xr.merge([exact, every], **how)
    exact = exact.sel(estimator=list(ROWS))
    like = exact["efficiency_exact"]
    for name in moments.DRAWN:
        exact[name] = exact.get(name, like * float("nan"))
    exact["draws_made"] = exact.get("draws_made", exact["queries"] * float("nan"))
    return exact.assign(status=status)


def cell(
    *, trainable: str, stage: str, part: str, fine_tuning: int, fine_lr: float, probe_batch: int, draws: int,
    seed: int, scratch: Path, **base: Any,
) -> Any:  # fmt: skip
    """One group of estimators on one network: drawn and exact, of each group of layers and in total."""
    import xarray as xr

    import fgvar
    from studies import language_network as networks
    from studies.published import directional, rows, stages

    its = Base(**base, seed=seed)
    state = stages.staged(its, trainable, fine_tuning, fine_lr, scratch.parent)[stage]
    net = stages.network(its, trainable, state)
    batch = networks.examples(networks.help_topics(), its.positions, fine_tuning, seed).test.sample(
        probe_batch, seed=seed
    )
    problem = fgvar.Problem(fgvar.with_sites(net, inputs=batch[0]), "causal_lm", batch)
    scene = rows.Scene(problem, net, seed)
    if part == "exact":
        found = xr.concat([known(row, scene) for row in rows.ROWS.values()], "estimator")
        groups, norms = grouped(scene).values(), directional.squares(scene.gradient)
        found["size"] = "group", [sum(scene.sizes[name] for name in names) for names in groups]
        found["gradient_norm"] = "group", [sum(norms[name] for name in names) ** 0.5 for names in groups]
        vectors = [name for name, g in scene.gradient.items() if g.ndim < 2]
        found["vector_energy"] = sum(norms[name] for name in vectors) / sum(norms.values())
        found["vector_share"] = sum(scene.sizes[name] for name in vectors) / sum(scene.sizes.values())
        return found.assign(loss=float(problem.loss())).assign_attrs(networks.origin())
    large = sum(scene.sizes.values()) > LARGE
    few = {row.name: 8 if row.queries > 4 else 4 if large else 1 for row in rows.PARTS[part]}
    counts = {name: max(min(draws, 32), draws // less) for name, less in few.items()}
    return xr.concat([drawn(row, scene, counts[row.name], seed) for row in rows.PARTS[part]], "estimator")


def grouped(scene: Any) -> dict[str, list[str]]:
    """Group → its tensors: embeddings (with the last norm), each block, total."""
    found: dict[str, list[str]] = {}
    for name, block in scene.blocks.items():
        found.setdefault(f"block {block}" if block else "embeddings", []).append(name)
    return {name: found[name] for name in sorted(found, key=_order)} | {"total": list(scene.blocks)}


def _order(group: str) -> int:
    number = re.search(r"\d+", group)
    return int(number[0]) if number else 0


def drawn(row: Any, scene: Any, draws: int, seed: int) -> Any:
    """One row's drawn numbers with their intervals, over groups of layers."""
    import fgvar
    from studies.published import moments

    one = {row.name: row.estimator(scene)}
    found = fgvar.measure(one, scene.problem, draws=draws, seed=seed, keep_draws=True).isel(estimator=0, drop=True)
    groups = grouped(scene)
    return _named(row, groups, moments.drawn(found.sel(reference="target", drop=True), groups), draws_made=draws)


def known(row: Any, scene: Any) -> Any:
    """One row's exact numbers, over groups of layers, and what it costs as published."""
    from studies.published import moments

    groups = grouped(scene)
    found = moments.exact(row.moments(scene) if row.moments else None, scene.gradient, groups)
    return _named(row, groups, found, queries=row.queries, passes=row.passes, replayed=row.replayed)


def _named(row: Any, groups: Mapping[str, Any], values: Mapping[str, list[float]], **numbers: float) -> Any:
    import xarray as xr

    found = {name: ("group", value) for name, value in values.items()}
    dataset = xr.Dataset(found, coords={"group": list(groups)}).assign({k: float(v) for k, v in numbers.items()})
    return dataset.expand_dims(estimator=[row.name])


if __name__ == "__main__":
    common.main(main, Config, __doc__)
