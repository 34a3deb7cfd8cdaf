"""Commuted words: what mixes the entries of a sum is done to its terms, of which all is known.

A linear map of Σ ω_n x_n is Σ ω_n of the mapped x_n. Variances of the sum's own entries would not do for it: what was
sampled correlates them. Noise that was added ahead of the map, of which each entry is its own, is mapped for itself.
"""

from dataclasses import replace
from itertools import takewhile

import torch

from fgvar.estimators.declared import declared
from fgvar.problem import Problem
from fgvar.stochastic.sentence import Stochastic
from fgvar.stochastic.transforms import TRANSFORM, Gradient, returned_shapes, shapes_of


def commuted(estimator: Stochastic, problem: Problem) -> tuple[Stochastic, Gradient]:
    """A sentence of the same mean and variance, but for noise of the variance that is told beside it.

    A word of ``then`` with a ``spread``, the variance that it makes of uncorrelated entries, has become the last one
    of ``each``, where only words stand before it that say of themselves ``adds_noise``.
    """
    ahead = tuple(takewhile(lambda word: declared(word, "adds_noise", *TRANSFORM), estimator.then))
    mixing, behind = estimator.then[len(ahead) : len(ahead) + 1], estimator.then[len(ahead) + 1 :]
    spread = declared(mixing[0], "spread", *TRANSFORM) if estimator.each and mixing else None
    if spread is None:
        return estimator, {}
    shapes = shapes_of(problem)
    for word in estimator.each:
        shapes = returned_shapes(word, problem, shapes)
    noise = {name: torch.zeros(shape, dtype=problem.dtype, device=problem.device) for name, shape in shapes.items()}
    for word in ahead:
        noise = word.moments(noise, noise, problem).variance
    return replace(estimator, each=estimator.each + mixing, then=behind), spread(noise, problem)
