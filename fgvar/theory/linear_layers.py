"""Linear layers: recognise modules whose weights move their site by a known linear map, and check that they do.

A module's output y = Wx + b may reach its site as itself, through something elementwise, or through a layer
norm over any block of axes: ∂z = a·P ∂y with P the identity or 1 − 11ᵀ/q − ẑẑᵀ/q within each block of q
numbers. That is a hypothesis drawn from shapes and from a few directional derivatives, accepted only if it
predicts further ones to rounding; module names and forward code are not looked at.
"""

import itertools
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fgvar.estimators.random_streams import Stream
from fgvar.nn.forward_mode import jvp
from fgvar.problem import Problem
from fgvar.theory.linear_forms import Form, Layout, linear_form
from fgvar.theory.site_jacobians import Links

PROBES = 4  # directional derivatives for one unknown scale a number: three to spare as a check
NORM_EPS = (1e-5, 1e-6, 1e-8, 1e-12, 0.0)  # of layer norms that no module declares


@dataclass(frozen=True)
class Layer:
    """A module whose output reaches one site: ∂z = scale·P ∂y.

    Attributes:
        module: its name.
        site: the site's name.
        x: see `Form`.
        scale: a [batch, *site].
        normed: ẑ [batch, *site], or None where P is the identity.
        tile: size along each axis of the site of the blocks that are normalised.
        rows: the site's layout → [batch, positions, groups, fan-out].
    """

    module: str
    site: str
    x: Tensor
    scale: Tensor
    normed: Tensor | None
    tile: tuple[int, ...]
    rows: Layout

    def parameters(self, problem: Problem) -> dict[str, str]:
        """Its "weight" and "bias" → their names among the problem's parameters."""
        own = [name for name, owners in problem.network.owners.items() if owners == (self.module,)]
        return {name.rpartition(".")[2]: name for name in own}

    def project(self, v: Tensor, normed: Tensor | None) -> Tensor:
        """P v, P being symmetric, with the ẑ of this or another example."""
        if normed is None:
            return v
        q = math.prod(self.tile)
        return v - (block_sum(v, self.tile) + normed * block_sum(normed * v, self.tile)) / q


