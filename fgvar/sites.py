"""Sites: the named tensors inside a network that can be perturbed, watched and cut."""

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from fgvar.errors import unknown


class Site(nn.Module):
    """The identity ``z → z + tap``, with a buffer ``tap`` that is zero until somebody perturbs it.

    ``torch.func.functional_call(net, {**params, "block0.grouped.tap": u}, x)`` perturbs an activity as it
    perturbs a weight, so activity perturbation (Ren et al. 2023, eq. 3) is a derivative along named tensors.

    Where the network *guarantees* that a perturbed number influences no other (patch, group) copy of its
    block's local loss, the site says along which axes the copies lie; unsaid means that it may influence all.

    Args:
        relu: name of the sibling module whose zero outputs mark inactive units (same shape as the site).
        patch_axis: axis of the activity (batch axis is 0) whose index is the patch it influences.
        group_axis: axis that falls into consecutive, equal chunks, one for each channel group.

    Example:
        >>> site = Site(patch_axis=1, group_axis=2)
        >>> z = torch.ones(2, 3)
        >>> bool((torch.func.functional_call(site, {"tap": 0.5 * z}, z) == 1.5).all())
        True
    """

    tap: Tensor

    def __init__(
        self, *, relu: str | None = None, patch_axis: int | None = None, group_axis: int | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("tap", torch.zeros(()), persistent=False)
        self.relu, self.patch_axis, self.group_axis = relu, patch_axis, group_axis

    def forward(self, z: Tensor) -> Tensor:
        return z + self.tap if self.tap.ndim else z

    def extra_repr(self) -> str:
        said = {"relu": self.relu, "patch_axis": self.patch_axis, "group_axis": self.group_axis}
        return ", ".join(f"{key}={value!r}" for key, value in said.items() if value is not None)


def with_sites(
    module: nn.Module,
    *,
    sites: Collection[str] | None = None,
    types: tuple[type[nn.Module], ...] | None = None,
) -> nn.Module:
    """A copy of ``module`` with a `Site` on the output of every module that owns parameters.

    The copy computes the same function and keeps every parameter's name; the site of module ``"1"`` is
    called ``"1.site"``. Its parameters are copies, too: train the network that you measure.

    Args:
        module: any network.
        sites: names of the modules to give a site, instead of all that own parameters.
        types: give a site to the modules of these types, instead.

    Raises:
        ValueError: an unknown module name, no module chosen, or a network that has sites already.

    Example:
        >>> net = with_sites(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
        >>> [name for name, child in net.named_modules() if isinstance(child, Site)]
        ['0.site', '2.site']
    """
    if isinstance(sites, str):
        raise TypeError(f"sites is the text {sites!r}, expected a collection of names: [{sites!r}]")
    if sites is not None and types is not None:
        raise ValueError("with_sites takes sites= or types=, not both")
    if present := [name for name, child in module.named_modules() if isinstance(child, Site)]:
        raise ValueError(
            f"{type(module).__name__} has sites already ({present[0]!r}, …); call with_sites on plain networks"
        )
    instrumented = copy.deepcopy(module)
    modules = dict(instrumented.named_modules())
    for name in sites or ():
        if name not in modules:
            raise ValueError(unknown("module", name, (key for key in modules if key)))
    for name, child in modules.items():
        if sites is not None:
            chosen = name in sites
        elif types is not None:
            chosen = isinstance(child, types)
        else:
            chosen = next(child.parameters(recurse=False), None) is not None
        if not chosen:
            continue
        child.add_module("site", Site())
        child.register_forward_hook(_apply_site)
    if not any(isinstance(child, Site) for child in instrumented.modules()):
        raise ValueError(
            f"with_sites found no module to follow in {type(module).__name__} "
            f"(sites={sites}, types={types}): name modules with sites=, or pass types="
        )
    return instrumented


def _apply_site(module: nn.Module, _inputs: Any, output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"a site after {type(module).__name__} got {type(output).__name__}, expected one tensor; "
            "choose other modules with with_sites(sites=…)"
        )
    perturbed: Tensor = module.site(output)  # type: ignore[operator]
    return perturbed
