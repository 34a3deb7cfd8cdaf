"""fgvar: how good is a gradient estimator? Bias, variance and cosine to the true gradient, with errors."""

import importlib
from typing import Any

# Names load on first use, so that `import fgvar` and command lines that only print help need no torch.
_NAMES = {
    # what is differentiated
    "Problem": "fgvar.problem",
    "Contrastive": "fgvar.contrastive",
    "InfoNCE": "fgvar.contrastive",
    "Site": "fgvar.nn.sites",
    "with_sites": "fgvar.nn.sites",
    "with_local_heads": "fgvar.nn.local_heads",
    # estimators: the words of the sentence, and the field's names
    "scheme": "fgvar.estimators.schemes",
    "schemes": "fgvar.estimators.schemes",
    "guess_matrix": "fgvar.estimators.schemes",
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
    "Sphere": "fgvar.estimators.structured_noise",
    "Coordinate": "fgvar.estimators.structured_noise",
    "Orthogonal": "fgvar.estimators.structured_noise",
    "Sparse": "fgvar.estimators.structured_noise",
    "LowRank": "fgvar.estimators.structured_noise",
    "Randomness": "fgvar.estimators.noise",
    "Leaf": "fgvar.estimators.noise",
    "GlobalLoss": "fgvar.estimators.losses",
    "LocalLosses": "fgvar.estimators.losses",
    "Isotropic": "fgvar.estimators.guesses",
    "LocalGradient": "fgvar.estimators.guesses",
    "NTK": "fgvar.estimators.guesses",
    "BackpropGradient": "fgvar.estimators.guesses",
    "TransposedWeights": "fgvar.estimators.subspace_guesses",
    "ActivationSpan": "fgvar.estimators.subspace_guesses",
    "Mean": "fgvar.estimators.combine",
    "Projection": "fgvar.estimators.combine",
    "Normalised": "fgvar.estimators.combine",
    "ShuffledCredit": "fgvar.estimators.combine",
    "Jvp": "fgvar.estimators.oracles",
    "ForwardDifference": "fgvar.estimators.oracles",
    "CentralDifference": "fgvar.estimators.oracles",
    "Replay": "fgvar.estimators.oracles",
    # results
    "measure": "fgvar.measurement.measure",
    "summary": "fgvar.measurement.dataset",
    "save": "fgvar.measurement.files",
    "open_dataset": "fgvar.measurement.files",
    # training
    "train": "fgvar.training.train",
    "read_out": "fgvar.training.linear_probe",
    "Views": "fgvar.data.augmentation",
    "Schedule": "fgvar.training.schedule",
    "Probe": "fgvar.training.probes",
    # grids of measurements and runs
    "sweep": "fgvar.sweeps.sweep",
    # errors
    "NonFiniteError": "fgvar.errors",
}
_MODULES = {
    "data": "fgvar.data.images",
    "networks": "fgvar.networks",
    "testing": "fgvar.testing",
    "theory": "fgvar.theory.closed_forms",
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
