"""Guesses: the whole matrix of Fournier et al. 2023, guess × target × space, on one network.

Question   A forward gradient projects a target gradient on a guess of it. What does a guess that knows the network
           buy, for the global and for the local target, in weights and in activities?
Claim      Guesses that know the network come closer to backprop than isotropic noise does: directions of the next
           layer's weights somewhat, the local losses' gradient most (on average over seeds), short of the gradient.
Shown      `fgvar.guesses.guess_matrix()`: cosines of the projection, of every example and tensor alone, to its
           target and to backprop, on LocalMixers after a few steps of backprop (`all_schemes.py`); drawn, means
           over seeds (network, batch and noise). Guesses without noise are evaluated once for a seed.
Cost       About three minutes on one core, half of it on two (--workers 2); --smoke: seconds.
Run        python studies/guesses.py            writes results/guesses.nc, .pdf and .png
Full size  python studies/guesses.py --blocks 4 --channels 512 --groups 16 --epochs 20 --draws 2048   (not done here)
"""

from dataclasses import dataclass, replace
from typing import Any

from studies import common
from studies.common import RESULTS, Options, Run


@dataclass(frozen=True)
class Config:
    """Measure the guess matrix on LocalMixers that have learned digits for a moment."""

    space: tuple[str, ...] = ("weight", "activity")
    target: tuple[str, ...] = ("global", "local")
    guess: tuple[str, ...] = ("Gaussian", "Rademacher", "local", "NTK", "transposed", "span", "global")
    blocks: int = 2
    patches: int = 2
    channels: int = 32
    groups: int = 4
    epochs: int = 2
    """Of backprop before measuring; 22 steps each."""
    batch: int = 32
    """Examples of the measured batch."""
    draws: int = 256
    """Estimates of each."""
    run: Run = Options(RESULTS / "guesses.nc", seed=(0, 1, 2))


def main(config: Config) -> None:
    from figures import guesses
    from studies import all_schemes

    if config.run.smoke:
        run = replace(config.run, seed=config.run.seed[:1])
        some = ("Gaussian", "local")
        config = replace(
            config, space=config.space[-1:], guess=some, channels=16, epochs=1, batch=4, draws=16, run=run
        )
    settings = {name: getattr(config, name) for name in (*all_schemes.NETWORK, "draws")}
    axes = {"space": config.space, "target": config.target, "guess": config.guess}
    dataset = common.sweep(cell, axes, settings, config.run)
    common.publish(dataset, config, guesses, report(dataset))


def cell(*, space: str, target: str, guess: str, draws: int, seed: int, **network: int) -> Any:
    """One place of the matrix, on a network of this seed."""
    import fgvar
    from fgvar.measurement import ENDS
    from studies import all_schemes

    matrix, name = fgvar.guesses.guess_matrix(), f"{space}/{target}/{guess}"
    if name not in matrix:
        raise ValueError(f"unknown place of the guess matrix {name!r} (valid: {', '.join(matrix)})")
    at, steps = all_schemes.problem(**network, seed=seed)
    found = fgvar.measure({name: matrix[name]}, at, draws=draws, seed=seed).isel(estimator=0, drop=True)
    found = found.sel(layer="perturbed", drop=True)
    names = ("cosine", "slope", "relative_variance")
    found = found[[*names, *(f"{one}{end}" for one in names for end in ENDS), "cosine_null", "cost"]]
    return found.assign_attrs(trained_steps=steps)


def report(dataset: Any) -> str:
    """A line for each place: mean cosines over seeds, and their range."""
    lines = ["", f"{'space/target/guess':<30}{'cosine to target (range)':>28}{'cosine to backprop (range)':>30}"]
    places = dataset["cosine"].stack(place=("space", "target", "guess")).transpose("place", "reference", "seed")
    for its in places:
        ends = [
            f"{one.mean().item():>12.3f} ({one.min().item():.3f} – {one.max().item():.3f})"
            for one in (its.sel(reference=name) for name in ("target", "backprop"))
        ]
        lines.append(f"{'/'.join(its['place'].item()):<30}{ends[0]:>28}{ends[1]:>30}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    common.main(main, Config, __doc__)
