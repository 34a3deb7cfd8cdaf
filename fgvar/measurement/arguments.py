"""Arguments of `measure`: the settings that its parts pass on, and what is refused before anything is computed."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral

import torch

from fgvar.errors import require_seed
from fgvar.estimators.protocol import GradientEstimator, require_estimator
from fgvar.measurement.moments import BLOCK
from fgvar.problem import Problem
from fgvar.problem_checks import usable_device

BUDGET = 1 << 30  # bytes that one chunk of estimates may take


@dataclass(frozen=True)
class Settings:
    """What `measure` is asked for, beside estimators and a problem: see its arguments."""

    draws: int
    seed: int
    route: str = "drawn"
    chunk: int | None = None
    budget: int = BUDGET
    noise_device: torch.device | str | None = None
    keep_draws: bool = False
    paired: bool = False


def check_arguments(estimators: Mapping[str, GradientEstimator], settings: Settings) -> None:
    """Raise where `measure` would refuse these estimators, or numbers that play a part on this route."""
    if not isinstance(estimators, Mapping) or not estimators:
        raise TypeError(
            f"estimators is {type(estimators).__name__}, expected a non-empty mapping of name → estimator, "
            'for instance {"FG-A": fgvar.scheme("FG-A")}'
        )
    for name, estimator in estimators.items():
        if not isinstance(name, str) or not name.strip():
            raise TypeError(f"an estimator is named {name!r}, expected a text that is not empty, as 'FG-A'")
        require_estimator(name, estimator)
    draws, seed, chunk, budget = settings.draws, settings.seed, settings.chunk, settings.budget
    numbers = {"draws": draws, "seed": seed, "chunk": 1 if chunk is None else chunk, "budget": budget}
    for what, number in numbers.items():
        if not isinstance(number, Integral) or isinstance(number, bool):
            raise TypeError(f"{what} is {number!r}, expected an integer{' of bytes' * (what == 'budget')}")
    require_seed(seed)
    if budget <= 0:
        raise ValueError(f"budget is {budget}, expected a positive number of bytes, as {BUDGET} (the default)")
    if settings.route == "exact":
        return  # no draw is made, so that neither their number nor the blocks that chunks have to fill matter
    if draws < 2:
        raise ValueError(f"draws is {draws}, expected at least 2: one draw has no spread")
    # Chunks have to tile the moments' blocks, or results would depend on the chunk.
    if chunk is not None and chunk not in (1, 2, 4, 8) and (chunk < BLOCK or chunk % BLOCK):
        raise ValueError(f"chunk is {chunk}, expected 1, 2, 4, 8 or a multiple of {BLOCK}, the block of the moments")


def check_noise_device(device: torch.device | str | None, problem: Problem) -> None:
    """Raise where noise cannot be made on this device, or not be brought from it to the problem."""
    if device is None:
        return
    found = usable_device("noise_device", device)
    if found.type == "meta" and problem.device.type != "meta":
        raise ValueError(
            f"noise_device is 'meta', which holds no numbers, and the problem is on {problem.device}; "
            "give 'cpu', or None for the problem's device"
        )
