"""fgvar: how good is a gradient estimator? Bias, variance and cosine to the true gradient, with errors."""

import importlib
from typing import Any

# Names load on first use, so that `import fgvar` and command lines that only print help need no torch.
_NAMES = {
    # what is differentiated
    "Problem": "fgvar.problem",
    "Contrastive": "fgvar.contrastive",
    "InfoNCE": "fgvar.contrastive",
    "Site": "fgvar.sites",
    "with_sites": "fgvar.sites",
    "with_local_heads": "fgvar.local_heads",
    # estimators: the words of the sentence, and the field's names
    "scheme": "fgvar.estimators.schemes",
    "schemes": "fgvar.estimators.schemes",
    "guess_matrix": "fgvar.estimators.guess_matrix",
    "Estimator": "fgvar.estimators.estimator",
    "ExactGradient": "fgvar.estimators.estimator",
    "GradientEstimator": "fgvar.estimators.estimator",
    "Estimate": "fgvar.estimators.estimator",
    "FeedbackAlignment": "fgvar.estimators.feedback",
    "DirectFeedback": "fgvar.estimators.feedback",
    "FrozenTrunk": "fgvar.estimators.controls",
    "Minibatch": "fgvar.estimators.controls",
    "MatchedNoise": "fgvar.estimators.controls",
    "IsotropicNull": "fgvar.estimators.controls",
    "WeightSpace": "fgvar.estimators.spaces",
    "ActivitySpace": "fgvar.estimators.spaces",
    "Gaussian": "fgvar.estimators.noise",
    "Rademacher": "fgvar.estimators.noise",
    "Sphere": "fgvar.estimators.structured",
    "Coordinate": "fgvar.estimators.structured",
    "Orthogonal": "fgvar.estimators.structured",
    "Sparse": "fgvar.estimators.structured",
    "LowRank": "fgvar.estimators.structured",
    "Randomness": "fgvar.estimators.noise",
    "Leaf": "fgvar.estimators.noise",
    "GlobalLoss": "fgvar.estimators.losses",
    "LocalLosses": "fgvar.estimators.losses",
    "Isotropic": "fgvar.estimators.guesses",
    "LocalGradient": "fgvar.estimators.guesses",
    "NTK": "fgvar.estimators.guesses",
    "EndToEnd": "fgvar.estimators.guesses",
    "TransposedWeights": "fgvar.estimators.subspaces",
    "ActivationSpan": "fgvar.estimators.subspaces",
    "Mean": "fgvar.estimators.combine",
    "Projection": "fgvar.estimators.combine",
    "Normalised": "fgvar.estimators.combine",
    "Sham": "fgvar.estimators.combine",
    "Jvp": "fgvar.estimators.oracles",
    "ForwardDifference": "fgvar.estimators.oracles",
    "CentralDifference": "fgvar.estimators.oracles",
    "Replay": "fgvar.estimators.oracles",
    # results
    "measure": "fgvar.analysis.measurement",
    "summary": "fgvar.analysis.dataset",
    "save": "fgvar.analysis.files",
    "open_dataset": "fgvar.analysis.files",
    # training
    "train": "fgvar.experiments.training",
    "read_out": "fgvar.experiments.readout",
    "Views": "fgvar.experiments.views",
    "Schedule": "fgvar.experiments.schedule",
    "Probe": "fgvar.experiments.probes",
    # grids of measurements and runs
    "sweep": "fgvar.experiments.sweep",
    # errors
    "NonFiniteError": "fgvar.errors",
}
_MODULES = {
    "data": "fgvar.experiments.data",
    "networks": "fgvar.networks",
    "testing": "fgvar.testing",
    "theory": "fgvar.analysis.theory",
}

__all__ = [*_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found = importlib.import_module(_MODULES[name])
    elif name in _NAMES:
        found = getattr(importlib.import_module(_NAMES[name]), name)
    else:
        from fgvar.errors import unknown

        raise AttributeError(f"module 'fgvar': {unknown('name', name, __all__)}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
