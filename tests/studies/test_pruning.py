"""Pruning: the schedule against the author's formulas, its evidence, and what is told of it."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import fgvar
from figures import pruning as figure
from studies import pruning as study

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return fgvar.open_dataset(ROOT / "figures/data/pruning.nc")


@pytest.fixture(scope="module")
def last(stored: xr.Dataset) -> xr.Dataset:
    return stored.isel(epoch=-1)


@pytest.fixture(scope="module")
def run() -> list[study.Epoch]:
    """Five epochs of a small network, of two updates."""
    digits = fgvar.data.load("digits")
    net = fgvar.networks.MLP(digits.image_shape, width=6, depth=1, classes=10, seed=0)
    whole = fgvar.Problem(net, "cross_entropy", digits.batch(range(len(digits))))
    return list(study.trained(whole, seed=0, epochs=5, batch=700, lr=1e-3, share=0.4))


@pytest.mark.parametrize(
    ("losses", "share"),
    [
        ([1.0], 0.4),
        ([1.0, 0.5], 0.4),
        ([1.0, 0.5, 0.25], 0.2),  # half of the fall before
        ([1.0, 0.5, 0.0], 0.4),
        ([1.0, 0.5, 0.49], 0.04),  # no less than a tenth of the first
        ([1.0, 0.5, 0.9], 0.04),  # a loss that rises counts as one that stands
        ([1.0, 0.99, 0.5], 0.4),  # no more than the first
    ],
)
def test_the_share_follows_the_loss(losses: list[float], share: float) -> None:
    assert study.next_share(0.4, losses, 0.4) == pytest.approx(share)


def test_what_is_pruned_stays_so_and_the_rest_is_adam(run: list[study.Epoch]) -> None:
    """Weights are 0 throughout the next epoch, kernels alone; each quantile is that of the live weights before."""
    for before, after in pairwise(run):
        for name, p in after.params.items():
            dead = before.live[name] == 0
            assert not p[dead].any()
            assert (after.live[name][dead] == 0).all()
            sizes = before.params[name].abs().numpy()
            if p.ndim > 1:
                cut = np.quantile(sizes[sizes != 0], before.share)
                assert (before.live[name].numpy() == (sizes >= cut) * (sizes != 0)).all()
            else:
                assert before.live[name].all()
    losses = [epoch.loss for epoch in run]
    share = 0.4
    for k, epoch in enumerate(run):
        share = study.next_share(share, losses[: k + 1], 0.4)
        assert epoch.share == share


def test_without_pruning_it_is_torch_s_adam() -> None:
    """One epoch against a loop over a module."""
    digits = fgvar.data.load("digits")
    net = fgvar.networks.MLP(digits.image_shape, width=6, depth=1, classes=10, seed=0)
    whole = fgvar.Problem(net, "cross_entropy", digits.batch(range(len(digits))))
    (epoch,) = study.trained(whole, seed=0, epochs=1, batch=700, lr=1e-3, share=0.0)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    for x, y in digits.batches(700, seed=0, epoch=0):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    for name, p in net.named_parameters():
        torch.testing.assert_close(epoch.params[name], p.detach(), rtol=1e-4, atol=1e-6)
    assert all(m.all() for m in epoch.live.values())


def test_the_stored_dataset_is_whole(stored: xr.Dataset) -> None:
    assert (stored["status"] == "done").all()
    assert not stored.attrs["commit"].endswith("+"), "made from a clean commit"
    assert stored.sizes["seed"] == 10


def test_random_masks_have_their_exact_mean(stored: xr.Dataset) -> None:
    """200 drawn values: one beyond 4.5 errors has probability 0.02 as t₃₁; 15 % off in any is seen."""
    z = (stored["energy_drawn"] - stored["energy"].sel(mask="random")) / stored["energy_drawn_se"]
    assert float(abs(z).max()) < 4.5


def test_the_variance_of_live_weights_is_their_number(stored: xr.Dataset, last: xr.Dataset) -> None:
    named = ["FG-W, live", "FG-W, masked", "FG-W, dense"]
    exact, law = (stored[name].sel(estimator=named) for name in ("relative_variance", "law"))
    np.testing.assert_allclose(exact, law, rtol=1e-6)
    low, high = (stored[f"relative_variance_drawn_{end}"] for end in ("low", "high"))
    inside = (low <= stored["relative_variance"]) & (stored["relative_variance"] <= high)
    assert float(inside.mean()) > 0.9, "95 % intervals of 1,000 drawn values, of 128 draws"
    mean = last["relative_variance"].mean("seed")
    told = {"FG-W, dense": 8321, "FG-W, live": 1190, "FG-W, masked": 6591, "FG-A, dense": 98, "FG-A, masked": 57}
    for name, value in told.items():
        assert round(float(mean.sel(estimator=name))) == value, name


def test_what_magnitude_keeps(stored: xr.Dataset, last: xr.Dataset) -> None:
    mean = last["energy"].mean("seed")
    np.testing.assert_allclose(mean, [0.203, 0.134, 0.129], atol=5.1e-4)
    ratio = stored["energy"].sel(mask="magnitude") / stored["energy"].sel(mask="random")
    assert float(ratio.isel(epoch=-1).mean()) == pytest.approx(1.5, abs=0.05)
    assert int((ratio > 1).sum()) >= 0.95 * ratio.size
    like_it = stored["energy"].sel(mask="magnitude of dense") / stored["energy"].sel(mask="random")
    assert float(like_it.mean("seed").isel(epoch=slice(-5, None)).max()) < 1.15


def test_smaller_is_not_better_here(last: xr.Dataset, stored: xr.Dataset) -> None:
    assert float(last["live"].mean()) == pytest.approx(0.142, abs=5.1e-4)
    error = last["test_error"]
    assert (error.sel(network="pruned") > error.sel(network="dense")).all()
    np.testing.assert_allclose(error.mean("seed"), [0.098, 0.079], atol=5.1e-4)
    late = stored["share"].where(stored["epoch"] > 3)
    assert int((late > 0.25).any("epoch").sum()) == 2


def test_the_caption_and_the_header_tell_these_numbers(stored: xr.Dataset) -> None:
    text = figure.caption(stored)
    for words in (
        "14.2% of all parameters",
        "9.8%, unpruned 7.9%",
        "for 10 of 10 seeds",
        "keeps 0.203",
        "live weights 1,190",
    ):
        assert words in text
    header = " ".join((study.__doc__ or "").split())
    last = stored.isel(epoch=-1)
    kept, noise = last["energy"], last["relative_variance"]
    ratio = kept.sel(mask="magnitude") / kept.sel(mask="random")
    gain = noise.sel(estimator="FG-A, dense") / noise.sel(estimator="FG-A, masked")
    section = " ".join((ROOT / "studies/README.md").read_text().split())
    for text in (header, section):
        assert f"{float(ratio.min()):.2f} to {float(ratio.max()):.2f} times by seed" in text
    assert f"{float(gain.min()):.2f} to {float(gain.max()):.1f} times less by seed" in section
    assert int((ratio < 1).sum()) == 2
    for words in ("14 % of the parameters", "from 8,321 to 1,190", "9.8 %, without pruning 7.9 %"):
        assert words in header


def test_the_figure(stored: xr.Dataset) -> None:
    drawn = figure.draw(stored)
    shares, kept, noise = drawn.axes
    assert [axes.get_yscale() for axes in drawn.axes] == ["log", "linear", "log"]
    live = next(line for line in shares.lines if line.get_color() == "black")
    np.testing.assert_allclose(live.get_ydata(), 100 * stored["live"].mean("seed"))
    squares = next(line for line in kept.lines if line.get_marker() == "s")
    np.testing.assert_allclose(np.asarray(squares.get_ydata(), float), stored["energy_drawn"].mean("seed"))
    assert {line.get_marker() for line in noise.lines} >= {marker for _, marker, _ in figure.LOOKS.values()}


def test_a_missing_cell_is_told(stored: xr.Dataset) -> None:
    status = stored["status"].copy()
    status[0] = "failed"
    assert "1 of 10 cells failed or are missing" in figure.caption(stored.assign(status=status))
