"""The calibration study as a user runs it, its stored evidence, and its figure."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tyro
import xarray as xr

import fgvar
from figures import calibration, style
from studies import check_calibration as study

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "figures" / "data" / "calibration.nc"


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return fgvar.open_dataset(STORED)


def test_smoke(tmp_path, capsys, monkeypatch) -> None:
    """By a thread in place of its process, which would load torch again."""
    monkeypatch.setattr(study, "ProcessPoolExecutor", ThreadPoolExecutor)
    out = tmp_path / "calibration.nc"
    study.main(tyro.cli(study.Config, args=["--smoke", "--out", str(out)]))
    printed = capsys.readouterr().out
    for part in ("alarms over expected ones", "verdicts at the default level 1e-06", "coverage of 95 % intervals"):
        assert part in printed
    for suffix in (".nc", ".pdf", ".png"):
        assert out.with_suffix(suffix).stat().st_size > 1000, suffix
    assert out.with_suffix(".txt").read_text().startswith("A smoke run: the numbers mean nothing.")


def test_the_stored_dataset_is_of_the_full_run(stored: xr.Dataset) -> None:
    assert "full=True" in stored.attrs["configuration"]
    assert stored.attrs["runs"] >= 10_000
    assert stored.sizes["run"] >= 10_000


def test_no_alarm_in_all_seeded_runs_at_the_default_level(stored: xr.Dataset) -> None:
    assert not (stored["verdict_p"] < stored.attrs["level"]).any()


def test_alarm_rates_are_the_nominal_ones(stored: xr.Dataset) -> None:
    """On the most skewed perturbation, down to 1e-4: within a quarter of the nominal rate, or its binomial margin."""
    alarms, runs = stored["alarms"].sel(law="u² − 1"), stored.attrs["alarm_runs"]
    expected = runs * stored["nominal"]
    assert (abs(alarms - expected) < 0.25 * expected + 3 * np.sqrt(expected)).all()


def test_errors_of_the_printed_size_are_caught(stored: xr.Dataset) -> None:
    """In 95 % of 2,000 runs, within 4 binomial errors; too large a scale more often, by its skewness."""
    caught = stored["caught"].sel(effect=1.0)
    assert 0.93 < caught.sel(kind="bias") < 0.97
    assert caught.sel(kind="scale") > 0.93
    assert (stored["caught"].sel(effect=0.0) == 0).all()


@pytest.mark.parametrize("statistic", ["variance", "slope", "cosine", "sq_bias"])
def test_intervals_cover_wherever_errors_are_given(stored: xr.Dataset, statistic: str) -> None:
    """94 to 96 % where 95 of 100 runs give an error, and 0.5 % more for the binomial error of 10,000 runs."""
    its = stored.sel(statistic=statistic)
    coverage = its["coverage"].where(its["reported"] >= calibration.ENOUGH)
    assert int(coverage.notnull().sum()) > 50
    assert float(coverage.min()) >= 0.935
    assert float(coverage.max()) <= 0.965
    assert float(its["reported"].sel(draws=16).max()) == 0


def test_heavy_tails_and_single_numbers_have_no_error(stored: xr.Dataset) -> None:
    one = stored["reported"].sel(case="Gaussian, d = 1")
    assert float(one.sel(statistic=["cosine", "sq_bias"]).max()) == 0
    assert float(one.sel(statistic="variance", draws=[64, 128, 256]).max()) < 0.05


@pytest.fixture(scope="module")
def synthetic() -> xr.Dataset:
    rng = np.random.default_rng(0)
    cases, statistics, draws = 3, ("variance", "slope", "cosine", "sq_bias"), (16, 64, 256)
    shape = (cases, len(statistics), 2, len(draws))
    return xr.Dataset(
        {
            "alarms": (("law", "nominal"), [[1000.0, 90.0, 12.0], [1010.0, 110.0, 0.0]]),
            "verdict_p": ("run", rng.uniform(0, 1, 500)),
            "caught": (("kind", "effect"), [[0.0, 0.95, 1.0], [0.0, 0.94, 1.0]]),
            "coverage": (("case", "statistic", "reference", "draws"), rng.uniform(0.9, 1, shape)),
            "reported": (("case", "statistic", "reference", "draws"), rng.choice([0.0, 0.5, 1.0], shape)),
        },
        coords={
            "law": ["a", "b"], "nominal": [1e-1, 1e-2, 1e-3], "kind": ["scale", "bias"], "effect": [0.0, 1.0, 2.0],
            "case": list("xyz"), "statistic": list(statistics), "reference": ["target", "backprop"],
            "draws": list(draws),
        },
        attrs={"runs": 1000, "alarm_runs": 10_000, "level": 1e-6},
    )  # fmt: skip


@pytest.mark.parametrize(("venue", "columns"), [("iclr", 2), ("icml", 1)])
def test_what_is_drawn(synthetic: xr.Dataset, venue: style.Venue, columns: style.Columns) -> None:
    figure = calibration.draw(synthetic, venue=venue, columns=columns)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["false alarms", "power"]
    assert [title.removeprefix("coverage: ") for title in titles[2:]] == [
        "variance",
        "slope",
        "cosine",
        "squared bias",
    ]
    assert figure.get_figwidth() == style.width(venue, columns)
    ratios = figure.axes[0].lines[1].get_ydata()
    np.testing.assert_allclose(ratios, [1.0, 0.9, 1.2])
    filled = sum(len(line.get_xdata()) for line in figure.axes[2].lines if line.get_markerfacecolor() == "black")
    assert filled == int((synthetic["reported"].sel(statistic="variance") == 1).sum())


def test_the_caption_says_how_numbers_came(synthetic: xr.Dataset) -> None:
    text = calibration.caption(synthetic)
    for part in (
        "All values are drawn",
        "10000 runs for each",
        "0 alarms in 500 seeded runs",
        "95 % Clopper-Pearson",
    ):
        assert part in text, text


def test_foreign_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not a dataset of studies/check_calibration\.py: it lacks variable"):
        calibration.draw(xr.Dataset())
