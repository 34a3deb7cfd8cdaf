"""Collocation: what its stored dataset shows, what is said of it, and its figure."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fgvar
from figures import collocation as figure
from figures import style
from studies import collocation as study

ROOT = Path(__file__).parents[2]
QUARTER = {"share": 0.25}


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return fgvar.open_dataset(ROOT / "figures/data/collocation.nc")


def squared_error(dataset: xr.Dataset) -> xr.DataArray:
    return dataset["relative_bias_exact"] + dataset["relative_variance_exact"]


def test_the_stored_run_is_whole(stored: xr.Dataset) -> None:
    assert (stored["status"] == "done").all()
    assert not stored.attrs["commit"].endswith("+"), "made from a clean commit"
    assert (stored.sizes["source"], stored.sizes["seed"]) == (2, 10)


def test_drawn_values_agree_with_exact_ones(stored: xr.Dataset) -> None:
    """Of 240 intervals of 95 %, six at a time of the same draws, nine in ten hold the exact value; biases within 6 σ.

    Were the 40 groups independent and each wholly right or wrong, fewer than nine in ten had a chance of 5 %.
    """
    for name in ("relative_variance", "efficiency"):
        exact = stored[f"{name}_exact"]
        held = (stored[f"{name}_low"] <= exact) & (exact <= stored[f"{name}_high"])
        assert held.mean() > 0.9, name
    published = stored.sel(law="published")
    z = (published["relative_bias"] - published["relative_bias_exact"]) / published["relative_bias_se"]
    assert float(abs(z).max()) < 6


def test_weights_have_no_bias_and_a_smaller_squared_error_wherever_points_are_adapted(stored: xr.Dataset) -> None:
    assert float(stored["relative_bias_exact"].sel(law="weighted").max()) < 1e-20
    total = squared_error(stored).where(stored["share"] < 1, drop=True)
    assert (total.sel(law="weighted") < total.sel(law="published")).all()


@pytest.mark.parametrize(("venue", "columns"), [("iclr", 2), ("icml", 1)])
def test_what_is_drawn(stored: xr.Dataset, venue: style.Venue, columns: style.Columns) -> None:
    drawn = figure.draw(stored, venue=venue, columns=columns)
    assert len(drawn.axes) == 6
    assert all(axes.get_yscale() == "log" for axes in drawn.axes)
    left, middle, right = drawn.axes[:3]
    first = stored.isel(source=0, seed=0)
    lines = [line.get_ydata() for line in left.lines]
    for expected in (squared_error(first).sel(law="published"), first["relative_variance_exact"].sel(law="weighted")):
        assert any(len(line) == len(expected) and np.allclose(line, expected) for line in lines)
    assert any(np.allclose(line.get_ydata(), 1 - first["efficiency"].sel(law="weighted")) for line in middle.lines)
    medians = stored["error"].isel(source=0).median("seed").isel(step=slice(1, None))
    shown = [line.get_ydata() for line in right.lines if len(line.get_ydata()) == medians.sizes["step"]]
    assert len(shown) == len(study.SAMPLERS)
    for name in study.SAMPLERS:
        assert any(np.allclose(line, medians.sel(sampler=name)) for line in shown), name


def test_captions_count_what_failed(stored: xr.Dataset) -> None:
    status = stored["status"].copy()
    status[0, 0] = "failed"
    assert "1 of 20 cells failed" in figure.caption(stored.assign(status=status))


def claims(stored: xr.Dataset) -> dict[str, str]:
    """Numbers as they are said, of both sources, at η = ¼."""
    total, found = squared_error(stored), {}
    for source, width in (("narrow", 0.02), ("wide", 0.1)):
        its = stored.sel(source=width)
        quarter, final = its.sel(QUARTER), its["final"]
        ratio = (total.sel(law="published") / total.sel(law="weighted")).sel(QUARTER).sel(source=width)
        left = 1 - quarter["efficiency_exact"]
        better = int((left.sel(law="published") < left.sel(law="weighted")).sum())
        cosine = quarter["cosine_of_mean"].sel(law="published")
        medians = final.median("seed")
        bias, variance = (quarter[f"relative_{what}_exact"].median("seed") for what in ("bias", "variance"))
        found |= {
            f"{source}: ratio": f"{ratio.min().item():.2g} to {float(ratio.max()):.0f}",
            f"{source}: bias": f"{bias.sel(law='published').item():.2g}",
            f"{source}: variances": " and ".join(f"{variance.sel(law=law).item():.2g}" for law in study.LAWS),
            f"{source}: cosine": f"{cosine.min().item():.2f} to {cosine.max().item():.2f}",
            f"{source}: scaled": " and ".join(f"{left.sel(law=law).median().item():.2g}" for law in study.LAWS),
            f"{source}: better scaled": f"{better} of 10",
            **{f"{source}: {name}": f"{medians.sel(sampler=name).item():.2g}" for name in study.SAMPLERS},
        }
    return found


def test_what_is_said_stands_in_the_dataset(stored: xr.Dataset) -> None:
    """Every number of the header's claim, and of the section in studies/README.md."""
    said, whole = claims(stored), (ROOT / "studies/README.md").read_text()
    heading = "## Collocation points by their residuals\n"
    assert heading in whole
    section = whole.split(heading)[1].split("\n## ")[0]
    some = [said[f"narrow: {name}"] for name in ("ratio", "bias", "variances", "cosine", "scaled", *study.SAMPLERS)]
    wide = sorted((said[f"wide: {name}"] for name in study.SAMPLERS), key=float)
    for text in (study.__doc__, section):
        flat = " ".join(str(text).split())
        missing = [number for number in (*some, f"{wide[0]} to {wide[-1]}") if number not in flat]
        assert missing == []
    assert said["narrow: better scaled"] in " ".join(section.split())
