"""Cost: counts what one estimate takes, FLOPs(estimate)/FLOPs(forward pass), matrix products alone."""

from typing import Any, cast

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fgvar.estimators.estimator import Estimator
from fgvar.estimators.protocol import GradientEstimator, is_builtin
from fgvar.estimators.randomness import Randomness
from fgvar.nn.structures import leaves
from fgvar.problem import Problem


def cost(estimator: GradientEstimator, problem: Problem, randomness: Randomness) -> float:
    """Matrix-product FLOPs of one estimate, in forward passes; counted once for a network and batch shape."""
    key = f"{estimator!r} {[tuple(leaf.shape) for leaf in leaves(problem.inputs)]}"
    # Only fgvar's own say in their repr all that they are: two classes of a user's may have one name.
    known = problem.network.costs if is_builtin(estimator) and " at 0x" not in key else {}
    if key not in known:
        factored = isinstance(estimator, Estimator) and estimator.factored
        makes = cast(Estimator, estimator).factors if factored else estimator.estimate
        noise = randomness.sample(0, [0], dtype=problem.dtype, device=problem.device) if randomness.size else {}
        with Flops() as one:
            makes(problem, {name: u[0] for name, u in noise.items()})
        with Flops() as forward:
            problem.loss()
        known[key] = one.count / forward.count if forward.count else float("nan")
    return known[key]


class Flops(TorchDispatchMode):
    """Counts matrix-product FLOPs (torch's own FlopCounterMode hooks modules, which breaks torch.func.grad)."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.count += formula(*args, **(kwargs or {}), out_val=out)
        return out
