"""The table of what is audited: name, source, estimator, exact moments, and what one estimate costs as published."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import fgvar
from studies.published import anchored, coordinates, layers, queries, subspaces
from studies.published.directional import Directional, Moments, Tensors, of_gaussian, squares

RANK, STEPS, AVERAGED, SIGNS, POOL, STEP = 16, 50, 16, 8, 4096, 1e-3
QUARTER = 0.25  # of the weights of each matrix that sparse estimators keep
BACK = 1e-3  # of the parameters' length: the step since the anchor


@dataclass(frozen=True)
class Scene:
    """One network at one stage, and what rows are made from.

    Attributes:
        problem: the probe batch.
        module: the plain network, whose hooks tell what layers read.
        seed: of subspaces that are kept.
    """

    problem: fgvar.Problem
    module: Any
    seed: int = 0

    @cached_property
    def gradient(self) -> dict[str, Tensor]:
        return self.problem.backprop()

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {name: g.numel() for name, g in self.gradient.items()}

    @cached_property
    def blocks(self) -> dict[str, int]:
        """Tensor → number of its block: of the transformer's from 1 on, 0 all else."""
        return {name: block_of(name) for name in self.gradient}

    @cached_property
    def inputs(self) -> tuple[Mapping[str, Tensor], ...]:
        """Leading singular vectors of what linear layers read, of `RANK`."""
        return subspaces.input_bases(self.module, self.problem.inputs, self.gradient, RANK)

    def spans(self, rank: int) -> subspaces.Subspaces:
        """AGZO's subspaces."""
        left, right = ({name: basis[:, :rank] for name, basis in side.items()} for side in self.inputs)
        return subspaces.Subspaces(left, right)

    def random_spans(self, rank: int) -> subspaces.Subspaces:
        """Random ones of their dimensions."""
        generator = torch.Generator().manual_seed(self.seed)
        sides = [
            {
                name: torch.linalg.qr(torch.randn(basis[:, :rank].shape, generator=generator, dtype=torch.float64))[0]
                for name, basis in side.items()
            }
            for side in self.inputs
        ]
        return subspaces.Subspaces(*sides)

    def random_subspaces(self) -> subspaces.Subspaces:
        """SubZero's."""
        shapes = {name: tuple(g.shape) for name, g in self.gradient.items()}
        return subspaces.Subspaces(*(subspaces.random_bases(shapes, axis, RANK, self.seed) for axis in (0, 1)))


def block_of(name: str) -> int:
    """Number of a tensor's block of the transformer, from 1 on; 0 of embeddings and the last norm."""
    found = re.search(r"\bh\.(\d+)\.", name)
    return int(found[1]) + 1 if found else 0


@dataclass(frozen=True)
class Row:
    """A published estimator.

    Attributes:
        name: in the dataset.
        source: the paper.
        estimator: for a scene.
        moments: exact mean and second moment; None where none is known.
        queries: derivatives along a direction that one estimate takes.
        passes: forward passes of the whole batch that one estimate takes, as published.
        replayed: are derivatives inner products with the known gradient? Else forward passes are taken.
    """

    name: str
    source: str
    estimator: Callable[[Scene], Any]
    moments: Callable[[Scene], Moments] | None = None
    queries: int = 1
    passes: float = 2.0
    replayed: bool = field(default=True, kw_only=True)


def _replay(scheme: str, **words: Any) -> Callable[[Scene], Any]:
    return lambda _scene: fgvar.scheme(scheme, oracle=fgvar.oracles.Replay(), **words)


def _law(make: Callable[[Scene], Any]) -> dict[str, Any]:
    return {
        "estimator": lambda scene: Directional(make(scene)),
        "moments": lambda scene: make(scene).moments(scene.gradient),
    }


def _own(make: Callable[[Scene], Any]) -> dict[str, Any]:
    return {"estimator": make, "moments": lambda scene: make(scene).moments(scene.gradient)}


