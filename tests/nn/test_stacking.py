"""Stacker: one vmap, or plain calls where vmap cannot, with one warning; `raised_in` names the module."""

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from refusals import Calls, X, problem
from torch import Tensor, nn
from torch.nn import functional

import fgvar
from fgvar.nn.failures import raised_in
from fgvar.nn.stacking import DIRECTIONS, EXAMPLES, Stacker


def asking(x: Tensor) -> Tensor:
    return x if float(x.detach().sum()) < 1e9 else -x


class Asking(nn.Module):
    """Asks how large its input is, which vmap cannot answer."""

    def forward(self, x: Tensor) -> Tensor:
        return asking(x)


def test_plain_calls_give_what_vmap_gives() -> None:
    stack, other = Stacker(), Stacker()
    pair = lambda one, own: {"sum": asking(one["x"]).sum() + own, "all": one["x"]}  # noqa: E731
    with pytest.warns(UserWarning, match=r"^what is computed of each example does not run under"):
        found = stack(EXAMPLES, pair, {"x": X}, X[:, 0])
    expected = other(EXAMPLES, lambda one, own: {"sum": one["x"].sum() + own, "all": one["x"]}, {"x": X}, X[:, 0])
    assert (stack.is_plain(EXAMPLES), stack.is_plain(DIRECTIONS), other.is_plain(EXAMPLES)) == (True, False, False)
    torch.testing.assert_close(found, expected)


def test_vmap_is_tried_once() -> None:
    stack, tries = Stacker(), []

    def counted(x: Tensor) -> Tensor:
        tries.append(torch._C._functorch.is_batchedtensor(x))
        return asking(x)

    estimator = object()
    for _ in range(2):
        stack(estimator, counted, X)  # without a name there is no warning of an estimator's own code
    assert tries == [True, *[False] * 8]


def test_an_inner_stack_is_plain_within_an_outer_vmap() -> None:
    """Of a network that asks about its inputs alone, draws of weights still run under vmap."""
    stack, weights = Stacker(), torch.eye(3, dtype=X.dtype)

    def draw(weight: Tensor) -> Tensor:
        return stack(EXAMPLES, lambda x: asking(x) @ weight, X).sum()

    with pytest.warns(UserWarning, match="of each example does not run under"):
        found = stack(DIRECTIONS, draw, weights)
    assert stack.is_plain(EXAMPLES)
    assert not stack.is_plain(DIRECTIONS)
    torch.testing.assert_close(found, X.sum(0))


def test_copies_and_pickles_start_afresh() -> None:
    stack = Stacker()
    stack(lambda: None, asking, X)  # remembered by identity, whatever it is
    for fresh in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
        assert not fresh.is_plain(EXAMPLES)
        assert not fresh.warned


def test_operations_without_a_rule_loop_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Stacker()(DIRECTIONS, lambda x: torch.histc(x, 2), X)
    torch.testing.assert_close(found, torch.stack([torch.histc(x, 2) for x in X]))


# ---- who is to blame ---------------------------------------------------------------------------------------


def of_examples_and_draws(where: fgvar.Problem) -> None:
    where.per_example(lambda one: one.loss())
    fgvar.measure({"MeZO": fgvar.scheme("MeZO", directions=2)}, where.clone(), draws=4)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: Calls(lambda m, x: m.layer(m.body(x)), body=nn.Sequential(Asking())), r"'body\.0' \(Asking\)"),
        (lambda: Calls(lambda m, x: asking(m.layer(x))), r"the network \(Calls\)"),
    ],
)  # fmt: skip
def test_the_innermost_module_is_named_once(module: Callable[[], nn.Module], message: str) -> None:
    with pytest.warns(UserWarning, match=rf"^{message} does not run under torch\.func\.vmap") as caught:
        of_examples_and_draws(problem(module()))
    assert len(caught) == 1


@pytest.mark.parametrize("loss", [lambda o, t: asking(functional.cross_entropy(o, t, reduction="none"))])
def test_the_loss_is_named(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.warns(UserWarning, match=r"^the loss does not run under torch\.func\.vmap"):
        of_examples_and_draws(problem(loss=loss))


def test_nobody_is_named_for_other_code() -> None:
    with pytest.raises(RuntimeError, match="other") as caught:
        raise RuntimeError("other")
    assert raised_in(caught.value) == ""


def test_derivatives_that_torch_has_are_not_coached() -> None:
    def failing(m: nn.Module, x: Tensor) -> Tensor:
        if torch._C._functorch.peek_interpreter_stack() and m.training:
            raise NotImplementedError("mine")
        return m.layer(x)

    where = problem(Calls(failing).eval())
    where.network.skeleton.train()
    with pytest.raises(NotImplementedError, match=r"^mine$"):
        where.backprop()
