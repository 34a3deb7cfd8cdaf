"""What a problem says of itself: the same for equal problems in every process, another for another one."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import pytest
import torch
from cases import CASES, randn
from torch import nn
from torch.nn.functional import cross_entropy

import fgvar
from fgvar import identity
from fgvar.measurement.cost import cost
from fgvar.testing import CHECKS

X, Y = torch.arange(12.0).reshape(4, 3), torch.ones(4, 2)


def linear(value: float = 1.0) -> nn.Module:
    module = nn.Linear(3, 2)
    for p in module.parameters():
        nn.init.constant_(p, value)
    return module


def problem(module: nn.Module | None = None, batch=(X, Y)) -> fgvar.Problem:
    return fgvar.Problem(linear() if module is None else module, "mse", batch)


def test_it_is_a_line_without_an_address_the_same_in_every_process() -> None:
    """The hash stands here, made by another process."""
    assert repr(problem()) == repr(problem()) == "<Problem Linear, mse, 4 examples, 8 numbers, 409f85f5509d>"


def with_buffer(value: float) -> nn.Module:
    module = linear()
    module.register_buffer("scale", torch.tensor(value))
    return module


OTHERS = {
    "parameters": lambda: problem(linear(2.0)),
    "inputs": lambda: problem(batch=(X + 1, Y)),
    "targets": lambda: problem(batch=(X, Y + 1)),
    "buffers": lambda: problem(with_buffer(1.0)),
    "a buffer's value": lambda: problem(with_buffer(2.0)),
    "precision": lambda: problem().to(torch.float64),
    "network": lambda: problem(nn.Sequential(linear(), nn.ReLU())),
    "another activation": lambda: problem(nn.Sequential(linear(), nn.Tanh())),
    "loss": lambda: fgvar.Problem(linear(), lambda outputs, targets: (outputs - targets).square().mean(1), (X, Y)),
    "factors": lambda: problem().weighted(torch.ones(4)),
    "other factors": lambda: problem().weighted(torch.full((4,), 2.0)),
    "origin": lambda: problem(linear(2.0)).moved(problem().params),
    "examples": lambda: problem().rows(slice(0, 2)),
}


def test_another_problem_says_something_else() -> None:
    texts = {"the same": repr(problem())} | {name: repr(other()) for name, other in OTHERS.items()}
    assert len(set(texts.values())) == len(texts), texts
    assert not any(" at 0x" in text for text in texts.values())


@pytest.mark.parametrize("name", CASES)
def test_every_problem_has_a_text_also_inside_of_a_transform(name: str) -> None:
    """Of what has no values there all but those counts, and of a constant everything."""
    whole, found = CASES[name](), []

    def seen(params: dict[str, torch.Tensor]) -> torch.Tensor:
        found.extend([repr(whole.at(params)), repr(whole)])
        return whole.loss(params)

    torch.func.grad(seen)(whole.params)
    assert found[0] != found[1] == repr(whole)
    assert repr(whole.to(torch.float32)) != repr(whole)


def test_two_views_are_part_of_a_problem() -> None:
    module, images = nn.Sequential(nn.Linear(3, 2)).double(), randn(4, 3)
    texts = {
        repr(fgvar.contrastive.Contrastive(module, fgvar.contrastive.InfoNCE(), (images, images + i)))
        for i in range(2)
    }
    assert len(texts) == 2
    assert all(text.startswith("<Contrastive Sequential, InfoNCE(") for text in texts)


def test_a_row_that_holds_a_problem_is_its_own_text_and_rebuilds_none() -> None:
    rows = [fgvar.Stochastic(then=(fgvar.transforms.Retained(problem(), steps=1, lr=0.1),)) for _ in range(2)]
    assert repr(rows[0]) == repr(rows[1])
    found = CHECKS["repr"](rows[0], CASES["linear"]())[0]
    assert (found.outcome, found.note) == (
        "not applicable", "holds a problem or tensors, whose repr tells them from others and rebuilds none",
    )  # fmt: skip


def test_tensors_are_read_where_somebody_asks_alone(monkeypatch) -> None:
    """Of 124 million numbers it takes a second: no estimate, and no measurement or training of other rows."""
    holding = fgvar.Stochastic(then=(fgvar.transforms.Mask(fgvar.transforms.Saliency(problem(), 1.0)),))

    def read(_: object) -> str:
        raise AssertionError("tensors were read")

    monkeypatch.setattr(identity, "fingerprint", read)
    at = problem()
    holding.estimate(at, {})
    row = fgvar.Stochastic(sample=fgvar.sampling.Draw(2, by=fgvar.sampling.Losses()))
    fgvar.measure({"draw": row, "FG-W": fgvar.scheme("FG-W")}, at, draws=16)
    fgvar.train(linear(), row, fgvar.data.Examples(X, Y), fgvar.Schedule(1, 2, 1e-3), loss="mse", device="cpu")
    with pytest.raises(AssertionError, match="tensors were read"):
        repr(holding)


def test_costs_of_rows_that_hold_equal_problems_are_counted_once() -> None:
    at = problem()
    for other in (problem(), problem(), problem(linear(2.0))):
        row = fgvar.Stochastic(then=(fgvar.transforms.Retained(other, steps=1, lr=0.1),))
        assert cost(row, at, row.randomness(at)) > 1
    assert len(at.network.costs) == 2


# ---- what functions and modules compute by -------------------------------------------------------------------


def closure(factor: Any) -> Callable[..., torch.Tensor]:
    return lambda outputs, targets: factor * cross_entropy(outputs, targets, reduction="none")


class Scaled(nn.Module):
    def __init__(self, factor: float, buffer: float = 1.0, **config: object) -> None:
        super().__init__()
        self.factor, self.whole, self.config = factor, [self], config
        self.register_buffer("buffer", torch.tensor(buffer))


class Own:
    def __init__(self, factor: float) -> None:
        self.factor, self._cache, self.me = factor, object(), self

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.factor * (outputs - targets)


def doubled(outputs, targets, *, factor=2.0):
    """Twice the distance."""
    return factor * (outputs - targets)


def doubled_again(outputs, targets, *, factor=2.0):
    return factor * (outputs - targets) + 0


FACTOR, FACTORS = 2.0, {"inside": torch.ones(2)}
_cache: dict[int, int] = {}


def helped(outputs, targets):
    _cache[len(outputs)] = 1
    return [FACTOR * FACTORS["inside"] * helper(outputs, targets) for _ in "a"]


def helper(outputs, targets):
    return outputs - targets if FACTOR else helped(outputs, targets)


def of_another_module(**names: object) -> Callable[..., torch.Tensor]:
    """`helped` and `helper`, where some names of their module stand for something else."""
    there = globals() | {"helper": FunctionType(helper.__code__, own := {}, "helper")} | names
    own |= there
    return FunctionType(helped.__code__, there, "helped")


LONG = torch.zeros(2000)  # of which a text shows the ends alone
OTHER_LONG = LONG.index_fill(0, torch.tensor(1000), 1.0)

PAIRS = {
    "what it closes over": lambda: (closure(1.0), closure(2.0)),
    "a tensor in a dict that it closes over": lambda: (closure({"ce": LONG}), closure({"ce": OTHER_LONG})),
    "an array that it closes over": lambda: (closure(LONG.numpy()), closure(OTHER_LONG.numpy())),
    "a set that it closes over": lambda: (closure({"a", "b"}), closure({"a", "c"})),
    "a dict": lambda: (Scaled(1.0, scale=1.0), Scaled(1.0, scale=3.0)),
    "a dict in a dict": lambda: (Scaled(1.0, of={"scale": 1.0}), Scaled(1.0, of={"scale": 3.0})),
    "a constant of the module": lambda: (of_another_module(), of_another_module(FACTOR=3.0)),
    "a tensor of the module": lambda: (of_another_module(), of_another_module(FACTORS={"inside": torch.zeros(2)})),
    "a function of the module": lambda: (of_another_module(), of_another_module(helper=doubled)),
    "keywords": lambda: (partial(cross_entropy, reduction="none"), partial(cross_entropy, reduction="mean")),
    "what a text does not show": lambda: (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "a number": lambda: (Scaled(1.0), Scaled(2.0)),
    "a buffer": lambda: (Scaled(1.0, 1.0), Scaled(1.0, 2.0)),
    "a module inside": lambda: (nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh())),
    "an object's attribute": lambda: (Own(1.0), Own(2.0)),
    "a method's object": lambda: (Own(1.0).__call__, Own(2.0).__call__),
    "code": lambda: (doubled, doubled_again),
}


@pytest.mark.parametrize("what", PAIRS)
def test_what_computes_otherwise_has_another_hash(what: str) -> None:
    one, other = PAIRS[what]()
    assert identity.behaviour(one) == identity.behaviour(PAIRS[what]()[0])
    assert identity.behaviour(one) != identity.behaviour(other)


def test_what_is_private_or_in_another_order_is_the_same() -> None:
    """A module's own data may be a cache."""
    assert identity.behaviour(of_another_module()) == identity.behaviour(of_another_module(_cache={8: 1}))
    assert identity.behaviour(Scaled(1.0, a=1, b=2)) == identity.behaviour(Scaled(1.0, b=2, a=1))


def test_a_hash_is_the_same_in_every_process() -> None:
    """Whatever order sets have there: of a function with sets in what it is made of."""
    source = (
        "import torch; from fgvar.identity import behaviour; from fgvar.networks import LocalMixer\n"
        "def made(names): return lambda x, y: x if y in {'a', 'b', 'c', 'd'} else {'e': names}\n"
        "f = made([{'a', 'b', 'c', 'd'}, {'of': {'a', 'b', 'c', 'd'}}])\n"
        "print(behaviour(f), behaviour(LocalMixer((1, 8, 8), 10, blocks=1, patches=2, channels=8, groups=2, seed=0)))"
    )
    found = {
        subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, env=env).stdout
        for env in ({**os.environ, "PYTHONHASHSEED": seed} for seed in "12")
    }
    assert len(found) == 1
