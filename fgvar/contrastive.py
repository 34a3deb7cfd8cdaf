"""Contrastive: two views of each example, told apart from those of the others (InfoNCE)."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgvar.errors import NonFiniteError
from fgvar.nn import purity
from fgvar.nn.heads import LocalHead, headless
from fgvar.nn.reach import OUTPUT, ForwardTrace
from fgvar.problem import Problem

__all__ = ["Contrastive", "InfoNCE"]


@dataclass(frozen=True)
class InfoNCE:
    """Which of all keys belongs to this query? The loss of a `Contrastive` problem.

    L_i = −log( exp(s_ii) / Σ_j exp(s_ij) ) with s_ij = cos(query i, key j) / temperature: queries are features of
    the first view, keys those of the second. With ``stop_gradient`` keys are constants, so that term i depends
    on example i alone; without, both views of all examples move every term, and whoever perturbs activities
    credits them with the sum over the batch.

    Args:
        temperature: divides the cosines.
        stop_gradient: no gradient through the second view.

    Shapes: queries [batch, width], keys of unit length [keys, width], numbers [batch] → loss [batch].

    Raises:
        ValueError: a temperature that is not positive.
        TypeError: one that is no number.

    Source: Ren et al. 2023, Sec. 4, Table 4 and Fig. 4; van den Oord et al. 2018.

    Example:
        >>> keys = torch.eye(2)
        >>> [round(float(x), 4) for x in InfoNCE(temperature=1.0)((3 * keys, keys), torch.arange(2))]
        [0.3133, 0.3133]
    """

    temperature: float = 0.1
    stop_gradient: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.temperature, bool) or not isinstance(self.temperature, Real):
            raise TypeError(f"temperature is {self.temperature!r}, expected a number (the paper's: 0.1)")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature!r}, expected a positive number (the paper's: 0.1)")

    def __call__(self, pair: tuple[Tensor, Tensor], numbers: Tensor) -> Tensor:
        return functional.cross_entropy(self.similarity(*pair), numbers, reduction="none")

    def similarity(self, queries: Tensor, keys: Tensor) -> Tensor:
        """The logits [batch, keys]: cosines over the temperature."""
        return unit(queries) @ keys.T / self.temperature


def unit(features: Tensor) -> Tensor:
    """Rows of length 1. A row of zeros has no direction, and becomes NaN."""
    return features / features.norm(dim=1, keepdim=True)


class Contrastive(Problem):
    """A network, InfoNCE and two views of a batch: a `Problem`, so that every scheme runs on it by its name.

    ``loss(params)`` is the mean over queries. The network's heads and read-outs lose their linear layers, and what
    else learns exactly is left out: the loss compares the features themselves, at the output (what a read-out would
    see: the normalised token mean) and, for local losses, at the end of every block (normalised within each group,
    token-averaged, groups side by side). `LocalLosses` replicates a block's term over patches and groups as ever:
    copy (p, g) has the value of InfoNCE and passes gradient to the features (p, g) of its query alone, so that the
    copies' gradients sum to the ordinary one.

    With the gradient stopped on the second view, its keys are computed once, at ``params``; ``inputs`` are the
    first views and ``targets`` the numbers of their keys, so that one example's problem keeps all keys. Without
    the stop (``InfoNCE(stop_gradient=False)``) ``inputs`` are the first views and then the second ones, each
    with the loss of its pair; ``coupled`` is True, no example has a problem of its own (data variance is NaN, and
    there is no closed form), and activities are credited with the sum over the batch.

    Args:
        module: as for `Problem`.
        loss: an `InfoNCE`.
        views: two batches of images of the same shape, such as `fgvar.data.Views` makes: image i of one belongs to
            image i of the other.

    Raises:
        ValueError: views of different shapes, or fewer than two examples; what `Problem` refuses.
        TypeError: a loss that is no `InfoNCE`, views that are not two floating-point tensors.
        NonFiniteError: features of length 0, which have no direction.

    Source: Ren et al. 2023, Sec. 4 and Table 4.

    Example:
        >>> from fgvar.networks import LocalMixer
        >>> model = LocalMixer((1, 8, 8), 10, blocks=2, patches=2, channels=32, groups=4)
        >>> problem = Contrastive(model, InfoNCE(), (torch.rand(5, 1, 8, 8), torch.rand(5, 1, 8, 8)))
        >>> problem.losses(problem.run(problem.params)[0]).shape, problem.features(torch.rand(7, 1, 8, 8)).shape
        (torch.Size([5]), torch.Size([7, 32]))
    """

    coupled = False  # until the network is known to keep examples apart
    of_batch = True  # a query is held against the keys of all
    keys: dict[str, Tensor]  # end or OUTPUT → [keys, width], of unit length

    def __init__(self, module: nn.Module, loss: InfoNCE, views: tuple[Tensor, Tensor]) -> None:
        if not isinstance(loss, InfoNCE):
            raise TypeError(
                f"the loss of a contrastive problem is {type(loss).__name__}, expected fgvar.contrastive.InfoNCE(…)"
            )
        self.criterion = loss
        _check_views(views)
        self.second = views[1].detach()
        trunk = headless(module)
        self.heads = module.state_dict().keys() - trunk.state_dict().keys()  # names that a state dict has beside
        super().__init__(trunk, loss, (views[0], torch.arange(len(views[0]), device=views[0].device)))

    def at(self, params: Mapping[str, Tensor] | None = None, batch: tuple[Tensor, Tensor] | None = None) -> Self:
        """The same network with other parameters, or another batch: a pair of views, as the constructor takes it.

        Both bring new keys, at the price of a forward pass; nothing is checked. For other queries see `with_queries`.

        Raises:
            TypeError: a batch that is no pair of tensors, or whose second one holds integers.
        """
        params = params and {name: value for name, value in params.items() if name not in self.heads}
        other = super().at(params, batch)
        if batch is not None:
            _, second = batch
            kind = getattr(second, "dtype", type(second).__name__)
            if not isinstance(second, Tensor) or not second.is_floating_point():
                raise TypeError(
                    f"the second view is {kind}, expected images; queries and the numbers of their keys go "
                    "into with_queries(queries, numbers), and some of the batch are rows(which)"
                )
            other.second, other.targets = second, torch.arange(len(second), device=second.device)
            if self.coupled:
                other._couple()
        if not self.coupled and (params is not None or other.second is not self.second):
            other.keys = other._encode()
        return other

    def with_queries(self, queries: Tensor, numbers: Tensor) -> Self:
        """The same keys and other queries: first views [batch, …], and the number of each one's own key [batch].

        Raises:
            ValueError: there is no stop of the gradient, so that queries are keys, too.
        """
        self._refuse_coupled()
        return super().at(batch=(queries, numbers))

    def clone(self) -> Self:
        keys = {end: key.clone() for end, key in self.keys.items()}
        return super().clone()._with(second=self.second.clone(), keys=keys)

    def tensors(self) -> dict[str, Tensor]:
        keys = {f"keys at {end!r}": key for end, key in self.keys.items()}
        return {**super().tensors(), "the second view": self.second, **keys}

    def to(self, dtype: torch.dtype) -> Self:
        """The problem, keys included, in another floating-point precision."""
        keys = {end: key.to(dtype) for end, key in self.keys.items()}
        return super().to(dtype)._with(second=self.second.to(dtype), keys=keys)

    def local_losses(self, params: Mapping[str, Tensor], end: str, features: Tensor) -> Tensor:
        """Per-query loss [batch] of the features at ``end``."""
        losses: Tensor = self.raw_losses(self.logits(params, end, features), end)
        return losses if self.importance is None else losses * self.importance

    def raw_losses(self, outputs: Any, end: str = OUTPUT) -> Any:
        return self.loss_function(self._pair(end, outputs), self.targets)

    def correct(self, outputs: Any) -> Tensor:
        """Is a query's own key the one most like it? [batch]"""
        most_like: Tensor = self.criterion.similarity(*self._pair(OUTPUT, outputs)).argmax(1)
        return most_like == self.targets

    def features(self, images: Tensor, params: Mapping[str, Tensor] | None = None) -> Tensor:
        """The frozen features [batch, width] of images, on which a linear read-out is trained afterwards."""
        with torch.no_grad():
            output = self.network.run({**self.buffers, **(self.params if params is None else params)}, images)[0]
        return _rows(output).detach()

    def _of(self, leaves: Mapping[str, Tensor]) -> "Problem":
        self._refuse_coupled()
        return super()._of(leaves)

    def _refuse_coupled(self) -> None:
        if self.coupled:
            raise ValueError(
                "without the gradient stop on the second view every loss term depends on all examples, so that "
                "none has a problem of its own; use InfoNCE(stop_gradient=True), or an estimator that shares "
                "weight noise across the batch"
            )

    def _pair(self, end: str, represented: Any) -> tuple[Tensor, Tensor]:
        """Queries, and keys of unit length."""
        rows = _rows(represented)
        if not self.coupled:
            return rows, self.keys[end]
        first, second = rows.chunk(2)
        return torch.cat([first, first]), unit(second)

    def _encode(self) -> dict[str, Tensor]:
        """Keys of the second view at every end and at the output, without a gradient."""
        heads = {f"{name}.end": name for name, child in self.network.modules.items() if isinstance(child, LocalHead)}
        with torch.no_grad():
            tensors = {**self.buffers, **self.params}
            output, values = self.network.run(tensors, self.second, watch=heads)
            ends = {end: self.network.logits(heads[end], tensors, features) for end, features in values.items()}
            return {k: unit(_rows(v)).detach() for k, v in {**ends, OUTPUT: output}.items()}

    def _couple(self) -> None:
        """Both views are inputs, and a pair's loss is that of both."""
        self.inputs, self.targets = torch.cat([self.inputs, self.second]), self.targets.repeat(2)
        self.keys = {}

    def _dry_run(self, loss: str) -> tuple[ForwardTrace, ForwardTrace]:
        try:
            self.keys = self._encode()
        except (RuntimeError, IndexError) as error:
            purity.coach(error, self.second, self.dtype)
            raise
        for end, keys in self.keys.items():
            if not keys.is_meta and not bool(keys.isfinite().all()):
                raise NonFiniteError(
                    f"features of the second view at {end!r} are zero, NaN or infinite, so that their cosine is not "
                    "defined; are all units inactive, or the last layer's weights zero?"
                )
        if not self.criterion.stop_gradient:
            # The network itself has to keep examples apart: seen here with the keys stopped.
            self.inputs, self.targets = torch.cat([self.inputs, self.second]), self.targets.repeat(2)
        traces = super()._dry_run(loss)
        self.coupled = not self.criterion.stop_gradient
        return traces


def _rows(represented: Any) -> Tensor:
    if not isinstance(represented, Tensor) or represented.ndim < 2:
        shape = tuple(represented.shape) if isinstance(represented, Tensor) else type(represented).__name__
        raise ValueError(f"InfoNCE needs features [batch, width, …], the network returned {shape}")
    return represented.flatten(1)


def _check_views(views: tuple[Tensor, Tensor]) -> None:
    if not (isinstance(views, tuple | list) and len(views) == 2 and all(isinstance(v, Tensor) for v in views)):
        raise TypeError(f"views is {type(views).__name__}, expected a pair of tensors: two views of the same images")
    one, two = views
    if not (one.is_floating_point() and two.is_floating_point()):
        raise TypeError(f"views are {one.dtype} and {two.dtype}, expected floating-point images")
    if one.shape != two.shape:
        raise ValueError(
            f"views have shapes {tuple(one.shape)} and {tuple(two.shape)}, expected the same: image i of the second "
            "is the other view of image i of the first"
        )
    if one.ndim == 0 or len(one) < 2:
        raise ValueError("InfoNCE tells examples apart, so it needs at least 2; with one its loss is always 0")
