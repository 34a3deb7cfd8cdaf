"""The gallery of biases: what published code did, what catches it, and how large its bias is."""

from collections.abc import Collection
from typing import Any

from tqdm.auto import tqdm

from fgvar.errors import unknown
from fgvar.measurement.measure import measure
from fgvar.testing.checks import CHECKS
from fgvar.testing.enumeration import expectation
from fgvar.testing.mutants import MUTANTS, Mutant

DRAWS = 2048  # of a bias that is drawn
LEVEL = 1e-3  # at which a drawn bias is said to be there
ROUNDING = 1e-9  # of an exact bias, relative to the target


def gallery(names: Collection[str] | None = None) -> list[dict[str, str]]:
    """Run the defects of published code: a row each, made from the mutants as they are.

    Args:
        names: of `fgvar.testing.mutants.MUTANTS`; default all that say where they were reported.

    Returns:
        Rows of what the code did, where that was reported, which check catches it on which problem, with which
        sentence, and its bias there: ‖E ĝ − g‖/‖g‖, exact, or drawn with its standard error; "–" where it has no
        expectation, as it moves the parameters.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> row, = gallery(["left-over"])
        >>> row["reported"], row["caught by"], row["bias"]
        ('keras#20241', 'unbiased, on relu', '0.21')
    """
    if wrong := [name for name in names or () if name not in MUTANTS]:
        raise ValueError(unknown("mutant", wrong[0], MUTANTS))
    chosen = [MUTANTS[name] for name in names] if names else [m for m in MUTANTS.values() if m.reported]
    return [
        {
            "what the code did": mutant.defect,
            "reported": mutant.reported,
            "caught by": f"{mutant.caught_by}, on {mutant.shows_on}",
            "sentence": caught(mutant),
            "bias": bias(mutant),
        }
        for mutant in tqdm(chosen, desc="gallery", unit="mutant", delay=1, leave=False, disable=None)
    ]


def caught(mutant: Mutant) -> str:
    """The sentence by which its check refutes it, or that it passes."""
    try:
        CHECKS[mutant.caught_by](mutant.estimator, mutant.problem(), draws=mutant.draws)
    except AssertionError as error:
        sentence = str(error).splitlines()[0].removeprefix(f"{mutant.caught_by}, {mutant.shows_on}: ")
        return sentence.split("; drawn")[0]  # what follows is what it would have caught
    return "not caught"


def bias(mutant: Mutant) -> str:
    """‖E ĝ − g‖/‖g‖ in words of two digits."""
    (problem,) = mutant.problem().values()
    estimator = mutant.estimator
    if mutant.caught_by != "noise":  # or its noise is not what nodes stand for
        try:
            alone = not estimator.randomness(problem).size
            mean = estimator.estimate(problem, {}).gradient if alone else expectation(estimator, problem)
            target = estimator.target(problem)
        except ValueError:  # no polynomial of its noise
            pass
        else:
            off = _norm({name: mean[name] - target[name] for name in target}) / _norm(target)
            return f"{off:.2g}" if off > ROUNDING else "0"
    try:
        found = measure({"it": estimator}, problem, draws=DRAWS)
    except ValueError:  # it moves the parameters, or gives something else than gradients
        return "–"
    its = found.sel(layer="total", reference="target", estimator="it")
    names = ("sq_bias", "sq_bias_se", "sq_bias_high")
    square, error, high = (float(its[name]) / float(its["gradient_norm"]) ** 2 for name in names)
    if float(its["bias_p"]) > LEVEL or square <= 0:
        return f"< {max(high, 0) ** 0.5:.2g} (drawn)"
    spread = error / (2 * square**0.5)
    return f"{square**0.5:.2g}{f' ± {spread:.1g}' if spread > ROUNDING else ''} (drawn)"


def _norm(gradient: dict[str, Any]) -> float:
    return sum(float(part.square().sum()) for part in gradient.values()) ** 0.5
