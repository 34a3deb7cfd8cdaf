"""Twenty estimators as they were reported or shipped, each beside the right one."""

from fgvar.estimators.noise import Gaussian
from fgvar.testing.mutants import published_gradients as gradients
from fgvar.testing.mutants import published_objectives as objectives
from fgvar.testing.mutants.mutant import Mutant

_FEW = 2048  # draws that show these defects

# Divided by almost-zeros an estimate has no variance that any number of draws would show: rightly undecided.
UNDECIDED = Mutant(
    "almost-zero-signs", gradients.from_three("tiny"), "",
    "Estimates are divided by directions of −1, 0 and 1 whose zeros were made 10⁻⁸.",
    reported="mlpack#1153", right=gradients.from_three("signs"), draws=_FEW,
)  # fmt: skip

PUBLISHED = (
    Mutant(
        "reseeded-directions", gradients.several(True), "directions",
        "K directions are drawn from one seed: they are one, and averaging them helps nothing.",
        reported="PennyLane#4107", right=gradients.several(False), draws=_FEW,
    ),
    Mutant(
        "zero-signs", gradients.from_three("zeros"), "scale",
        "Signs are −1, 0 and 1: two thirds of the gradient.",
        reported="mlpack#1153", right=gradients.from_three("signs"), draws=_FEW,
    ),
    Mutant(
        "same-pair", gradients.paired(True), "antithetic",
        "The antithetic partner has the same seed, and moves to the same side: nothing cancels.",
        reported="WorldModelsExperiments#33", right=gradients.paired(False),
    ),
    Mutant(
        "bfloat16-noise", gradients.Forward(gradients.Halved()), "noise",
        "Noise is drawn in bfloat16: few values, of another variance.",
        reported="OpenRLHF#1214", right=gradients.Forward(Gaussian()), draws=_FEW,
    ),
    Mutant(
        "constant-seed", gradients.constant_seed(True), "scale",
        "The seed is always 0: every estimate is the same direction's.",
        reported="Primus-Turbo#365", right=gradients.constant_seed(False),
    ),
    Mutant(
        "moved-back", gradients.mezo(True), "pure",
        "Weights are moved in place, and moved back by arithmetic: rounding stays in them.",
        reported="MeZO#42", right=gradients.mezo(False),
    ),
    Mutant(
        "sorted-weights", gradients.ranked(True), "scale",
        "Weights of an evolution strategy are sorted, its candidates are not: they go to others.",
        reported="BlackBoxOptim.jl#32", right=gradients.ranked(False), draws=_FEW,
    ),
    Mutant(
        "two-bit-rounding", gradients.rounded(2), "linear_in_loss",
        "Stochastic rounding has two random bits for its threshold: it rounds down more often than up.",
        reported="gfloat#36", right=gradients.rounded(None), draws=_FEW,
    ),
    Mutant(
        "unscaled-random-k", gradients.random_k(False), "scale",
        "Random entries are kept as they are, without n/k: half of the gradient.",
        reported="byteps#299", right=gradients.random_k(True), draws=_FEW,
    ),
    Mutant(
        "noise-at-the-mean", gradients.Private(at_mean=True), "variance",
        "Noise for the sum of examples is added to their mean: N² times the variance.",
        reported="jax_privacy#383", right=gradients.Private(), draws=_FEW,
    ),
    Mutant(
        "unweighted-priorities", objectives.prioritised(False), "scale",
        "Examples are drawn by their losses, and not weighed: hard ones count more.",
        reported="baselines#1131", right=objectives.prioritised(True), draws=_FEW,
    ),
    Mutant(
        "actual-size", objectives.Poisson(actual=True), "scale",
        "A Poisson sample is divided by its actual size, not by the expected one.",
        reported="opacus#420", right=objectives.Poisson(), draws=_FEW,
    ),
    Mutant(
        "left-over", objectives.MicroBatches(shuffled=False), "unbiased",
        "Micro-batches of 2, 2 and 1 examples count the same: the last example counts twice.", "relu",
        reported="keras#20241", right=objectives.MicroBatches(), draws=_FEW,
    ),
    Mutant(
        "own-tokens", objectives.accumulated(False), "unbiased",
        "Micro-batches are means over their own tokens, and count the same: short sequences count more.", "tokens",
        reported="transformers#34191", right=objectives.accumulated(True), own=objectives.tokens, draws=_FEW,
    ),
    Mutant(
        "unweighted-points", objectives.prioritised(False), "scale",
        "Collocation points are drawn by their residuals, and not weighed.", "collocation",
        reported="NeuralSolvers#57", right=objectives.prioritised(True), own=objectives.collocation, draws=_FEW,
    ),
    Mutant(
        "std-for-log-std", objectives.Variational("std"), "scale",
        "The gradient by the standard deviation stands for that by its logarithm.", "posterior",
        reported="posteriors#15", right=objectives.Variational(), own=objectives.posterior, draws=_FEW,
    ),
    Mutant(
        "own-baseline", objectives.Variational("leave-none"), "scale",
        "The baseline of the score is the mean over all samples, a sample's own among them.", "posterior",
        reported="shipped", right=objectives.Variational("score"), own=objectives.posterior,
    ),
    Mutant(
        "attached-weights", objectives.iwae(False), "unbiased",
        "Normalised importance weights are differentiated, too.", "coder",
        reported="PyTorch-VAE#34", right=objectives.iwae(True), own=objectives.coder,
    ),
    Mutant(
        "plus-log-q", objectives.sampled_softmax(1), "scale",
        "Logits of sampled negatives are corrected by plus log q, where minus is right.", "classes",
        reported="recommenders#219", right=objectives.exact_softmax(), own=objectives.classes, draws=_FEW,
    ),
)  # fmt: skip
