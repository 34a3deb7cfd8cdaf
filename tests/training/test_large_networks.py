"""Training of large networks: tensor by tensor, in few copies of the parameters, with the bits of whole estimates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_runs import stopped_at
from copies import copies_taken

import fgvar
from fgvar.estimators.factors import LazyTensors
from fgvar.training import gradients

ESTIMATORS = {
    "MeZO": fgvar.scheme("MeZO"),
    "EGGROLL": fgvar.scheme("EGGROLL"),
    "one-sided": fgvar.scheme("FG-W", oracle=fgvar.oracles.ForwardDifference()),
    "local": fgvar.scheme("LG-FG-W", oracle=fgvar.oracles.CentralDifference()),
    "published": fgvar.scheme("LG-FG-W", losses=fgvar.LocalLosses(credit="published")),
    "FG-W": fgvar.scheme("FG-W"),
    "replayed": fgvar.scheme("FG-W", oracle=fgvar.oracles.Replay()),
    "directions": fgvar.scheme("MeZO", directions=3),
    "projection": fgvar.scheme("MeZO", directions=3, combine=fgvar.combine.Projection()),
    "normalised": fgvar.scheme("MeZO", combine=fgvar.combine.Normalised()),
}
SCHEDULE = fgvar.Schedule(epochs=2, batch=32, lr=0.01, momentum=0.9, weight_decay=1e-3)
PLAIN = replace(SCHEDULE, momentum=0.0, weight_decay=0.0)


@pytest.fixture(scope="module")
def data():
    train, test = (fgvar.data.load("digits", split) for split in ("train", "test"))
    return train.subset(range(96)), test.subset(range(32))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Every network is large; what `by_tensor` said of each run."""
    said, rule = [], gradients.by_tensor

    def by_tensor(*args) -> bool:
        said.append(rule(*args))
        return said[-1]

    monkeypatch.setattr(gradients, "draws_anew", lambda *_: True)
    monkeypatch.setattr("fgvar.training.train.by_tensor", by_tensor)
    return said


def trained(estimator: fgvar.GradientEstimator, data, schedule: fgvar.Schedule = SCHEDULE, **options):
    net = fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=2, patches=2, channels=16, groups=4, seed=1)
    return fgvar.train(net, estimator, data, schedule, seed=3, device="cpu", **options)


def require_same(one, other) -> None:
    assert all(torch.equal(value, other.params[name]) for name, value in one.params.items())
    assert one.params.keys() == other.params.keys()
    for name in ("loss", "test_loss", "batch_loss"):
        np.testing.assert_array_equal(one.dataset[name], other.dataset[name])


