"""Schemes: the field's names for sentences in the design's words, and every guess crossed with every target."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol

from fgvar.errors import unknown
from fgvar.estimators.activity_space import ActivitySpace
from fgvar.estimators.combine import Normalised, Projection, ShuffledCredit
from fgvar.estimators.controls import FrozenTrunk, IsotropicNull, MatchedNoise
from fgvar.estimators.estimator import Estimator, ExactGradient
from fgvar.estimators.feedback import DirectFeedback, FeedbackAlignment
from fgvar.estimators.guesses import NTK, BackpropGradient, Guess, Isotropic, LocalGradient
from fgvar.estimators.losses import GlobalLoss, LocalLosses
from fgvar.estimators.noise import Rademacher
from fgvar.estimators.oracles import CentralDifference, ForwardDifference
from fgvar.estimators.protocol import GradientEstimator
from fgvar.estimators.structured_noise import LowRank, Orthogonal, Sparse
from fgvar.estimators.subspace_guesses import ActivationSpan, TransposedWeights
from fgvar.estimators.weight_space import WeightSpace
from fgvar.stochastic.draw import Draw
from fgvar.stochastic.sentence import Stochastic


class NamedEstimator(GradientEstimator, Protocol):
    """An estimator with a name: a dataclass, whose fields are the words that `scheme` changes."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def bias_reason(self) -> str:
        """Why its mean is not the gradient of its losses; empty where it is."""


@dataclass(frozen=True)
class Scheme:
    """A named estimator of the field.

    Attributes:
        name: what `scheme` takes.
        estimator: the sentence that it stands for.
        line: what it is.
        source: where it comes from.
        cost: FLOPs of one estimate in forward passes of the network, counted on a LocalMixer of two blocks, 4
            patches, 64 channels and 4 groups at batch 8 (``cost`` of a dataset counts it for yours).
    """

    name: str
    estimator: NamedEstimator
    line: str
    source: str
    cost: float

    @property
    def bias_reason(self) -> str:
        """Why its mean is not the gradient of its losses; empty where it is."""
        return self.estimator.bias_reason


# The words of most rows: spaces, and local losses with gradients stopped between blocks (greedy) or not.
W, A, LG, L = WeightSpace(), ActivitySpace(), LocalLosses(), LocalLosses(stop=False)


def _guess(guess: Guess) -> Estimator:
    return Estimator(ActivitySpace(per_tensor=True), guess=guess, combine=Normalised())


# Costs stand here because counting takes a network; tests/estimators/test_schemes.py counts each of them again.
_TABLE = (
    # exact gradients
    Scheme("BP", ExactGradient(), "backpropagation", "Ren et al. 2023, Table 3", 2.9),
    Scheme("L-BP", ExactGradient(L), "backpropagation of all blocks' losses", "Ren et al. 2023, Table 3", 3.0),
    Scheme("LG-BP", ExactGradient(LG),
           "the same, stopped between blocks (local greedy)", "Ren et al. 2023, Table 3", 2.9),
    # backward through other weights
    Scheme("FA", FeedbackAlignment(), "feedback alignment", "Lillicrap et al. 2016", 4.0),
    Scheme("L-FA", FeedbackAlignment(L), "feedback alignment of all blocks' losses", "Ren et al. 2023, Table 3", 4.0),
    Scheme("LG-FA", FeedbackAlignment(LG), "the same, stopped between blocks", "Ren et al. 2023, Table 3", 4.0),
    Scheme("DFA", DirectFeedback(), "direct feedback alignment", "Nøkland 2016", 3.5),
    # forward gradients
    Scheme("FG-W", Estimator(W), "weight perturbation", "Ren et al. 2023, eq. 2; Baydin et al. 2022", 3.1),
    Scheme("FG-A", Estimator(A), "activity perturbation", "Ren et al. 2023, eq. 3", 2.9),
    Scheme("LG-FG-W", Estimator(W, losses=LG),
           "weight perturbation, local greedy losses", "Ren et al. 2023, Sec. 4", 3.1),
    Scheme("LG-FG-A", Estimator(A, losses=LG),
           "activity perturbation, local greedy losses", "Ren et al. 2023, Sec. 4", 2.9),
    # finite differences in place of a derivative
    Scheme("SPSA", Estimator(W, Rademacher(), oracle=CentralDifference()),
           "weight perturbation by two-sided differences, signs", "Spall 1992", 4.1),
    Scheme("MeZO", Estimator(W, oracle=CentralDifference()),
           "the same with normal noise", "Malladi et al. 2023", 4.1),
    Scheme("EGGROLL", Estimator(W, LowRank(1), oracle=CentralDifference()),
           "the same with matrices of rank 1", "Sarkar et al. 2025", 4.1),
    Scheme("NP", Estimator(A, oracle=ForwardDifference()),
           "node perturbation by one-sided differences", "Dalm et al. 2023", 4.1),
    # other noise, more directions
    Scheme("sparse-FG-W", Estimator(W, Sparse(0.1)),
           "weight perturbation of a tenth of the weights", "common practice", 3.1),
    Scheme("multi-FG-W", Estimator(W, directions=16),
           "mean over 16 directions", "Flügel et al. 2024", 31.7),
    Scheme("projected-FG-W", Estimator(W, directions=16, combine=Projection()),
           "orthogonal projection on 16 directions", "Flügel et al. 2024", 31.7),
    Scheme("normed-FG-W", Estimator(W, directions=16, combine=Projection("norm")),
           "the same with the gradient's expected norm", "Flügel et al. 2024", 31.7),
    Scheme("orthogonal-FG-W", Estimator(W, Orthogonal(), directions=16),
           "mean over 16 orthogonal directions", "Choromanski et al. 2018", 31.7),
    # guesses of the gradient
    Scheme("random-guess", _guess(Isotropic()), "projection on a normal guess", "Fournier et al. 2023", 7.4),
    Scheme("local-guess", _guess(LocalGradient()),
           "projection on the local losses' gradient", "Fournier et al. 2023", 9.3),
    Scheme("NTK-guess", _guess(NTK()), "projection on that through frozen random heads", "Fournier et al. 2023", 9.3),
    Scheme("transposed-guess", Estimator(A, guess=TransposedWeights()),
           "directions Wᵀε of the next layer", "Singhal et al. 2023", 6.8),
    Scheme("orthogonalised-guess", Estimator(A, guess=TransposedWeights("newton-schulz")),
           "the same, W orthogonalised by Newton-Schulz", "Wang et al. 2025", 26.7),
    Scheme("SVD-guess", Estimator(A, guess=TransposedWeights("svd")),
           "the same, by singular value decomposition", "Wang et al. 2025", 8.2),
    Scheme("span-guess", Estimator(W, guess=ActivationSpan()),
           "directions from the span of incoming activations", "Singhal et al. 2023", 6.2),
    Scheme("backprop-guess", _guess(BackpropGradient()),
           "projection on the gradient itself: an upper bound", "Fournier et al. 2023", 9.3),
    # controls
    Scheme("minibatch", Stochastic(sample=Draw(1)),
           "exact gradient of one example of the batch (data variance)", "see data_variance", 0.4),
    Scheme("frozen", FrozenTrunk(), "heads and read-outs learn, the trunk does not", "control", 1.1),
    Scheme("sham", Estimator(A, combine=ShuffledCredit()),
           "FG-A credited with the next example's derivative", "control", 2.9),
    Scheme("matched-noise", MatchedNoise(Estimator(A)),
           "the gradient plus isotropic noise of FG-A's variance", "control", 8.8),
    Scheme("isotropic-null", IsotropicNull(), "a random direction of the gradient's length", "control", 3.0),
)  # fmt: skip

