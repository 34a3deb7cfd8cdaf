"""Contrastive runs: views, curves, probes, checkpoints and read-outs."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr

import fgvar
from fgvar.data.augmentation import generator
from fgvar.training import checkpoint, linear_probe, train
from fgvar.training.objectives import SelfSupervised

VIEWS = fgvar.data.Views(crop=(0.5, 1.0), flip=0.0)
SCHEDULE = fgvar.Schedule(epochs=2, batch=16, lr=0.05)


@pytest.fixture(scope="module")
def digits() -> tuple[fgvar.data.Images, fgvar.data.Images]:
    return fgvar.data.load("digits"), fgvar.data.load("digits", "test")


@pytest.fixture(scope="module")
def data(digits) -> tuple[fgvar.data.Images, fgvar.data.Images]:
    return digits[0].subset(range(64)), digits[1].subset(range(32))


def mixer(**settings) -> fgvar.networks.LocalMixer:
    shape = {"blocks": 2, "patches": 2, "channels": 16, "groups": 4} | settings
    return fgvar.networks.LocalMixer((1, 8, 8), 10, **shape, seed=1)


def train(data, name: str = "LG-FG-A", *, stop: bool = True, **settings) -> train.Run:
    settings = {"views": VIEWS, "schedule": SCHEDULE, "device": "cpu", "seed": 3} | settings
    loss = fgvar.contrastive.InfoNCE(stop_gradient=stop)
    return fgvar.train(mixer(), fgvar.scheme(name), data, loss=loss, **settings)


def test_backprop_equals_a_plain_loop(data) -> None:
    """torch's own backward, the views of each step, cosines written out: parameters and losses, in float64."""
    model = mixer().double()
    schedule = fgvar.Schedule(epochs=1, batch=16, lr=0.05, momentum=0.0, weight_decay=0.0, decay="constant")
    run = fgvar.train(
        model,
        fgvar.scheme("BP"),
        data,
        schedule,
        loss=fgvar.contrastive.InfoNCE(0.2),
        views=VIEWS,
        seed=3,
        device="cpu",
    )
    model.readout.linear = torch.nn.Identity()
    losses = []
    for step, (x, _) in enumerate(data[0].batches(16, seed=3, epoch=0, dtype=torch.float64)):
        one, two = VIEWS.pair(x, generator(3, 0, step))
        cosines = torch.nn.functional.cosine_similarity(model(one)[:, None], model(two).detach()[None], dim=2)
        loss = torch.nn.functional.cross_entropy(cosines / 0.2, torch.arange(16))
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.05 * (0 if p.grad is None else p.grad)
    np.testing.assert_allclose(run.dataset["batch_loss"], losses, rtol=1e-9)
    for name, value in model.named_parameters():
        torch.testing.assert_close(run.params[name], value.detach(), rtol=1e-9, atol=1e-10)


def test_views_are_new_in_every_step_and_the_same_for_one_step(data) -> None:
    task = SelfSupervised(fgvar.contrastive.InfoNCE(), VIEWS, seed=3, batch=16)
    batch = data[0].batch(range(16))
    pairs = [
        task.train_batch(batch, 0),
        task.train_batch(batch, 1),
        task.eval_batch(batch),
        *task._batches(problem(), data[0]),
    ]
    for i, (one, two) in enumerate(pairs):
        assert not torch.equal(one, two)
        assert all(not torch.equal(one, other) for other, _ in pairs[:i])
    for again, first in zip((task.train_batch(batch, 1), task.eval_batch(batch)), pairs[1:3], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(again, first, strict=True))
    other = dataclasses.replace(task, seed=4)
    assert not torch.equal(other.train_batch(batch, 0)[0], pairs[0][0])
    fixed = next(iter(other._batches(problem(), data[0])))
    assert torch.equal(fixed[0], pairs[3][0]), "curves of other seeds are of the same views"