@pytest.mark.parametrize("schedule", [PLAIN, SCHEDULE], ids=["plain", "momentum"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_tensor_by_tensor_it_trains_with_the_same_bits(name: str, schedule: fgvar.Schedule, data, request) -> None:
    whole = trained(ESTIMATORS[name], data, schedule)
    said = request.getfixturevalue("large")
    require_same(trained(ESTIMATORS[name], data, schedule), whole)
    assert said == [True]


@pytest.mark.parametrize(
    ("schedule", "options"),
    [(replace(SCHEDULE, optimiser="adam", decay="cosine", warmup=1), {}), (SCHEDULE, {"autocast": True})],
    ids=["Adam", "autocast"],
)
def test_so_it_does_by_any_optimiser_and_in_mixed_precision(schedule: fgvar.Schedule, options, data, request) -> None:
    whole = trained(fgvar.scheme("MeZO"), data, schedule, **options)
    said = request.getfixturevalue("large")
    require_same(trained(fgvar.scheme("MeZO"), data, schedule, **options), whole)
    assert said == [True]


def test_so_it_does_from_a_checkpoint_and_with_probes(data, tmp_path: Path, monkeypatch, request) -> None:
    """Stored by a run that holds whole estimates, it goes on tensor by tensor."""
    path = tmp_path / "run.checkpoint"
    probe = fgvar.Probe({"BP": fgvar.scheme("BP")}, data[0].sample(8, seed=1), (1, 5), draws=2)

    stopped_at(4, monkeypatch, lambda: trained(fgvar.scheme("MeZO"), data, checkpoint=path, probe=probe))
    whole = trained(fgvar.scheme("MeZO"), data, probe=probe)
    said = request.getfixturevalue("large")
    run = trained(fgvar.scheme("MeZO"), data, checkpoint=path, probe=probe)
    require_same(run, whole)
    np.testing.assert_array_equal(run.dataset["gradient_norm"], whole.dataset["gradient_norm"])
    assert said == [True]


def test_infinity_is_found_in_the_same_step(data, request) -> None:
    schedule, errors = replace(PLAIN, lr=1e30), []
    for _ in range(2):
        with pytest.raises(
            fgvar.NonFiniteError, match=r"the gradient of '.*' held NaN or infinity at step \d"
        ) as found:
            trained(fgvar.scheme("MeZO"), data, schedule)
        errors.append(str(found.value))
        request.getfixturevalue("large")
    assert errors[0] == errors[1]


@pytest.mark.parametrize(
    ("estimator", "compile", "expected"),
    [
        (fgvar.scheme("MeZO"), False, True),
        (fgvar.scheme("MeZO"), True, False),
        (fgvar.scheme("FG-A"), False, False),
        (fgvar.scheme("BP"), False, False),
        (fgvar.scheme("MeZO", antithetic=True), False, False),
        (fgvar.scheme("MeZO", noise=fgvar.noise.Sphere()), False, False),
    ],
)
def test_what_is_made_tensor_by_tensor(estimator, compile: bool, expected: bool, monkeypatch) -> None:
    """Factors of large noise in one process, where each leaf is drawn alone and nothing is compiled."""
    law = getattr(estimator, "noise", fgvar.Gaussian())
    randomness = fgvar.Randomness({"w": fgvar.Leaf((1 << 24,), law)})
    assert gradients.by_tensor(estimator, randomness, torch.float32, compile) == expected
    small = fgvar.Randomness({"w": fgvar.Leaf((1 << 20,), law)})
    assert not gradients.by_tensor(estimator, small, torch.float32, compile)
    monkeypatch.setattr(gradients, "world", lambda: (0, 2))
    assert not gradients.by_tensor(estimator, randomness, torch.float32, compile)


def test_lazy_noise_is_that_of_the_draw() -> None:
    """Bit by bit, however often and in whatever order it is asked for; and none of it is held."""
    leaves = {
        "a": fgvar.Leaf((300, 400), fgvar.Gaussian()),
        "b": fgvar.Leaf((5,), fgvar.Rademacher()),
        "c": fgvar.Leaf((2, 6, 7), fgvar.noise.LowRank(2), 1),
    }
    randomness = fgvar.Randomness(leaves)
    whole = randomness.sample(7, [18], dtype=torch.float64)
    lazy = randomness.lazily(7, 18, dtype=torch.float64, device="cpu")
    assert isinstance(lazy, LazyTensors)
    assert list(lazy) == list(leaves)
    assert len(lazy) == 3
    for name in ("c", "a", "b", "a"):
        assert torch.equal(lazy[name], whole[name][0])
        assert lazy[name] is not lazy[name]


PREPARE = """
examples = 4 * {steps}
data = fgvar.data.Examples(torch.randn(examples, 1024), torch.zeros(examples, dtype=torch.long))
schedule = fgvar.Schedule(epochs=1, batch=4, lr=1e-6, momentum={momentum}, weight_decay=0.0)
fgvar.train(small, fgvar.scheme("{name}"), data, schedule, device="cpu")
"""


@pytest.mark.parametrize(
    ("name", "momentum", "steps", "most"), [("MeZO", 0, 1, 3), ("FG-W", 0, 1, 3), ("MeZO", 0.9, 2, 4)]
)
def test_a_step_takes_few_copies(name: str, momentum: float, steps: int, most: float) -> None:
    """Of 29 million numbers, beyond the caller's own network: by the resident memory of a whole run.

    Momentum adds a copy, from the second step on.
    """
    prepare = PREPARE.format(name=name, momentum=momentum, steps=steps)
    work = f'fgvar.train(net, fgvar.scheme("{name}"), data, schedule, device="cpu")'
    assert copies_taken(prepare, work) <= most
