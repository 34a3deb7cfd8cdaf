"""Stacking: a function of every item of stacked tensors, by one vmap, or by plain calls where vmap cannot."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from fgvar.nn.failures import raised_in

# What is stacked, beside the draws of an estimator, in the words of the warning.
EXAMPLES, DIRECTIONS = "what is computed of each example", "what is computed along each direction"


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
            name: of the estimator, in the warning where neither network nor loss is to blame; empty: no warning.
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
        # Of the network or the loss one warning is enough, whatever is mapped; estimators have code of their own.
        who = where or (of if isinstance(of, str) else name)
        if who and not (where and self.warned):
            self.warned = self.warned or bool(where)
            end = "; chunk=1 says so without this warning" if who == name else ""
            warnings.warn(
                f"{who} does not run under torch.func.vmap (as .item() and an if on a tensor do not), so that it is "
                f"computed one by one, by plain calls: the same numbers, in more time{end}",
                stacklevel=2,
            )
        return found


def _one_by_one(function: Callable[..., Any], *stacks: Any) -> Any:
    count = len(tree_leaves(stacks)[0])
    # Copies: what returns one buffer of its own at every call would have given the last item for all.
    found = [tree_map(torch.clone, function(*tree_map(lambda leaf, i=i: leaf[i], stacks))) for i in range(count)]
    return tree_map(lambda *values: torch.stack(values), *found)


@contextmanager
def _silent_loops() -> Iterator[None]:
    """Within, operations that vmap has no rule for loop without torch's request to file an issue about them."""
    switch = torch._C._functorch._set_vmap_fallback_warning_enabled  # type: ignore[attr-defined]
    switch(False)
    try:
        yield
    finally:
        switch(True)  # torch does not tell what it was