def problem() -> fgvar.Problem:
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return fgvar.contrastive.Contrastive(mixer(), fgvar.contrastive.InfoNCE(), (x, x.flip(3)))


@pytest.mark.parametrize("stop", [True, False])
def test_probing_never_changes_the_run(data, stop: bool) -> None:
    probe = fgvar.Probe({"LG-FG-A": fgvar.scheme("LG-FG-A")}, data[0].sample(6, seed=1), (1, 3), draws=8)
    without, probed = (train(data, stop=stop, probe=p) for p in (None, probe))
    assert all(torch.equal(value, probed.params[name]) for name, value in without.params.items())
    for name in without.dataset.data_vars:
        xr.testing.assert_equal(without.dataset[name], probed.dataset[name])
    assert list(probed.dataset["step"].values) == [1, 3]
    assert bool((probed.dataset["relative_variance"].sel(layer="perturbed") > 1).all())


def test_curves(data) -> None:
    found = train(data, "BP").dataset
    assert {"loss", "test_loss", "train_retrieval_error", "test_retrieval_error"} <= set(found.data_vars)
    assert found.sizes["epoch"] == 3
    assert found["batch_loss"].dims == ("update",)
    assert found.sizes["update"] == 8
    assert np.isfinite(found.to_array()).sum() == 4 * 3 * 8 + 8 * 3, "every number"
    assert "512 images of the train split, in batches of 16" in found["loss"].attrs["long_name"]
    assert found.attrs["train_loss"] == "InfoNCE(temperature=0.1, stop_gradient=True)"
    assert found.attrs["train_views"] == repr(VIEWS)


def test_the_loss_goes_down(digits) -> None:
    part = digits[0].subset(range(256)), digits[1]
    found = train(part, schedule=fgvar.Schedule(4, 32, lr=0.05)).dataset
    for name in ("loss", "test_loss"):
        assert float(found[name][-1]) < 0.9 * float(found[name][0]), name


def test_without_the_stop(data) -> None:
    """Another run of the same noise and views, whose first loss is the same number."""
    one, two = (train(data, stop=stop) for stop in (True, False))
    assert float(one.dataset["batch_loss"][0]) == pytest.approx(float(two.dataset["batch_loss"][0]), rel=1e-5)
    assert float(one.dataset["loss"][0]) == pytest.approx(float(two.dataset["loss"][0]), rel=1e-6)
    assert any(not torch.equal(value, two.params[name]) for name, value in one.params.items())


def test_a_frozen_trunk_has_curves_and_stays(data) -> None:
    run = train(data, "frozen", schedule=dataclasses.replace(SCHEDULE, weight_decay=0.1))
    own = dict(mixer().named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in run.params.items())
    assert "batch_loss" not in run.dataset
    assert run.dataset["loss"].values.std() == 0


# ---- checkpoints (kill -9 is in test_checkpoints.py) ----------------------------------------------------------


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("finished") / "run.checkpoint"
    train(data, schedule=fgvar.Schedule(1, 32), checkpoint=path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"views": fgvar.data.Views(crop=(0.4, 1.0), flip=0.0)}, r"its views is .*0\.5.*0\.4"),
        ({"stop": False}, "its loss is .*stop_gradient=True.*stop_gradient=False"),
        ({"seed": 4}, "its seed is 3"),
    ],
)
def test_a_foreign_checkpoint_is_refused(data, tmp_path, finished, change, what: str) -> None:
    path = tmp_path / "run.checkpoint"
    path.write_bytes(finished)
    with pytest.raises(ValueError, match=f"is the checkpoint of another run: {what}"):
        train(data, **({"schedule": fgvar.Schedule(1, 32)} | change), checkpoint=path)


def test_a_checkpoint_of_the_format_before_is_told(tmp_path) -> None:
    path = tmp_path / "run.checkpoint"
    path.write_bytes(b"fgvar checkpoint 2\nwhatever")
    with pytest.raises(ValueError, match="is no checkpoint of this version of fgvar"):
        checkpoint.restore(path, {}, torch.device("cpu"))


