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
from studies.calibration.coverage import STATISTICS
from studies.calibration.networks import network

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
    for part in (
        "alarms over expected ones",
        "verdicts at the default level 1e-06",
        "coverage of 95 % intervals",
        "p-v",
    ):
        assert part in printed
    for suffix in (".nc", ".pdf", ".png"):
        assert out.with_suffix(suffix).stat().st_size > 1000, suffix
    assert out.with_suffix(".txt").read_text().startswith("A smoke run: the numbers mean nothing.")


def test_the_stored_dataset_is_of_the_full_run(stored: xr.Dataset) -> None:
    assert "full=True" in stored.attrs["configuration"]
    assert stored.attrs["coverage_scale"] == 1
    assert set(stored["draws"].values) == {32, 64, 256, 1024}
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


# What the study says that it does not cover: a value so rare that a sample lacks it, and a difference of two skewed
# variances in few dimensions.
RARE = ("1 % × 100", "10 % × 10", "difference, d = 4")


@pytest.mark.parametrize("statistic", [one for one in STATISTICS if one != "sq_bias"])
def test_intervals_cover_in_every_cell(stored: xr.Dataset, statistic: str) -> None:
    """At least 93 %, and three binomial errors of the cell's runs less; at most 97.5 % in nine of ten cells."""
    its = calibration.covered(stored.sel(statistic=statistic))
    low, high = calibration.RIGHT
    error = np.sqrt(low * (1 - low) / stored["runs"])
    short = (its < low - 3 * error).any(("reference", "draws"))
    assert set(stored["cell"].values[short]) <= set(RARE)
    whole = its.sel(draws=[64, 256, 1024])
    assert float((whole <= high).where(whole.notnull()).mean()) > 0.9


def test_the_limit_of_the_squared_bias_holds(stored: xr.Dataset) -> None:
    """In 97.5 %, and three binomial errors of the cell's runs less."""
    its = calibration.covered(stored.sel(statistic="sq_bias"))
    assert bool((its >= 0.975 - 3 * np.sqrt(0.975 * 0.025 / stored["runs"])).where(its.notnull(), True).all())


def test_p_values_reject_no_more_often_than_they_say(stored: xr.Dataset) -> None:
    """From 64 draws on, within three binomial errors; Student's t alone ten times as often at 0.001, one weight."""
    its = stored["rejected"].sel(cell=calibration.tested(stored), draws=[64, 256, 1024])
    level, runs = stored["level"], stored["runs"]
    assert bool((its.sel(rule="shown") <= level + 3 * np.sqrt(level / runs)).all())
    assert float(its.sel(rule="plain", cell="Gaussian, d = 1", level=0.001, draws=64)) > 0.005


def test_every_run_shows_an_interval(stored: xr.Dataset) -> None:
    """Nothing that a sample chooses hides one; layers of one number have none of three statistics."""
    shown = stored["shown"]
    assert float(shown.min()) == 1
    one = shown.sel(cell="Gaussian, d = 1")
    assert one.sel(statistic=["cosine", "snr", "efficiency"]).isnull().all()


@pytest.fixture(scope="module")
def synthetic() -> xr.Dataset:
    rng = np.random.default_rng(0)
    cells = ["χ²₁", "Gaussian, d = 4", "difference, d = 4", "planted 0.3", "FG-W, MLP, weight"]
    groups = ["law", "weights", "difference", "weights", "network"]
    dims, draws = ("cell", "statistic", "reference", "draws"), (32, 64, 256)
    shape = (len(cells), len(STATISTICS), 2, len(draws))
    shown = np.ones(shape)
    shown[0, 0, :, 0] = 0.01
    return xr.Dataset(
        {
            "alarms": (("law", "nominal"), [[1000.0, 90.0, 12.0], [1010.0, 110.0, 0.0]]),
            "verdict_p": ("run", rng.uniform(0, 1, 500)),
            "caught": (("kind", "effect"), [[0.0, 0.95, 1.0], [0.0, 0.94, 1.0]]),
            "below": (dims, rng.uniform(0, 0.05, shape)),
            "above": (dims, rng.uniform(0, 0.02, shape)),
            "shown": (dims, shown),
            "rejected": (("cell", "rule", "level", "draws"), rng.uniform(0, 0.05, (len(cells), 2, 3, len(draws)))),
            "runs": (("cell", "draws"), np.full((len(cells), len(draws)), 400)),
        },
        coords={
            "law": ["a", "b"], "nominal": [1e-1, 1e-2, 1e-3], "kind": ["scale", "bias"], "effect": [0.0, 1.0, 2.0],
            "cell": cells, "group": ("cell", groups), "statistic": list(STATISTICS),
            "reference": ["target", "backprop"], "rule": ["shown", "plain"], "level": [0.05, 0.01, 0.001],
            "draws": list(draws),
        },
        attrs={"alarm_runs": 10_000, "level": 1e-6},
    )  # fmt: skip


