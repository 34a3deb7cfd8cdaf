"""Collocation: what do residual points without weights cost a physics-informed network, and what do weights buy?

Question   Subramanian et al. 2022 draw a share η of collocation points uniformly and the others by |residual|, and
           take the plain mean of squared residuals over them. How far is that gradient from the one on the whole
           grid, and does it matter for the solution? What if the same mixture is weighed by 1/(N p)?
Claim      At a source of width 0.02 and η = ¼ the published gradient has a squared error of 22 to 275 times the
           weighted one's, by seed: a bias² of 18 ‖g‖², variances of 3.2 and 0.15 (medians). But its bias is mostly
           length (cosine 0.88 to 1.00): best scaled 0.12 and 0.13 are left. Training by Adam gained nothing by
           weights: errors of u of 0.029 and 0.03. That it divides lengths out may be why, which was not tested: no
           optimiser that feels them was run, and the two laws differ in η, too. What helps is drawing anew: 0.051 by
           uniform points, 0.14 where published ones are kept for a round, 0.46 by fixed ones. At a width of 0.1 no
           sampler stands out, 0.0087 to 0.011.
Shown      −u″ = f on (0, 1), f a normal density of width 0.02 or 0.1, u = x(1 − x)·N(x), 24 points of a grid of 512.
           Squared bias, variance and their sum, exact lines under drawn points, after 480 steps by uniform points;
           the relative error of u in training by `fgvar.train` (Adam), the median of ten seeds.
Cost       About fourteen minutes on one core, seven on two (--workers 2); --smoke: seconds.
Run        python studies/collocation.py            writes results/collocation.nc, .pdf and .png
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from studies import common
from studies.common import RESULTS, Options, Run

SAMPLERS = ("fixed points", "uniform", "published", "published, kept", "weighted")
KEPT = {"fixed points": True, "published, kept": False}  # points that stay: for all rounds, or for one
SETTINGS = ("uniform", "points", "grid", "width", "rounds", "steps", "probe", "lr", "draws")
LAST = 5  # rounds at the end, of whose errors the geometric mean is taken


@dataclass(frozen=True)
class Config:
    """Measure gradients of sampled collocation points, and train by them."""

    source: tuple[float, ...] = (0.02, 0.1)
    """Standard deviations of the source; the paper's uniform points fail at small ones."""
    uniform: tuple[int, ...] = (0, 3, 6, 12, 18, 24)
    """Points drawn uniformly, of all that are drawn: η as a number."""
    points: int = 24
    grid: int = 512
    width: int = 20
    rounds: int = 20
    """Each with one η of the published schedule, and with Adam begun anew."""
    steps: int = 40
    """Of each round."""
    probe: int = 12
    """Rounds by uniform points after which gradients are measured."""
    lr: float = 0.01
    draws: int = 512
    run: Run = Options(RESULTS / "collocation.nc", seed=tuple(range(10)))


def main(config: Config) -> None:
    from figures import collocation

    if config.run.smoke:
        little: dict[str, Any] = {
            "uniform": (0, 12, 24),
            "grid": 64,
            "width": 4,
            "rounds": 2,
            "steps": 3,
            "probe": 1,
            "draws": 16,
        }
        run = replace(config.run, seed=config.run.seed[:1])
        config = replace(config, run=run, source=config.source[:1], **little)
    if not all(0 <= count <= config.points for count in config.uniform) or not 1 <= config.probe <= config.rounds:
        raise ValueError(
            f"uniform is {list(config.uniform)} and probe {config.probe}, expected 0 to {config.points} points and 1 "
            f"to {config.rounds} rounds"
        )
    settings = {name: asdict(config)[name] for name in SETTINGS}
    dataset = at_the_end(common.sweep(cell, {"source": config.source}, settings, config.run))
    common.publish(dataset, config, collocation, report(dataset))


def cell(
    *, source: float, seed: int, uniform: list[int], points: int, grid: int, width: int, rounds: int, steps: int,
    probe: int, lr: float, draws: int,
) -> Any:  # fmt: skip
    """One network: trained by every sampler, and its gradients on the way."""
    import torch
    import xarray as xr

    import fgvar

    x = ((torch.arange(grid, dtype=torch.float64) + 0.5) / grid)[:, None]
    curves, half_way = {}, fgvar.networks.PoissonResidual(width, source=source, seed=seed).double()
    for sampler in SAMPLERS:
        network = fgvar.networks.PoissonResidual(width, source=source, seed=seed).double()
        curves[sampler] = [error(network, x)]
        for number in range(rounds):
            eta = (1 + math.cos(math.pi * number / rounds)) / 2
            train(network, sampler, x, eta, points, steps, lr, 1000 * seed + number)
            curves[sampler].append(error(network, x))
            if (sampler, number + 1) == ("uniform", probe):
                half_way.load_state_dict(network.state_dict())
    found = measured(fgvar.Problem(half_way, "mse", (x, torch.zeros_like(x[:, 0]))), uniform, points, draws, seed)
    found["error"] = xr.DataArray(
        list(curves.values()),
        {"sampler": list(curves), "step": [steps * number for number in range(rounds + 1)]},
        attrs={"long_name": "relative error of u on the grid, in the 2-norm", "units": "1"},
    )
    return found


def error(network: Any, x: Any) -> float:
    """‖u − exact‖/‖exact‖ on the grid, of the solution in closed form."""
    import torch

    with torch.no_grad():
        exact = network.solution(x)
        return float((network.u(x) - exact).norm() / exact.norm())