def test_non_finite_stops(data) -> None:
    with pytest.raises(fgvar.NonFiniteError, match="NaN or infinity"):
        train(data, schedule=fgvar.Schedule(2, 16, lr=1e38, momentum=0.0, decay="constant"))


# ---- read-outs -----------------------------------------------------------------------------------------------


def test_a_read_out_of_features_that_are_the_images_equals_a_plain_one(digits) -> None:
    """Logistic regression of the last digits, which are other writers', has an error of about an eighth."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 64, bias=False))
    torch.nn.init.eye_(network[1].weight)
    schedule = dataclasses.replace(linear_probe.SCHEDULE, lr=0.01)
    run = fgvar.read_out(network, dict(network.named_parameters()), digits, schedule, device="cpu")
    assert float(run.dataset["loss"][0]) == pytest.approx(np.log(10)), "weights start at 0"
    assert float(run.dataset["test_error"][-1]) < 0.14
    assert float(run.dataset["train_error"][-1]) < 0.03
    assert run.dataset.attrs["train_epochs"] == 20


def test_features_are_those_of_the_problem_standardised(data, monkeypatch) -> None:
    seen: list = []
    monkeypatch.setattr(linear_probe, "train", lambda *arguments, **_: seen.append(arguments[2]))
    model, x = mixer(), data[1].batch(range(32))[0]
    problem = fgvar.contrastive.Contrastive(model, fgvar.contrastive.InfoNCE(), (x, x.flip(3)))
    changed = {name: value + 0.01 for name, value in problem.params.items()}
    fgvar.read_out(model, changed, data, device="cpu")
    train_split, test_split = seen[0], seen[0].test
    rows, labels = test_split.batch(range(32))
    train_rows = problem.features(data[0].batch(range(64))[0], changed)
    mean, std = train_rows.mean(0), train_rows.std(0, correction=0)
    torch.testing.assert_close(rows.flatten(1), (problem.features(x, changed) - mean) / std, rtol=1e-3, atol=1e-3)
    assert torch.equal(labels, data[1].labels)
    assert train_split.batch(range(64))[0].flatten(1).std(0, correction=0).allclose(torch.ones(16), atol=1e-3)


def test_a_feature_that_never_varies_does_no_harm(data) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU())
    torch.nn.init.constant_(network[1].bias, -1e3)
    run = fgvar.read_out(network, dict(network.named_parameters()), data, fgvar.Schedule(1, 16), device="cpu")
    assert np.isfinite(run.dataset["loss"]).all()


def test_a_read_out_after_training_is_far_better_than_chance(digits) -> None:
    """Nine of ten digits are wrong by chance."""
    part = digits[0].subset(range(256)), digits[1]
    run = train(part, "LG-BP", schedule=fgvar.Schedule(2, 32, lr=0.1))
    schedule = fgvar.Schedule(epochs=10, lr=0.01, optimiser="adam", weight_decay=0.0)
    found = fgvar.read_out(mixer(), run.params, digits, schedule, seed=3, device="cpu").dataset
    assert float(found["test_error"][-1]) < 0.4


# ---- errors --------------------------------------------------------------------------------------------------


def test_errors(data) -> None:
    with pytest.raises(ValueError, match=r"InfoNCE compares two views of each image \(views=fgvar\.data\.Views"):
        train(data, views=None)
    with pytest.raises(ValueError, match=r"loss=cross_entropy and views=Views.* do not belong together"):
        fgvar.train(mixer(), fgvar.scheme("BP"), data, SCHEDULE, views=VIEWS)
    with pytest.raises(ValueError, match="a batch needs at least 2; it has 1"):
        train(data, schedule=fgvar.Schedule(1, 1))
    with pytest.raises(ValueError, match=r"the parameters lack 'block0\.channel\.bias' of the network"):
        fgvar.read_out(mixer(), {}, data)
