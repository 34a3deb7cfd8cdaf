"""The calibration study as a user runs it, its stored evidence, and its figure."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

import fgvar
from fgvar.plot import venues
from fgvar.testing import DRAWS
from fgvar.testing.mean_tests import MIN_MOVED, mean_test
from figures import alarms as panels
from figures import calibration
from studies import check_calibration as study
from studies.calibration import alarms
from studies.calibration.coverage import STATISTICS
from studies.calibration.networks import network

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "figures" / "data" / "calibration.nc"


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return fgvar.open_dataset(STORED)


def test_the_stored_dataset_is_of_the_full_run(stored: xr.Dataset) -> None:
    assert "full=True" in stored.attrs["configuration"]
    assert stored.attrs["coverage_scale"] == 1
    assert set(stored["draws"].values) == {32, 64, 256, 1024}
    assert stored.sizes["run"] >= 1000
    assert stored.sizes["seed"] >= 20
    assert stored.attrs["alarm_runs"] >= 100_000
    assert stored.attrs["verdict_draws"] == DRAWS
    assert list(stored["law"].values) == list(alarms.FAMILIES)


def test_no_alarm_in_all_seeded_runs_at_the_default_level(stored: xr.Dataset) -> None:
    """Of one weight with Gaussian noise, and of 10⁴ numbers with coordinate noise, which hardly move."""
    for name in ("verdict_p", "coordinate_p"):
        assert not (stored[name] < stored.attrs["level"]).any(), name


HEAVIEST = "lognormal 2"


def test_alarm_rates_are_at_most_the_nominal_ones(stored: xr.Dataset) -> None:
    """Down to 1e-4, and of rare events to 8e-8: within three binomial errors where drawn, and as such where exact."""
    rate, nominal, drawn = panels.whole(stored), stored["nominal"], stored["law_route"] == "drawn"
    margin = 3 * np.sqrt(nominal / stored.attrs["alarm_runs"]) * drawn
    within = (rate <= nominal + margin).where(panels.shown(stored).notnull(), True)
    assert within.drop_sel(law=HEAVIEST).all()
    skewed = (rate / nominal).sel(law="u² − 1", nominal=[0.1, 0.01, 0.001])
    assert (skewed > 0.6).all(), "nor much lower on the most skewed perturbation"


def test_the_heaviest_law_exceeds_them_as_the_study_says(stored: xr.Dataset) -> None:
    ratio = (stored["alarm_rate"] / stored["nominal"]).sel(law=HEAVIEST)
    assert (ratio.sum("tail").sel(nominal=[0.1, 0.01]) < 1.2).all()
    assert (ratio.sel(tail="below", nominal=[0.001, 0.0001]) > 1.5).all()
    assert (ratio.sel(tail="below", nominal=[0.001, 0.0001]) < 6).all()
    assert (ratio.sel(tail="above") < 0.2).all()


def test_what_few_draws_move_is_undecided(stored: xr.Dataset) -> None:
    for law, q in alarms.RARE.items():
        expected = stats.binom.cdf(MIN_MOVED - 1, DRAWS, q)
        np.testing.assert_allclose(stored["undecided"].sel(law=law), expected, rtol=1e-9, atol=1e-15)
    assert (stored["undecided"].where(stored["law_route"] == "drawn", 0) == 0).all()
    assert (stored["coordinate_undecided"] > 0.5).all()


def test_exact_rates_are_sums_over_the_number_of_events() -> None:
    """One number of events after another, each as a sample of its own."""
    q, nominal = 0.01, alarms.NOMINAL[2]
    expected = np.zeros(2)
    for events in range(30, 200):
        samples = torch.zeros(DRAWS, 1, dtype=torch.float64)
        samples[:events] = 1 / q
        found = mean_test(samples, 1.0, level=nominal)
        chance = stats.binom.pmf(events, DRAWS, q)
        expected += chance * (not found.passed) * np.array([float(found.z) < 0, float(found.z) > 0])
    rates, undecided = alarms.exact(q)
    np.testing.assert_allclose(rates[:, 2], expected, rtol=1e-9)
    assert undecided == pytest.approx(stats.binom.cdf(29, DRAWS, q), rel=1e-6)


def test_drawn_rates_are_shares_of_all_runs(monkeypatch) -> None:
    """In pieces, the last of which is smaller: 3 of 4 runs are far above, or do not move but for one draw."""

    def sampler(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        sizes.append(shape[0])
        columns = rng.standard_normal(shape) + 1
        columns[::4] -= 2
        columns[1::4] = np.arange(shape[1]) == 0
        return columns

    sizes: list[int] = []
    monkeypatch.setitem(alarms.DRAWN["heavy tails"], "t, 3 degrees", sampler)
    monkeypatch.setattr(alarms, "AT_ONCE", 8)
    rates, undecided = alarms.rates("t, 3 degrees", 20, seed=0)
    assert sizes == [8, 8, 4]
    assert undecided == 0.25
    np.testing.assert_allclose(rates, np.repeat([[0.25], [0.5]], len(alarms.NOMINAL), axis=1))


class Every:
    """Random numbers whose integers are all there are."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.standard_normal, self.choice = rng.standard_normal, rng.choice

    def integers(self, high: int, size: tuple[int, int]) -> np.ndarray:
        return np.arange(high).reshape(size)


