"""Schemes: the field's names for sentences in the design's words."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fgvar.errors import unknown
from fgvar.estimators.estimator import Estimator, ExactGradient
from fgvar.estimators.losses import GlobalLoss, LocalLosses
from fgvar.estimators.spaces import ActivitySpace, WeightSpace

SCHEMES: dict[str, Callable[[], Estimator | ExactGradient]] = {
    "BP": lambda: ExactGradient(GlobalLoss(heads=False)),
    "L-BP": lambda: ExactGradient(LocalLosses(stop=False)),
    "LG-BP": lambda: ExactGradient(LocalLosses()),
    "FG-W": lambda: Estimator(WeightSpace()),
    "FG-A": lambda: Estimator(ActivitySpace()),
    "LG-FG-W": lambda: Estimator(WeightSpace(), losses=LocalLosses()),
    "LG-FG-A": lambda: Estimator(ActivitySpace(), losses=LocalLosses()),
}


def scheme(name: str, *, credit: str | None = None, **words: Any) -> Estimator | ExactGradient:
    """The estimator of a name in Ren et al. 2023, Table 3.

    "FG-W", "FG-A" (weight and activity perturbation of the global loss), "LG-FG-W", "LG-FG-A" (of local
    greedy losses): Gaussian noise, shared by the batch for weights, independent for activities. "BP",
    "L-BP", "LG-BP": exact gradients of the global loss, of local losses, of local greedy losses.

    Args:
        name: one of the above.
        credit: "unbiased" (default) or "published", for "LG-FG-W": what `LocalLosses` does with it.
        words: other words for the sentence: ``noise=``, ``space=``, ``losses=``, ``oracle=``.

    Raises:
        ValueError: an unknown name, a word that the scheme does not have, credit without local losses.

    Example:
        >>> from fgvar.estimators.noise import Rademacher
        >>> scheme("FG-W", noise=Rademacher()).noise
        Rademacher(shared=None, directions=1, antithetic=False)
    """
    if name not in SCHEMES:
        raise ValueError(unknown("scheme", name, SCHEMES))
    estimator = SCHEMES[name]()
    for word in words:
        if word not in estimator.__dataclass_fields__:
            raise ValueError(unknown(f"word of {name}", word, estimator.__dataclass_fields__))
    estimator = replace(estimator, **words)
    if credit is None:
        return estimator
    if not isinstance(estimator.losses, LocalLosses):
        raise ValueError(f"credit={credit!r} chooses among copies of local losses; {name} has none")
    return replace(estimator, losses=replace(estimator.losses, credit=credit))
