"""Unlearning: what turns the gradient of what is forgotten into Newton's direction (SFR-on, Huang et al. 2024)?

Question   The method's step is the gradient of what is to be forgotten, its examples weighed by their losses, masked
           by saliency, and followed by steps on what is retained. Which of the three brings it to (H + μ)⁻¹ g_f, the
           Newton direction of the retained loss, and does a closed form say by how much?
Claim      The steps on what is retained. For a random tenth of the examples they raise the cosine to Newton's
           direction from 0.43 to 0.94 in 400 steps, and to 0.86 in 80 rounds of five, by every seed and as (I − hH)ᴷ
           g_f and its sum over rounds say (means to 0.004). Loss weights and saliency masks by themselves lower it,
           to 0.36 and 0.35, and ahead of the same rounds they cost more: 0.70 and 0.57 in place of 0.86. Angles are
           Euclidean, of one damping, μ = 0.01. For a whole class neither is shown: steps are too long for the first
           order, and H + μ has negative curvature in four of ten networks.
Shown      Cosines of directions at networks trained on digits, over ten seeds. Lines: (I − hH)ᴷ g_f, and its sum over
           rounds of five steps, exact given H. Points: such steps made, on the whole retained part (exact, without
           noise) and on minibatches of it (drawn).
Cost       About eleven minutes on one core, six on two (--workers 2); --smoke: seconds.
Run        python studies/unlearning.py            writes results/unlearning.nc, .pdf and .png
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from studies import common
from studies.common import RESULTS, Options, Run

FORGOTTEN = ("a tenth", "a class")
WAYS = ("once", "rounds")
ROUND = 5  # steps on what is retained after each step of forgetting, in the authors' code
TOWARD = ("Newton", "gradient", "damage")
SHAPING = ("none", "weights", "mask of 1", "mask of 10", "mask of all", "random mask", "weights and mask of 10")
SIZES = {"mask of 1": 1, "mask of all": None}  # of the minibatches of the Fisher information; others: 10
SETTINGS = ("steps", "lr", "damping", "width", "epochs", "size", "draws", "shuffles")


@dataclass(frozen=True)
class Config:
    """Hold steps of unlearning, and the parts that they consist of, against Newton's direction."""

    forgotten: tuple[str, ...] = FORGOTTEN
    """A random tenth of the examples, or one class (number: seed modulo 10)."""
    steps: tuple[int, ...] = (0, 5, 20, 100, 400)
    """On what is retained, multiples of 5, in ascending order."""
    lr: float = 0.05
    """Of all steps, h."""
    damping: float = 0.01
    """Of Newton's direction, μ, in units of curvature."""
    width: int = 10
    """Of the hidden layer, behind 4 × 4 pixels."""
    epochs: int = 20
    """Of training, before anything is forgotten."""
    size: int = 32
    """Examples of a minibatch of what is retained."""
    draws: int = 16
    """Of all minibatches of a path."""
    shuffles: int = 4
    """Of the saliency mask of minibatches of 10, for control."""
    run: Run = Options(RESULTS / "unlearning.nc", seed=tuple(range(10)))


def main(config: Config) -> None:
    from figures import unlearning

    if config.run.smoke:
        few = replace(config.run, seed=config.run.seed[:1])
        config = replace(config, steps=(0, 5, 20), width=4, epochs=2, draws=2, shuffles=1, run=few)
    if unknown := set(config.forgotten) - set(FORGOTTEN):
        raise ValueError(f"forgotten has {sorted(unknown)}, expected some of: {', '.join(FORGOTTEN)}")
    if sorted({*config.steps}) != [*config.steps] or any(steps % ROUND for steps in config.steps):
        raise ValueError(f"steps are {list(config.steps)}, expected ascending multiples of {ROUND}, a round's steps")
    settings = {name: getattr(config, name) for name in SETTINGS}
    dataset = common.sweep(cell, {"forgotten": config.forgotten}, settings, config.run)
    common.publish(dataset, config, unlearning, report(dataset))


class Scene(NamedTuple):
    """What is forgotten and retained at a trained network, with vectors [d] and a matrix [d, d] there."""

    forget: Any
    retain: Any
    gradient: Any
    damping: float
    damped: Any
    """H + μ, of the retained loss."""
    newton: Any


