"""The guess matrix: every guess crossed with every target and space."""

from dataclasses import replace

from fgvar.estimators.combine import Normalised
from fgvar.estimators.estimator import Estimator, GradientEstimator
from fgvar.estimators.guesses import NTK, BackpropGradient, LocalGradient
from fgvar.estimators.losses import GlobalLoss, LocalLosses
from fgvar.estimators.noise import Rademacher
from fgvar.estimators.spaces import ActivitySpace, WeightSpace
from fgvar.estimators.subspace_guesses import ActivationSpan, TransposedWeights

GUESSES: dict[str, Estimator] = {
    "Gaussian": Estimator(shared=False),
    "Rademacher": Estimator(noise=Rademacher(), shared=False),
    "local": Estimator(shared=False, guess=LocalGradient()),
    "NTK": Estimator(shared=False, guess=NTK()),
    "transposed": Estimator(shared=False, guess=TransposedWeights()),
    "span": Estimator(shared=False, guess=ActivationSpan()),
    "global": Estimator(shared=False, guess=BackpropGradient()),
}


def guess_matrix(*, local: bool = True) -> dict[str, GradientEstimator]:
    """Every guess crossed with every target and space, to hand to `measure`: "space/target/guess".

    The projection (t·g/|g|²)g of each target (global or local loss) on each guess, of every example and every
    tensor alone, in weight and in activity space: the whole matrix of Fournier et al. 2023, with the guesses of
    Singhal et al. 2023 beside theirs.

    Args:
        local: with the targets and guesses that need local heads (see `with_local_heads`).

    Example:
        >>> sorted(guess_matrix(local=False))[:2]
        ['activity/global/Gaussian', 'activity/global/Rademacher']
    """
    targets = {"global": GlobalLoss()} | ({"local": LocalLosses(patch=False, group=False)} if local else {})
    guesses = {k: v for k, v in GUESSES.items() if local or not isinstance(v.guess, LocalGradient | NTK)}
    return {
        f"{label}/{target}/{guess}": replace(estimator, space=space, losses=losses, combine=Normalised())
        for label, space in (("weight", WeightSpace(per_tensor=True)), ("activity", ActivitySpace(per_tensor=True)))
        for target, losses in targets.items()
        for guess, estimator in guesses.items()
    }