def _keep(make: Callable[[], Any]) -> dict[str, Any]:
    return {
        "estimator": _replay("FG-W", space=fgvar.WeightSpace(keep=make())),
        "moments": lambda scene: coordinates.of_masked(scene.gradient, make().mask(scene.problem)),
    }


# ---- exact moments of sentences ------------------------------------------------------------------------------


def averaged(one: Mapping[str, float], gradient: Tensors, count: int) -> dict[str, float]:
    """E‖ĝ‖² of the mean of so many independent estimates that are unbiased."""
    each = squares(gradient)
    return {name: s / count + (1 - 1 / count) * each[name] for name, s in one.items()}


def of_gaussian_mean(scene: Scene, count: int = 1) -> Moments:
    """The mean of so many normal directions."""
    one = of_gaussian(scene.gradient, scene.sizes)
    return Moments(scene.gradient, averaged(one, scene.gradient, count))


def of_sign_mean(scene: Scene, count: int) -> Moments:
    """The mean of so many sign vectors: E‖⟨∇, u⟩u_k‖² = d_k‖∇‖²."""
    total = sum(squares(scene.gradient).values())
    one = {name: size * total for name, size in scene.sizes.items()}
    return Moments(scene.gradient, averaged(one, scene.gradient, count))


def of_orthogonal_mean(scene: Scene, count: int) -> Moments:
    """d/K times the projection on a uniform K-dimensional subspace: E Pgg′P = a gg′ + b‖g‖² I."""
    each, d = squares(scene.gradient), sum(scene.sizes.values())
    both = count * (count + 2) / (d * (d + 2))  # a + b
    b = (count / d - both) / (d - 1)
    total = sum(each.values())
    second = {name: (d / count) ** 2 * ((both - b) * s + b * total * scene.sizes[name]) for name, s in each.items()}
    return Moments(scene.gradient, second)


def of_signs(scene: Scene) -> Moments:
    """The signs of one estimate: E sign ĝ_i = (2/π) arcsin(∇_i/‖∇‖)."""
    norm = sum(squares(scene.gradient).values()) ** 0.5
    mean = {name: torch.asin(g / norm) * (2 / math.pi) for name, g in scene.gradient.items()}
    return Moments(mean, {name: float(size) for name, size in scene.sizes.items()})


def _of_low_rank(rank: int) -> Callable[[Scene], Moments]:
    return lambda scene: Moments(scene.gradient, subspaces.of_low_rank(scene.gradient, rank))


def _clipped(scene: Scene) -> queries.ClippedDerivative:
    return queries.ClippedDerivative(sum(squares(scene.gradient).values()) ** 0.5)


def _layers(scene: Scene, kind: str) -> layers.Layers:
    count = len(set(scene.blocks.values()))
    numbers = {block: index for index, block in enumerate(sorted(set(scene.blocks.values())))}
    blocks = {name: numbers[block] for name, block in scene.blocks.items()}
    even = (1 / count,) * count
    chance = layers.best_probabilities(scene.gradient, blocks) if kind == "best" else even
    return layers.Layers(blocks, chance, weigh=kind != "in turn")


def _anchored(scene: Scene) -> anchored.Anchored:
    return anchored.Anchored(anchored.one_step_back(scene.problem, BACK))


