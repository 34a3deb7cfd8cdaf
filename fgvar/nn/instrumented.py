"""Network: a module's forward pass, watched, cut and mapped (which loss terms can a tensor reach?)."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fgvar.nn.forward_mode import use_linear_jvp, use_plain_weight_norm
from fgvar.nn.purity import undrawn
from fgvar.nn.reach import OUTPUT, ForwardTrace
from fgvar.nn.sites import copied, exact_modules, inside
from fgvar.nn.skeleton import OfThread, Skeleton


class Network:
    """A module's forward pass, which can be watched and cut, as a function of parameters and buffers.

    It runs on a private `Skeleton` of the module, never on the module itself. Each thread has a skeleton of its own,
    so that threads may share one network.
    """

    def __init__(self, module: nn.Module) -> None:
        self.owners, self.aliases = _owners(module)
        blank = copied(module).to("meta")
        use_linear_jvp(blank)
        use_plain_weight_norm(blank)
        called = {name for name, _ in blank.named_modules() if name}
        plain = {name for owners in self.owners.values() for name in owners} & called
        self._skeletons = OfThread(partial(Skeleton, blank, sorted(plain)))
        self.writes = False  # does a pass change its inputs in place? Then it gets a copy.
        self.costs: dict[str, float] = {}  # what measuring remembers of estimators on this network
        heads = exact_modules(module)
        self.exact = frozenset(
            name for name, owners in self.owners.items() if all(inside(owner, heads) for owner in owners)
        )

    @property
    def skeleton(self) -> nn.Module:
        """This thread's copy of the module, on the meta device."""
        return self._here.module

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All modules inside of `skeleton`, by name."""
        return self._here.modules

    @property
    def _here(self) -> Skeleton:
        found: Skeleton = self._skeletons.value
        return found

    def run(
        self,
        tensors: Mapping[str, Tensor],
        inputs: Tensor,
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
        here = self._here
        here.watch, here.cut, here.values = watch, cut, {}
        here.add_tangent, here.replace = add_tangent or {}, replace or {}
        try:
            return self._call(tensors, inputs), here.values
        finally:
            here.watch, here.cut, here.values = (), (), {}
            here.add_tangent, here.replace = {}, {}

    def shift_outputs(
        self,
        tensors: Mapping[str, Tensor],
        inputs: Tensor,
        shifts: Mapping[str, Tensor],
        *,
        cut: Collection[str] = (),
        replace: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Any, Any]]]:
        """Values at the cuts with ``shifts`` added to what modules return; those modules' inputs and outputs.

        What a module itself returns, ahead of its site and of the shift.
        """
        here = self._here
        here.shifts, here.probed = shifts, {}
        try:
            return self.run(tensors, inputs, cut=cut, replace=replace)[1], here.probed
        finally:
            here.shifts, here.probed = {}, {}

    def trace(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> tuple[Any, ForwardTrace]:
        """Output and map of one forward pass. Drawing random numbers on the way is a ValueError."""
        kept = inputs.clone()
        before = kept._version
        recording = self._here.record()
        try:
            output = undrawn("network", lambda: self._call(tensors, kept))
        finally:
            self._here.recording = None
        self.writes = self.writes or kept._version != before
        return output, ForwardTrace(self.skeleton, recording, len(inputs))

    def direct_edges(
        self,
        found: ForwardTrace,
        tensors: Mapping[str, Tensor],
        params: Collection[str],
        inputs: Tensor,
        losses: Callable[[Any], Tensor],
    ) -> dict[str, tuple[str, ...]]:
        """For each parameter, site and end the ends, and OUTPUT, that it leads to *directly*, past no other end.

        Read off the graph of one backward pass (whatever the values), so that connections around an end count.
        """
        taps = {s: shape for s, shape in found.sites.items() if shape and len(found.visits[s]) == 1}
        like = next(tensors[name] for name in params)
        with torch.enable_grad():
            sources = {name: tensors[name].detach().clone().requires_grad_() for name in params}
            sources |= {
                s: torch.zeros(shape, dtype=like.dtype, device=like.device, requires_grad=True)
                for s, shape in taps.items()
            }
            moved = {f"{name}.tap" if name in taps else name: value for name, value in sources.items()}
            leaves = self._here.leaves = {}
            try:
                outputs, values = self.run({**tensors, **moved}, inputs, cut=tuple(found.ends))
                sources |= leaves
            finally:
                self._here.leaves = None
            reads = {**values, OUTPUT: losses(outputs)}
            reached = {end: connected([value], sources) for end, value in reads.items()}
        return {name: tuple(end for end in reads if name in reached[end]) for name in sources}

    def _call(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Any:
        # Moving to the meta device has untied what was tied.
        tied = {alias: tensors[name] for alias, name in self.aliases.items()}
        return self._here.call({**tensors, **tied}, inputs.clone() if self.writes else inputs)

    @contextmanager
    def feedback(self, weights: Mapping[str, Mapping[str, Tensor]]) -> Iterator[None]:
        """Within, gradients flow back through the modules named here as if they had these parameters.

        Forward, and by their own parameters, they do as ever.
        """
        here = self._here
        here.feedback = weights
        try:
            yield
        finally:
            here.feedback, here.fed = {}, {}


def connected(outputs: Collection[Tensor], sources: Mapping[str, Tensor]) -> set[str]:
    """Names of the sources that the outputs' graphs lead to (whatever the values of the derivatives)."""
    alive = [output for output in outputs if output.requires_grad]
    if not alive:
        return set()
    total = torch.stack([output.sum() for output in alive]).sum()
    found = torch.autograd.grad(total, list(sources.values()), allow_unused=True, retain_graph=True)
    return {name for name, gradient in zip(sources, found, strict=True) if gradient is not None}


def _owners(module: nn.Module) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """For each parameter the modules that own it, and for each further name of a tied one its first name."""
    names = {id(p): name for name, p in module.named_parameters()}
    owners: dict[str, list[str]] = {}
    aliases: dict[str, str] = {}
    for path, parameter in module.named_parameters(remove_duplicate=False):
        name = names[id(parameter)]
        owners.setdefault(name, []).append(path.rpartition(".")[0])
        if path != name:
            aliases[path] = name
    return {name: tuple(paths) for name, paths in owners.items()}, aliases
