"""Network: a module's forward pass, watched, cut and mapped (which loss terms can a tensor reach?)."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from fgvar.dual import pushed
from fgvar.linear import map_linearly
from fgvar.map import OUTPUT, Map, Visit
from fgvar.sites import exact_modules, inside


class Network:
    """A private, parameter-free skeleton of a module, whose forward pass can be watched and cut.

    Parameters and buffers are passed into `run`; the skeleton itself lives on the meta device. Watching is
    by hooks registered once, here, and never on the user's module (registering inside a compiled function
    would break its graph).
    """

    def __init__(self, module: nn.Module) -> None:
        self.owners, self.aliases = _owners(module)
        self.skeleton = copy.deepcopy(module).to("meta")
        map_linearly(self.skeleton)
        self.modules: dict[str, nn.Module] = {k: v for k, v in self.skeleton.named_modules() if k}
        self._plain = {name: _without_hooks(self.modules[name]) for name in _callable_owners(self)}
        self.costs: dict[str, float] = {}  # what measuring remembers of estimators on this network
        heads = exact_modules(module)
        self.exact = frozenset(
            name for name, owners in self.owners.items() if all(inside(owner, heads) for owner in owners)
        )
        self._watch: Collection[str] = ()
        self._cut: Collection[str] = ()
        self._push: Mapping[str, Tensor] = {}
        self._put: Mapping[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}
        self._shifts: Mapping[str, Tensor] = {}
        self._probed: dict[str, tuple[Any, Any]] = {}
        self._feedback: Mapping[str, Mapping[str, Tensor]] = {}
        self._fed: dict[str, Any] = {}
        self._recording: list[tuple[str, Visit]] | None = None
        self._leaves: dict[str, Tensor] | None = None
        self._entered: list[int] = []
        self._clock = 0
        for name, child in self.modules.items():
            # Bound methods, unlike closures, follow a copied or unpickled network.
            child.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)
            child.register_forward_hook(partial(self._leave, name))
            # Before all others, those of `with_sites` too: what a module itself returns, ahead of its site.
            child.register_forward_hook(partial(self._probe, name), prepend=True)

    def run(
        self,
        tensors: Mapping[str, Tensor],
        inputs: Tensor,
        *,
        watch: Collection[str] = (),
        cut: Collection[str] = (),
        push: Mapping[str, Tensor] | None = None,
        put: Mapping[str, Tensor] | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """The output, and what the modules in ``watch``, ``cut``, ``push`` and ``put`` returned.

        Gradients and tangents stop after the modules in ``cut``. After those in ``push`` gradients stop, while the
        tangent of an enclosing jvp passes and has the direction given there added. Values are handed out uncut. What
        follows a module in ``put`` gets the tensor given there instead. A module named here that is called twice is
        a ValueError.
        """
        self._watch, self._cut, self._push, self._put, self._values = watch, cut, push or {}, put or {}, {}
        try:
            return self._call(tensors, inputs), self._values
        finally:
            self._watch, self._cut, self._push, self._put, self._values = (), (), {}, {}, {}

    def probe(
        self,
        tensors: Mapping[str, Tensor],
        inputs: Tensor,
        shifts: Mapping[str, Tensor],
        *,
        cut: Collection[str] = (),
        put: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Any, Any]]]:
        """Values at the cuts with ``shifts`` added to what modules return; those modules' inputs and outputs.

        What a module itself returns, ahead of its site and of the shift.
        """
        self._shifts, self._probed = shifts, {}
        try:
            return self.run(tensors, inputs, cut=cut, put=put)[1], self._probed
        finally:
            self._shifts, self._probed = {}, {}

    def map(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> tuple[Any, Map]:
        """Output and map of one forward pass. Drawing random numbers on the way is a RuntimeError."""
        self._recording, self._clock, self._entered = [], 0, []
        output = None

        def forward(dummy: Tensor) -> Tensor:
            nonlocal output
            output = self._call(tensors, inputs)
            return dummy

        try:
            torch.func.vmap(forward, randomness="error")(torch.zeros(1))
            return output, Map(self.skeleton, self._recording, len(inputs))
        finally:
            self._recording = None

    def flow(
        self,
        found: Map,
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
            self._leaves = {}
            try:
                outputs, values = self.run({**tensors, **moved}, inputs, cut=tuple(found.ends))
                sources |= self._leaves
            finally:
                self._leaves = None
            reads = {**values, OUTPUT: losses(outputs)}
            reached = {end: connected([value], sources) for end, value in reads.items()}
        return {name: tuple(end for end in reads if name in reached[end]) for name in sources}

    def _call(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Any:
        # Moving to the meta device has untied what was tied.
        tied = {alias: tensors[name] for alias, name in self.aliases.items()}
        whole = {**tensors, **tied}
        if torch.compiler.is_compiling():  # which cannot trace the switches, and takes kernels apart itself
            return functional_call(self.skeleton, whole, (inputs,), tie_weights=False)
        with _differentiable_attention():
            return functional_call(self.skeleton, whole, (inputs,), tie_weights=False)

    @contextmanager
    def feedback(self, weights: Mapping[str, Mapping[str, Tensor]]) -> Iterator[None]:
        """Within, gradients flow back through the modules named here as if they had these parameters.

        Forward, and by their own parameters, they do as ever.
        """
        self._feedback = weights
        try:
            yield
        finally:
            self._feedback, self._fed = {}, {}

    def _enter(self, name: str, _module: nn.Module, inputs: Any, named: Any) -> Any:
        if self._recording is not None:
            self._entered.append(self._clock)
            self._clock += 1
        if name not in self._feedback:
            return None
        self._fed[name] = inputs, named
        return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, (inputs, named))

    def _probe(self, name: str, _module: nn.Module, inputs: Any, output: Any) -> Any:
        if name not in self._shifts:
            return None
        self._probed[name] = (inputs[0] if inputs else None, output)
        return output + self._shifts[name]

    def _leave(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        if self._recording is not None:
            shape = tuple(output.shape) if isinstance(output, Tensor) else None
            self._recording.append((name, Visit(self._entered.pop(), self._clock, shape)))
            self._clock += 1
        if name in self._feedback:
            back = functional_call(self._plain[name], dict(self._feedback[name]), *self._fed.pop(name))
            output = tree_map(lambda x, y: x + (y - y.detach()) if isinstance(x, Tensor) else x, output, back)
        if not any(name in named for named in (self._watch, self._cut, self._push, self._put)):
            return output
        if name in self._values:
            raise ValueError(twice(name))
        self._values[name] = output
        if name in self._put:
            return self._put[name]
        if name in self._push:
            return pushed(output, self._push[name])
        if name not in self._cut:
            return output
        stopped = output.detach()
        if self._leaves is not None:
            self._leaves[name] = stopped.requires_grad_()
        return stopped


@contextmanager
def _differentiable_attention() -> Iterator[None]:
    """Attention in plain operations: the fused kernels have no forward-mode derivative."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def connected(outputs: Collection[Tensor], sources: Mapping[str, Tensor]) -> set[str]:
    """Names of the sources that the outputs' graphs lead to (whatever the values of the derivatives)."""
    alive = [output for output in outputs if output.requires_grad]
    if not alive:
        return set()
    total = torch.stack([output.sum() for output in alive]).sum()
    found = torch.autograd.grad(total, list(sources.values()), allow_unused=True, retain_graph=True)
    return {name for name, gradient in zip(sources, found, strict=True) if gradient is not None}


def twice(name: str) -> str:
    return (
        f"{name!r} is called twice in one forward pass: one name cannot stand for two tensors; "
        "give each call a module of its own"
    )


def _callable_owners(network: Network) -> list[str]:
    """Names of the modules that own parameters themselves."""
    return [name for name in dict.fromkeys(o for owners in network.owners.values() for o in owners) if name]


def _without_hooks(module: nn.Module) -> nn.Module:
    plain = copy.deepcopy(module)
    for child in plain.modules():
        child._forward_hooks.clear()
    return plain


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
