"""What papers say of their estimators, in the sense of a number that a dataset has; `figures.verdicts` judges it.

Claims are paraphrased from abstracts and public summaries; papers measure accuracy, too, which nothing here does. One
compares a row with another one, by one measure, in every cell (set × stage × seed):

    variance           tr Cov ĝ / ‖∇‖², of one estimate
    direction          efficiency of one estimate, ⟨E ĝ, ∇⟩²/(‖∇‖² E‖ĝ‖²): the squared cosine, as a ratio of means
    ... per query      times (variance), over (direction) the derivatives that it takes: at equal queries
    ... per pass       the same with forward passes: at equal cost
    bias               ‖E ĝ − ∇‖/‖∇‖, of the row alone

and says that the ratio is "lower" or "higher" than 1, by `MARGIN` at least, or "as good", not lower by that; a bias
is to be "none", below `NO_BIAS`. What no number here can tell is there without a measure.
"""

from typing import NamedTuple

MARGIN = 1.05
NO_BIAS = 0.05


class Claim(NamedTuple):
    """One claim."""

    source: str
    claim: str
    row: str
    against: str
    measure: str
    sense: str


CLAIMS = (
    Claim("Malladi et al. 2023", "averaging directions lowers variance", "mean of 16", "MeZO", "variance", "lower"),
    Claim("Flügel et al. 2024", "more tangents come nearer to the gradient",
          "mean of 16", "MeZO", "direction", "higher"),
    Claim("Flügel et al. 2024", "… at equal queries", "mean of 16", "MeZO", "direction per query", "higher"),
    Claim("Flügel et al. 2024", "orthogonal ones are better than a mean",
          "orthogonal 16", "mean of 16", "direction", "higher"),
    Claim("Dang et al. 2025", "FZOO: signs in one-sided batches save passes",
          "FZOO, 8 signs", "MeZO", "direction per pass", "higher"),
    Claim("Dang et al. 2025", "FZOO: over σ is a better step",
          "FZOO, over σ", "FZOO, 8 signs", "direction", "higher"),
    Claim("Sarkar et al. 2025", "EGGROLL of rank 1 is as good as full rank",
          "EGGROLL 1", "MeZO", "direction", "as good"),
    Claim("Sarkar et al. 2025", "EGGROLL of rank 16 is as good as full rank",
          "EGGROLL 16", "MeZO", "direction", "as good"),
    Claim("Chen et al. 2024", "LOZO captures the gradient's low rank",
          "LOZO, 50 steps", "MeZO", "direction per query", "higher"),
    Claim("Yu et al. 2024", "SubZero has lower variance", "SubZero 16", "MeZO", "variance", "lower"),
    Claim("Yu et al. 2024", "SubZero is nearer to the gradient", "SubZero 16", "MeZO", "direction", "higher"),
    Claim("Lin et al. 2026", "AGZO of rank 1 has a higher cosine", "AGZO 1", "MeZO", "direction", "higher"),
    Claim("Lin et al. 2026", "AGZO of rank 16 has a higher cosine", "AGZO 16", "MeZO", "direction", "higher"),
    Claim("Lin et al. 2026", "… of rank 1, by the span of activations",
          "AGZO 1", "random span 1", "direction", "higher"),
    Claim("Lin et al. 2026", "… of rank 16, by the span of activations",
          "AGZO 16", "random span 16", "direction", "higher"),
    Claim("Liu et al. 2024", "small weights are the ones to perturb", "small quarter", "MeZO", "direction", "higher"),
    Claim("Liu et al. 2024", "… rather than random ones", "small quarter", "random quarter", "direction", "higher"),
    Claim("Liu et al. 2024", "… rather than large ones", "small quarter", "large quarter", "direction", "higher"),
    Claim("Park et al. 2025", "MeZO-BCD is as good a step for step", "MeZO-BCD", "MeZO", "direction", "as good"),
    Claim("Wang et al. 2026", "AdaLeZO is unbiased", "AdaLeZO, at best", "", "bias", "none"),
    Claim("Wang et al. 2026", "AdaLeZO lowers variance, at best", "AdaLeZO, at best", "MeZO", "variance", "lower"),
    Claim("Wang et al. 2026", "… where layers are drawn evenly", "layers, even", "MeZO", "variance", "lower"),
    Claim("Wang et al. 2026", "AdaLeZO is 1.7 to 3.0 times as fast", "AdaLeZO, at best", "MeZO", "", ""),
    Claim("Gautam et al. 2024", "MeZO-SVRG lowers variance", "MeZO-SVRG", "one example", "variance", "lower"),
    Claim("Gautam et al. 2024", "… at equal cost", "MeZO-SVRG", "one example", "direction per pass", "higher"),
    Claim("Salimans et al. 2017", "pairs lower the variance of one point",
          "two-sided", "one-point", "variance", "lower"),
    Claim("Salimans et al. 2017", "… of one side, too", "two-sided", "one-sided", "variance", "lower"),
    Claim("Liu et al. 2019", "signs of estimates are as good", "sign of MeZO", "MeZO", "direction", "as good"),
    Claim("Shang et al. 2025", "clipped derivatives steady the step", "clipped MeZO", "MeZO", "variance", "lower"),
    Claim("Shang et al. 2025", "… at no loss of direction", "clipped MeZO", "MeZO", "direction", "as good"),
    Claim("Qin et al. 2023", "steps of 4096 seeds are as good", "4096 seeds", "MeZO", "direction", "as good"),
    Claim("Qin et al. 2023", "4096 seeds reach every gradient", "4096 seeds", "", "bias", "none"),
    Claim("Zhou et al. 2025", "QuZO's two roundings have no bias", "QuZO", "", "bias", "none"),
    Claim("Zhou et al. 2025", "… and are better than one", "QuZO", "rounded once", "direction", "higher"),
    Claim("Ren et al. 2023", "perturbing activities is less noisy", "FG-A", "MeZO", "variance", "lower"),
)  # fmt: skip
