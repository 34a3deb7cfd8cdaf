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


class DoubledJvp(fgvar.Jvp):
    def __call__(self, function, point, direction):
        value, derivative = super().__call__(function, point, direction)
        return value, {name: 2 * d for name, d in derivative.items()}


class DoubledNoise(fgvar.guesses.Isotropic):
    def direction(self, problem, losses, linearised, noise):
        return {name: 2 * u for name, u in super().direction(problem, losses, linearised, noise).items()}


@pytest.mark.parametrize("words", [{"oracle": DoubledJvp()}, {"guess": DoubledNoise()}])
def test_a_word_made_from_ours_is_asked(words, monkeypatch) -> None:
    """What a word says of itself its subclasses, which may do things their own way, do not say."""
    problem, estimator = mixer(), fgvar.scheme("LG-FG-A", **words)
    assert not estimator._one_pass
    noise = {name: u[0] for name, u in estimator.randomness(problem).sample(0, [0], dtype=torch.float64).items()}
    with monkeypatch.context() as patched:
        patched.setattr(Estimator, "_one_pass", False)
        plain = fgvar.scheme("LG-FG-A").estimate(problem, noise).gradient
    factor = 2 if "oracle" in words else 4  # once in the derivative, once in what it credits
    for name, value in estimator.estimate(problem, noise).gradient.items():
        torch.testing.assert_close(value, (factor if name in problem.perturbed else 1) * plain[name])
    for word in words.values():  # unless they say so themselves
        monkeypatch.setattr(type(word), "one_pass", True, raising=False)
    assert estimator._one_pass