@pytest.mark.parametrize(("venue", "columns"), [("iclr", 2), ("icml", 1)])
def test_what_is_drawn(synthetic: xr.Dataset, venue: style.Venue, columns: style.Columns) -> None:
    figure = calibration.draw(synthetic, venue=venue, columns=columns)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:5] == ["false alarms", "power", "$p$-values of bias", "intervals shown", "misses, variance"]
    assert titles[5:] == list(calibration.SHOWN)
    assert figure.get_figwidth() == style.width(venue, columns)
    ratios = figure.axes[0].lines[1].get_ydata()
    np.testing.assert_allclose(ratios, [1.0, 0.9, 1.2])
    drawn = np.concatenate([line.get_ydata() for line in figure.axes[5].lines[1:]])
    its = synthetic.sel(statistic=["variance", "variance of one number"])
    expected = (1 - its["below"] - its["above"]).where(its["shown"] >= 0.02).values.ravel()
    np.testing.assert_allclose(np.sort(drawn), np.sort(expected), err_msg="where hardly a run shows one, NaN")
    assert np.isnan(drawn).sum() == 2


def test_the_caption_says_how_numbers_came(synthetic: xr.Dataset) -> None:
    text = calibration.caption(synthetic)
    for part in (
        "All values are drawn",
        "10000 runs for each",
        "0 alarms in 500 seeded runs",
        "95 % Clopper-Pearson",
        "1 laws of per-draw scalars, 2 of perturbed weights, 1 layers of networks, 1 of differences",
        "fewest runs: 400",
        "Biases planted",
    ):
        assert part in text, text


def test_foreign_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not a dataset of studies/check_calibration\.py: it lacks variable"):
        calibration.draw(xr.Dataset())


def test_a_part_needs_a_dataset_that_has_the_other(tmp_path, synthetic: xr.Dataset) -> None:
    config = study.Config(parts=("coverage",))
    with pytest.raises(
        ValueError, match=r"parts are \['coverage'\], which lack 'verdicts'; name a dataset .* --base"
    ):
        study.stored(config, "verdicts")
    base = fgvar.save(synthetic.drop_vars("caught"), tmp_path / "a.nc")
    with pytest.raises(ValueError, match=r"a\.nc lacks \['caught'\], which are 'verdicts' of this study; leave out"):
        study.stored(study.Config(parts=("coverage",), base=base), "verdicts")
    with pytest.raises(ValueError, match="workers is 0, expected at least 1"):
        study.main(study.Config(workers=0))


def test_a_part_is_taken_from_another_dataset(tmp_path, synthetic: xr.Dataset, monkeypatch) -> None:
    monkeypatch.setattr(study, "ProcessPoolExecutor", ThreadPoolExecutor)
    attrs = dict.fromkeys(study.ATTRIBUTES["coverage"], 0.5)
    base, out = fgvar.save(synthetic.assign_attrs(attrs), tmp_path / "a.nc"), tmp_path / "b.nc"
    study.main(study.Config(smoke=True, parts=("verdicts",), base=base, out=out))
    found = fgvar.open_dataset(out)
    xr.testing.assert_equal(found["below"], synthetic["below"])
    assert found["verdict_p"].size == 3
    assert found.attrs["coverage_scale"] == 0.5


def test_a_layer_of_a_network_draws_with_the_others() -> None:
    layers, _ = network("FG-W, MLP", 0)
    with pytest.raises(NotImplementedError, match="layers of a network share their draws"):
        next(iter(layers.values())).sample(1, 32)
