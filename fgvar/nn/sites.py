"""Sites: named tensors inside a network, z → z + tap, at which it can be perturbed, watched and cut."""

import copy
from collections.abc import Collection, Mapping
from functools import partial
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

from fgvar.nn.batch_axis import BatchAxis
from fgvar.nn.site_choice import chosen_modules, exact_modules, inside
from fgvar.nn.structures import activity, with_activity
from fgvar.nn.traits import traits_of


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
        # A buffer, so that functional_call can put a perturbation there; outside of state_dict, so that a network's
        # checkpoints load with and without sites.
        self.register_buffer("tap", torch.zeros(()), persistent=False)
        self.relu, self.patch_axis, self.group_axis = relu, patch_axis, group_axis

    def forward(self, z: Tensor) -> Tensor:
        return z + self.tap if self.tap.ndim else z  # a scalar tap is nobody's: adding its 0 would copy z

    def extra_repr(self) -> str:
        arguments = {"relu": self.relu, "patch_axis": self.patch_axis, "group_axis": self.group_axis}
        return ", ".join(f"{key}={value!r}" for key, value in arguments.items() if value is not None)


class OutputSite(Site):
    """What `with_sites` hangs on a module: a hook hands the output to `perturb`. A call is the identity.

    Containers, and their subclasses, call all of their children.

    Example:
        >>> site = OutputSite()
        >>> site.tap = torch.ones(2)
        >>> site(torch.zeros(2)), site.perturb(torch.zeros(2))
        (tensor([0., 0.]), tensor([1., 1.]))
    """

    def __call__(self, z: Any) -> Any:
        return z

    def perturb(self, z: Tensor) -> Tensor:
        """``z + tap``, seen by whoever has hooks on this module."""
        found: Tensor = super().__call__(z)
        return found


def with_sites(
    module: nn.Module,
    *,
    sites: Collection[str] | None = None,
    types: tuple[type[nn.Module], ...] | None = None,
    inputs: Any = None,
) -> nn.Module:
    """A copy of ``module`` with a `Site` on the output of every module that owns parameters to be estimated.

    The copy computes the same function and keeps every parameter's name; the site of module ``"1"`` is
    called ``"1.site"``, or ``"1.site1"`` where the module has a ``site`` of its own. Its parameters are copies, too:
    train the network that you measure. Of a module that returns a tuple (attention, recurrent layers) the first
    tensor is perturbed. Modules that learn exactly (heads, read-outs) and those whose own parameters are all frozen
    (``requires_grad`` is False) get no site, and `torch.nn.MultiheadAttention` gets one as a whole.

    A site needs an activity with the batch axis first, which position embeddings, routers of flattened tokens, and
    modules called twice or never do not return. With ``inputs`` the network is run on them, without moving its
    buffers or the global random state, and such modules get no site. Each parameter of theirs, and of the network
    itself (class tokens), is credited at the first output with a batch axis that depends on it: the sum of the
    embeddings (the dropout after it), the block around the router.

    Args:
        module: any network.
        sites: names of the modules to give a site, frozen or not, instead of all that own parameters. Of a module
            that has several names any one.
        types: give a site to the modules of these types, instead.
        inputs: an example batch, as `Problem` takes inputs: a tensor, or a tuple or dict of tensors.

    Raises:
        ValueError: an unknown module name, no module chosen, a module that learns exactly or is never called,
            or a network that has sites already; with inputs, a module in ``sites`` that returns no activity with the
            batch axis first, or inputs that the network does not take.
        TypeError: what is no network to follow (a function, a class, a torch.jit or DataParallel module) or to copy;
            inputs that are no tensors; in the forward pass, a module that returns neither a tensor nor a tuple with
            one.

    Example:
        >>> net = with_sites(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
        >>> [name for name, child in net.named_modules() if isinstance(child, Site)]
        ['0.site', '2.site']
        >>> net = nn.Sequential(nn.Flatten(0, 1), nn.Linear(3, 4), nn.Unflatten(0, (-1, 5)), nn.Linear(4, 2))
        >>> looked = with_sites(net, inputs=torch.ones(2, 5, 3))  # "1" returns [batch * 5, 4]
        >>> [name for name, child in looked.named_modules() if isinstance(child, Site)]
        ['2.site', '3.site']
    """
    require_module(module)
    _check_words(module, sites, types)
    instrumented = copied(module)
    batch_axis = None if inputs is None else BatchAxis(copied(module), inputs)
    chosen = chosen_modules(instrumented, sites, types, batch_axis)
    if not chosen:
        raise ValueError(
            f"with_sites found no module to follow in {type(module).__name__} "
            f"(sites={sites}, types={types}): name modules with sites=, or pass types="
        )
    for name, child in chosen.items():
        # Features are read after the site, in whichever order the two were attached.
        declared = (traits_of(other).feature_axes for other in child.children())
        axes = next((axes for axes in declared if axes is not None), None)
        # The axes are those of the output as its reader gets it, which another hook may have changed before.
        known = axes or {} if len(child._forward_hooks) == 1 else {}
        own = free_name(child, "site")
        child.add_module(own, OutputSite(patch_axis=known.get("patch_axis"), group_axis=known.get("group_axis")))
        child.register_forward_hook(partial(apply_site, name, own), prepend=axes is not None)
    return instrumented