SCHEMES = {found.name: found for found in _TABLE}


def schemes() -> tuple[Scheme, ...]:
    """All names that `scheme` takes, with the estimator, a line, a source, a cost and what is known of their bias.

    Example:
        >>> [found.name for found in schemes() if not found.bias_reason][:3]
        ['BP', 'L-BP', 'LG-BP']
    """
    return _TABLE


def scheme(name: str, *, credit: str | None = None, **words: Any) -> GradientEstimator:
    """The estimator of a name in `schemes`, with some of its words changed.

    "FG-W", "FG-A" (weight and activity perturbation of the global loss), "LG-FG-W", "LG-FG-A" (of local
    greedy losses): Gaussian noise, shared by the batch for weights, independent for activities. "BP",
    "L-BP", "LG-BP": exact gradients of the global loss, of local losses, of local greedy losses; and so on.

    Args:
        name: one of `schemes`.
        credit: "unbiased" (default) or "published", for "LG-FG-W": what `LocalLosses` does with it.
        words: other words for the sentence: ``noise=``, ``space=``, ``losses=``, ``oracle=``, ``guess=``,
            ``combine=``; or another field of the estimator, such as ``directions=``, or ``seed=`` of feedback.

    Raises:
        ValueError: an unknown name, a word that the scheme does not have, credit without local losses.

    Example:
        >>> from fgvar.estimators.noise import Rademacher
        >>> scheme("FG-W", noise=Rademacher()).noise
        Rademacher()
    """
    if name not in SCHEMES:
        raise ValueError(unknown("scheme", name, SCHEMES))
    estimator = SCHEMES[name].estimator
    valid = [field.name for field in fields(estimator)]
    for word in words:
        if word not in valid:
            raise ValueError(unknown(f"word of {name}", word, valid))
    if credit is not None:
        losses = words.get("losses", getattr(estimator, "losses", None))
        if not isinstance(losses, LocalLosses):
            raise ValueError(f"credit={credit!r} chooses among copies of local losses; {name} has none")
        words["losses"] = replace(losses, credit=credit)
    return replace(estimator, **words)


_GUESSES: Mapping[str, Estimator] = {
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
    guesses = {k: v for k, v in _GUESSES.items() if local or not isinstance(v.guess, LocalGradient | NTK)}
    return {
        f"{label}/{target}/{guess}": replace(estimator, space=space, losses=losses, combine=Normalised())
        for label, space in (("weight", WeightSpace(per_tensor=True)), ("activity", ActivitySpace(per_tensor=True)))
        for target, losses in targets.items()
        for guess, estimator in guesses.items()
    }