def train(network: Any, sampler: str, x: Any, eta: float, points: int, steps: int, lr: float, seed: int) -> None:
    """One round: so many steps of Adam, after which the network has what they ended with."""
    import torch

    import fgvar

    estimator = law_of(sampler, eta, points)
    if sampler in KEPT:
        x, estimator = (
            drawn(estimator, network, x, seed - seed % 1000 if KEPT[sampler] else seed),
            fgvar.ExactGradient(),
        )
    schedule = fgvar.Schedule(steps, len(x), lr, weight_decay=0.0, optimiser="adam", decay="constant")
    data = fgvar.data.Examples(x, torch.zeros_like(x[:, 0]))
    run = fgvar.train(network, estimator, data, schedule, loss="mse", seed=seed, device="cpu")
    network.load_state_dict(run.params)


def law_of(sampler: str, eta: float, points: int) -> Any:
    """The law of a sampler's points, in a round of the published schedule that has this η."""
    if sampler == "weighted":
        return weighted(points // 2, points)
    return published(points if sampler in ("fixed points", "uniform") else int(eta * points), points)


def drawn(law: Any, network: Any, x: Any, seed: int) -> Any:
    """The points of one draw, to be kept."""
    import torch

    import fgvar

    problem = fgvar.Problem(network, "mse", (x, torch.zeros_like(x[:, 0])))
    noise = law.randomness(problem).sample(seed, [0], dtype=x.dtype)
    return x[torch.cat([numbers[0] for numbers in noise.values()]).unique()]


def published(uniform: int, points: int) -> Any:
    """So many points drawn uniformly, the others by |residual|, neither put back; each once, and all alike."""
    import fgvar
    from fgvar import sampling

    parts = [sampling.Draw(uniform, replace=False)] if uniform else []
    parts += [sampling.Draw(points - uniform, by=sampling.Outputs(), replace=False)] if uniform < points else []
    return fgvar.Stochastic(sample=sampling.Union(tuple(parts), weigh="none", distinct=True))


def weighted(uniform: int, points: int) -> Any:
    """The mixture as one law, p = η/N + (1 − η)|r|/Σ|r|, put back and weighed by 1/(N p)."""
    import fgvar
    from fgvar import sampling

    by = sampling.Mixed(sampling.Outputs(), uniform=uniform / points)
    return fgvar.Stochastic(sample=sampling.Draw(points, by=by))


LAWS = {"published": published, "weighted": weighted}


def measured(problem: Any, uniform: list[int], points: int, draws: int, seed: int) -> Any:
    """Of both laws at every η, exact and drawn: squared bias and variance over ‖g‖², and the efficiency.

    Scaled as is best the squared error over ‖g‖² is 1 − efficiency, min_a E‖a ĝ − g‖²/‖g‖².
    """
    import xarray as xr

    import fgvar

    rows = {f"{law} {count}": make(count, points) for law, make in LAWS.items() for count in uniform}
    at = {"layer": "total", "reference": "target"}
    exact = fgvar.measure(rows, problem, route="exact").sel(at, drop=True)
    drawn = fgvar.measure(rows, problem, draws=draws, seed=seed).sel(at, drop=True)
    square = drawn["gradient_norm"] ** 2
    names = [f"{name}{end}" for name in ("relative_variance", "efficiency") for end in ("", "_low", "_high")]
    bias, slope, variance = exact["sq_bias"] / square, exact["slope"], exact["relative_variance"]
    of_mean = bias + 2 * slope - 1  # ‖E ĝ‖²/‖g‖², of ‖E ĝ − g‖² and the slope ⟨E ĝ, g⟩/‖g‖²
    found = drawn[names].assign(
        relative_bias=drawn["sq_bias"] / square,
        relative_bias_se=drawn["sq_bias_se"] / square,
        relative_bias_exact=bias,
        relative_variance_exact=variance,
        efficiency_exact=slope**2 / (of_mean + variance),
        cosine_of_mean=slope / of_mean**0.5,
    )
    parts = [
        found.sel(estimator=[f"{law} {count}" for count in uniform])
        .rename(estimator="share")
        .assign_coords(share=[count / points for count in uniform])
        for law in LAWS
    ]
    return xr.concat(parts, xr.IndexVariable("law", list(LAWS)), combine_attrs="drop_conflicts")


def at_the_end(dataset: Any) -> Any:
    """With ``final``, the geometric mean of each run's last errors: a single one rests on the last few draws."""
    import numpy as np

    last = dataset["error"].isel(step=slice(-LAST, None))
    dataset["final"] = np.exp(np.log(last).mean("step")).assign_attrs(units="1")
    dataset["final"].attrs["long_name"] = f"geometric mean of the errors at the ends of the last {LAST} rounds"
    return dataset


def report(dataset: Any) -> str:
    """A line for each law and η (of the first seed), and for each sampler."""
    lines = []
    for source in dataset["source"].values:
        lines += ["", f"source {source:g}", f"{'':<12}{'η':>6}{'bias²/‖g‖²':>12}{'variance/‖g‖²':>15}{'drawn':>9}"]
        its = dataset.sel(source=source)
        for law in LAWS:
            for share in dataset["share"].values:
                one = its.isel(seed=0).sel(law=law, share=share)
                values = [one[name].item() for name in ("relative_bias_exact", "relative_variance_exact")]
                bias, variance, drawn = *values, one["relative_variance"].item()
                lines.append(f"{law:<12}{share:>6.3f}{bias:>12.4g}{variance:>15.4g}{drawn:>9.3g}")
        lines.append(f"{'':<18}{'error of u: median (range)':>34}")
        for sampler in SAMPLERS:
            final = its["final"].sel(sampler=sampler)
            low, middle, high = (float(final.quantile(q)) for q in (0, 0.5, 1))
            lines.append(f"{sampler:<18}{middle:>14.3g} ({low:.3g} – {high:.3g})")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    common.main(main, Config, __doc__)
