"""Traits: what a module declares of itself, which no one can see from outside."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

# A name that no user's module has for anything else: traits are declared on modules of all kinds.
ATTRIBUTE = "fgvar_traits"


@dataclass(frozen=True)
class Traits:
    """What a module may declare, as the attribute ``fgvar_traits`` of its class or of itself.

    All of it is taken on trust: what is declared and not so makes estimates biased, which `fgvar.testing` finds.

    Args:
        learns_exactly: parameters of the module, and of those inside, learn from their exact gradient and are never
            perturbed: a classifier, a local head.
        group_rows: row g of each parameter (first axis, in consecutive and equal groups) moves the features of
            channel group g alone, so that group's copies of the local loss are all the credit that it needs.
        published_group_rows: the code of Ren et al. 2023 credits the parameters so although that does not hold;
            counts with ``LocalLosses(credit="published")`` alone.
        feature_axes: of a module hung on another to read its output (as `with_local_heads` does): "patch_axis" and
            "group_axis" of that output, where it has them. None for all other modules.

    Example:
        >>> class Classifier(nn.Linear):
        ...     fgvar_traits = Traits(learns_exactly=True)
        >>> traits_of(Classifier(3, 2)).learns_exactly, traits_of(nn.Linear(3, 2)).learns_exactly
        (True, False)
    """

    learns_exactly: bool = False
    group_rows: bool = False
    published_group_rows: bool = False
    feature_axes: Mapping[str, int] | None = None


NONE_DECLARED = Traits()


def traits_of(module: object) -> Traits:
    """What a module declares; one that declares nothing has none of these traits.

    Raises:
        TypeError: a declaration that is no `Traits`.
    """
    declared = getattr(module, ATTRIBUTE, NONE_DECLARED)
    if not isinstance(declared, Traits):
        raise TypeError(
            f"{ATTRIBUTE} of {type(module).__name__} is {type(declared).__name__}, expected fgvar.networks.Traits(…)"
        )
    return declared


def declare(module: nn.Module, **traits: Any) -> None:
    """Declare traits of one module, beside those that it has; others of its class stay as they are.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> declare(layer, learns_exactly=True)
        >>> traits_of(layer).learns_exactly
        True
    """
    # nn.Module's own __setattr__ is for tensors and modules.
    object.__setattr__(module, ATTRIBUTE, replace(traits_of(module), **traits))
