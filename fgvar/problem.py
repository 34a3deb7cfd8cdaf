"""Problem: a network, a loss and one batch, as pure functions of named tensors."""

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.utils._pytree import tree_map

from fgvar import dry_run, identity, loss_functions, problem_checks
from fgvar.loss_functions import Loss, even_weights, losses_and_weights
from fgvar.nn import failures, purity, stacking, structures
from fgvar.nn.instrumented import Network
from fgvar.nn.reach import ForwardTrace
from fgvar.nn.sites import require_module


class Problem:
    """A network, a loss and one batch: everything that a gradient is a gradient of.

    ``loss(params)`` is the (weighted) *mean* over the batch, and every gradient in fgvar is of such means. The module
    is read once; later changes to it are not seen. Nothing here reads or moves the global random state.

    Args:
        module: any network in which examples do not influence each other. What is estimated, ``params``, are its
            parameters that require a gradient; frozen ones, of any dtype, are constants.
        loss: "cross_entropy", "causal_lm", "mse" (see `fgvar.loss_functions`) or a callable ``(outputs, targets) ->
            ℓ`` of shape [batch], or ``-> (ℓ, w)``, both [batch], for Σ w ℓ / Σ w. Weights depend on targets alone.
        batch: inputs and targets, each a tensor, or a tuple, list or dict of tensors (a pytree), batch axis first in
            all. The module is called as module(x), of a tuple as module(*x), of a dict as module(**x).

    Raises:
        TypeError: a module, a batch or a loss that is none: a function or class as module, arrays, a loss of other
            arguments, or of what is no floating-point tensor.
        ValueError: a network or a loss that couples examples, draws random numbers, uses parameters that the network
            does not own, writes into buffers, outputs or targets, or cannot be followed by `torch.func`; no
            parameters that require a gradient, or such of several dtypes, sparse or complex; tensors on several
            devices; inputs or targets out of range; a loss that is not one number an example, or weighs by outputs.
        NonFiniteError: parameters, inputs or losses with NaN or infinity.

    Example:
        >>> x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
        >>> problem = Problem(nn.Linear(3, 2), "cross_entropy", (x, y))
        >>> {name: tuple(g.shape) for name, g in problem.backprop().items()}
        {'weight': (2, 3), 'bias': (2,)}
    """

    params: dict[str, Tensor]
    inputs: Any
    targets: Any
    # n w/Σw of a loss with weights, [batch]: a mean over some examples is then their part of Σ w ℓ / Σ w. None where
    # the loss has none, and for a whole batch of which no example has been taken yet.
    weights: Tensor | None = None
    weighs = False  # has the loss weights?
    importance: Tensor | None = None  # what a sampler multiplies each example's loss by, [batch]
    taps: Mapping[str, Tensor]  # site → what is added to its activity, [batch, …]
    origin: "Problem | None" = None  # where the probabilities of samplers are declared, if parameters moved since
    trace: ForwardTrace
    single_trace: ForwardTrace  # of the first example alone
    coupled = False  # does a loss term's gradient depend on other examples than its own?
    of_batch = False  # is a loss term made of other examples, too, be it of constants?

    def __init__(self, module: nn.Module, loss: str | Loss, batch: tuple[Any, Any]) -> None:
        require_module(module)
        problem_checks.require_forward(module)
        self.loss_function: Loss = loss_functions.as_loss_function(loss)
        self.inputs, self.targets = problem_checks.checked_batch(batch)
        self.taps = {}
        problem_checks.require_arguments(module, self.inputs)
        problem_checks.require_parameters(module)
        self.params, self.buffers = problem_checks.params_and_constants(module)
        leaves = problem_checks.named_leaves(self.inputs, self.targets)
        problem_checks.require_one_device({**self.params, **self.buffers, **leaves})
        problem_checks.refuse_coupled_or_random(module)
        self.network = Network(module)
        problem_checks.require_finite("parameters", {**self.params, **self.frozen})
        with purity.undisturbed(self.device):
            self.trace, self.single_trace = self._dry_run(loss if isinstance(loss, str) else "")

    def __repr__(self) -> str:
        return identity.of_problem(self)

    def _dry_run(self, loss: str) -> tuple[ForwardTrace, ForwardTrace]:
        return dry_run.traces(self, loss)

    @property
    def batch_size(self) -> int:
        return int(structures.leaves(self.inputs)[0].shape[0])

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.params.values())).dtype

    @property
    def frozen(self) -> dict[str, Tensor]:
        """The parameters that require no gradient, which are among the buffers here."""
        return {name: value for name, value in self.buffers.items() if name in self.network.owners}

    @property
    def perturbed(self) -> tuple[str, ...]:
        """Names of the parameters that schemes estimate: all but those of heads and read-outs."""
        return tuple(name for name in self.params if name not in self.network.exact)

    def at(self, params: Mapping[str, Tensor] | None = None, batch: tuple[Any, Any] | None = None) -> Self:
        """The same with other parameters (a whole state dict, too, as ``run.params``) or another batch, unchecked."""
        other = copy.copy(self)
        if params is not None:
            params, other.buffers = problem_checks.of_state(params, self.params, self.buffers, self.network.aliases)
            # A model's own parameters would record a graph.
            other.params = {name: p.detach() if isinstance(p, nn.Parameter) else p for name, p in params.items()}
        if batch is not None:
            other.inputs, other.targets = problem_checks.require_pair(batch)
            other.weights = other.importance = other.origin = None  # which are those of the old examples
            other.taps = {}
        return other

    def clone(self) -> Self:
        """The same problem with tensors of its own: whatever is done to them stays there."""
        changed = {"params": self.params, "buffers": self.buffers, **self._leaves()}
        return self._with(**tree_map(lambda tensor: tensor.clone(), changed))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that an estimator sees, by what they are."""
        return {
            **{f"parameter {k!r}": v for k, v in self.params.items()},
            **{f"{'frozen' if k in self.network.owners else 'buffer'} {k!r}": v for k, v in self.buffers.items()},
            **{k: v for what, leaf in self._leaves().items() for k, v in structures.named(what, leaf).items()},
        }

    def to(self, dtype: torch.dtype) -> Self:
        """The problem in another floating-point precision."""
        problem_checks.require_floating_point(dtype)
        changed = {"params": self.params, "buffers": self.buffers, **self._leaves()}
        return self._with(**structures.cast(changed, dtype))

    def rows(self, which: slice | Tensor) -> "Problem":
        """The problem of some of the examples, with their weights: a slice, or a tensor [rows] of their numbers.

        Raises:
            TypeError: ``which`` is neither.
            ValueError: no example is left.

        Example:
            >>> Problem(nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2))).rows(slice(1, 3)).batch_size
            2
        """
        index = problem_checks.checked_rows(which, self.batch_size)
        some = self._of(tree_map(lambda leaf: leaf[index], self._weighed()._leaves()))
        if not some.batch_size:
            raise ValueError(f"rows {which!r} are none of the batch of {self.batch_size}, expected at least one")
        return some

    def weighted(self, factors: Tensor) -> Self:
        """The problem whose loss of example n counts f_n times: (1/N) Σ f_n ℓ_n, the factors [batch] constant.

        Factors of earlier calls multiply; weights of the loss stay what they are. Another shape is a ValueError.

        Example:
            >>> problem = Problem(nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
            >>> bool(problem.weighted(torch.full((4,), 2.0)).loss() == 2 * problem.loss())
            True
        """
        factors = problem_checks.checked_factors(factors, self.batch_size, self.dtype)
        return self._with(importance=factors if self.importance is None else self.importance * factors)

    def unweighted(self) -> Self:
        """The problem without its `weighted` factors."""
        return self._with(importance=None)

    def moved(self, params: Mapping[str, Tensor]) -> Self:
        """The problem at other parameters, which remembers those it had: there the law of its noise was declared."""
        there = self.at({name: p.detach() for name, p in params.items()})
        return there._with(origin=self if self.origin is None else self.origin)

    def tapped(self, site: str, value: Tensor) -> Self:
        """The problem with ``value`` as the tap of a `Site` or of `Terms`, [batch, …]: each example has its own."""
        return self._with(taps={**self.taps, site: value})

    def example(self, index: int) -> "Problem":
        """The problem of one example, as a batch of one; from the end where the index is negative."""
        if not -self.batch_size <= index < self.batch_size:
            raise IndexError(f"example {index} of a batch of {self.batch_size}, expected one from 0 on")
        number = index % self.batch_size
        return self.rows(slice(number, number + 1))

    def per_example(self, function: Callable[..., Any], *beside: Any) -> Any:
        """``function`` of every example's own problem, stacked along a new first axis (one vmap, or plain calls).

        Tensors given ``beside``, with the examples along the first axis, go to the function example by example, too.
        """

        def one(leaves: Mapping[str, Any], *own: Any) -> Any:
            return function(self._of(tree_map(lambda leaf: leaf[None], leaves)), *own)

        return self.network.stack(stacking.EXAMPLES, one, self._weighed()._leaves(), *beside)

    def _leaves(self) -> dict[str, Any]:
        """All that has the examples along its first axis."""
        leaves = {"inputs": self.inputs, "targets": self.targets}
        if self.taps:
            leaves["taps"] = dict(self.taps)
        factors = {"weights": self.weights, "importance": self.importance}
        return leaves | {name: factor for name, factor in factors.items() if factor is not None}

    def _weighed(self) -> Self:
        """The problem with the weights of its whole batch: ahead of taking a part, whose own sum is another."""
        if not self.weighs or self.weights is not None:
            return self
        with torch.no_grad():
            losses, weights = self.raw_losses(self.run(self.params)[0])
        found = self._with(weights=even_weights(weights, losses))
        if torch._C._functorch.peek_interpreter_stack() is None:  # tensors of a transform must not outlive it
            self.weights = found.weights
        return found

    def _of(self, leaves: Mapping[str, Any]) -> "Problem":
        """The problem of some examples, given their `_leaves`."""
        return self._with(**leaves, origin=None)

    def _with(self, **changed: Any) -> Self:
        """The problem with other attributes; what is not named is shared."""
        other = copy.copy(self)
        vars(other).update(changed)
        return other

    def with_feedback(self, weights: Mapping[str, Mapping[str, Tensor]]) -> "Problem":
        """The problem whose gradients return through modules by other weights (see `Network.with_feedback`)."""
        return self._with(network=self.network.with_feedback(weights))

    def run(
        self,
        params: Mapping[str, Tensor],
        taps: Mapping[str, Tensor] | None = None,
        *,
        watch: Collection[str] = (),
        cut: Collection[str] = (),
        add_tangent: Mapping[str, Tensor] | None = None,
        replace: Mapping[str, Tensor] | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Forward pass with sites perturbed by ``taps``: output and watched values (see `Network.run`)."""
        tensors = {**self._constants(taps or {}), **params}
        return self.network.run(tensors, self.inputs, watch=watch, cut=cut, add_tangent=add_tangent, replace=replace)

    def shift_outputs(
        self,
        params: Mapping[str, Tensor],
        shifts: Mapping[str, Tensor],
        *,
        cut: Collection[str] = (),
        replace: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Any, Any]]]:
        """Values at ``cut`` with the outputs of modules shifted; inputs and outputs of those modules."""
        tensors = {**self._constants({}), **params}
        return self.network.shift_outputs(tensors, self.inputs, shifts, cut=cut, replace=replace)

    def _constants(self, taps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Buffers with what sites add: these taps, around those that the problem itself has."""
        around = {site: self.taps[site] + u if site in self.taps else u for site, u in taps.items()}
        return {**self.buffers, **{f"{site}.tap": value for site, value in {**self.taps, **around}.items()}}

    def losses(self, outputs: Any) -> Tensor:
        """Per-example loss [batch] of outputs of the network or of a local head: n w ℓ / Σ w where it has weights.

        Of a sampled batch times its `weighted` factors.
        """
        losses, weights = losses_and_weights(self.raw_losses(outputs))
        if weights is not None:
            losses = losses * (even_weights(weights, losses) if self.weights is None else self.weights)
        return losses if self.importance is None else losses * self.importance

    def raw_losses(self, outputs: Any) -> Any:
        """What the loss function itself returns: losses [batch], or a pair of them and their weights."""
        return self.loss_function(outputs, self.targets)

    def local_losses(self, params: Mapping[str, Tensor], end: str, features: Tensor) -> Tensor:
        """Per-example loss [batch] of the local head at ``end`` for the features there."""
        return self.losses(self.logits(params, end, features))

    def logits(self, params: Mapping[str, Tensor], end: str, features: Tensor) -> Tensor:
        """What the local head at ``end`` makes of the features there: [batch, classes]."""
        return self.network.logits(self.trace.ends[end], {**self.buffers, **params}, features)

    def correct(self, outputs: Any) -> Tensor | None:
        """Is the largest output the target's? [batch]; None where targets are no classes."""
        return loss_functions.correct(outputs, self.targets)

    def loss(self, params: Mapping[str, Tensor] | None = None) -> Tensor:
        """Batch-mean loss of the network's output."""
        return self.losses(self.run(self.params if params is None else params)[0]).mean()

    def backprop(self) -> dict[str, Tensor]:
        """The end-to-end gradient of `loss`; zero for local heads, which the output does not use."""
        with failures.coached_derivatives():
            return dict(grad(self.loss)(self.params))
