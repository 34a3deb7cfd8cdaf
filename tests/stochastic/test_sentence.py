"""The second sentence: what it refuses, and how it names the noise of its words."""

import pytest
import torch
from cases import CASES, randn
from fgvar.sampling import Draw, Losses, Poisson
from torch import nn

import fgvar
from fgvar import points, transforms


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"of": "BP"}, TypeError, "'of' is the text 'BP', expected an estimator"),
        ({"sample": Draw}, TypeError, r"sample is the class Draw, expected an instance: Draw\(…\)"),
        (
            {"sample": points.Here()},
            TypeError,
            r"sample is Here\(\) without batch_size, expected one like fgvar",
        ),
        ({"at": 0.1}, TypeError, r"at is 0\.1 without leaves, view, expected one like fgvar\.points\.Here\(\)"),
        (
            {"each": transforms.Clip(1.0)},
            TypeError,
            r"each is Clip\(norm=1\.0\), expected a tuple of transforms",
        ),
        ({"then": (transforms.Sign,)}, TypeError, r"then is the class Sign, expected an instance"),
        (
            {"then": (Draw(2),)},
            TypeError,
            r"then is Draw\(.*\) without __call__, expected one like fgvar",
        ),
        ({"workers": 0}, ValueError, "workers is 0, expected an integer of at least 1"),
        ({"workers": 1.5}, TypeError, r"workers is 1\.5, expected an integer of at least 1"),
    ],
)
def test_a_sentence_refuses_what_is_no_word(words: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        fgvar.Stochastic(**words)


def test_a_loss_that_couples_examples_has_no_sum_over_them() -> None:
    module = nn.Sequential(nn.Linear(3, 2)).double()
    problem = fgvar.contrastive.Contrastive(
        module, fgvar.contrastive.InfoNCE(stop_gradient=False), (randn(4, 3), randn(4, 3, seed=1))
    )
    for row in (fgvar.Stochastic(sample=Draw(2)), fgvar.Stochastic(each=(transforms.Clip(1.0),))):
        with pytest.raises(ValueError, match="the loss couples the examples, so that no sum over examples"):
            row.randomness(problem)
    whole = fgvar.Stochastic(then=(transforms.Sign(),)).estimate(problem, {}).gradient
    assert all(torch.equal(whole[name], g.sign()) for name, g in problem.backprop().items())


def test_noise_is_named_by_the_word_that_it_is_of() -> None:
    """That of ``of`` keeps its names, so that rows are compared draw by draw, but where it has a word's."""
    problem = CASES["linear"]()
    inner = fgvar.Stochastic(sample=Poisson(0.5), then=(transforms.AddNoise(1.0),))
    outer = fgvar.Stochastic(
        of=inner, at=points.Ahead(by=fgvar.scheme("FG-W"), step=0.1), each=(transforms.RandomK(1),), workers=2
    )
    n, shapes = problem.batch_size, {name: tuple(p.shape) for name, p in problem.params.items()}
    assert {name: leaf.shape for name, leaf in outer.randomness(problem).leaves.items()} == {
        "of.sample": (2, n, 1),
        **{f"of.then.0.{name}": (2, n, *shape) for name, shape in shapes.items()},
        "each.0": (2, n, 1),
        **{f"at.{name}": (2, *shape) for name, shape in shapes.items()},
    }
    plain = fgvar.Stochastic(of=fgvar.scheme("FG-W"), sample=Draw(2, by=Losses()))
    assert set(plain.randomness(problem).leaves) == {"sample", *shapes}