def _check_words(module: nn.Module, sites: Collection[str] | None, types: tuple[type[nn.Module], ...] | None) -> None:
    if isinstance(sites, str):
        raise TypeError(f"sites is the text {sites!r}, expected a collection of names: [{sites!r}]")
    if sites is not None and not isinstance(sites, Collection):
        raise TypeError(f"sites is {sites!r}, expected a collection of names (those of named_modules)")
    kinds = types if isinstance(types, tuple) else (types,)
    if types is not None and not all(isinstance(kind, type) for kind in kinds):
        raise TypeError(f"types is {types!r}, expected a tuple of classes: (torch.nn.Linear,)")
    if sites is not None and types is not None:
        raise ValueError("with_sites takes sites= or types=, not both")
    if present := sites_of(module):
        raise ValueError(
            f"{type(module).__name__} has sites already ({present[0]!r}, …); call with_sites on plain networks"
        )


def require_module(module: object) -> None:
    """Raise unless this is a network that can be copied and followed from module to module."""
    if isinstance(module, type):
        raise TypeError(f"module is the class {module.__name__}, expected an instance: {module.__name__}(…)")
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module is {type(module).__name__}, expected a torch.nn.Module; a function belongs into the forward of "
            "one, which owns its parameters"
        )
    for name, child in module.named_modules():
        label = f"{name!r} ({type(child).__name__})" if name else f"the network ({type(child).__name__})"
        if isinstance(child, torch.jit.ScriptModule):
            raise TypeError(
                f"{label} is compiled by torch.jit, whose calls cannot be followed; give the Python module"
            )
        if isinstance(child, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise TypeError(f"{label} spreads batches over devices; give the network inside, its .module")
        if any(is_lazy(p) for p in child._parameters.values()):
            raise ValueError(f"{label} has parameters without a shape yet; call the network on a batch once before")


def copied(module: nn.Module, params: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy with tensors of its own, but for parameters that are given here by name: it has these very tensors."""
    # Weight norm and pruning leave their last result, with its graph, as a plain attribute. deepcopy refuses a graph,
    # and every pass makes it anew: the copy gets the value. Any other such tensor would silently become a constant.
    given, named = params or {}, dict(module.named_parameters())
    recomputed: dict[int, Any] = {
        id(p): nn.Parameter(given[name], p.requires_grad) for name, p in named.items() if name in given
    }
    for path, child in module.named_modules():
        hooks = child._forward_pre_hooks.values()
        by_hooks = {hook.name for hook in hooks if isinstance(hook, WeightNorm)}
        by_hooks |= {hook._tensor_name for hook in hooks if isinstance(hook, BasePruningMethod)}
        for name, value in vars(child).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                if name not in by_hooks:
                    raise ValueError(
                        f"{f'{path}.{name}'.lstrip('.')!r} is a tensor with a graph, here a constant; compute it in "
                        "forward, delete it (if a pass has left it), or make it a parameter or, detached, a buffer"
                    )
                recomputed[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(module, recomputed)  # what this memo holds, it takes for copied already
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"{type(module).__name__} cannot be copied ({str(error).splitlines()[0]}), and a copy is measured; "
            "keep locks, open files, generators and tensors with a graph out of its attributes"
        ) from error


def sites_of(module: nn.Module) -> list[str]:
    """Names of the sites in ``module`` that can be perturbed: heads have none."""
    exact = exact_modules(module)
    return [name for name, child in module.named_modules() if isinstance(child, Site) and not inside(name, exact)]


def free_name(module: nn.Module, name: str) -> str:
    """``name`` as it is, or numbered where the module has something of its own by that name."""
    return next(free for free in chain([name], (f"{name}{i}" for i in count(1))) if not hasattr(module, free))


def apply_site(name: str, own: str, module: nn.Module, _inputs: Any, output: Any) -> Any:
    """The hook of `with_sites`: a module's output, or its first tensor, behind its site, the child named ``own``."""
    site: Any = getattr(module, own)
    found = activity(output)
    if found is None:
        raise TypeError(
            f"a site after {name!r} ({type(module).__name__}) got {type(output).__name__}, expected a tensor or a "
            "tuple with one; choose other modules with with_sites(sites=…)"
        )
    return with_activity(output, site.perturb(found))
