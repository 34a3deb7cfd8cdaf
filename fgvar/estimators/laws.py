"""Laws: how a tensor of random numbers is drawn."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fgvar.estimators.random_streams import Stream

LAW = ("sample", "couple")  # what a law does, of which its declarations say something


class Law(Protocol):
    """How one tensor of random numbers is drawn: zero mean, unit variance, no correlation between numbers.

    Or else, of a law with finitely many values, ``support(shape)``, these values [values, *shape] and probabilities
    [values]: means over it are sums, and it may have any mean, as a choice of examples has.

    It asks the stream once, and nothing else, for random numbers: a stream that is asked again begins with the same
    bits. It may declare, as attributes of its class: ``isotropic = True`` (E uuᵀ = I exactly: means of quadratic
    estimates are enumerated), ``kurtosis`` (E u⁴ of independent numbers: variances have closed forms),
    ``spans_evenly`` (as `Gaussian`), ``dtype``, that of its tensors, where they are of other numbers, such as
    indices of ``population`` things, and ``adapted = True``: its probabilities come from the parameters, so that
    training asks for it anew in every step. ``elementwise = True`` says that every number is made by itself: it is
    then asked for pieces of large tensors, and for several draws of small ones, at once; else for each direction and
    example alone. A class that inherits from a law and samples otherwise has to declare all of it anew.
    """

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """One draw of the given shape."""


class JointLaw(Law, Protocol):
    """A law of all numbers of one direction together, over all leaves that have it."""

    def couple(self, rows: Tensor) -> Tensor:
        """What was filled, [directions, examples, numbers] or without the leading ones, by the law."""