def cell(
    *, forgotten: str, seed: int, steps: list[int], lr: float, damping: float, width: int, epochs: int, size: int,
    draws: int, shuffles: int,
) -> Any:  # fmt: skip
    """One network and one part to be forgotten: cosines of all directions."""
    import torch
    import xarray as xr

    here = scene(*problems(forgotten, seed, width, epochs), damping)
    made = torch.stack(
        [torch.stack([direction(here, then=retaining(here, way, k, lr)) for k in steps]) for way in WAYS]
    )
    time, exact = theory(here, lr, max(steps))
    first_order = exact[:, [time.index(k) for k in steps]]
    ends = {"alone": (), "followed": retaining(here, "rounds", max(steps), lr)}
    curvature = torch.linalg.eigvalsh(here.damped)[[0, -1]] - damping
    return xr.Dataset(
        {
            "cosine": (("way", "steps", "toward"), cosines(here, made)),
            "theory": (("way", "time", "toward"), cosines(here, exact)),
            "off": (("way", "steps"), ((made - first_order).norm(dim=-1) / made.norm(dim=-1)).numpy()),
            "shaped": (
                ("end", "shaping", "toward"),
                [[shaped(here, name, then, shuffles) for name in SHAPING] for then in ends.values()],
            ),
            "kept": ("shaping", [kept(here, name) for name in SHAPING]),
            "curvature": ("extreme", curvature.numpy()),
            "loss": ("part", [float(part.loss()) for part in (here.forget, here.retain)]),
        },
        coords={
            "way": list(WAYS), "steps": list(steps), "toward": list(TOWARD), "time": time, "end": list(ends),
            "shaping": list(SHAPING), "extreme": ["lowest", "highest"], "part": ["forgotten", "retained"],
        },
        attrs={"d": len(here.gradient)},
    ).merge(drawn(here, steps, lr, size, draws, seed), join="outer")  # fmt: skip


