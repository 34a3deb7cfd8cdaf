"""Stacking: a function of every item of stacked tensors, by one vmap, or by plain calls where vmap cannot."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from fgvar.nn.failures import raised_in

EXAMPLES, DIRECTIONS = "examples", "directions"  # what is stacked, beside the draws of an estimator


class Stacker:
    """Maps functions over stacked tensors, and remembers of one network what `torch.func.vmap` cannot do there.

    Attributes:
        warned: has there been the one warning about the network or the loss?
    """

    def __init__(self) -> None:
        # By identity, with what it is of, which keeps the number taken: estimators may not compare.
        self._plain: dict[int, object] = {}
        self.warned = False

    def __reduce__(self) -> tuple[Any, ...]:  # estimators may not pickle, and a copy finds out by itself
        return Stacker, ()

    def is_plain(self, of: object) -> bool:
        """Has vmap failed on such a stack, so that plain calls are made?"""
        return id(of) in self._plain

    def __call__(
        self, of: object, function: Callable[..., Any], *stacks: Any, name: str = "", at_once: int | None = None
    ) -> Any:
        """``function`` of every item of the stacks, stacked along a new first axis.

        Where vmap raises and plain calls do not, plain calls are made from then on, and a warning names the module.

        Args:
            of: what is stacked, EXAMPLES, DIRECTIONS, or the estimator of which these are draws.
            name: of the function, in the warning where neither the network nor the loss is to blame; empty: none.
            at_once: items of one vmap; default all.
        """
        if torch.compiler.is_compiling():  # which takes the map apart itself, and cannot trace what follows a failure
            return torch.func.vmap(function, chunk_size=at_once)(*stacks)
        if self.is_plain(of):
            return _one_by_one(function, *stacks)
        try:
            with _silent_loops():
                return torch.func.vmap(function, chunk_size=at_once)(*stacks)
        except Exception as error:
            if "memory" in str(error):  # plain calls would take hours where a smaller chunk is what is needed
                raise
            where = raised_in(error)
        found = _one_by_one(function, *stacks)  # what plain calls raise, too, is not vmap's fault
        self._plain[id(of)] = of
        self._warn(where, name)
        return found

    def _warn(self, where: str, name: str) -> None:
        if (where and self.warned) or not (where or name):
            return
        self.warned = self.warned or bool(where)
        end = "" if where else "; chunk=1 says so without this warning"
        warnings.warn(
            f"{where or name} does not run under torch.func.vmap (as .item() and an if on a tensor do not), so that "
            f"it is computed one by one, by plain calls: the same numbers, in more time{end}",
            stacklevel=3,
        )


def _one_by_one(function: Callable[..., Any], *stacks: Any) -> Any:
    count = len(tree_leaves(stacks)[0])
    found = [function(*tree_map(lambda leaf, i=i: leaf[i], stacks)) for i in range(count)]
    return tree_map(lambda *values: torch.stack(values), *found)


@contextmanager
def _silent_loops() -> Iterator[None]:
    """Within, operations that vmap has no rule for loop without torch's request to file an issue about them."""
    torch._C._functorch._set_vmap_fallback_warning_enabled(False)
    try:
        yield
    finally:
        torch._C._functorch._set_vmap_fallback_warning_enabled(True)  # torch does not tell what it was
