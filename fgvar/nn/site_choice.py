"""Site choice: which modules of a network get a site: by name, by type, or those that own parameters."""

from collections.abc import Collection, Iterator
from itertools import chain

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from fgvar.errors import unknown
from fgvar.nn.batch_axis import BatchAxis
from fgvar.nn.traits import traits_of

# Modules that use their children's parameters without calling the children: no hook sees these.
INDIVISIBLE = (nn.MultiheadAttention,)


def exact_modules(module: nn.Module) -> list[str]:
    """Names of the modules in ``module`` that learn exactly: their parameters are never perturbed."""
    return [name for name, child in module.named_modules() if traits_of(child).learns_exactly]


def inside(name: str, modules: Collection[str]) -> bool:
    """Is ``name`` one of these modules, or within one? All are within "", the network itself."""
    return any(module in ("", name) or name.startswith(f"{module}.") for module in modules)


def chosen_modules(
    module: nn.Module,
    sites: Collection[str] | None,
    types: tuple[type[nn.Module], ...] | None,
    axes: BatchAxis | None,
) -> dict[str, nn.Module]:
    """The modules of these names, or of these types, or that own trainable parameters; all by name.

    With ``axes`` those alone whose activity has the batch axis first, and by default others in place of the rest.

    Raises:
        ValueError: a name of no module, or of one that can have no site.
    """
    eligible = _eligible(module)
    if sites is not None:
        names = _first_names(module, sites, axes)
    elif types is not None:
        of_type = {name for name, child in eligible.items() if isinstance(child, types) and not _frozen(child)}
        names = {name for name in of_type if axes is None or not axes.lacking(name)}
    else:
        names = {name for name, child in eligible.items() if any(p.requires_grad for p in _own_parameters(child))}
        names = names if axes is None else _with_batch_axis(names, axes, eligible)
    return {name: child for name, child in eligible.items() if name in names}


def _with_batch_axis(owners: set[str], axes: BatchAxis, eligible: Collection[str]) -> set[str]:
    """The owners of parameters whose activity has the batch axis first, and for the rest whom their parameters reach.

    The whole network counts to the rest: it returns after all that its own parameters, such as class tokens, lead to.
    """
    rest = {name: axes.module.get_submodule(name) for name in owners if not name or axes.lacking(name)}
    owned = {name: [p for p in _own_parameters(child) if p.requires_grad] for name, child in rest.items()}
    return (owners - rest.keys()) | axes.first_after(owned, eligible)


def _eligible(module: nn.Module) -> dict[str, nn.Module]:
    """The modules that are called, return an activity, and do not learn exactly."""
    never, indivisible = (*exact_modules(module), *_weight_makers(module)), _indivisible(module)
    return {
        name: child
        for name, child in module.named_modules()
        if not inside(name, never) and (name in indivisible or not inside(name, indivisible))
    }


def _weight_makers(module: nn.Module) -> list[str]:
    """Names of what makes the weights of parametrized modules: it is called, but returns no activity."""
    parametrized = (name for name, child in module.named_modules() if is_parametrized(child))
    return [f"{name}.parametrizations".lstrip(".") for name in parametrized]


def _indivisible(module: nn.Module) -> list[str]:
    return [name for name, child in module.named_modules() if isinstance(child, INDIVISIBLE)]


def _first_names(module: nn.Module, sites: Collection[str], axes: BatchAxis | None) -> set[str]:
    """The names under which `named_modules` lists these modules: a shared one has several, and one site."""
    modules = dict(module.named_modules(remove_duplicate=False))
    first = {id(child): name for name, child in module.named_modules()}
    exact, makers, indivisible = exact_modules(module), _weight_makers(module), _indivisible(module)
    for given in sites:
        if given not in modules:
            raise ValueError(unknown("module", given, (key for key in modules if key)))
        name = first[id(modules[given])]
        if inside(name, exact):
            raise ValueError(f"module {given!r} learns exactly and is never perturbed; leave it out of sites=")
        if inside(name, makers):
            raise ValueError(f"module {given!r} makes weights, no activity; name the module that has them in sites=")
        if name not in indivisible and inside(name, indivisible):
            owner = next(other for other in indivisible if inside(name, [other]))
            raise ValueError(
                f"module {given!r} is never called: {owner!r} ({type(modules[owner]).__name__}) uses its parameters "
                f"itself; name {owner!r} in sites="
            )
        if reason := axes.lacking(name) if axes is not None else "":
            raise ValueError(
                f"module {given!r} ({type(modules[given]).__name__}) {reason}, so that it has no site; leave it "
                "out of sites=, and name one behind it that returns one row an example"
            )
    return {first[id(modules[given])] for given in sites}


def _frozen(module: nn.Module) -> bool:
    """Does a module use parameters itself, and none that requires a gradient?"""
    own = [p.requires_grad for p in _own_parameters(module)]
    return bool(own) and not any(own)


def _own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that a module uses itself."""
    if isinstance(module, INDIVISIBLE):
        return module.parameters()
    makers = module.get_submodule("parametrizations").parameters() if is_parametrized(module) else ()
    return chain(module.parameters(recurse=False), makers)
