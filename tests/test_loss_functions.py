"""Losses: targets of the right kind, and one floating-point number an example."""

import pytest
import torch
from cases import randn
from refusals import X, Y, problem, says
from torch import Tensor, nn
from torch.nn import functional

import fgvar
from fgvar.loss_functions import LOSSES, correct, even_weights, losses_and_weights


@pytest.mark.parametrize("targets", [[0, 1, 2, 0], [0, -1, 1, 0], [0, 1, -101, 1]])
def test_targets_out_of_range(targets: list[int]) -> None:
    got = f"targets range from {min(targets)} to {max(targets)}"
    with pytest.raises(
        ValueError, match=says(got, r"2 classes \(0 to 1\)", "check the labels or the size of the last")
    ):
        problem(batch=(X, torch.tensor(targets)))


@pytest.mark.parametrize("targets", [Y.double(), Y > 0, functional.one_hot(Y)])
def test_targets_are_class_numbers(targets: Tensor) -> None:
    got = rf"targets are {targets.dtype} of shape \({', '.join(map(str, targets.shape))},?\)"
    with pytest.raises(ValueError, match=says(got, r"class numbers \[batch\] as integers")):
        problem(batch=(X, targets))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_class_numbers_of_any_integer_type_are_accepted_or_explained(dtype: torch.dtype) -> None:
    try:
        loss = problem(batch=(X, Y.to(dtype))).loss()
    except ValueError as error:
        assert str(dtype) in str(error)  # noqa: PT017
    else:
        assert torch.equal(loss, problem().loss())


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2))), r"\(4, 2, 2\)"),
        (nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), r"\(4,\)"),
        (nn.LSTM(3, 2), "tuple"),
    ],
)
def test_cross_entropy_needs_classes(module: nn.Module, shape: str) -> None:
    with pytest.raises(ValueError, match=says(rf"network returned {shape}", r"outputs \[batch, classes\]")):
        problem(module.double())


@pytest.mark.parametrize("targets", [randn(4), randn(4, 3), randn(4, 1, 1)])
def test_mse_needs_targets_of_the_shape_of_the_outputs(targets: Tensor) -> None:
    """Broadcasting would compare every example with the targets of all."""
    module = nn.Linear(3, 1).double()
    shape = rf"\({', '.join(map(str, targets.shape))},?\)"
    with pytest.raises(ValueError, match=says("mse", r"\(4, 1\)", shape)):
        problem(module, "mse", (X, targets))


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (lambda outputs, _: outputs.argmax(1), "torch.int64"),
        (lambda outputs, targets: outputs.argmax(1) == targets, "torch.bool"),
        (lambda outputs, targets: (outputs, targets, targets), "tuple"),
        (lambda outputs, _: outputs.sum().item(), "float"),
    ],
)
def test_a_loss_is_floating_point(loss, kind: str) -> None:
    with pytest.raises(TypeError, match=says(f"the loss is {kind}", "expected a floating-point tensor")):
        problem(loss=loss)


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (functional.cross_entropy, r"\(\)"),
        (nn.CrossEntropyLoss(), r"\(\)"),
        (lambda outputs, _: outputs, r"\(4, 2\)"),
        (lambda outputs, _: outputs[:2, 0], r"\(2,\)"),
    ],
)
def test_a_loss_is_one_number_an_example(loss, shape: str) -> None:
    message = says(f"the loss has shape {shape}", r"one number an example, \(4,\)", "reduction='none'")
    with pytest.raises(ValueError, match=message):
        problem(loss=loss)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_weights_that_sum_to_more_than_half_precision_holds(dtype: torch.dtype) -> None:
    """64 examples of 2,047 tokens are 131,008 of them, twice float16's largest number."""
    weights = even_weights(torch.full((64,), 2047), torch.ones(64, dtype=dtype))
    assert weights.dtype == dtype
    assert torch.equal(weights, torch.ones(64, dtype=dtype))


def test_one_output_is_no_choice_among_classes() -> None:
    """Its argmax is 0 whatever it is."""
    assert correct(torch.full((3, 1), 5.0), torch.tensor([1, 1, 0])) is None
    assert correct(torch.eye(2), torch.tensor([0, 0])).tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["cross_entropy", "causal_lm", "mse"])
def test_losses_of_small_floats_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    """A loss near 3.4 has steps of 0.016 in bfloat16: what a finite difference divides by its step."""
    outputs = randn(3, 4, 30).to(dtype)
    targets = randn(3, 4, 30, seed=1).to(dtype) if name == "mse" else torch.arange(12).reshape(3, 4)
    small, wide = (losses_and_weights(LOSSES[name](o, targets))[0] for o in (outputs, outputs.float()))
    assert small.dtype == torch.float32
    assert torch.equal(small, wide)


def test_a_finite_difference_of_a_network_in_bfloat16_is_not_rounding() -> None:
    """A loss in steps of 0.016 for differences of 0.001 had 4 times the exact one's variance."""
    batch = randn(16, 5), torch.arange(16) % 3
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    small = fgvar.Problem(net.bfloat16(), "cross_entropy", (batch[0].bfloat16(), batch[1]))
    found = fgvar.measure({name: fgvar.scheme(name) for name in ("FG-W", "MeZO")}, small, draws=64)
    exact, by_step = found["relative_variance"].sel(layer="perturbed").values
    assert by_step < 2 * exact
