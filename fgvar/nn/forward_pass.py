"""ForwardPass: what one call of a network does at each module, and what it has seen there.

The object belongs to one call. The hooks of a `Skeleton` hand it the calls of modules at three moments, and the
network goes on with what it returns:

- `enter`, before the module: its arguments;
- `OutputShifts.add`, right behind the module: what it returned itself, ahead of a site from `with_sites`;
- `leave`, behind that site: the output that other modules get.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from fgvar.nn.forward_mode import add_tangent
from fgvar.nn.reach import CallRecorder


class OutputShifts:
    """Tensors added to what modules return themselves: y + s, and the inputs and y before it.

    Attributes:
        shifts: module → s, to broadcast with y.
        calls: module → (first input, y), filled by the pass.
    """

    def __init__(self, shifts: Mapping[str, Tensor]) -> None:
        self.shifts = shifts
        self.calls: dict[str, tuple[Any, Any]] = {}

    def add(self, name: str, inputs: tuple[Any, ...], output: Any) -> Any:
        if name not in self.shifts:
            return output
        self.calls[name] = (inputs[0] if inputs else None, output)  # no input: all were given by keyword
        return output + self.shifts[name]


class Feedback:
    """Gradients that return through modules f(x; w) as if their parameters were others, b.

    f(sg x; w) + f(x; b) − sg f(x; b), with sg the stop-gradient: its value and its gradient by w are those of
    f(x; w), its gradient by x is that of f(x; b).

    Args:
        modules: module → a copy of it without hooks, which computes f(x; b) unseen.
        weights: module → b, by name.
    """

    def __init__(self, modules: Mapping[str, nn.Module], weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.modules, self.weights = modules, weights
        self._arguments: dict[str, tuple[Any, Any]] = {}  # of the modules that have been entered and not left

    def enter(self, name: str, inputs: Any, keywords: Any) -> Any:
        if name not in self.weights:
            return None
        # The module itself gets them detached: its own Jacobian is then no way back, and only the copy's is.
        self._arguments[name] = inputs, keywords
        return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, (inputs, keywords))

    def leave(self, name: str, output: Any) -> Any:
        if name not in self.weights:
            return output
        by_feedback = functional_call(self.modules[name], dict(self.weights[name]), *self._arguments.pop(name))
        # y − sg y is 0 exactly: the value stays, to the bit.
        return tree_map(lambda x, y: x + (y - y.detach()) if isinstance(x, Tensor) else x, output, by_feedback)


@dataclass
class ForwardPass:
    """What one forward pass is to do, and what it has seen. Modules are named as in `named_modules`.

    Attributes:
        watch: modules whose outputs are wanted.
        cut: modules behind which gradients and tangents stop.
        add_tangent: module → direction that its output's tangent gains; gradients stop behind it.
        replace: module → what those that follow get in place of its output.
        shifts: what is added to modules' own outputs.
        feedback: by which weights gradients return.
        recorder: notes who is called when.
        leaves: where given, what follows a cut is a leaf that requires a gradient, and is put here: cut → leaf.
        values: what all modules in ``watch``, ``cut``, ``add_tangent`` and ``replace`` returned, before any of these
            was done to it; filled by the pass.
    """

    watch: Collection[str] = ()
    cut: Collection[str] = ()
    add_tangent: Mapping[str, Tensor] = field(default_factory=dict)
    replace: Mapping[str, Tensor] = field(default_factory=dict)
    shifts: OutputShifts | None = None
    feedback: Feedback | None = None
    recorder: CallRecorder | None = None
    leaves: dict[str, Tensor] | None = None
    values: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.named = {*self.watch, *self.cut, *self.add_tangent, *self.replace}
        # Most passes have business with a few modules, and their hooks need not ask about the others.
        self.sees_all = self.recorder is not None or self.feedback is not None

    def enter(self, name: str, inputs: Any, keywords: Any) -> Any:
        """The arguments to call a module with; None leaves them as they are."""
        if self.recorder is not None:
            self.recorder.enter()
        return None if self.feedback is None else self.feedback.enter(name, inputs, keywords)

    def leave(self, name: str, output: Any) -> Any:
        """What follows a module gets, given its output. A module with a name here, called again, is a ValueError."""
        if self.recorder is not None:
            self.recorder.leave(name, output)
        # Ahead of the cut: feedback is part of how the module differentiates, and a cut stops that, too.
        if self.feedback is not None:
            output = self.feedback.leave(name, output)
        if name not in self.named:
            return output
        if name in self.values:
            raise ValueError(called_twice(name))
        self.values[name] = output  # uncut, so that the local VJP of a layer runs from here to the cut before
        return self._handed_on(name, output)

    def _handed_on(self, name: str, output: Any) -> Any:
        if name in self.replace:
            return self.replace[name]
        if name in self.add_tangent:
            return add_tangent(output, self.add_tangent[name])
        if name not in self.cut:
            return output
        stopped: Tensor = output.detach()
        if self.leaves is not None:
            self.leaves[name] = stopped.requires_grad_()
        return stopped


def called_twice(name: str) -> str:
    """The sentence about a name that would stand for two tensors."""
    return (
        f"{name!r} is called twice in one forward pass: one name cannot stand for two tensors; "
        "give each call a module of its own"
    )