def test_coordinate_noise_is_right_in_the_mean_and_moves_so_many_draws() -> None:
    """Along the target each draw, by d gᵢ²/‖g‖² ≥ 0; along a projection of every 16th number 1 in 16."""
    slope, projection = (alarms.coordinate(Every(), (1, alarms.NUMBERS), slope=slope)[0] for slope in (True, False))
    assert abs(slope.mean()) < 1e-12
    assert slope.min() >= -1
    assert len(np.unique(slope)) == alarms.NUMBERS
    assert abs(projection.mean()) < 1e-9
    assert np.unique(projection, return_counts=True)[1].max() == alarms.NUMBERS * 15 / 16


def test_errors_of_the_printed_size_are_caught(stored: xr.Dataset) -> None:
    """In 95 % of 2,000 runs, within 4 binomial errors; too large a scale more often, by its skewness."""
    caught = stored["caught"].sel(effect=1.0)
    assert 0.93 < caught.sel(kind="bias") < 0.97
    assert caught.sel(kind="scale") > 0.93
    assert (stored["caught"].sel(effect=0.0) == 0).all()


# What the study says that is short: a value so rare that a sample lacks it, and, at 32 and 64 draws in 4 dimensions,
# a difference of two skewed variances and the efficiency of a biased estimate.
SHORT = {"1 % × 100", "10 % × 10", "difference, d = 4", "Gaussian, d = 4, bias 1"}


@pytest.mark.parametrize("statistic", [one for one in STATISTICS if one != "sq_bias"])
def test_intervals_cover_in_every_cell(stored: xr.Dataset, statistic: str) -> None:
    """At least 93 %, and three binomial errors of the cell's runs less; at most 97.5 % in nine of ten cells."""
    its = calibration.covered(stored.sel(statistic=statistic))
    low, high = calibration.RIGHT
    error = np.sqrt(low * (1 - low) / stored["runs"])
    short = (its < low - 3 * error).any(("reference", "draws"))
    assert set(stored["cell"].values[short]) <= SHORT
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
            "alarm_rate": (("law", "tail", "nominal"), [
                [[0.05, 0.004, 4e-4, 0.0], [0.05, 0.005, 8e-4, 0.0]],
                [[0.05, 0.014, 1e-3, 2e-4], [0.05, 0.001, 0.0, 0.0]],
                [[0.04, 0.004, 0.0, 0.0], [0.04, 0.004, 1e-4, 1e-9]],
            ]),
            "undecided": ("law", [0.0, 0.0, 0.8]),
            "verdict_p": ("run", rng.uniform(1e-5, 1, 500)),
            "coordinate_p": ("seed", [0.5, 0.6]),
            "coordinate_undecided": ("seed", [0.9, 0.9]),
            "caught": (("kind", "effect"), [[0.0, 0.95, 1.0], [0.0, 0.94, 1.0]]),
            "below": (dims, rng.uniform(0, 0.05, shape)),
            "above": (dims, rng.uniform(0, 0.02, shape)),
            "shown": (dims, shown),
            "rejected": (("cell", "rule", "level", "draws"), rng.uniform(0, 0.05, (len(cells), 2, 3, len(draws)))),
            "runs": (("cell", "draws"), np.full((len(cells), len(draws)), 400)),
        },
        coords={
            "law": ["a", "b", "c"], "family": ("law", ["mild", "heavy", "rare"]),
            "law_route": ("law", ["drawn", "drawn", "exact"]), "tail": ["below", "above"],
            "nominal": [1e-1, 1e-2, 1e-3, 8e-8], "kind": ["scale", "bias"], "effect": [0.0, 1.0, 2.0], "seed": [0, 1],
            "cell": cells, "group": ("cell", groups), "statistic": list(STATISTICS),
            "reference": ["target", "backprop"], "rule": ["shown", "plain"], "level": [0.05, 0.01, 0.001],
            "draws": list(draws),
        },
        attrs={"alarm_runs": 10_000, "verdict_draws": 8192, "level": 1e-6},
    )  # fmt: skip


