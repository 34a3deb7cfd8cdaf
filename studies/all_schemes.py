"""All schemes: how does every gradient estimator of fgvar do on one network, with one noise?

Question   Which scheme of `fgvar.schemes()` points most along the end-to-end gradient, and which is worth its cost?
Claim      Of unbiased perturbation schemes, local greedy losses with activity perturbation come closest to
           their target. Projecting every tensor and example alone, which costs two to three times as much, is a gain
           by itself (`guesses.py` has more of that).
Shown      Drawn values with 95 % intervals, given one batch, after a few steps of backprop (the weights are not
           random any more, the heads not 0). Schemes without noise are evaluated once.
Cost       About a minute on one core; --smoke: a few seconds.
Run        python studies/all_schemes.py            writes results/all_schemes.nc, .pdf and .png
"""

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from studies import common
from studies.common import RESULTS


@dataclass(frozen=True)
class Config:
    """Measure all schemes on a LocalMixer that has learned digits for a moment."""

    blocks: int = 2
    patches: int = 2
    channels: int = 32
    groups: int = 4
    epochs: int = 2
    """Of backprop before measuring; 22 steps each."""
    batch: int = 32
    """Examples of the measured batch."""
    draws: int = 512
    """Estimates of each; efficiency has no error below 256."""
    seed: int = 0
    out: Path = field(default=RESULTS / "all_schemes.nc")
    """Where the dataset goes; the figure stands beside it."""
    smoke: bool = False
    """A few seconds: one short run of everything, whose numbers mean nothing."""


def main(config: Config) -> None:
    import fgvar  # after the command line is parsed: --help needs no torch
    from figures import all_schemes

    common.place(config)
    if config.smoke:
        config = replace(config, channels=16, epochs=1, batch=4, draws=16)
    at, trained = problem(**{name: getattr(config, name) for name in NETWORK}, seed=config.seed)
    schemes = {scheme.name: scheme.estimator for scheme in fgvar.schemes()}
    dataset = fgvar.measure(schemes, at, draws=config.draws, seed=config.seed)
    # Single layers would be most of the file, and no figure shows them.
    dataset = dataset.sel(layer=["perturbed", "total"]).drop_vars("seconds")
    dataset = dataset.assign_coords(
        family=("estimator", [family(one) for one in schemes.values()]),
        biased=("estimator", [one.bias_reason for one in schemes.values()]),
    )
    dataset.attrs["trained_steps"] = trained
    common.publish(dataset, config, all_schemes)


NETWORK = ("blocks", "patches", "channels", "groups", "epochs", "batch")  # what `problem` takes, beside a seed


@functools.cache  # for the cells of a sweep
def problem(
    *, blocks: int, patches: int, channels: int, groups: int, epochs: int, batch: int, seed: int
) -> tuple[Any, int]:
    """A LocalMixer after a little backprop, on a batch of digits; and how many steps it took."""
    import fgvar
    from fgvar.training import steps_of

    images, test = (fgvar.data.load("digits", split) for split in ("train", "test"))
    model = fgvar.networks.LocalMixer(
        images.image_shape,
        images.classes,
        blocks=blocks,
        patches=patches,
        channels=channels,
        groups=groups,
        seed=seed,
    )
    schedule = fgvar.Schedule(epochs=epochs)
    # Local heads learn beside it, from features behind a stop-gradient, so that local losses mean something.
    backprop = fgvar.scheme("BP", losses=fgvar.GlobalLoss(heads=True))
    run = fgvar.train(model, backprop, (images, test), schedule, seed=seed, device="cpu")
    at = fgvar.Problem(model, "cross_entropy", images.sample(batch, seed=seed + 1)).at(run.params)
    return at, steps_of(schedule, len(images))


def family(estimator: Any) -> str:
    """What the estimator does, told from its words."""
    import fgvar

    controls = (fgvar.Stochastic, *(getattr(fgvar.controls, name) for name in fgvar.controls.__all__))
    if isinstance(estimator, fgvar.ExactGradient):
        return "exact"
    if isinstance(estimator, fgvar.feedback.FeedbackAlignment | fgvar.feedback.DirectFeedback):
        return "feedback"
    if isinstance(estimator, controls) or isinstance(estimator.combine, fgvar.combine.ShuffledCredit):
        return "control"
    if not isinstance(estimator.guess, fgvar.guesses.Isotropic) or isinstance(
        estimator.combine, fgvar.combine.Normalised
    ):
        return "guess"
    return "activities" if isinstance(estimator.space, fgvar.ActivitySpace) else "weights"


if __name__ == "__main__":
    common.main(main, Config, __doc__)
