"""Network: a module's forward pass as a function of its tensors, which can be watched, cut, moved and traced."""

import copy
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fgvar.nn.embeddings import use_true_derivatives
from fgvar.nn.forward_mode import use_plain_experts, use_plain_weight_norm
from fgvar.nn.forward_pass import Feedback, ForwardPass, OutputShifts
from fgvar.nn.layers import use_linear_jvp
from fgvar.nn.purity import coach, undrawn
from fgvar.nn.reach import OUTPUT, CallRecorder, ForwardTrace
from fgvar.nn.site_choice import exact_modules, inside
from fgvar.nn.sites import copied
from fgvar.nn.skeleton import PerThread, Skeleton
from fgvar.nn.stacking import Stacker
from fgvar.nn.structures import leaves


class Network:
    """A module's forward pass, which can be watched and cut, as a function of parameters and buffers.

    It runs on a private `Skeleton` of the module, never on the module itself. Each thread has a skeleton of its own,
    and each call a `ForwardPass` of its own, so that threads may share one network.

    Attributes:
        owners: parameter, frozen ones too → the modules that own it, several where it is tied.
        aliases: further name of a tied parameter → its first name.
        exact: names of the parameters that learn from their exact gradient.
        writes: does a pass change its inputs in place? Then it gets a copy.
        costs: what measuring remembers of estimators on this network.
        stack: maps functions over examples, directions and draws, by vmap where that runs on this network.
    """

    def __init__(self, module: nn.Module) -> None:
        self.owners, self.aliases = _owners(module)
        # Without values: a pass gets all tensors as arguments, and a skeleton a thread costs no memory.
        plain = {name: p.detach() for name, p in module.named_parameters() if type(p) is nn.Parameter}
        blank = copied(module, {name: p.to("meta") for name, p in plain.items()}).to("meta")
        use_plain_experts(blank)
        use_linear_jvp(blank)
        use_plain_weight_norm(blank)
        use_true_derivatives(blank)
        # named_modules lists a shared module under one name, while its parameters' owners have several.
        called = {name for name, _ in blank.named_modules() if name}
        with_parameters = {name for owners in self.owners.values() for name in owners} & called
        self._skeletons = PerThread(partial(Skeleton, blank, sorted(with_parameters)))
        self._feedback_weights: Mapping[str, Mapping[str, Tensor]] = {}
        self.writes = False
        self.costs: dict[str, float] = {}
        self.stack = Stacker()
        heads = exact_modules(module)
        trainable = (name for name, p in module.named_parameters() if p.requires_grad)
        # A parameter that a head shares with the trunk moves the trunk, so that it is perturbed.
        self.exact = frozenset(name for name in trainable if all(inside(o, heads) for o in self.owners[name]))

    @property
    def skeleton(self) -> nn.Module:
        """This thread's copy of the module, on the meta device."""
        return self._skeleton.module

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All modules inside of `skeleton`, by name."""
        return self._skeleton.modules

    @property
    def _skeleton(self) -> Skeleton:
        found: Skeleton = self._skeletons.value
        return found

    def with_feedback(self, weights: Mapping[str, Mapping[str, Tensor]]) -> "Network":
        """The network whose gradients flow back through the modules named here as if these had these parameters.

        Forward, and by their own parameters, the modules do as ever.
        """
        other = copy.copy(self)  # skeletons are shared: each pass brings its own feedback
        other._feedback_weights = weights
        return other

    def run(
        self,
        tensors: Mapping[str, Tensor],
        inputs: Any,
        *,
        watch: Collection[str] = (),
        cut: Collection[str] = (),
        add_tangent: Mapping[str, Tensor] | None = None,
        replace: Mapping[str, Tensor] | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """The output, and what the modules in ``watch``, ``cut``, ``add_tangent`` and ``replace`` returned.

        Gradients and tangents stop after the modules in ``cut``. After those in ``add_tangent`` gradients stop, while
        the tangent of an enclosing jvp passes and has the direction given there added. Values are handed out uncut.
        What follows a module in ``replace`` gets the tensor given there instead. A module named here that is called
        twice is a ValueError.
        """
        forward = ForwardPass(watch, cut, add_tangent or {}, replace or {}, feedback=self._feedback())
        return self._call(forward, tensors, inputs), forward.values

    def shift_outputs(
        self,
        tensors: Mapping[str, Tensor],
        inputs: Any,
        shifts: Mapping[str, Tensor],
        *,
        cut: Collection[str] = (),
        replace: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Any, Any]]]:
        """Values at the cuts with ``shifts`` added to what modules return; those modules' inputs and outputs.

        What a module itself returns, ahead of its site and of the shift.
        """
        shifted = OutputShifts(shifts)
        forward = ForwardPass(cut=cut, replace=replace or {}, shifts=shifted, feedback=self._feedback())
        self._call(forward, tensors, inputs)
        return forward.values, shifted.calls

    def logits(self, head: str, params: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """What a local head makes of features, with those of the parameters that are its own: [batch, classes]."""
        prefix = f"{head}."
        own = {name.removeprefix(prefix): p for name, p in params.items() if name.startswith(prefix)}
        return self._skeleton.call_head(ForwardPass(feedback=self._feedback()), head, own, features)

    def trace(self, tensors: Mapping[str, Tensor], inputs: Any) -> tuple[Any, ForwardTrace]:
        """Output and trace of one forward pass.

        Raises:
            ValueError: random numbers are drawn on the way, inputs are of another dtype, width or range than the
                network takes, or something in the network cannot be differentiated.
        """
        clone = _cloned(inputs)  # torch counts the writes to each tensor of it
        before = [leaf._version for leaf in leaves(clone)]

        def recorded() -> tuple[Any, CallRecorder]:
            recorder = CallRecorder()
            return self._call(ForwardPass(recorder=recorder), tensors, clone), recorder

        try:
            output, recorder = undrawn("network", recorded)
        except (RuntimeError, IndexError) as error:
            ordered = (tensors[name] for name in (*self.owners, *tensors))  # parameters first
            coach(error, inputs, next(t.dtype for t in ordered if t.is_floating_point()))
            raise
        self.writes = self.writes or [leaf._version for leaf in leaves(clone)] != before
        return output, ForwardTrace(self.skeleton, recorder.visits, len(leaves(inputs)[0]))

    def direct_edges(
        self,
        trace: ForwardTrace,
        tensors: Mapping[str, Tensor],
        params: Collection[str],
        inputs: Any,
        losses: Callable[[Any], Tensor],
    ) -> dict[str, tuple[str, ...]]:
        """For each parameter, site and end the ends, and OUTPUT, that it leads to *directly*, past no other end.

        Read off the graph of one backward pass (whatever the values), so that connections around an end count.
        """
        # Of a site that is called once, the tap is a source; one called twice cannot be perturbed.
        taps = {site: shape for site, shape in trace.sites.items() if shape and len(trace.visits[site]) == 1}
        like = next(tensors[name] for name in params)
        with torch.enable_grad():
            sources = {name: tensors[name].detach().clone().requires_grad_() for name in params}
            sources |= {
                site: torch.zeros(shape, dtype=like.dtype, device=like.device, requires_grad=True)
                for site, shape in taps.items()
            }
            moved = {f"{name}.tap" if name in taps else name: value for name, value in sources.items()}
            # Behind each cut a new leaf starts: what it leads to, it leads to past no other end.
            leaves: dict[str, Tensor] = {}
            forward = ForwardPass(cut=tuple(trace.ends), leaves=leaves)
            outputs = self._call(forward, {**tensors, **moved}, inputs)
            sources |= leaves
            reads = {**forward.values, OUTPUT: losses(outputs)}
            reached = {end: connected([value], sources) for end, value in reads.items()}
        return {name: tuple(end for end in reads if name in reached[end]) for name in sources}

    def _feedback(self) -> Feedback | None:
        return Feedback(self._skeleton.without_hooks, self._feedback_weights) if self._feedback_weights else None

    def _call(self, forward: ForwardPass, tensors: Mapping[str, Tensor], inputs: Any) -> Any:
        # Moving to the meta device has untied what was tied.
        tied = {alias: tensors[name] for alias, name in self.aliases.items()}
        return self._skeleton.call(forward, {**tensors, **tied}, _cloned(inputs) if self.writes else inputs)


def _cloned(structure: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone(), structure)


def connected(outputs: Collection[Tensor], sources: Mapping[str, Tensor]) -> set[str]:
    """Names of the sources that the outputs' graphs lead to (whatever the values of the derivatives)."""
    with_graph = [output for output in outputs if output.requires_grad]
    if not with_graph:
        return set()
    # One scalar, hence one backward pass. A gradient of zeros is a connection, too: where there is none, it is None.
    total = torch.stack([output.sum() for output in with_graph]).sum()
    found = torch.autograd.grad(total, list(sources.values()), allow_unused=True, retain_graph=True)
    return {name for name, gradient in zip(sources, found, strict=True) if gradient is not None}


def _owners(module: nn.Module) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """For each parameter the modules that own it, and for each further name of a tied one its first name."""
    names = {id(p): name for name, p in module.named_parameters()}  # which lists a tied one by its first name alone
    owners: dict[str, list[str]] = {}
    aliases: dict[str, str] = {}
    for path, parameter in module.named_parameters(remove_duplicate=False):
        name = names[id(parameter)]
        owners.setdefault(name, []).append(path.rpartition(".")[0])
        if path != name:
            aliases[path] = name
    return {name: tuple(paths) for name, paths in owners.items()}, aliases
