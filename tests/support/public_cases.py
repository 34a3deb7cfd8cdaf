"""Twenty estimators as they were reported or shipped, right and wrong: what the checks say of each.

Run   python -m tests.support.public_cases [NAME …]      prints who was passed, caught (by which check) or undecided
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fgvar

sys.path.insert(0, str(Path(__file__).parent))

import public_estimators as public
import public_objectives as objectives


@dataclass(frozen=True)
class Case:
    """A pair of estimators.

    Attributes:
        report: where the fault was reported, or that it was shipped.
        fault: what the wrong one does.
        right, wrong: the two.
        problem: builds what both are tried on.
        caught_by: the check that refutes the wrong one, or "?" where a mean that cannot be judged is undecided.
        draws: of each verdict.
    """

    report: str
    fault: str
    right: Any
    wrong: Any
    caught_by: str
    problem: Callable[[], fgvar.Problem] = public.linear
    draws: int = 2048


CASES = {
    "directions": Case(
        "PennyLane#4107", "K directions from one seed", public.several(False), public.several(True), "directions"
    ),
    "zeros": Case(
        "mlpack#1153", "directions of −1, 0 and 1", public.from_three("signs"), public.from_three("zeros"), "scale"
    ),
    "almost-zeros": Case(
        "mlpack#1153", "the same, divided by zeros made 10⁻⁸", public.from_three("signs"),
        public.from_three("tiny"), "?",
    ),
    "pair": Case(
        "WorldModelsExperiments#33", "the antithetic partner has the same seed", public.paired(False),
        public.paired(True), "antithetic", draws=8192,
    ),
    "half-precision": Case(
        "OpenRLHF#1214", "noise drawn in bfloat16", public.Forward(fgvar.Gaussian()), public.Forward(public.Halved()),
        "noise",
    ),
    "constant-seed": Case(
        "Primus-Turbo#365", "a seed that is always 0", public.seeded(False), public.seeded(True), "scale",
        draws=8192,
    ),
    "in-place": Case(
        "MeZO#42", "weights are moved, and moved back by arithmetic", public.mezo(False), public.mezo(True), "pure",
        draws=8192,
    ),
    "candidates": Case(
        "BlackBoxOptim.jl#32", "weights go to other candidates", public.ranked(False), public.ranked(True), "scale"
    ),
    "rounding": Case(
        "gfloat#36", "stochastic rounding by two random bits", public.rounded(None), public.rounded(2),
        "linear_in_loss",
    ),
    "random-k": Case(
        "byteps#299", "random entries without n/k", public.random_k(True), public.random_k(False), "scale"
    ),
    "private": Case(
        "jax_privacy#383", "noise for the sum is added to the mean", public.Private(), public.Private(at_mean=True),
        "variance",
    ),
    "priority": Case(
        "baselines#1131", "examples by priority, without weights", objectives.prioritised(True),
        objectives.prioritised(False), "scale",
    ),
    "batch-size": Case(
        "opacus#420", "divided by the actual size of a Poisson sample", objectives.Poisson(),
        objectives.Poisson(actual=True), "scale",
    ),
    "left-over": Case(
        "keras#20241", "micro-batches of 2, 2 and 1 count the same", objectives.MicroBatches(),
        objectives.MicroBatches(shuffled=False), "unbiased", lambda: fgvar.testing.default_problems()["relu"],
    ),
    "token-mean": Case(
        "transformers#34191", "micro-batches averaged over their own tokens", objectives.accumulated(True),
        objectives.accumulated(False), "unbiased", objectives.tokens,
    ),
    "collocation": Case(
        "NeuralSolvers#57", "points by their residual, without weights", objectives.prioritised(True),
        objectives.prioritised(False), "scale", objectives.collocation,
    ),
    "std": Case(
        "posteriors#15", "the gradient by the std for that by its logarithm", objectives.Variational(),
        objectives.Variational("std"), "scale", objectives.posterior,
    ),
    "baseline": Case(
        "shipped", "the mean over all samples as the score's baseline", objectives.Variational("score"),
        objectives.Variational("leave-none"), "scale", objectives.posterior, 8192,
    ),
    "importance": Case(
        "PyTorch-VAE#34", "normalised importance weights that are not detached", objectives.iwae(True),
        objectives.iwae(False), "unbiased", objectives.coder,
    ),
    "softmax": Case(
        "recommenders#219", "sampled negatives plus log q", objectives.exact_softmax(), objectives.sampled_softmax(1),
        "scale", objectives.classes,
    ),
}  # fmt: skip


def verdict(estimator: Any, case: Case) -> tuple[str, tuple[str, ...]]:
    """What the report says, in a word, and the checks that say so."""
    report = fgvar.testing.check_estimator(estimator, case.problem(), draws=case.draws)
    if report.failures:
        return "caught", report.failures
    return ("passed", ()) if report.passed else ("undecided", report.undecided)


def main(names: list[str]) -> None:
    for name in names or CASES:
        case, began = CASES[name], time.perf_counter()
        for which in ("right", "wrong"):
            word, checks = verdict(getattr(case, which), case)
            print(f"{name:<15}{case.report:<27}{which:<7}{word:<10}{', '.join(checks)}", flush=True)
        print(f"{'':<15}{time.perf_counter() - began:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
