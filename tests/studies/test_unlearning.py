"""Unlearning: the closed forms of its study against steps that are made, its evidence, and what is told of it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import fgvar
from figures import unlearning as figure
from studies import unlearning as study

ROOT = Path(__file__).parents[2]
MEAN = 0.0051  # half of what two digits leave open


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return fgvar.open_dataset(ROOT / "figures/data/unlearning.nc")


@pytest.fixture(scope="module")
def tenth(stored: xr.Dataset) -> xr.Dataset:
    return stored.sel(forgotten="a tenth")


def quadratic() -> study.Scene:
    """A linear map under the squared error: one Hessian everywhere."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(20, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    net = torch.nn.Linear(3, 3, dtype=torch.float64)
    forget, retain = (fgvar.Problem(net, "mse", (x[some], y[some])) for some in (slice(5), slice(5, 20)))
    return study.scene(forget, retain, damping=0.1)


def test_the_lines_are_the_steps_of_a_quadratic() -> None:
    """By the eigenvalues of H, once and in rounds, against steps made and against `fgvar.targets.Propagated`."""
    here, lr = quadratic(), 0.05
    time, exact = study.theory(here, lr, 10)
    assert time == [0, 1, 2, 3, 4, 5, 10]
    for way, line in zip(study.WAYS, exact, strict=True):
        for steps in (0, 5, 10):
            made = study.direction(here, then=study.retaining(here, way, steps, lr))
            torch.testing.assert_close(line[time.index(steps)], made, rtol=0, atol=1e-10)
    target = fgvar.targets.Propagated(here.retain, study.ROUND, lr, rounds=2)(here.forget)
    torch.testing.assert_close(exact[1, -1], study.flat(target), rtol=0, atol=1e-10)
    assert exact[1, 1:5].isnan().all(), "no round ends there"


def test_cosines_to_newton_and_by_damage() -> None:
    """Newton's direction has 1 of both; a direction's gain for its damage is its cosine² in the metric of H + μ."""
    here = quadratic()
    found = study.cosines(here, torch.stack([here.newton, here.gradient]))
    np.testing.assert_allclose(found[0, [0, 2]], 1, rtol=1e-9)
    assert found[1, 1] == pytest.approx(1)
    g, root = here.gradient, torch.linalg.cholesky(here.damped)
    expected = torch.cosine_similarity(root.T @ g, root.T @ here.newton, dim=0)
    assert found[1, 2] == pytest.approx(float(expected), rel=1e-9)
    bent = here._replace(damped=here.damped - 100 * torch.eye(len(g)).double())
    assert np.isnan(study.cosines(bent, g)[2]), "no damage without curvature"


def test_masks_of_each_name() -> None:
    here = quadratic()
    assert study.kept(here, "none") == study.kept(here, "weights") == 1
    assert study.kept(here, "random mask") == study.kept(here, "mask of 10") < 1
    assert len(study.masks(here, "random mask", 3)) == 3
    weighed = study.shaped(here, "weights", (), 1)
    sample = fgvar.sampling.Reweighted(fgvar.sampling.Losses(-0.5))
    np.testing.assert_allclose(weighed, study.cosines(here, study.direction(here, sample=sample)))


def test_the_stored_dataset_is_whole(stored: xr.Dataset) -> None:
    assert (stored["status"] == "done").all()
    assert not stored.attrs["commit"].endswith("+"), "made from a clean commit"
    assert stored.sizes["seed"] == 10
    assert stored.attrs["d"] == 280


def test_retaining_steps_carry_it_along_the_closed_form(tenth: xr.Dataset) -> None:
    """For every seed more steps are nearer; means lie on the line within 0.004, of draws within 0.011."""
    made, line = tenth["cosine"].sel(toward="Newton"), tenth["theory"].sel(toward="Newton")
    assert (made.diff("steps") > 0).all()
    line = line.sel(time=tenth["steps"].values).rename(time="steps")
    assert float(abs((made - line).mean("seed")).max()) < 0.004
    assert float(abs((tenth["drawn"].sel(toward="Newton") - line).mean("seed")).max()) < 0.011
    mean = made.mean("seed")
    for way, steps, value in (("once", 0, 0.43), ("once", 400, 0.94), ("rounds", 400, 0.86)):
        assert float(mean.sel(way=way, steps=steps)) == pytest.approx(value, abs=MEAN)


