"""How often the intervals and p-values of `fgvar.measure` are right: the library's own code on laws that are known.

Runs are layers, so that all of one size are measured at once.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy import special

from fgvar.measurement import (
    BLOCK,
    BUCKETS,
    BY_REFERENCE,
    Block,
    Drawn,
    Estimated,
    Measured,
    Moments,
    References,
    Sums,
    absorb,
    bias_test,
    differences,
    init,
    snr,
    variance,
)
from studies.calibration.laws import Law

Array = Any
STATISTICS = (
    "variance",
    "variance of one number",
    "slope",
    "cosine",
    "snr",
    "efficiency",
    "sq_bias",
    *(f"{name}_difference" for name in ("variance", "slope", "cosine")),
)
LEVELS = (0.05, 0.01, 0.001)
RULES = ("shown", "plain")  # p-values of `bias_p`, and by Student's t alone
AT_ONCE = 1 << 25  # numbers of estimates that are held at a time


def generator(seed: int, *words: object) -> np.random.Generator:
    """Random numbers of a cell's own, whatever else is simulated."""
    return np.random.Generator(np.random.SFC64([seed, zlib.crc32(repr(words).encode())]))


def simulated(laws: list[Law], plan: Mapping[int, int]) -> dict[str, Array]:
    """Of a cell: shares [statistics, references, draws], and of p-values [rules, levels, draws].

    Args:
        laws: all that it consists of.
        plan: draws → runs.
    """
    found = blank(len(plan))
    for law in laws:
        for index, (n, runs) in enumerate(plan.items()):
            at_once = max(1, min(runs, AT_ONCE // (n * len(law.references[0]) * (1 + law.paired))))
            pieces = [measured(law, min(at_once, runs - done), n) for done in range(0, runs, at_once)]
            tally(found, index, joined(pieces), law.truth)
    return found


def blank(sizes: int) -> dict[str, Array]:
    shares = (len(STATISTICS), 2, sizes)
    rejected = (len(RULES), len(LEVELS), sizes)
    names = {"below": shares, "above": shares, "shown": shares, "rejected": rejected, "runs": (sizes,)}
    return {name: np.full(shape, np.nan) for name, shape in names.items()}


def joined(pieces: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([piece[name] for piece in pieces], -1) for name in pieces[0]}


def tally(found: dict[str, Array], index: int, values: dict[str, Array], truth: dict[str, Array]) -> None:
    """Add what these runs of one size show; ``values``: (low, high) of a statistic [2, references, runs]."""
    found["runs"][index] = next(iter(values.values())).shape[-1]
    for name, true in truth.items():
        low, high = values[name.removesuffix(" of one number")]
        expected = np.broadcast_to(np.atleast_1d(true), len(low))[:, None]
        at, given, slack = STATISTICS.index(name), np.isfinite(high), 1e-12 * np.abs(expected)
        for r in range(len(low)):
            shown = given[r]
            found["shown"][at, r, index] = shown.mean()
            if shown.any():
                found["below"][at, r, index] = (high[r] < expected[r] - slack[r])[shown].mean()
                found["above"][at, r, index] = (low[r] > expected[r] + slack[r])[shown].mean()
    if "sq_bias" in truth:  # not of scalars, which have no target
        found["rejected"][:, :, index] = (values["p"][:, None] < np.array(LEVELS)[:, None]).mean(-1)


def measured(law: Law, runs: int, n: int) -> dict[str, Array]:
    """Intervals (low, high) [2, references, runs] of n draws in each run, and p-values [rules, runs]."""
    if law.paired:
        references = repeated(law.references, runs)
        one, baseline = (taken(references, rows, runs) for rows in law.sample(runs, n))
        return {f"{k}_difference": ends(v, runs) for k, v in differences(one, baseline).items()}
    return seen(law.references, law.sample(runs, n))


def seen(compared: tuple[Array, Array], estimates: Array) -> dict[str, Array]:
    """The same of estimates [runs, draws, numbers]."""
    runs, n, _ = estimates.shape
    references = repeated(compared, runs)
    sums = Sums.of(moments(references, estimates)[0], references)
    found = {name: ends(one, runs) for name, one in estimated(sums).items()}
    z, p = (value[:runs] for value in bias_test(sums, 0))
    plain = -np.expm1(min(BUCKETS, sums.sizes[0]) * np.log1p(-2 * special.stdtr(n - 1, -z)))
    return found | {"p": np.stack([p, plain])}


def estimated(sums: Sums) -> dict[str, Estimated]:
    chosen = {k: f for k, f in BY_REFERENCE.items() if not k.startswith("bias")}
    both = {k: Estimated.stacked([f(sums, r) for r in (0, 1)]) for k, f in chosen.items()}
    return {"variance": variance(sums), "snr": snr(sums), **both}


def ends(one: Estimated, runs: int) -> Array:
    """Low (−∞ where there is an upper limit alone) and high [2, references, runs]."""
    low = np.where(np.isnan(one.low) & np.isfinite(one.high), -np.inf, one.low)
    return np.stack([np.atleast_2d(end)[:, :runs] for end in (low, one.high)])


def repeated(references: tuple[Array, Array], runs: int) -> References:
    """The same references for each run, and the same random projections."""
    target, other = (torch.as_tensor(one, dtype=torch.float64) for one in references)
    signs = References.of({"0": target}, {"0": other}, ()).signs["0"]
    names = [f"{run}" for run in range(runs)]
    each = [dict.fromkeys(names, one) for one in (target, other, signs)]
    return References(each[0], each[1], each[2], torch.zeros(2, runs, dtype=torch.float64))


def moments(references: References, estimates: Array) -> tuple[Moments, list[Any], list[Any]]:
    """Of estimates [runs, draws, numbers], with per-draw features and Gram matrices by block."""
    runs, n, _ = estimates.shape
    estimates = torch.as_tensor(estimates, dtype=torch.float64)
    target, other = references.target["0"], references.backprop["0"]
    found, features, grams = init(references), [], []
    total = torch.zeros_like(estimates[:, 0])
    for start in range(0, n, BLOCK):
        rows = estimates[:, start : start + BLOCK] - target
        fixed = (one.expand(runs, 1, -1) for one in (target, other))
        frame = torch.cat([rows, total[:, None] / max(start, 1), *fixed], dim=1)
        projected = references.projected("0", rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        gram, projected = (torch.cat([one, 0 * one[:1], 0 * one[:1]]) for one in (frame @ frame.mT, projected))
        sums = rows.sum(1)
        total += sums
        for deviation, one in zip(found.deviation.values(), sums, strict=True):
            deviation += one
        found, feature = absorb(found, Block(gram[None], projected[None], [start]))
        features.append(feature.numpy())
        grams.append(gram)
    return found, features, grams


def taken(references: References, estimates: Array, runs: int) -> Measured:
    """As a measurement that can be compared with another."""
    state, features, grams = moments(references, estimates)
    sums = Sums.of(state, references)
    values = estimated(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        values["relative_variance"] = values["variance"].scaled(1 / sums.products[:, 0])
    drawn = Drawn(values, np.concatenate(features, 1), grams)
    return Measured(values, np.zeros((2, runs + 2), np.int8), sums.sizes, drawn, 2e-16)


def of_network(
    layers: Mapping[str, Law], draw: Callable[[int, int], dict[str, Array]], plan: Mapping[int, int]
) -> dict[str, dict[str, Array]]:
    """Of each layer of a network, from draws that its layers share: (first, number) → estimates [draws, numbers].

    The true cosine is the mean over all draws.
    """
    total = max(n * runs for n, runs in plan.items())
    size = max(plan) * max(1, min(8192, total) // max(plan))
    kept: dict[tuple[str, int], list[dict[str, Array]]] = {}
    cosines: dict[str, list[Array]] = {name: [] for name in layers}
    for first in range(0, total, size):
        found = draw(first, size)
        for name, law in layers.items():
            rows = found[name]
            cosines[name].append(cosine(rows, np.stack(law.references)))
            for n, runs in plan.items():
                if first < n * runs:
                    kept.setdefault((name, n), []).append(seen(law.references, rows.reshape(size // n, n, -1)))
    cells = {}
    for name, law in layers.items():
        cells[name] = blank(len(plan))
        truth = law.truth | ({"cosine": np.mean(cosines[name], 0)} if len(law.references[0]) > 1 else {})
        for index, n in enumerate(plan):
            tally(cells[name], index, joined(kept[name, n]), truth)
    return cells


def cosine(rows: Array, references: Array) -> Array:
    length = np.linalg.norm(rows, axis=1, keepdims=True) * np.linalg.norm(references, axis=1)
    inner = rows @ references.T
    return np.divide(inner, length, out=np.zeros_like(inner), where=length > 0).mean(0)
