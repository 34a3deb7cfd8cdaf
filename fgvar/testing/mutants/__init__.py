"""Mutants and twins: estimators with a planted defect that the checks must catch, and odd but right ones.

A check that catches no mutant proves nothing when it passes; a check that refutes a twin cannot be trusted when
it fails. Both are held in the test suite, and both are there to try checks of one's own on.
"""

from fgvar.estimators.activity_space import ActivitySpace
from fgvar.estimators.combine import Normalised
from fgvar.estimators.estimator import Estimator, ExactGradient
from fgvar.estimators.losses import LocalLosses
from fgvar.estimators.noise import Rademacher
from fgvar.estimators.schemes import scheme
from fgvar.estimators.weight_space import WeightSpace
from fgvar.stochastic.compression import TopK
from fgvar.stochastic.history import History
from fgvar.stochastic.sentence import Stochastic
from fgvar.stochastic.streams import Adam
from fgvar.stochastic.targets import Against
from fgvar.testing.mutants import broken_estimates as estimates
from fgvar.testing.mutants import broken_words as words
from fgvar.testing.mutants.broken_carriers import CARRIERS
from fgvar.testing.mutants.broken_samples import SAMPLES
from fgvar.testing.mutants.broken_streams import AliasedDiffGrad, LosesResidual
from fgvar.testing.mutants.broken_unlearning import UNLEARNING
from fgvar.testing.mutants.lookalikes import LOOKALIKES, Lookalike
from fgvar.testing.mutants.moved_probabilities import AtPoint, DownHill, MovedProbabilities
from fgvar.testing.mutants.mutant import Mutant
from fgvar.testing.mutants.published import PUBLISHED
from fgvar.testing.mutants.published_draws import PublishedDraw

__all__ = ["LOOKALIKES", "MUTANTS", "Lookalike", "Mutant", "PublishedDraw"]


_LOCAL = LocalLosses()
_WEIGHTS, _ACTIVITIES = WeightSpace(), ActivitySpace()

