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
from fgvar.theory.linear_forms import Form, linear_form, transposed_form

InputsAndOutputs = dict[str, tuple[Any, Tensor]]  # module → its input and its output


@dataclass(frozen=True)
class ActivityRatio:
    """One weight's ρ, to be compared with its fan-in; all sums run over examples and positions.

    Attributes:
        ratio: ρ = ‖X‖²_F ‖∂L/∂Z‖²_F / ‖G‖²_F; NaN where G is 0 within rounding.
        per_example: its counterpart if each example is credited with its own loss, as `scheme("FG-A")` does; ρ
            itself with one example, and where a loss couples the examples, as each is credited with the sum then.
        fan_in: inputs of one position, over all groups; a bias is an input of 1.
        positions: tokens or pixels of one example that share the weights. Of a tied weight fan-in and positions are
            those of its first use.

    Example:
        >>> import torch
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.eye(4, 3), torch.ones(4, 2)))
        >>> found = activity_ratio(problem)["weight"]
        >>> found.fan_in, found.positions, 1 <= found.ratio  # three inputs and the bias's 1
        (4, 1, True)
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
    """ρ of every layer that is linear in its weight: does perturbing its activities beat perturbing its weights?

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

    What X is, by the kind of layer (Conv1D of Hugging Face is linear; groups and kernels count to p):

    - linear, convolution: the inputs of each position.
    - embedding: 1 at the token that is looked up; p is the size of the vocabulary, ‖X‖² the number of tokens, and
      ‖G‖² sums the credits of equal tokens before they are squared. ρ = T where no token occurs twice.
    - norm (layer, group, RMS): each number of the gain is a group with one input, the normalised number, and one
      output; p is how many there are, twice that with a bias.
    - tied weights (embedding and read-out): X and Δ of all uses, ρ = (Σ_s q_s‖X_s‖²)(Σ_s‖Δ_s‖²)/(q‖G‖²) for G of all
      of them, with q and p of the first one.

    None has ρ: a weight whose module returns no row for each example (position embeddings, which are credited at
    the sum; sequences with their examples second), is called more than once, has parameters beyond a weight and a
    bias of its own, or is not linear; nor one that a function uses, too, as ``F.linear(h, embed.weight)``.

    Args:
        problem: network, loss and batch. Gradients are of the output's loss, the batch mean.

    Returns:
        Name of the weight → `ActivityRatio`, for all such layers whose weight is perturbed. A frozen bias is a
        constant.

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
    outputs = {name: y for name, (_, y) in _run(problem, modules, {})[1].items()}
    shifts = {name: torch.zeros_like(y) for name, y in outputs.items() if isinstance(y, Tensor)}

    def loss(moved: dict[str, Tensor]) -> tuple[Tensor, InputsAndOutputs]:
        outputs, seen = _run(problem, modules, moved)
        return problem.losses(outputs).mean(), seen

    credits, seen = torch.func.grad(loss, has_aux=True)(shifts)
    uses: dict[str, list[Use | None]] = {}
    for module, parameters in modules.items():
        uses.setdefault(parameters["weight"], []).append(_use(problem, module, parameters, seen, credits))
    gradient = problem.backprop()
    found: dict[str, ActivityRatio] = {}
    for weight, several in uses.items():
        known = [use for use in several if use is not None]
        seen_whole = len(known) == len(problem.network.owners[weight])
        if seen_whole and (ratio := _ratio(known, gradient[weight], problem.coupled)):
            found[weight] = ratio
    return found


@dataclass(frozen=True)
class Use:
    """What one module does with a weight, and with its own bias if that is perturbed, too.

    Attributes:
        x: inputs [batch, positions, groups, fan-in], the last of them 1 where there is a bias.
        delta: credits ∂L/∂Z [batch, positions, groups, fan-out].
        bias: is there one?
        transposed: is the weight stored [fan-in, fan-out]?
    """

    x: Tensor
    delta: Tensor
    bias: bool
    transposed: bool

    def gradient(self, example: int) -> tuple[Tensor, Tensor]:
        """Of one example: by the weight, its numbers in the order in which they are stored, and by the bias."""
        found = torch.einsum("rho,rhi->hoi", self.delta[example], self.x[example])
        weight, bias = (found[..., :-1], found[..., -1]) if self.bias else (found, found[..., :0])
        return (weight.mT if self.transposed else weight).flatten(), bias.flatten()