def test_masks_and_weights_lower_it(tenth: xr.Dataset) -> None:
    its = tenth["shaped"].sel(toward="Newton")
    lower = (its < its.sel(shaping="none")).sum("seed")
    for name, alone, followed in (("mask of 1", 10, 10), ("mask of 10", 10, 10), ("weights", 8, 10)):
        assert lower.sel(shaping=name).values.tolist() == [alone, followed]
    mean = its.mean("seed")
    told = {
        "mask of 10": (0.35, 0.57), "weights": (0.36, 0.70), "weights and mask of 10": (0.30, 0.45),
    }  # fmt: skip
    for name, values in told.items():
        np.testing.assert_allclose(mean.sel(shaping=name), values, atol=MEAN)
    assert float(mean.sel(shaping="random mask", end="alone")) == pytest.approx(0.29, abs=MEAN)
    unchanged = mean.sel(shaping="mask of all") - mean.sel(shaping="none")
    assert float(abs(unchanged).max()) < 0.01
    kept = tenth["kept"].mean("seed")
    np.testing.assert_allclose(kept.sel(shaping=["mask of 10", "mask of all"]), [0.47, 0.87], atol=MEAN)
    damage = tenth["shaped"].sel(toward="damage", end="followed").mean("seed")
    np.testing.assert_allclose(damage.sel(shaping=["none", "mask of 10"]), [0.87, 0.67], atol=MEAN)


def test_of_a_class_the_first_order_ends(stored: xr.Dataset) -> None:
    its = stored.sel(forgotten="a class")
    assert float(its["off"].max()) == pytest.approx(0.92, abs=MEAN)
    damping = float(stored.attrs["config_damping"])
    assert int((its["curvature"].sel(extreme="lowest") < -damping).sum()) == 4
    assert (stored["curvature"].sel(extreme="lowest", forgotten="a tenth") > -damping).all()


def test_the_caption_and_the_header_tell_these_numbers(stored: xr.Dataset) -> None:
    text = figure.caption(stored)
    for words in (
        "plain 0.43, then 0.86",
        "mask of 10 0.35, then 0.57 (47% kept)",
        "21% (rounds)",
        "4 of 10 networks",
    ):
        assert words in text
    header = " ".join((study.__doc__ or "").split())
    for words in ("from 0.43 to 0.94 in 400 steps", "to 0.86 in 80 rounds", "0.70 and 0.57 in place of 0.86"):
        assert words in header


def test_the_figure(stored: xr.Dataset) -> None:
    drawn = figure.draw(stored)
    first, second, rows = drawn.axes
    assert [axes.get_title() for axes in drawn.axes[:2]] == ["a tenth forgotten", "a class forgotten"]
    lines = {line.get_color(): line for line in first.lines if line.get_linestyle() == "-"}
    exact = stored["theory"].sel(forgotten="a tenth", way="once", toward="Newton").mean("seed")
    np.testing.assert_allclose(lines[figure.LOOKS["once", "Newton"][0]].get_ydata(), exact)
    assert first.get_xscale() == "symlog"
    assert second.get_ylim() == first.get_ylim()
    labels = [label.get_text() for label in rows.get_yticklabels()]
    assert labels[0] == "plain"
    assert [name for name in labels if re.search(r"\(\d+%\)", name)] == labels[2:5]


def test_a_missing_cell_is_told(stored: xr.Dataset) -> None:
    status = stored["status"].copy()
    status[0, 0] = "failed"
    assert "1 of 20 cells failed or are missing" in figure.caption(stored.assign(status=status))
