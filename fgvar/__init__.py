"""fgvar: how good is a gradient estimator? Bias, variance and cosine to the true gradient, with errors."""

import sys
import types
from typing import Any

from fgvar.lazy import lazy

# `import fgvar`, and command lines that only print help, need no torch.
_NAMES = {
    # what is differentiated
    "Problem": "fgvar.problem",
    "with_sites": "fgvar.nn.sites",
    "with_local_heads": "fgvar.nn.local_heads",
    "Terms": "fgvar.nn.terms",
    # estimators: the field's names, the sentence and its first words
    "scheme": "fgvar.estimators.schemes",
    "schemes": "fgvar.estimators.schemes",
    "Estimator": "fgvar.estimators.estimator",
    "Estimate": "fgvar.estimators.protocol",
    "ExactGradient": "fgvar.estimators.estimator",
    "GradientEstimator": "fgvar.estimators.protocol",
    "Randomness": "fgvar.estimators.randomness",
    "Leaf": "fgvar.estimators.randomness",
    "WeightSpace": "fgvar.estimators.weight_space",
    "ActivitySpace": "fgvar.estimators.activity_space",
    "GlobalLoss": "fgvar.estimators.losses",
    "LocalLosses": "fgvar.estimators.losses",
    "Gaussian": "fgvar.estimators.noise",
    "Rademacher": "fgvar.estimators.noise",
    "Jvp": "fgvar.estimators.oracles",
    "Stochastic": "fgvar.stochastic.sentence",
    "History": "fgvar.stochastic.history",
    "Against": "fgvar.stochastic.targets",
    # measurements, training runs and grids of either
    "measure": "fgvar.measurement.measure",
    "summary": "fgvar.measurement.summary",
    "table": "fgvar.measurement.tables",
    "save": "fgvar.measurement.files",
    "open_dataset": "fgvar.measurement.files",
    "train": "fgvar.training.train",
    "Schedule": "fgvar.training.schedule",
    "Probe": "fgvar.training.probes",
    "read_out": "fgvar.training.linear_probe",
    "sweep": "fgvar.sweeps.sweep",
    # errors
    "NonFiniteError": "fgvar.errors",
}
_SUBJECTS = {
    "noise": {
        "Sphere": "fgvar.estimators.structured_noise",
        "Coordinate": "fgvar.estimators.structured_noise",
        "Orthogonal": "fgvar.estimators.structured_noise",
        "Sparse": "fgvar.estimators.structured_noise",
        "LowRank": "fgvar.estimators.structured_noise",
        "Uniform": "fgvar.estimators.noise",
        "Choice": "fgvar.estimators.choices",
        "Bernoulli": "fgvar.estimators.choices",
    },
    "guesses": {
        "Isotropic": "fgvar.estimators.guesses",
        "LocalGradient": "fgvar.estimators.guesses",
        "NTK": "fgvar.estimators.guesses",
        "BackpropGradient": "fgvar.estimators.guesses",
        "TransposedWeights": "fgvar.estimators.subspace_guesses",
        "ActivationSpan": "fgvar.estimators.subspace_guesses",
        "guess_matrix": "fgvar.estimators.schemes",
    },
    "oracles": {
        "ForwardDifference": "fgvar.estimators.oracles",
        "CentralDifference": "fgvar.estimators.oracles",
        "Replay": "fgvar.estimators.oracles",
    },
    "combine": {
        "Mean": "fgvar.estimators.combine",
        "Projection": "fgvar.estimators.combine",
        "Normalised": "fgvar.estimators.combine",
        "ShuffledCredit": "fgvar.estimators.combine",
    },
    "feedback": {
        "FeedbackAlignment": "fgvar.estimators.feedback",
        "DirectFeedback": "fgvar.estimators.feedback",
    },
    "controls": {
        "FrozenTrunk": "fgvar.estimators.controls",
        "MatchedNoise": "fgvar.estimators.controls",
        "IsotropicNull": "fgvar.estimators.controls",
    },
}
_SUBJECTS |= {
    "sampling": {
        "Everything": "fgvar.stochastic.sampling",
        "Draw": "fgvar.stochastic.draw",
        "Poisson": "fgvar.stochastic.weighing",
        "Reweighted": "fgvar.stochastic.weighing",
        "Union": "fgvar.stochastic.union",
        "Uniform": "fgvar.stochastic.scores",
        "Losses": "fgvar.stochastic.scores",
        "Outputs": "fgvar.stochastic.scores",
        "GradientNorms": "fgvar.stochastic.scores",
        "TermSizes": "fgvar.stochastic.scores",
        "Mixed": "fgvar.stochastic.scores",
    },
    "points": {
        "Here": "fgvar.stochastic.points",
        "Ahead": "fgvar.stochastic.points",
        "Past": "fgvar.stochastic.past",
        "Kept": "fgvar.stochastic.past",
        "Noise": "fgvar.stochastic.points",
        "Tapped": "fgvar.stochastic.points",
    },
    "streams": {
        "Momentum": "fgvar.stochastic.streams",
        "Adam": "fgvar.stochastic.streams",
        "DiffGrad": "fgvar.stochastic.streams",
        "ErrorFeedback": "fgvar.stochastic.streams",
    },
    "targets": {
        "TargetOf": "fgvar.stochastic.targets",
        "Newton": "fgvar.stochastic.targets",
        "Propagated": "fgvar.stochastic.targets",
        "Masked": "fgvar.stochastic.targets",
        "hessian": "fgvar.stochastic.targets",
    },
    "transforms": {
        "Clip": "fgvar.stochastic.transforms",
        "AddNoise": "fgvar.stochastic.transforms",
        "RandomK": "fgvar.stochastic.compression",
        "TopK": "fgvar.stochastic.compression",
        "Quantise": "fgvar.stochastic.compression",
        "Sign": "fgvar.stochastic.compression",
        "Mask": "fgvar.stochastic.masks",
        "Magnitude": "fgvar.stochastic.masks",
        "Saliency": "fgvar.stochastic.masks",
        "Carriers": "fgvar.stochastic.carriers",
        "FromCarriers": "fgvar.stochastic.carriers",
        "Retained": "fgvar.stochastic.retained",
    },
}
_ABOUT = {
    "noise": "laws of random numbers",
    "guesses": "what directions are made of",
    "oracles": "how a derivative along a direction is found",
    "combine": "what becomes of several directions",
    "feedback": "errors that return through other weights",
    "controls": "rows whose answer is known",
    "sampling": "which terms of a sum are looked at and what each counts, then the scores that prefer some",
    "points": "where a gradient is taken",
    "streams": "optimisers as maps of gradients that come one after another",
    "targets": "what estimates are held against",
    "transforms": "what becomes of a gradient, then which parameters a mask keeps",
}
_MODULES = dict.fromkeys(("contrastive", "data", "networks", "plot", "testing", "theory"), "")

__all__ = ["__version__", *_NAMES, *_SUBJECTS, *_MODULES]

_PLACES = {name: f"fgvar.{subject}.{name}" for subject in reversed(_SUBJECTS) for name in _SUBJECTS[subject]}
_PLACES |= {name: f"fgvar.{name}" for name in _NAMES}

for _name, _members in _SUBJECTS.items():
    _subject: Any = types.ModuleType(f"fgvar.{_name}", f"{_ABOUT[_name].capitalize()}: {', '.join(_members)}.")
    _subject.__all__ = list(_members)
    _subject.__getattr__, _subject.__dir__ = lazy(f"fgvar.{_name}", _members, _PLACES)
    sys.modules[f"fgvar.{_name}"] = globals()[_name] = _subject

_load, __dir__ = lazy("fgvar", dict.fromkeys(__all__, "") | _NAMES, _PLACES)


def __getattr__(name: str) -> Any:
    if name != "__version__":
        return _load(name)
    from importlib.metadata import version  # which takes a tenth of a second

    return version("fgvar")
