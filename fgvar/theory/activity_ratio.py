"""Activity ratio: tells whether perturbing a layer's activities beats perturbing its weights, which positions share.

ρ = ‖X‖²‖∂L/∂Z‖²/‖Xᵀ ∂L/∂Z‖² of a layer Z = XW, against its fan-in.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fgvar.problem import Problem
from fgvar.theory.linear_forms import NORMS, Form, linear_form

InputsAndOutputs = dict[str, tuple[Any, Tensor]]  # module → its input and its output


@dataclass(frozen=True)
class ActivityRatio:
    """One layer's ρ, to be compared with its fan-in; all sums run over examples and positions.

    Attributes:
        ratio: ρ = ‖X‖²_F ‖∂L/∂Z‖²_F / ‖G‖²_F; NaN where G is 0 within rounding.
        per_example: its counterpart if each example is credited with its own loss, as `scheme("FG-A")` does; ρ
            itself with one example.
        fan_in: inputs of one position, over all groups; a bias is an input of 1.
        positions: tokens or pixels of one example that share the weights.
    """

    ratio: float
    per_example: float
    fan_in: int
    positions: int

    @property
    def activity_wins(self) -> bool:
        """Has `scheme("FG-A")` the smaller variance, with each example credited with its own loss?"""
        return self.per_example < self.fan_in


def activity_ratio(problem: Problem) -> dict[str, ActivityRatio]:
    """ρ of every linear, grouped linear and convolutional layer: does perturbing its activities beat its weights?

    Perturb one layer Z = XW alone: p inputs, q outputs (of a group, where there are several; p is over all), X and
    Δ = ∂L/∂Z over all T positions of all examples, G = XᵀΔ. By Var ĝ_w = ‖M‖² + tr M² (Gaussian noise; `variance`):

    - weights, ĝ = (G·V)V:   M = e_w Gᵀ,     so the pq weights sum to          pq‖G‖² + ‖G‖²;
    - activities, ĝ = Xᵀ(Δ·U)U: for weight ij, M = X_i Δᵀ in the T numbers of output j, ‖M‖² = ‖X_i‖²‖Δ‖² and
      tr M = G_ij, so they sum to                                           q‖X‖²‖Δ‖² + ‖G‖².

    The second is smaller exactly when ρ = ‖X‖²‖Δ‖²/‖G‖² < p: the +1 is the same in both and decides nothing. ρ = 1
    where a single position has all inputs and credits; it grows to T where positions' credits do not agree.

    *Exactly* holds for Gaussian noise on this layer alone (its bias included, as an input of 1) at its own output,
    no unit masked, one direction for all positions of the batch's one loss. Where each example is credited with its
    own loss L_n (noise independent across examples, `scheme("FG-A")`, against weight noise shared by the batch,
    `scheme("FG-W")`) it holds for ``per_example``,
    (Σ_n ‖X_n‖²‖Δ_n‖² + (Σ_n ‖G_n‖² − ‖G‖²)/q) / ‖G‖²,
    which is ρ for one example: there the +1 differs. With Rademacher noise weights have −‖G‖² at the end and
    activities ‖G‖² − 2Σ_t ‖x_t‖²‖δ_t‖², so ρ decides but for a relative margin of 2/q. Other layers perturbed at the
    same time add their ‖G‖² to the weights' side and their ‖Δ‖² to the activities'.

    Args:
        problem: network, loss and batch. Gradients are of the output's loss, the batch mean.

    Returns:
        Name of the weight → `ActivityRatio`, for all such layers whose weight and bias are theirs alone and are
        perturbed.

    Source: the closed forms of Ren et al. 2023, Sec. 3 (one position: ρ = 1 < p always); conditions derived here.

    Example:
        >>> x, y = torch.randn(1, 6, 3), torch.randn(1, 6, 2)
        >>> problem = Problem(nn.Linear(3, 2, bias=False), "mse", (x, y))
        >>> found = activity_ratio(problem)["weight"]
        >>> found.fan_in, found.positions
        (3, 6)
    """
    modules = _modules(problem)
    # The gradient by a zero that is added to Z is ∂L/∂Z: one backward pass for all layers.
    shifts = {name: torch.zeros_like(y) for name, (_, y) in _run(problem, modules, {})[1].items()}

    def loss(moved: dict[str, Tensor]) -> tuple[Tensor, InputsAndOutputs]:
        outputs, seen = _run(problem, modules, moved)
        return problem.losses(outputs).mean(), seen

    credits, seen = torch.func.grad(loss, has_aux=True)(shifts)
    found = {}
    for module, parameters in modules.items():
        form = linear_form(problem, module, *seen[module])
        if form is not None and _is_linear(problem, form, parameters, seen[module][1]):
            found[parameters["weight"]] = _ratio(form.x, form.rows(credits[module]), "bias" in parameters)
    return found


def _modules(problem: Problem) -> dict[str, dict[str, str]]:
    """Modules that may be such a layer → their "weight" and "bias" among the parameters."""
    found: dict[str, dict[str, str]] = {}
    for name in problem.perturbed:
        for owner in problem.network.owners[name]:
            found.setdefault(owner, {})[name.rpartition(".")[2]] = name
    return {
        module: parameters
        for module, parameters in found.items()
        if all(problem.network.owners[name] == (module,) for name in parameters.values())
        and "weight" in parameters
        and parameters.keys() <= {"weight", "bias"}
        and not isinstance(problem.network.skeleton.get_submodule(module), NORMS)
        and (not module or len(problem.trace.visits.get(module, ())) == 1)
    }


def _run(problem: Problem, modules: Collection[str], shifts: Mapping[str, Tensor]) -> tuple[Any, InputsAndOutputs]:
    """The network's output with those of modules shifted; the modules' inputs and outputs."""
    seen: InputsAndOutputs = {}

    def watch(name: str, _module: nn.Module, inputs: Any, output: Any) -> Any:
        seen[name] = (inputs[0] if inputs else None, output)
        return output + shifts[name] if name in shifts else output

    chosen = {name: problem.network.skeleton.get_submodule(name) for name in modules}
    # Before all others, those of `with_sites` too: what a module itself returns.
    handles = [module.register_forward_hook(partial(watch, name), prepend=True) for name, module in chosen.items()]
    try:
        return problem.run(problem.params)[0], seen
    finally:
        for handle in handles:
            handle.remove()


def _is_linear(problem: Problem, form: Form, parameters: Mapping[str, str], output: Tensor) -> bool:
    """Does the hypothesis of its form give the module's output?"""
    _, _, groups, fan_in = form.x.shape
    weight = problem.params[parameters["weight"]].reshape(groups, -1, fan_in)
    found = torch.einsum("nrhi,hoi->nrho", form.x, weight)
    if "bias" in parameters:
        found = found + problem.params[parameters["bias"]].reshape(groups, -1)
    expected = form.rows(output)
    # Shapes alone do not tell: a module of another kind may have a weight of the same shape.
    tolerance = torch.finfo(problem.dtype).eps ** 0.5
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _ratio(x: Tensor, delta: Tensor, bias: bool) -> ActivityRatio:
    """Of inputs [batch, positions, groups, fan-in] and credits [batch, positions, groups, fan-out]."""
    x, delta = x.double(), delta.double()
    if bias:
        x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    positions, groups, fan_in = x.shape[1:]
    outputs = delta.shape[-1]
    own = torch.zeros((), dtype=x.dtype, device=x.device)
    total = torch.zeros(groups, outputs, fan_in, dtype=x.dtype, device=x.device)
    for one_x, one_delta in zip(x, delta, strict=True):  # example by example: one gradient in memory
        gradient = torch.einsum("rho,rhi->hoi", one_delta, one_x)
        own, total = own + gradient.square().sum(), total + gradient
    squares, credits = x.square().flatten(1).sum(1), delta.square().flatten(1).sum(1)
    length, bound = float(total.square().sum()), float(squares.sum() * credits.sum())
    # Compared with ‖X‖²‖Δ‖², the largest that ‖G‖² can be: below it, in units of float32, lies rounding alone.
    if length <= (10 * torch.finfo(torch.float32).eps) ** 2 * bound:
        return ActivityRatio(float("nan"), float("nan"), groups * fan_in, positions)
    each = float(squares @ credits) + (float(own) - length) / outputs
    return ActivityRatio(bound / length, each / length, groups * fan_in, positions)