def _modules(problem: Problem) -> dict[str, dict[str, str]]:
    """Modules that may be such a layer, each called once → their "weight" and "bias" among the parameters."""
    perturbed, aliases = set(problem.perturbed), problem.network.aliases
    found: dict[str, dict[str, str]] = {}
    for path, name in (*zip(problem.perturbed, problem.perturbed, strict=True), *aliases.items()):
        if name in perturbed:
            module, _, key = path.rpartition(".")
            found.setdefault(module, {})[key] = name
    return {
        module: parameters
        for module, parameters in found.items()
        if "weight" in parameters
        and parameters.keys() <= {"weight", "bias"}
        and all(problem.network.owners[name] == (module,) for key, name in parameters.items() if key == "bias")
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


def _use(
    problem: Problem,
    module: str,
    parameters: Mapping[str, str],
    seen: InputsAndOutputs,
    credits: Mapping[str, Tensor],
) -> Use | None:
    """The module as a linear map of its weight, if it is one and has a row for each example."""
    x, y = seen[module]
    if module not in credits or not _by_example(problem, module, y):
        return None
    for guess, transposed in ((linear_form, False), (transposed_form, True)):
        form = guess(problem, module, x, y)
        if form is None:
            continue
        if _is_linear(problem, form, module, problem.params[parameters["weight"]], y, transposed):
            x, bias = form.x.double(), "bias" in parameters
            x = torch.cat([x, torch.ones_like(x[..., :1])], -1) if bias else x
            return Use(x, form.rows(credits[module]).double(), bias, transposed)
    return None


def _by_example(problem: Problem, module: str, output: Tensor) -> bool:
    """Has the output a row for each example? Its first axis may be as long by chance: it has to follow the batch."""
    alone = problem.single_trace.visits.get(module, ())
    return output.shape[:1] == (problem.batch_size,) and all(visit.shape == (1, *output.shape[1:]) for visit in alone)


def _is_linear(problem: Problem, form: Form, module: str, weight: Tensor, output: Tensor, transposed: bool) -> bool:
    """Does the hypothesis of its form give the module's output?"""
    _, _, groups, fan_in = form.x.shape
    weight = (weight.T if transposed else weight).reshape(groups, -1, fan_in)
    found = torch.einsum("nrhi,hoi->nrho", form.x, weight)
    # A frozen bias is added all the same, and is no part of what is perturbed.
    path = f"{module}.bias".lstrip(".")
    bias = problem.network.aliases.get(path, path)
    if bias in problem.network.owners:
        found = found + {**problem.buffers, **problem.params}[bias].reshape(groups, -1)
    expected = form.rows(output)
    # Shapes alone do not tell: a module of another kind may have a weight of the same shape.
    tolerance = torch.finfo(problem.dtype).eps ** 0.5
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _ratio(uses: list[Use], expected: Tensor, coupled: bool) -> ActivityRatio | None:
    """Of all uses of one weight, by modules; None where its gradient shows others, as by a function."""
    positions, fan_in = uses[0].x.shape[1], uses[0].x.shape[2:].numel()
    # ‖∂Z/∂w‖² summed over the numbers w: an input moves as many outputs as its use has.
    moved = torch.stack([use.delta.shape[-1] * use.x.square().flatten(1).sum(1) for use in uses]).sum(0)
    credits = torch.stack([use.delta.square().flatten(1).sum(1) for use in uses]).sum(0)
    own = total = torch.zeros((), dtype=moved.dtype, device=moved.device)
    for example in range(len(moved)):  # one gradient in memory
        parts = [use.gradient(example) for use in uses]
        gradient = torch.cat([torch.stack([weight for weight, _ in parts]).sum(0), *(bias for _, bias in parts)])
        own, total = own + gradient.square().sum(), total + gradient
    outputs = total.numel() / fan_in  # q, where there is one use
    squares, length = moved / outputs, float(total.square().sum())
    bound = float(squares.sum() * credits.sum())
    off = float((total[: expected.numel()] - expected.flatten()).abs().max())
    if off > torch.finfo(expected.dtype).eps ** 0.5 * bound**0.5:
        return None
    # Compared with ‖X‖²‖Δ‖², the largest that ‖G‖² can be: below it, in units of float32, lies rounding alone.
    if length <= (10 * torch.finfo(torch.float32).eps) ** 2 * bound:
        return ActivityRatio(float("nan"), float("nan"), fan_in, positions)
    each = bound if coupled else float(squares @ credits) + (float(own) - length) / outputs
    return ActivityRatio(bound / length, each / length, fan_in, positions)
