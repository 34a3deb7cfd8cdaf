"""The forward pass that carries a direction along equals two: one for the local VJPs, one for the derivative."""

import pytest
import torch
from cases import CASES, mixer
from torch.func import vmap

import fgvar
from fgvar.estimators.estimator import Estimator

SCHEMES = ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A")


def both(estimator: Estimator, problem: fgvar.Problem, monkeypatch, draws: int = 3) -> None:
    """Three draws under vmap, by one pass and by two; held against the largest gradient of any parameter."""
    noise = estimator.randomness(problem).sample(0, range(draws), dtype=problem.dtype)

    def estimates() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        def one(u: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
            found = estimator.estimate(problem, u)
            return found.gradient, found.loss

        return vmap(one)(noise)

    assert estimator._one_pass, "else the same is compared with itself"
    found, loss = estimates()
    with monkeypatch.context() as patched:
        patched.setattr(Estimator, "_one_pass", False)
        expected, plain = estimates()
    scale = max(float(value.abs().max()) for value in expected.values())
    tolerance = 1e-12 if problem.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(loss, plain, rtol=tolerance, atol=0)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=tolerance * scale, msg=lambda m, k=name: f"{k}: {m}"
        )


@pytest.mark.parametrize("name", ["FG-W", "FG-A"])
@pytest.mark.parametrize("case", CASES)
def test_on_the_named_problems(case: str, name: str, monkeypatch) -> None:
    both(fgvar.scheme(name), CASES[case](), monkeypatch)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", SCHEMES)
def test_shared_and_independent_noise(name: str, shared: bool, monkeypatch) -> None:
    both(fgvar.scheme(name, noise=fgvar.Rademacher(), shared=shared), mixer(batch=3), monkeypatch)


@pytest.mark.parametrize("name", SCHEMES)
def test_in_single_precision(name: str, monkeypatch) -> None:
    both(fgvar.scheme(name), mixer(channels=32, groups=4, batch=4).to(torch.float32), monkeypatch)


@pytest.mark.parametrize("space", [fgvar.WeightSpace(), fgvar.ActivitySpace()])
def test_coupled_examples(space, monkeypatch) -> None:
    """A contrastive loss, whose keys move, too."""
    model = fgvar.networks.LocalMixer((1, 4, 4), 3, blocks=2, patches=2, channels=8, groups=2).double()
    views = tuple(torch.randn(3, 1, 4, 4, dtype=torch.float64) for _ in range(2))
    for losses in (fgvar.GlobalLoss(), fgvar.LocalLosses()):
        problem = fgvar.contrastive.Contrastive(model, fgvar.contrastive.InfoNCE(stop_gradient=False), views)
        both(fgvar.Estimator(space, losses=losses, shared=not space.per_example), problem, monkeypatch)


@pytest.mark.parametrize(
    "words",
    [
        {"directions": 2},
        {"antithetic": True},
        {"space": fgvar.WeightSpace(per_tensor=True)},
        {"oracle": fgvar.oracles.CentralDifference()},
        {"oracle": fgvar.oracles.Replay()},
        {"guess": fgvar.guesses.LocalGradient()},
        {"space": fgvar.ActivitySpace(relu_after={"site0": "act0"})},
    ],
)
def test_other_words_take_two(words) -> None:
    """Where several directions are needed, or one that depends on the pass."""
    assert not fgvar.Estimator(**words)._one_pass