def problems(forgotten: str, seed: int, width: int, epochs: int) -> tuple[Any, Any]:
    """What is forgotten and what is retained, at a network that was trained on both."""
    import torch

    import fgvar

    digits = fgvar.data.load("digits")
    x, y = digits.batch(torch.arange(len(digits)), dtype=torch.float64)
    small = torch.nn.functional.avg_pool2d(x, 2).flatten(1)
    net = fgvar.networks.MLP(small.shape[1], width=width, depth=1, classes=10, activation="tanh", seed=seed).double()
    data = fgvar.data.Examples(small, y, name="4 × 4 digits")
    schedule = fgvar.Schedule(epochs, batch=32, lr=0.1)
    net.load_state_dict(fgvar.train(net, fgvar.ExactGradient(), data, schedule, seed=seed, device="cpu").params)
    part = y == seed % 10
    if forgotten == "a tenth":
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        part = torch.zeros_like(part).index_fill(0, order[: len(y) // 10], True)
    forget, retain = (fgvar.Problem(net, "cross_entropy", (small[some], y[some])) for some in (part, ~part))
    return forget, retain


def scene(forget: Any, retain: Any, damping: float) -> Scene:
    """The scene of two problems at one network."""
    import torch

    import fgvar

    hessian, gradient = fgvar.targets.hessian(retain), flat(forget.backprop())
    damped = hessian + damping * torch.eye(len(hessian), dtype=hessian.dtype)
    return Scene(forget, retain, gradient, damping, damped, torch.linalg.solve(damped, gradient))


def retaining(here: Scene, way: str, steps: int, lr: float, size: int | None = None) -> tuple[Any, ...]:
    """So many steps on what is retained: after one of forgetting, or five after each of several."""
    import fgvar

    if way == "once" or not steps:
        return (fgvar.transforms.Retained(here.retain, steps, lr, size=size),)
    return (fgvar.transforms.Retained(here.retain, ROUND, lr, rounds=steps // ROUND, size=size),)


def direction(here: Scene, **words: Any) -> Any:
    """The direction [d] of a row without noise."""
    import fgvar

    return flat(fgvar.Stochastic(**words).estimate(here.forget, {}).gradient)


def flat(gradient: Mapping[str, Any]) -> Any:
    import torch

    return torch.cat([value.flatten() for value in gradient.values()])


def theory(here: Scene, lr: float, last: int) -> tuple[list[int], Any]:
    """Times, and directions [way, time, d] by the Hessian alone; those of rounds are NaN between two of them."""
    import torch

    time = [*range(ROUND), *range(ROUND, last + 1, ROUND)]
    damped, vectors = torch.linalg.eigh(here.damped)
    factors = (1 - lr * (damped - here.damping)) ** torch.tensor(time)[:, None]  # of one step of forgetting
    sums = torch.full_like(factors, torch.nan)
    sums[0] = 1
    sums[ROUND:] = factors[ROUND:].cumsum(0)  # Σ_r (1 − hλ)^(5r), r from 1 to the round
    return time, torch.stack([factors, sums]) * (here.gradient @ vectors) @ vectors.T


def cosines(here: Scene, directions: Any) -> Any:
    """Of directions [..., d]: to Newton's, to the gradient, and to Newton's in the metric of H + μ.

    The square of the last is what forgetting gains along d for the damage done to the retained loss, (gᵀd)² over
    dᵀ(H + μ)d, in units of the most along any direction; NaN where H + μ is not positive definite.
    """
    import torch

    d, g, a = directions, here.gradient, here.damped
    pairs = [torch.cosine_similarity(d, other, dim=-1) for other in (here.newton, g)]
    by_damage = d @ g / ((d @ a * d).sum(-1) * (g @ here.newton)).sqrt()
    if torch.linalg.eigvalsh(a)[0] <= 0:
        by_damage = torch.full_like(by_damage, torch.nan)
    return torch.stack([*pairs, by_damage], -1).numpy()


def masks(here: Scene, name: str, shuffles: int = 1) -> list[tuple[Any, ...]]:
    """The saliency mask of that name, as words of ``then``; of the random one several."""
    from fgvar import transforms

    if "mask" not in name:
        return [()]
    seeds = range(shuffles) if "random" in name else [None]
    keeps = (transforms.Saliency(here.retain, 1.0, SIZES.get(name, 10), shuffled=seed) for seed in seeds)
    return [(transforms.Mask(keep),) for keep in keeps]


def shaped(here: Scene, name: str, then: tuple[Any, ...], shuffles: int) -> Any:
    """Cosines of the gradient weighed and masked as named, and followed by steps: of random masks their mean."""
    import torch

    from fgvar import sampling

    sample = sampling.Reweighted(sampling.Losses(-0.5)) if "weights" in name else sampling.Everything()
    rows = [direction(here, sample=sample, then=(*one, *then)) for one in masks(here, name, shuffles)]
    return cosines(here, torch.stack(rows)).mean(0)


def kept(here: Scene, name: str) -> float:
    """The share of parameters that the mask keeps."""
    (then,) = masks(here, name)
    return float(flat(then[0].keep.mask(here.forget)).mean()) if then else 1.0


@dataclass(frozen=True)
class Known:
    """A target that was computed once: Newton's direction."""

    direction: Any = field(repr=False)

    def __call__(self, problem: Any) -> dict[str, Any]:
        sizes = [p.numel() for p in problem.params.values()]
        pieces = zip(problem.params.items(), self.direction.split(sizes), strict=True)
        return {name: piece.reshape(p.shape) for (name, p), piece in pieces}


def drawn(here: Scene, steps: list[int], lr: float, size: int, draws: int, seed: int) -> Any:
    """Cosines of steps on minibatches, mean over draws, with errors; of no step there is nothing to draw."""
    import xarray as xr

    import fgvar
    from fgvar.measurement import ENDS

    of_way = []
    for way in WAYS:
        rows = {
            str(k): fgvar.Against(fgvar.Stochastic(then=retaining(here, way, k, lr, size)), Known(here.newton))
            for k in steps
            if k
        }
        found = fgvar.measure(rows, here.forget, draws=draws, seed=seed).sel(layer="total", drop=True)
        of_way.append(found[["cosine", *(f"cosine{end}" for end in ENDS)]].rename(estimator="steps"))
    found = xr.concat(of_way, xr.IndexVariable("way", list(WAYS)), combine_attrs="drop")
    found = found.sel(reference=["target", "backprop"]).rename(reference="toward")
    found = found.assign_coords(toward=list(TOWARD[:2]), steps=[k for k in steps if k]).drop_attrs()
    return found.rename({f"cosine{end}": f"drawn{end}" for end in ("", *ENDS)})


def report(dataset: Any) -> str:
    """A line for each number of steps and each shaping: means over seeds, and the lowest and highest."""
    lines = []
    for part in dataset["forgotten"].values:
        its = dataset.sel(forgotten=part)
        lines.append(f"{part} forgotten{'Newton':>30}{'gradient':>24}{'by damage':>24}{'off':>9}")
        for way in WAYS:
            for k in dataset["steps"].values:
                off = float(its["off"].sel(way=way, steps=k).max())
                lines.append(f"  {way} {k:<24}{ranges(its['cosine'].sel(way=way, steps=k))}{off:>9.2g}")
        for end in dataset["end"].values:
            for name in SHAPING:
                share = float(its["kept"].sel(shaping=name).mean())
                lines.append(f"  {name}, {end:<10}{ranges(its['shaped'].sel(end=end, shaping=name))}{share:>9.0%}")
    return "\n".join(lines)


def ranges(values: Any) -> str:
    """Means over seeds with the lowest and highest, in each direction that they go."""
    cells = []
    for toward in TOWARD:
        its = values.sel(toward=toward)
        cells.append(f"{float(its.mean()):>10.3f} ({float(its.min()):.3f} – {float(its.max()):.3f})")
    return "".join(cells)


if __name__ == "__main__":
    common.main(main, Config, __doc__)
