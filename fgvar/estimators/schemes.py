"""Schemes: the field's names for sentences in the design's words."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fgvar.errors import unknown
from fgvar.estimators.combine import Normalised, Projection, Sham
from fgvar.estimators.controls import FrozenTrunk, IsotropicNull, MatchedNoise, Minibatch
from fgvar.estimators.estimator import Estimator, ExactGradient, GradientEstimator
from fgvar.estimators.feedback import DirectFeedback, FeedbackAlignment
from fgvar.estimators.guesses import (
    NTK,
    ActivationSpan,
    EndToEnd,
    Guess,
    Isotropic,
    LocalGradient,
    TransposedWeights,
)
from fgvar.estimators.losses import GlobalLoss, LocalLosses
from fgvar.estimators.noise import Gaussian, Rademacher
from fgvar.estimators.oracles import CentralDifference, ForwardDifference
from fgvar.estimators.spaces import ActivitySpace, WeightSpace
from fgvar.estimators.structured import LowRank, Orthogonal, Sparse


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
    def biased(self) -> str:
        """Why its mean is not the gradient of its losses; empty where it is."""
        reason: str = self.make().biased
        return reason


REN, FOURNIER = "Ren et al. 2023", "Fournier et al. 2023"


def _guess(guess: Guess) -> Estimator:
    return Estimator(ActivitySpace(together=False), guess=guess, combine=Normalised())


_ALL = (
    Scheme("BP", "backpropagation", f"{REN}, Table 3", 0.0, lambda: ExactGradient(GlobalLoss(heads=False))),
    Scheme("L-BP", "backpropagation of all blocks' losses", f"{REN}, Table 3", 0.0, lambda: ExactGradient(LocalLosses(stop=False))),
    Scheme("LG-BP", "the same, stopped between blocks (local greedy)", f"{REN}, Table 3", 0.0, lambda: ExactGradient(LocalLosses())),
    Scheme("FA", "feedback alignment", "Lillicrap et al. 2016", 0.0, lambda: FeedbackAlignment()),
    Scheme("L-FA", "feedback alignment of all blocks' losses", f"{REN}, Table 3", 0.0, lambda: FeedbackAlignment(LocalLosses(stop=False))),
    Scheme("LG-FA", "the same, stopped between blocks", f"{REN}, Table 3", 0.0, lambda: FeedbackAlignment(LocalLosses())),
    Scheme("DFA", "direct feedback alignment", "Nøkland 2016", 0.0, lambda: DirectFeedback()),
    Scheme("FG-W", "weight perturbation", f"{REN}, eq. 2; Baydin et al. 2022", 0.0, lambda: Estimator(WeightSpace())),
    Scheme("FG-A", "activity perturbation", f"{REN}, eq. 3", 0.0, lambda: Estimator(ActivitySpace())),
    Scheme("LG-FG-W", "weight perturbation, local greedy losses", f"{REN}, Sec. 4", 0.0, lambda: Estimator(WeightSpace(), losses=LocalLosses())),
    Scheme("LG-FG-A", "activity perturbation, local greedy losses", f"{REN}, Sec. 4", 0.0, lambda: Estimator(ActivitySpace(), losses=LocalLosses())),
    Scheme("SPSA", "weight perturbation by two-sided differences, signs", "Spall 1992", 0.0, lambda: Estimator(WeightSpace(), Rademacher(), oracle=CentralDifference())),
    Scheme("MeZO", "the same with normal noise", "Malladi et al. 2023", 0.0, lambda: Estimator(WeightSpace(), oracle=CentralDifference())),
    Scheme("EGGROLL", "the same with matrices of rank 1", "EGGROLL 2025", 0.0, lambda: Estimator(WeightSpace(), LowRank(1), oracle=CentralDifference())),
    Scheme("NP", "node perturbation by one-sided differences", "Dalm et al. 2023", 0.0, lambda: Estimator(ActivitySpace(), oracle=ForwardDifference())),
    Scheme("sparse-FG-W", "weight perturbation of a tenth of the weights", "sparse masks", 0.0, lambda: Estimator(WeightSpace(), Sparse(0.1))),
    Scheme("multi-FG-W", "mean over 16 directions", "Flügel et al. 2024", 0.0, lambda: Estimator(WeightSpace(), Gaussian(directions=16))),
    Scheme("projected-FG-W", "orthogonal projection on 16 directions", "Flügel et al. 2024", 0.0, lambda: Estimator(WeightSpace(), Gaussian(directions=16), combine=Projection())),
    Scheme("normed-FG-W", "the same with the gradient's expected norm", "Flügel et al. 2024", 0.0, lambda: Estimator(WeightSpace(), Gaussian(directions=16), combine=Projection("norm"))),
    Scheme("orthogonal-FG-W", "mean over 16 orthogonal directions", "PAPER", 0.0, lambda: Estimator(WeightSpace(), Orthogonal(16))),
    Scheme("random-guess", "projection on a normal guess", FOURNIER, 0.0, lambda: _guess(Isotropic())),
    Scheme("local-guess", "projection on the local losses' gradient", FOURNIER, 0.0, lambda: _guess(LocalGradient())),
    Scheme("NTK-guess", "projection on that through frozen random heads", FOURNIER, 0.0, lambda: _guess(NTK())),
    Scheme("transposed-guess", "directions Wᵀε of the next layer", "Singhal et al. 2023", 0.0, lambda: Estimator(ActivitySpace(), guess=TransposedWeights())),
    Scheme("orthogonalised-guess", "the same, W orthogonalised by Newton-Schulz", "Wang et al. 2025", 0.0, lambda: Estimator(ActivitySpace(), guess=TransposedWeights("newton-schulz"))),
    Scheme("SVD-guess", "the same, by singular value decomposition", "Wang et al. 2025", 0.0, lambda: Estimator(ActivitySpace(), guess=TransposedWeights("svd"))),
    Scheme("span-guess", "directions from the span of incoming activations", "Singhal et al. 2023", 0.0, lambda: Estimator(WeightSpace(), guess=ActivationSpan())),
    Scheme("backprop-guess", "projection on the gradient itself: an upper bound", FOURNIER, 0.0, lambda: _guess(EndToEnd())),
    Scheme("minibatch", "exact gradient of one example of the batch (data variance)", "reference", 0.0, lambda: Minibatch()),
    Scheme("frozen", "heads and read-outs learn, the trunk does not", "control", 0.0, lambda: FrozenTrunk()),
    Scheme("sham", "FG-A credited with the next example's derivative", "control", 0.0, lambda: Estimator(ActivitySpace(), combine=Sham())),
    Scheme("matched-noise", "the gradient plus isotropic noise of FG-A's variance", "control", 0.0, lambda: MatchedNoise(Estimator(ActivitySpace()))),
    Scheme("isotropic-null", "a random direction of the gradient's length", "control", 0.0, lambda: IsotropicNull()),
)  # fmt: skip
SCHEMES = {found.name: found for found in _ALL}


def schemes() -> tuple[Scheme, ...]:
    """All names that `scheme` takes, with a line, a source, a cost and what is known of their bias.

    Example:
        >>> [found.name for found in schemes() if not found.biased][:3]
        ['BP', 'L-BP', 'LG-BP']
    """
    return _ALL


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
        Rademacher(shared=None, directions=1, antithetic=False)
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


GUESSES: dict[str, Estimator] = {
    "Gaussian": Estimator(noise=Gaussian(shared=False)),
    "Rademacher": Estimator(noise=Rademacher(shared=False)),
    "local": Estimator(noise=Gaussian(shared=False), guess=LocalGradient()),
    "NTK": Estimator(noise=Gaussian(shared=False), guess=NTK()),
    "transposed": Estimator(noise=Gaussian(shared=False), guess=TransposedWeights()),
    "span": Estimator(noise=Gaussian(shared=False), guess=ActivationSpan()),
    "global": Estimator(noise=Gaussian(shared=False), guess=EndToEnd()),
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
        for label, space in (("weight", WeightSpace(together=False)), ("activity", ActivitySpace(together=False)))
        for target, losses in targets.items()
        for guess, estimator in guesses.items()
    }