def block_sum(v: Tensor, tile: tuple[int, ...]) -> Tensor:
    """Sums over consecutive blocks of the given size [batch, *site], each repeated over its block."""
    split = [(size // t, t) for size, t in zip(v.shape[1:], tile, strict=True)]
    apart = v.reshape(len(v), *itertools.chain(*split))
    total = apart.sum(tuple(range(2, apart.ndim, 2)), keepdim=True)
    return total.expand(apart.shape).reshape(v.shape)


def recognise(problem: Problem, sites: Collection[str], linked: Links) -> dict[str, Layer]:
    """Modules → what their parameters move, for those of which the hypothesis holds."""
    found: dict[str, Layer] = {}
    for candidates in _rounds(problem, linked):
        found |= _probe(problem, sites, candidates)
    return found


def _rounds(problem: Problem, linked: Links) -> Iterator[dict[str, str]]:
    """Modules to be probed at once, with the site of each: no two of them lead to one site."""
    queues: dict[str, list[str]] = {}
    for module, reached in linked.modules.items():
        own = [name for name, owners in problem.network.owners.items() if module in owners]
        # A weight that is tied moves several places, of which one module shows but its own.
        alone = all(problem.network.owners[name] == (module,) for name in own)
        if own and alone and len(reached) == 1 and all(linked.parameters.get(p) == reached for p in own):
            queues.setdefault(reached[0], []).append(module)
    while any(queues.values()):
        yield {queue.pop(0): site for site, queue in queues.items() if queue}


def _probe(problem: Problem, sites: Collection[str], candidates: dict[str, str]) -> dict[str, Layer]:
    unshifted = {name: torch.zeros((), dtype=problem.dtype, device=problem.device) for name in candidates}
    _, seen = problem.shift_outputs(problem.params, unshifted, cut=sites)
    forms = {name: form for name in candidates if (form := linear_form(problem, name, *seen[name]))}
    if not forms:
        return {}
    outputs = {name: seen[name][1] for name in forms}
    # The first and the last number of each output: how far what they move reaches is a block of the norm.
    corners = [_moved(problem, sites, {}, {name: _unit(y, at) for name, y in outputs.items()}) for at in (0, -1)]
    # Of normal numbers, none of them 0, so that every number of the output is tried. By a stream of their own: the
    # answer is the same in every run.
    directions = [
        {
            name: Stream(0, f"probe of {name}", i).normal(y.shape, y.dtype, y.device)
            for name, y in outputs.items()
        }
        for i in range(PROBES)
    ]  # fmt: skip
    moved = [_moved(problem, sites, {}, direction) for direction in directions]
    layers = {}
    for name, form in forms.items():
        site = candidates[name]
        along = [direction[name] for direction in directions]
        tile = _tile(*(corner[site] for corner in corners))
        layer = _fit(problem, name, site, form, outputs[name], tile, along, torch.stack([m[site] for m in moved]))
        if layer is not None:
            layers[name] = layer
    return _verified(problem, sites, layers)


def _moved(
    problem: Problem, sites: Collection[str], weights: dict[str, Tensor], shifts: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Derivatives of the sites' values along directions in parameters and modules' outputs."""

    def values(some: dict[str, Tensor], shifted: dict[str, Tensor]) -> dict[str, Tensor]:
        return problem.shift_outputs({**problem.params, **some}, shifted, cut=sites)[0]

    point = {name: problem.params[name] for name in weights}, {k: torch.zeros_like(v) for k, v in shifts.items()}
    tangents: dict[str, Tensor] = jvp(values, point, (weights, shifts))[1]
    return tangents


def _fit(
    problem: Problem,
    name: str,
    site: str,
    form: Form,
    y: Tensor,
    tile: tuple[int, ...],
    along: list[Tensor],
    moved: Tensor,
) -> Layer | None:
    """The hypothesis on ∂z/∂y that predicts ``moved`` from ``along``."""
    shape, q = moved.shape[1:], math.prod(tile)
    if y.shape[0] != shape[0] or y[0].numel() != math.prod(shape[1:]):
        return None
    # Blocks that do not tile an axis: something other than a norm lies between.
    if any(size % t for size, t in zip(shape[1:], tile, strict=True)):
        return None
    # A token layer transposes on its way to the site, and a reshape says nothing of it: every order is tried.
    for order in itertools.permutations(range(1, y.ndim)):
        to_site, rows = _layouts(tuple(y.shape), shape, order, form.rows)
        steps = torch.stack([to_site(direction) for direction in along])
        # The ε of a norm cannot be read off its output; those in use are few.
        for eps in _norm_eps(problem) if q > 1 else (0.0,):
            normed = _normed(to_site(y), tile, eps) if q > 1 else None
            layer = Layer(name, site, form.x, torch.ones_like(moved[0]), normed, tile, rows)
            predicted = torch.stack([layer.project(step, normed) for step in steps])
            # One unknown for each number of the site, by least squares; that it fits all probes is the test.
            scale = (moved * predicted).sum(0) / predicted.square().sum(0).clamp_min(torch.finfo(y.dtype).tiny)
            if _close(problem, scale * predicted, moved):
                return replace(layer, scale=scale)
    return None


def _unit(y: Tensor, at: int) -> Tensor:
    """1 at one number of every example, else 0."""
    flat = torch.zeros(len(y), y[0].numel(), dtype=y.dtype, device=y.device)
    flat[:, at] = 1
    return flat.reshape(y.shape)


def _tile(first: Tensor, last: Tensor) -> tuple[int, ...]:
    """Extent along each axis of what the first and the last number of an output move."""
    sizes = torch.tensor(first.shape[1:])
    reach = torch.ones_like(sizes)
    for moved, mirrored in ((first, False), (last, True)):
        where = (moved != 0).any(0).nonzero().cpu()
        if len(where):
            reach = reach.maximum(sizes - where.amin(0) if mirrored else 1 + where.amax(0))
    return tuple(reach.tolist())


def _layouts(
    output: tuple[int, ...], site: tuple[int, ...], order: tuple[int, ...], rows: Layout
) -> tuple[Layout, Layout]:
    """From a module's output to a site by permuting axes and reshaping, and from there to the module's rows."""
    permuted = [output[axis] for axis in order]
    back = [0, *(1 + order.index(axis) for axis in range(1, len(output)))]
    return (
        lambda y: y.permute(0, *order).reshape(len(y), *site[1:]),
        lambda z: rows(z.reshape(len(z), *permuted).permute(back)),
    )


def _norm_eps(problem: Problem) -> list[float]:
    declared = [getattr(child, "eps", None) for child in problem.network.modules.values()]
    return list(dict.fromkeys([*(eps for eps in declared if isinstance(eps, float)), *NORM_EPS]))


def _normed(y: Tensor, tile: tuple[int, ...], eps: float) -> Tensor:
    q = math.prod(tile)
    centred = y - block_sum(y, tile) / q
    return centred / (block_sum(centred.square(), tile) / q + eps).sqrt().clamp_min(torch.finfo(y.dtype).tiny)


def _verified(problem: Problem, sites: Collection[str], layers: dict[str, Layer]) -> dict[str, Layer]:
    """The layers that predict how their sites move along a random direction in their parameters."""
    weights: dict[str, Tensor] = {}
    expected = {}
    for name, layer in layers.items():
        n, positions, groups, _ = layer.x.shape
        step = torch.zeros((), dtype=problem.dtype, device=problem.device)
        for kind, parameter in layer.parameters(problem).items():
            value = problem.params[parameter]
            v = weights[parameter] = Stream(0, parameter, 0).normal(value.shape, value.dtype, value.device)
            x = layer.x if kind == "weight" else torch.ones_like(layer.x[..., :1])
            step = step + torch.einsum("nrhi,hoi->nrho", x, v.reshape(groups, -1, x.shape[3]))
        # Where each number of the site stands among the rows, to go back.
        numbers = torch.arange(layer.scale[0].numel(), device=problem.device).reshape(1, *layer.scale.shape[1:])
        outputs = torch.empty_like(layer.scale).flatten(1)
        outputs[:, layer.rows(numbers).flatten()] = step.expand(n, positions, groups, -1).flatten(1)
        outputs = outputs.reshape(layer.scale.shape)
        expected[name] = layer.scale * layer.project(outputs, layer.normed)
    # Along parameters, where `_fit` went along outputs: wrong inputs x would pass there, and do not here.
    moved = _moved(problem, sites, weights, {}) if layers else {}
    return {name: layer for name, layer in layers.items() if _close(problem, expected[name], moved[layer.site])}


def _close(problem: Problem, predicted: Tensor, found: Tensor) -> bool:
    # A hypothesis that is off by more would spoil the promised digits of the variance.
    tolerance = torch.finfo(problem.dtype).eps ** 0.575  # 1e-9 in float64
    return bool((predicted - found).abs().max() <= tolerance * found.abs().max())