_MUTANTS = (
    # the derivative
    Mutant(
        "clipped", Estimator(oracle=words.ClippedJvp(5.0)), "linear_in_loss",
        "Directional derivatives are clipped at ±5: the mean shrinks, most where the gradient is large.",
    ),
    Mutant(
        "uphill", Estimator(oracle=words.UphillJvp()), "scale",
        "The derivative has the wrong sign: the mean is the negative gradient.",
    ),
    Mutant(
        "silent-nan", Estimator(oracle=words.SilentJvp()), "non_finite",
        "Derivatives that are NaN become 0: a diverged network looks converged.",
    ),
    Mutant(
        "boastful-order", Estimator(noise=Rademacher(), oracle=words.BoastfulDifference()), "bias_order",
        "A central difference declares a bias of order step⁴: halving the step helps four times less than said.",
    ),
    Mutant(
        "secret-step", Estimator(oracle=words.SecretDifference(1e-2)), "repr",
        "The repr leaves out the step: a dataset's attributes rebuild another estimator.",
    ),
    # the noise
    Mutant(
        "bits", Estimator(noise=words.Bits()), "noise",
        "Signs are 0 or 1: mean ½, so that every weight is credited with its neighbours' gradients.",
    ),
    Mutant(
        "unit-sphere", Estimator(noise=words.UnitSphere()), "noise",
        "Directions on the sphere lack the factor √d: the mean is the gradient divided by d.",
    ),
    Mutant(
        "signs-as-normal", Estimator(noise=words.Flat()), "variance",
        "Signs are declared to be normal: unbiased, but with another kurtosis, hence less variance than said.",
    ),
    Mutant(
        "half-precision", Estimator(_ACTIVITIES, words.HalfPrecision()), "noise",
        "Noise is drawn in bfloat16 and cast: 8 bits a number, and float64 sees the same few values again.",
    ),
    Mutant(
        "by-shape", Estimator(_ACTIVITIES, words.ByShape()), "noise",
        "Tensors of the same shape get identical noise: each is credited with the others' gradients.",
        shows_on="relu",
    ),
    Mutant(
        "reseeded", Estimator(noise=words.Reseeded()), "noise",
        "The generator is seeded anew before every draw: all draws are one, and averaging helps nothing.",
    ),
    Mutant(
        "running", Estimator(noise=words.Running()), "chunking",
        "Noise comes from a generator that runs on: a draw depends on what was drawn before it.",
    ),
    Mutant(
        "one-noise-for-layers", estimates.OneForLayers(_ACTIVITIES), "unbiased",
        "All tensors read the same noise from its beginning: each is credited with the others' gradients.",
        shows_on="relu",
    ),
    Mutant(
        "global-numbers", estimates.GlobalNumbers(), "deterministic",
        "It draws from the global generator: the same noise gives another estimate at every call.",
    ),
    Mutant(
        "one-noise-for-examples", estimates.OneForAll(_ACTIVITIES, shared=False), "shared_noise",
        "Noise is declared independent, but all examples use the first one's: variance does not fall as 1/N.",
    ),
    Mutant(
        "truncated", Estimator(noise=words.Truncated()), "noise",
        "Normal numbers are cut off at ±3: their variance is 0.995, and the mean half a percent too small.",
    ),
    Mutant(
        "cut-off", estimates.CutOff(), "scale",
        "Noise is cut off at ±3 inside the estimate: half a percent of the gradient is lost, too little to be drawn.",
    ),
    Mutant(
        "recycled", estimates.Recycled(), "unbiased",
        "64 random numbers serve longer tensors over and over: weights are credited with each other's gradients.",
        shows_on="conv",
    ),
    # what few problems show
    Mutant(
        "autocast", estimates.Autocast(), "precision",
        "In float32, and there alone, products are taken in bfloat16: three digits of every estimate are lost.",
    ),
    Mutant(
        "flipped", estimates.Flipped(_ACTIVITIES), "unbiased",
        "Kernels are flipped, as in a true convolution: right for every other layer.", shows_on="conv",
    ),
    Mutant(
        "batch-of-one", estimates.Alone(_ACTIVITIES), "scale",
        "A batch of one loses its batch axis to a squeeze: half of the gradient is missing.", shows_on="conv",
    ),
    Mutant(
        "first-three", estimates.FirstThree(), "unbiased",
        "A buffer for three examples: all others are left out, in silence.", shows_on="relu",
    ),
    Mutant(
        "capped", estimates.Capped(), "scale",
        "Losses above 10⁴ are skipped as outliers: where all are, nothing is learned.", shows_on="conv",
    ),
    Mutant(
        "underflowing", estimates.Underflowing(), "scale",
        "Small entries become 0, as in half precision without a scaled loss.", shows_on="relu",
    ),
    # directions
    Mutant(
        "summed-directions", estimates.Summed(directions=3), "scale",
        "The factor 1/K is missing: the mean is K times the gradient.",
    ),
    Mutant(
        "repeated-direction", estimates.Repeated(directions=3), "directions",
        "One of K directions is used K times: unbiased, but its variance does not fall as 1/K.",
    ),
    Mutant(
        "unpaired", estimates.Unpaired(antithetic=True), "antithetic",
        "The pair's second direction is not the negative of the first: odd errors do not cancel.",
    ),
    # scale
    Mutant(
        "projected", Estimator(combine=Normalised()), "scale",
        "Divided by |v|² with a random guess v: the mean is the gradient divided by d.",
    ),
    Mutant(
        "sigma-once", Estimator(words.HalfScaled(sigma=0.1)), "scale",
        "Noise is scaled by σ and the estimate divided by σ, not σ²: the mean is σ times the gradient.",
    ),
    Mutant(
        "averaged-twice", Estimator(losses=words.Reaveraged(power=-1)), "scale",
        "The loss is averaged over the batch twice: the mean is the gradient divided by N.",
    ),
    Mutant(
        "summed-batch", Estimator(_ACTIVITIES, losses=words.Reaveraged(power=1)), "scale",
        "Per-example losses are summed where they should be averaged: the mean is N times the gradient.",
    ),
    Mutant(
        "unit-tensors", estimates.UnitTensors(_ACTIVITIES), "linear_in_loss",
        "Each tensor is divided by its own norm: the size of the gradient is lost, and its direction bends.",
    ),
    Mutant(
        "bias-added-twice", estimates.TwiceBiased(_ACTIVITIES), "scale",
        "Linear layers add their bias twice: gradients of biases are twice too large.",
    ),
    Mutant(
        "slow-heads", estimates.SlowHeads(_ACTIVITIES, losses=_LOCAL), "scale",
        "Heads' gradients are a tenth: their learning rate hides in the gradient.",
        shows_on="mixer",
    ),
    # credit
    Mutant(
        "batch-mean", Estimator(_ACTIVITIES, losses=words.BatchMean(), shared=True), "unbiased",
        "Shared activity noise with the batch's mean derivative: examples are credited with each other's losses.",
    ),
    Mutant(
        "first-example", Estimator(losses=words.FirstExample()), "batch_order",
        "The first example's derivative stands for the batch: the others' losses are ignored.",
    ),
    Mutant(
        "wrong-slot", Estimator(words.WrongSlot()), "unbiased",
        "The bias' gradient is written into the weight's place: the weight forgets its inputs.",
    ),
    Mutant(
        "wrong-mask", Estimator(ActivitySpace(relu_after={"site0": "act1", "site1": "act0"})), "unbiased",
        "Masks come from the other layer's ReLU: active units lose their gradient.",
        shows_on="relu",
    ),
    Mutant(
        "unmasked", estimates.Unmasked(_ACTIVITIES), "variance",
        "Inactive units are perturbed although masked ones are declared: unbiased, with more variance.",
        shows_on="relu",
    ),
    Mutant(
        "leaking-stop", estimates.Leaking(_WEIGHTS, losses=_LOCAL), "unbiased",
        "Later blocks' losses credit upstream weights past the gradient stops: not the local gradient.",
        shows_on="mixer",
    ),
    Mutant(
        "crowded-credit", estimates.Crowded(_WEIGHTS, losses=_LOCAL), "variance",
        "Later blocks' losses credit upstream weights that cannot move them: unbiased, with more variance.",
        shows_on="mixer",
    ),
    Mutant(
        "uncoupled-groups", scheme("LG-FG-W", credit="published"), "unbiased",
        "Each group's loss credits its own channels alone, but the layer norm lets them move all groups' losses.",
        shows_on="mixer", reported="Ren et al. 2023, released code",
    ),
    Mutant(
        "wrong-reference", estimates.BackpropGradient(_WEIGHTS, losses=_LOCAL), "unbiased",
        "Local losses are held against the end-to-end gradient: what locality costs is called noise.",
        shows_on="mixer",
    ),
    # streams, and samples at other points
    Mutant(
        "aliased-state", History(Estimator(), Adam(factor=AliasedDiffGrad()), steps=3), "stream",
        "The previous gradient is no copy: it is the present one, and the factor σ(|difference|) is ½ for ever.",
        reported="diffGrad, version 1",
    ),
    Mutant(
        "lost-residual", History(Estimator(), LosesResidual(TopK(0.5)), steps=3), "stream",  # type: ignore[arg-type]
        "Error feedback forgets what it left out: compression alone, whose errors never come.",
    ),
    Mutant(
        "descending-sam", Stochastic(at=DownHill(ExactGradient(), step=-0.05, unit=True)), "bias_order",
        "Sharpness-aware minimisation steps down where it means to step up: it looks for sharp minima.",
    ),
    Mutant(
        "moved-probabilities", Against(MovedProbabilities(), AtPoint(MovedProbabilities().at)), "unbiased",
        "Examples are drawn by the probabilities at θ and weighed by those of a moved point: E ω is not 1.",
    ),
    # samples and transforms
    *SAMPLES,
    *CARRIERS,
    *UNLEARNING,
    # as they were reported, each beside the right one
    *PUBLISHED,
    # what is not the loss's gradient at all
    Mutant(
        "decayed", estimates.Decayed(), "zero_gradient",
        "Weight decay is added to the gradient: weights without any influence get one.",
    ),
    Mutant(
        "not-restored", estimates.InPlace(), "pure",
        "Finite differences move the weights and leave them there: the next estimate is of another point.",
    ),
    Mutant(
        "restored-by-adding", estimates.InPlace(restore=True), "pure",
        "The weights are moved back by arithmetic: rounding accumulates, estimate by estimate.",
    ),
    Mutant(
        "kept", estimates.Kept(), "parameters",
        "It keeps the gradient of its first call: training goes on along it, wherever the weights are.",
    ),
    Mutant(
        "forgetful", estimates.Forgetful(), "structure",
        "A parameter has no entry: an optimiser leaves it alone for ever.",
    ),
    Mutant(
        "single", estimates.Single(_ACTIVITIES), "structure",
        "The gradient is float32 for a float64 problem: differences below 1e-7 of its size are lost.",
    ),
)  # fmt: skip

MUTANTS = {mutant.name: mutant for mutant in _MUTANTS}
