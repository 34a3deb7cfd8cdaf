"""Skeleton: one thread's copy of a module, without parameters, whose hooks hand every call to a `ForwardPass`."""

import copy
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fgvar.nn.forward_mode import plain_operations
from fgvar.nn.forward_pass import ForwardPass
from fgvar.nn.structures import arguments


class Skeleton:
    """A hooked copy of a module on the meta device, and the one forward pass that is on.

    Hooks are registered once, here: doing so inside a compiled function would break its graph. A pass puts its
    parameters into the module while it runs, so that two passes at once need two skeletons.

    Args:
        module: without parameter values; it is copied.
        feedback: names of the modules through which gradients may return by other weights (see `Feedback`).
    """

    def __init__(self, module: nn.Module, feedback: Collection[str]) -> None:
        self.module = copy.deepcopy(module)
        self.modules: dict[str, nn.Module] = {k: v for k, v in self.module.named_modules() if k}
        self.without_hooks = {name: copy.deepcopy(self.modules[name]) for name in feedback}
        for child in [child for owner in self.without_hooks.values() for child in owner.modules()]:
            child._forward_hooks.clear()
        self._pass: ForwardPass | None = None
        for name, child in self.modules.items():
            child.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)
            child.register_forward_hook(partial(self._leave, name))
            # Before all others, those of `with_sites` too: what a module itself returns, ahead of its site.
            child.register_forward_hook(partial(self._own_output, name), prepend=True)

    def call(self, forward: ForwardPass, tensors: Mapping[str, Tensor], inputs: Any) -> Any:
        """The output of the module with these parameters and buffers, in this pass."""
        args, keywords = arguments(inputs)
        self._pass = forward
        try:
            if torch.compiler.is_compiling():  # which cannot trace the switches, and takes kernels apart itself
                return functional_call(self.module, dict(tensors), args, keywords, tie_weights=False)
            with plain_operations():
                return functional_call(self.module, dict(tensors), args, keywords, tie_weights=False)
        finally:
            self._pass = None

    def call_head(self, forward: ForwardPass, name: str, tensors: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """The output of a local head, which the module's own forward does not call."""
        self._pass = forward
        try:
            logits: Tensor = functional_call(self.modules[name], dict(tensors), (features,))
            return logits
        finally:
            self._pass = None

    # Modules are called outside of a pass, too, by those who take single layers apart: then nothing is done.

    def _enter(self, name: str, _module: nn.Module, inputs: Any, keywords: Any) -> Any:
        forward = self._pass
        return None if forward is None or not forward.sees_all else forward.enter(name, inputs, keywords)

    def _own_output(self, name: str, _module: nn.Module, inputs: Any, output: Any) -> Any:
        forward = self._pass
        return output if forward is None or forward.shifts is None else forward.shifts.add(name, inputs, output)

    def _leave(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        forward = self._pass
        if forward is None or not (forward.sees_all or name in forward.named):
            return output
        return forward.leave(name, output)


class PerThread:
    """One value for each thread that asks, made by ``make`` on its first use there. Copies start without any.

    Example:
        >>> lists = PerThread(list)
        >>> lists.value is lists.value
        True
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self._local = threading.local()

    @property
    def value(self) -> Any:
        value = getattr(self._local, "value", None)
        if value is None:
            value = self._local.value = self.make()
        return value

    def __reduce__(self) -> tuple[Any, ...]:  # what belongs to threads can be neither copied nor pickled
        return PerThread, (self.make,)
