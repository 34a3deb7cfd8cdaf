"""Schemes: the field's names for sentences in the design's words."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fgvar.errors import unknown
from fgvar.estimators.combine import Normalised, Projection, ShuffledCredit
from fgvar.estimators.controls import FrozenTrunk, IsotropicNull, MatchedNoise, Minibatch
from fgvar.estimators.estimator import Estimator, ExactGradient
from fgvar.estimators.feedback import DirectFeedback, FeedbackAlignment
from fgvar.estimators.guesses import (
    NTK,
    BackpropGradient,
    Guess,
    Isotropic,
    LocalGradient,
)
from fgvar.estimators.losses import GlobalLoss, LocalLosses
from fgvar.estimators.noise import Rademacher
from fgvar.estimators.oracles import CentralDifference, ForwardDifference
from fgvar.estimators.spaces import ActivitySpace, WeightSpace
from fgvar.estimators.structured_noise import LowRank, Orthogonal, Sparse
from fgvar.estimators.subspace_guesses import ActivationSpan, TransposedWeights


@dataclass(frozen=True)
class Scheme:
    """A named estimator of the field.

    Attributes:
        name: what `scheme` takes.
        line: what it is.
        source: where it comes from.
        cost: FLOPs of one estimate in forward passes of the network, counted on a LocalMixer of two blocks, 4
            patches, 64 channels and 4 groups at batch 8 (``cost`` of a dataset counts it for yours).
        make: makes it.
    """

    name: str
    line: str
    source: str
    cost: float
    make: Callable[[], Any]

    @property
    def bias_reason(self) -> str:
        """Why its mean is not the gradient of its losses; empty where it is."""
        reason: str = self.make().bias_reason
        return reason


def _guess(guess: Guess) -> Estimator:
    return Estimator(ActivitySpace(per_tensor=True), guess=guess, combine=Normalised())


_MAKE: dict[str, Callable[[], Any]] = {
    "BP": lambda: ExactGradient(GlobalLoss(heads=False)),
    "L-BP": lambda: ExactGradient(LocalLosses(stop=False)),
    "LG-BP": lambda: ExactGradient(LocalLosses()),
    "FA": lambda: FeedbackAlignment(),
    "L-FA": lambda: FeedbackAlignment(LocalLosses(stop=False)),
    "LG-FA": lambda: FeedbackAlignment(LocalLosses()),
    "DFA": lambda: DirectFeedback(),
    "FG-W": lambda: Estimator(WeightSpace()),
    "FG-A": lambda: Estimator(ActivitySpace()),
    "LG-FG-W": lambda: Estimator(WeightSpace(), losses=LocalLosses()),
    "LG-FG-A": lambda: Estimator(ActivitySpace(), losses=LocalLosses()),
    "SPSA": lambda: Estimator(WeightSpace(), Rademacher(), oracle=CentralDifference()),
    "MeZO": lambda: Estimator(WeightSpace(), oracle=CentralDifference()),
    "EGGROLL": lambda: Estimator(WeightSpace(), LowRank(1), oracle=CentralDifference()),
    "NP": lambda: Estimator(ActivitySpace(), oracle=ForwardDifference()),
    "sparse-FG-W": lambda: Estimator(WeightSpace(), Sparse(0.1)),
    "multi-FG-W": lambda: Estimator(WeightSpace(), directions=16),
    "projected-FG-W": lambda: Estimator(WeightSpace(), directions=16, combine=Projection()),
    "normed-FG-W": lambda: Estimator(WeightSpace(), directions=16, combine=Projection("norm")),
    "orthogonal-FG-W": lambda: Estimator(WeightSpace(), Orthogonal(), directions=16),
    "random-guess": lambda: _guess(Isotropic()),
    "local-guess": lambda: _guess(LocalGradient()),
    "NTK-guess": lambda: _guess(NTK()),
    "transposed-guess": lambda: Estimator(ActivitySpace(), guess=TransposedWeights()),
    "orthogonalised-guess": lambda: Estimator(ActivitySpace(), guess=TransposedWeights("newton-schulz")),
    "SVD-guess": lambda: Estimator(ActivitySpace(), guess=TransposedWeights("svd")),
    "span-guess": lambda: Estimator(WeightSpace(), guess=ActivationSpan()),
    "backprop-guess": lambda: _guess(BackpropGradient()),
    "minibatch": lambda: Minibatch(),
    "frozen": lambda: FrozenTrunk(),
    "sham": lambda: Estimator(ActivitySpace(), combine=ShuffledCredit()),
    "matched-noise": lambda: MatchedNoise(Estimator(ActivitySpace())),
    "isotropic-null": lambda: IsotropicNull(),
}

_ABOUT = {  # line, source, cost
    "BP": ("backpropagation", "Ren et al. 2023, Table 3", 2.9),
    "L-BP": ("backpropagation of all blocks' losses", "Ren et al. 2023, Table 3", 3.0),
    "LG-BP": ("the same, stopped between blocks (local greedy)", "Ren et al. 2023, Table 3", 2.9),
    "FA": ("feedback alignment", "Lillicrap et al. 2016", 4.0),
    "L-FA": ("feedback alignment of all blocks' losses", "Ren et al. 2023, Table 3", 4.0),
    "LG-FA": ("the same, stopped between blocks", "Ren et al. 2023, Table 3", 4.0),
    "DFA": ("direct feedback alignment", "Nøkland 2016", 3.5),
    "FG-W": ("weight perturbation", "Ren et al. 2023, eq. 2; Baydin et al. 2022", 3.1),
    "FG-A": ("activity perturbation", "Ren et al. 2023, eq. 3", 2.9),
    "LG-FG-W": ("weight perturbation, local greedy losses", "Ren et al. 2023, Sec. 4", 3.1),
    "LG-FG-A": ("activity perturbation, local greedy losses", "Ren et al. 2023, Sec. 4", 2.9),
    "SPSA": ("weight perturbation by two-sided differences, signs", "Spall 1992", 4.1),
    "MeZO": ("the same with normal noise", "Malladi et al. 2023", 4.1),
    "EGGROLL": ("the same with matrices of rank 1", "EGGROLL 2025", 4.1),
    "NP": ("node perturbation by one-sided differences", "Dalm et al. 2023", 4.1),
    "sparse-FG-W": ("weight perturbation of a tenth of the weights", "common practice", 3.1),
    "multi-FG-W": ("mean over 16 directions", "Flügel et al. 2024", 31.7),
    "projected-FG-W": ("orthogonal projection on 16 directions", "Flügel et al. 2024", 31.7),
    "normed-FG-W": ("the same with the gradient's expected norm", "Flügel et al. 2024", 31.7),
    "orthogonal-FG-W": ("mean over 16 orthogonal directions", "common practice", 31.7),
    "random-guess": ("projection on a normal guess", "Fournier et al. 2023", 7.4),
    "local-guess": ("projection on the local losses' gradient", "Fournier et al. 2023", 9.3),
    "NTK-guess": ("projection on that through frozen random heads", "Fournier et al. 2023", 9.3),
    "transposed-guess": ("directions Wᵀε of the next layer", "Singhal et al. 2023", 6.8),
    "orthogonalised-guess": ("the same, W orthogonalised by Newton-Schulz", "Wang et al. 2025", 26.7),
    "SVD-guess": ("the same, by singular value decomposition", "Wang et al. 2025", 8.2),
    "span-guess": ("directions from the span of incoming activations", "Singhal et al. 2023", 6.2),
    "backprop-guess": ("projection on the gradient itself: an upper bound", "Fournier et al. 2023", 9.3),
    "minibatch": ("exact gradient of one example of the batch (data variance)", "see data_variance", 3.0),
    "frozen": ("heads and read-outs learn, the trunk does not", "control", 1.1),
    "sham": ("FG-A credited with the next example's derivative", "control", 2.9),
    "matched-noise": ("the gradient plus isotropic noise of FG-A's variance", "control", 8.8),
    "isotropic-null": ("a random direction of the gradient's length", "control", 3.0),
}  # fmt: skip

SCHEMES = {name: Scheme(name, *_ABOUT[name], make) for name, make in _MAKE.items()}


def schemes() -> tuple[Scheme, ...]:
    """All names that `scheme` takes, with a line, a source, a cost and what is known of their bias.

    Example:
        >>> [found.name for found in schemes() if not found.bias_reason][:3]
        ['BP', 'L-BP', 'LG-BP']
    """
    return tuple(SCHEMES.values())


def scheme(name: str, *, credit: str | None = None, **words: Any) -> Any:
    """The estimator of a name in `schemes`, with some of its words changed.

    "FG-W", "FG-A" (weight and activity perturbation of the global loss), "LG-FG-W", "LG-FG-A" (of local
    greedy losses): Gaussian noise, shared by the batch for weights, independent for activities. "BP",
    "L-BP", "LG-BP": exact gradients of the global loss, of local losses, of local greedy losses; and so on.

    Args:
        name: one of `schemes`.
        credit: "unbiased" (default) or "published", for "LG-FG-W": what `LocalLosses` does with it.
        words: other words for the sentence: ``noise=``, ``space=``, ``losses=``, ``oracle=``, ``guess=``,
            ``combine=``; or another field of the estimator, such as ``seed=`` of feedback.

    Raises:
        ValueError: an unknown name, a word that the scheme does not have, credit without local losses.

    Example:
        >>> from fgvar.estimators.noise import Rademacher
        >>> scheme("FG-W", noise=Rademacher()).noise
        Rademacher()
    """
    if name not in SCHEMES:
        raise ValueError(unknown("scheme", name, SCHEMES))
    estimator = SCHEMES[name].make()
    for word in words:
        if word not in estimator.__dataclass_fields__:
            raise ValueError(unknown(f"word of {name}", word, estimator.__dataclass_fields__))
    estimator = replace(estimator, **words)
    if credit is None:
        return estimator
    losses = getattr(estimator, "losses", None)
    if not isinstance(losses, LocalLosses):
        raise ValueError(f"credit={credit!r} chooses among copies of local losses; {name} has none")
    return replace(estimator, losses=replace(losses, credit=credit))