@pytest.mark.parametrize(("venue", "columns"), [("iclr", 2), ("icml", 1)])
def test_what_is_drawn(synthetic: xr.Dataset, venue: venues.Venue, columns: venues.Columns) -> None:
    figure = calibration.draw(synthetic, venue=venue, columns=columns)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:4] == ["false alarms", "undecided", "power", "$p$-values of bias"]
    assert titles[4:] == ["intervals shown", "misses, variance", *calibration.SHOWN]
    assert figure.get_figwidth() == venues.width(venue, columns)
    drawn = np.concatenate([line.get_ydata() for line in figure.axes[6].lines[1:]])
    its = synthetic.sel(statistic=["variance", "variance of one number"])
    expected = (1 - its["below"] - its["above"]).where(its["shown"] >= 0.02).values.ravel()
    np.testing.assert_allclose(np.sort(drawn), np.sort(expected), err_msg="where hardly a run shows one, NaN")
    assert np.isnan(drawn).sum() == 2


def test_alarms_have_a_row_for_each_law(synthetic: xr.Dataset) -> None:
    """Families have a row for their names; what runs cannot tell has no point, and its bar is its 95 % interval."""
    axes, blind = calibration.draw(synthetic).axes[:2]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["mild", "a", "heavy", "b", "rare, exact", "c"]
    points = [bars.lines[0].get_xdata() for bars in axes.containers]
    for found, expected in zip(points, ([1, 1, 0.8], [0.9, 1.5, 0.8], [1.2, 1.0, 0.1], [1e-9 / 8e-8]), strict=True):
        np.testing.assert_allclose(found, expected)
    low, high = stats.binomtest(12, 10_000).proportion_ci(0.95)
    ends = axes.containers[2].lines[2][0].get_segments()
    np.testing.assert_allclose(np.sort(ends[0][:, 0]), [1e3 * low, 1e3 * high])
    np.testing.assert_allclose(ends[2][:, 0], 0.1, err_msg="an exact rate has no bar")
    assert [bar.get_width() for bar in blind.patches] == [0.0, 0.0, 0.8]
    assert [bar.get_y() + bar.get_height() / 2 for bar in blind.patches] == pytest.approx([1, 3, 5])


def test_the_caption_says_how_numbers_came(synthetic: xr.Dataset) -> None:
    text = calibration.caption(synthetic)
    for part in (
        "Values are drawn, shares of simulated runs, but for false alarms of rare events, which are exact",
        "10000 runs for each",
        "0 alarms in 500 seeded runs",
        "0 alarms in 2 seeded runs, a rate below 0.78 with 95 % confidence, and 0.9 of the tests undecided",
        "95 % Clopper-Pearson",
        "binomial errors: b (0.50 below + 0.50 above the truth at 0.1, 1.40 below + 0.10 above",
        "Other laws: at most 1.20 times that rate",
        "Alarms at rates too low to be told by runs: 2 of b at 8e-08.",
        "0.950 (scale) and 0.940 (bias) are caught",
        "1 laws of per-draw scalars, 2 of perturbed weights, 1 layers of networks, 1 of differences",
        "fewest runs: 400",
        "Biases planted",
    ):
        assert part in text, text


def test_the_caption_where_no_law_or_every_law_is_above(synthetic: xr.Dataset) -> None:
    none = calibration.caption(synthetic.sel(law=["a", "c"]))
    assert "All laws: at most 1.20 times that rate. Alarms at rates too low to be told by runs: none." in none
    every = calibration.caption(synthetic.sel(law=["b"]))
    assert "Above the nominal rate" in every
    assert "laws: at most" not in every


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
    simulated = synthetic[list(study.VARIABLES["verdicts"])].isel(run=slice(3))
    attrs = dict.fromkeys(study.ATTRIBUTES["verdicts"], 1.0)
    monkeypatch.setattr(study, "verdicts", lambda *_: simulated.assign_attrs(attrs))  # by the study's smoke run
    study.main(study.Config(smoke=True, parts=("verdicts",), base=base, out=out))
    found = fgvar.open_dataset(out)
    xr.testing.assert_equal(found["below"], synthetic["below"])
    assert found["verdict_p"].size == 3
    assert found.attrs["coverage_scale"] == 0.5


def test_a_layer_of_a_network_draws_with_the_others() -> None:
    layers, _ = network("FG-W, MLP", 0)
    with pytest.raises(NotImplementedError, match="layers of a network share their draws"):
        next(iter(layers.values())).sample(1, 32)