PARTS: dict[str, tuple[Row, ...]] = {
    "isotropic": (
        Row("MeZO", "Malladi et al. 2023", _replay("MeZO"), of_gaussian_mean),
        Row(
            f"mean of {AVERAGED}", "Malladi et al. 2023", _replay("MeZO", directions=AVERAGED),
            lambda scene: of_gaussian_mean(scene, AVERAGED), AVERAGED, 2 * AVERAGED,
        ),
        Row(
            f"orthogonal {AVERAGED}", "Flügel et al. 2024",
            _replay("MeZO", noise=fgvar.noise.Orthogonal(), directions=AVERAGED),
            lambda scene: of_orthogonal_mean(scene, AVERAGED), AVERAGED, 2 * AVERAGED,
        ),
        Row(
            f"FZOO, {SIGNS} signs", "Dang et al. 2025",
            _replay("FG-W", noise=fgvar.Rademacher(), directions=SIGNS),
            lambda scene: of_sign_mean(scene, SIGNS), SIGNS, SIGNS + 1,
        ),
        Row("FZOO, over σ", "Dang et al. 2025", lambda _: queries.SignBatch(SIGNS), None, SIGNS, SIGNS + 1),
    ),
    "low rank": (
        *(
            Row(
                f"EGGROLL {rank}", "Sarkar et al. 2025", _replay("EGGROLL", noise=fgvar.noise.LowRank(rank)),
                _of_low_rank(rank),
            )
            for rank in (1, 4, 16)
        ),
        Row(f"LOZO, {STEPS} steps", "Chen et al. 2024", **_own(lambda _: subspaces.LazyLowRank(2, STEPS)),
            queries=STEPS, passes=2 * STEPS),
    ),
    "subspaces": (
        Row("SubZero 16", "Yu et al. 2024", **_law(Scene.random_subspaces)),
        Row("AGZO 1", "Lin et al. 2026", **_law(lambda scene: scene.spans(1))),
        Row("random span 1", "control of AGZO 1", **_law(lambda scene: scene.random_spans(1))),
        Row("AGZO 16", "Lin et al. 2026", **_law(lambda scene: scene.spans(RANK))),
        Row("random span 16", "control of AGZO 16", **_law(lambda scene: scene.random_spans(RANK))),
    ),
    "sparse": (
        Row("small quarter", "Liu et al. 2024", **_keep(lambda: coordinates.Small(QUARTER))),
        Row("large quarter", "Liu et al. 2024", **_keep(lambda: fgvar.transforms.Magnitude(1 - QUARTER))),
        Row("random quarter", "control of both",
            **_keep(lambda: fgvar.transforms.Magnitude(1 - QUARTER, shuffled=0))),
        Row("MeZO-BCD", "Park et al. 2025", **_law(lambda scene: _layers(scene, "in turn"))),
        Row("layers, even", "Wang et al. 2026", **_law(lambda scene: _layers(scene, "even"))),
        Row("AdaLeZO, at best", "Wang et al. 2026", **_law(lambda scene: _layers(scene, "best"))),
    ),
    "queries": (
        Row("sign of MeZO", "Liu et al. 2019",
            lambda scene: fgvar.Stochastic(of=_replay("MeZO")(scene), then=(fgvar.transforms.Sign(),)), of_signs),
        Row("clipped MeZO", "Shang et al. 2025", **_own(_clipped)),
        Row(f"{POOL} seeds", "Qin et al. 2023", **_law(lambda _: queries.SeedPool(POOL))),
        Row("QuZO", "Zhou et al. 2025", **_law(lambda _: queries.Quantised(1.0))),
        Row("rounded once", "control of QuZO", **_law(lambda _: queries.Quantised(1.0, twice=False))),
        Row("one example", "Malladi et al. 2023", lambda _: anchored.Anchored(None),
            lambda scene: anchored.Anchored(None).moments_at(scene.problem), 1, 0.5),
        Row("MeZO-SVRG", "Gautam et al. 2024", _anchored,
            lambda scene: _anchored(scene).moments_at(scene.problem), 3, 1.0),
    ),
    "passes": (
        Row("two-sided", "Spall 1992", lambda _: fgvar.scheme("MeZO", oracle=fgvar.oracles.CentralDifference(STEP)),
            replayed=False),
        Row("one-sided", "Dalm et al. 2023",
            lambda _: fgvar.scheme("MeZO", oracle=fgvar.oracles.ForwardDifference(STEP)), replayed=False),
        Row("one-point", "Flaxman et al. 2005", lambda _: queries.OnePoint(STEP),
            lambda scene: queries.OnePoint(STEP).moments_at(scene.gradient, float(scene.problem.loss())), 1, 1.0),
        Row("FG-A", "Ren et al. 2023", _replay("FG-A"), None, 1, 3.0),
    ),
}  # fmt: skip
ROWS = {row.name: row for part in PARTS.values() for row in part}
