"""Skeleton: one thread's copy of a module without parameters, whose hooks watch and change a forward pass."""

import copy
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from fgvar.nn.forward_mode import add_tangent
from fgvar.nn.reach import Visit


class Skeleton:
    """A hooked copy of a module on the meta device, and what its present forward pass is to do and has seen.

    Hooks are registered once, here (registering inside a compiled function would break its graph). A pass swaps the
    parameters of the module and writes these fields, so that two passes at once need two skeletons.

    Args:
        module: without parameter values; it is copied.
        plain: names of the modules that `Network.feedback` may name.
    """

    def __init__(self, module: nn.Module, plain: Collection[str]) -> None:
        self.module = copy.deepcopy(module)
        self.modules: dict[str, nn.Module] = {k: v for k, v in self.module.named_modules() if k}
        self.plain = {name: copy.deepcopy(self.modules[name]) for name in plain}
        for child in [child for owner in self.plain.values() for child in owner.modules()]:
            child._forward_hooks.clear()
        self.watch: Collection[str] = ()
        self.cut: Collection[str] = ()
        self.add_tangent: Mapping[str, Tensor] = {}
        self.replace: Mapping[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}
        self.shifts: Mapping[str, Tensor] = {}
        self.probed: dict[str, tuple[Any, Any]] = {}
        self.feedback: Mapping[str, Mapping[str, Tensor]] = {}
        self.fed: dict[str, Any] = {}
        self.recording: list[tuple[str, Visit]] | None = None
        self.leaves: dict[str, Tensor] | None = None
        self._entered: list[int] = []
        self._clock = 0
        for name, child in self.modules.items():
            child.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)
            child.register_forward_hook(partial(self._leave, name))
            # Before all others, those of `with_sites` too: what a module itself returns, ahead of its site.
            child.register_forward_hook(partial(self._probe, name), prepend=True)

    def call(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Any:
        if torch.compiler.is_compiling():  # which cannot trace the switches, and takes kernels apart itself
            return functional_call(self.module, dict(tensors), (inputs,), tie_weights=False)
        with _attention.differentiable():
            return functional_call(self.module, dict(tensors), (inputs,), tie_weights=False)

    def record(self) -> list[tuple[str, Visit]]:
        """Begin to note down who is called when."""
        self.recording, self._clock, self._entered = [], 0, []
        return self.recording

    def _enter(self, name: str, _module: nn.Module, inputs: Any, named: Any) -> Any:
        if self.recording is not None:
            self._entered.append(self._clock)
            self._clock += 1
        if name not in self.feedback:
            return None
        self.fed[name] = inputs, named
        return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, (inputs, named))

    def _probe(self, name: str, _module: nn.Module, inputs: Any, output: Any) -> Any:
        if name not in self.shifts:
            return None
        self.probed[name] = (inputs[0] if inputs else None, output)
        return output + self.shifts[name]

    def _leave(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        if self.recording is not None:
            shape = tuple(output.shape) if isinstance(output, Tensor) else None
            self.recording.append((name, Visit(self._entered.pop(), self._clock, shape)))
            self._clock += 1
        if name in self.feedback:
            back = functional_call(self.plain[name], dict(self.feedback[name]), *self.fed.pop(name))
            output = tree_map(lambda x, y: x + (y - y.detach()) if isinstance(x, Tensor) else x, output, back)
        if not any(name in named for named in (self.watch, self.cut, self.add_tangent, self.replace)):
            return output
        if name in self.values:
            raise ValueError(twice(name))
        self.values[name] = output
        if name in self.replace:
            return self.replace[name]
        if name in self.add_tangent:
            return add_tangent(output, self.add_tangent[name])
        if name not in self.cut:
            return output
        stopped = output.detach()
        if self.leaves is not None:
            self.leaves[name] = stopped.requires_grad_()
        return stopped


class OfThread:
    """One value for each thread that asks, made by ``make`` on its first use there. Copies start without any.

    Example:
        >>> here = OfThread(list)
        >>> here.value is here.value
        True
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self._local = threading.local()

    @property
    def value(self) -> Any:
        found = getattr(self._local, "value", None)
        if found is None:
            found = self._local.value = self.make()
        return found

    def __reduce__(self) -> tuple[Any, ...]:  # what belongs to threads can be neither copied nor pickled
        return OfThread, (self.make,)


class _Attention:
    """Attention in plain operations: the fused kernels have no forward-mode derivative.

    The choice of kernels belongs to the process: the first thread to come in makes it, the last to leave undoes it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._undo: Callable[[], object] = lambda: None

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._undo = _choose_plain()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._undo()


_attention = _Attention()


def _choose_plain() -> Callable[[], object]:
    """Choose the plain kernels; what is returned puts back the choice before."""
    fast = torch.backends.mha.get_fastpath_enabled()
    kernels = sdpa_kernel(SDPBackend.MATH)
    torch.backends.mha.set_fastpath_enabled(False)
    kernels.__enter__()

    def undo() -> None:
        kernels.__exit__(None, None, None)
        torch.backends.mha.set_fastpath_enabled(fast)

    return undo


def twice(name: str) -> str:
    return (
        f"{name!r} is called twice in one forward pass: one name cannot stand for two tensors; "
        "give each call a module of its own"
    )
