"""Noise or locality: rows and their means, how rates are chosen, and rules that can say yes, no and neither."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
import xarray as xr
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

import fgvar
from fgvar.plot import venues
from fgvar.testing import default_problems
from figures import regularisation as figure
from studies import common
from studies import regularisation as study
from studies import regularisation_rules as rules

IMAGES, RATES, DECAYS, SEEDS = (2000, 5000), (0.02, 0.05), (0.001, 0.01), range(5)
# Test errors, per cent: what each explanation would look like.
WORLDS = {
    "noise": {"BP": 50, "BP + noise": 45, "BP + decay": 50, "LG-BP": 50, "LG-BP + noise": 45, "LG-FG-A": 45},
    "locality": {"BP": 50, "BP + noise": 50, "BP + decay": 50, "LG-BP": 45, "LG-BP + noise": 45, "LG-FG-A": 45},
    "weight decay": {"BP": 50, "BP + noise": 45, "BP + decay": 45, "LG-BP": 50, "LG-BP + noise": 45, "LG-FG-A": 45},
    "direction": {"BP": 50, "BP + noise": 50, "BP + decay": 50, "LG-BP": 50, "LG-BP + noise": 50, "LG-FG-A": 45},
    "one mean": {"BP": 50, "BP + noise": 50, "BP + decay": 50, "LG-BP": 50, "LG-BP + noise": 45, "LG-FG-A": 45},
    "no effect": {"BP": 45, "BP + noise": 45, "BP + decay": 45, "LG-BP": 45, "LG-BP + noise": 45, "LG-FG-A": 50},
}
LINES = {  # verdicts of effect, locality, noise, weight decay
    "noise": (1, -1, 1, -1),
    "locality": (1, 1, -1, -1),
    "weight decay": (1, -1, 1, 1),
    "direction": (1, -1, -1, -1),
    "one mean": (1, -1, -1, -1),
    "no effect": (-1, -2, -2, -2),
}


def runs(world: str, spread: float = 0.002) -> tuple[xr.Dataset, xr.Dataset]:
    """Cells of both sweeps. The second rate, and the second decay, have the world's errors; others are worse.

    Seeds share an offset of 1 %, which pairing has to take out, and have one of their own in each row.
    """
    dims, generator = ("images", "row", "decay", "lr", "seed"), np.random.default_rng(0)
    found = []
    for names, decays in ((study.ROWS, (0.0,)), ((rules.DECAYED,), DECAYS)):
        shape = (len(IMAGES), len(names), len(decays), len(RATES), len(SEEDS))
        level = np.array([WORLDS[world][row] / 100 for row in names])[None, :, None, None, None]
        worse = 0.03 * (1 - np.arange(len(RATES)))[:, None] + 0.04 * (1 - np.arange(2)[-len(decays) :])[:, None, None]
        errors = level + worse + 0.01 * np.arange(len(SEEDS)) + spread * generator.standard_normal(shape)
        values = dict.fromkeys(rules.MEASURED, (dims, errors)) | {"diverged": (dims, np.zeros(shape))}
        values |= {"train_error": (dims, 0.0 * errors), "gap": (dims, errors)}
        coords = {"images": list(IMAGES), "row": list(names), "decay": list(decays), "lr": list(RATES)}
        found.append(xr.Dataset(values, coords | {"seed": list(SEEDS)}))
    return found[0], found[1]


@pytest.mark.parametrize("world", WORLDS)
def test_rules_tell_the_worlds_apart(world: str) -> None:
    """Of a rule that holds or fails by 2.5 points, the intervals of five seeds are ± 0.6 at most."""
    found = rules.gathered(*runs(world))
    verdicts = found["verdict"].transpose("images", "rule").values
    assert [tuple(row) for row in verdicts] == [LINES[world]] * len(IMAGES)
    assert (found["verdict_without"] == found["verdict"]).all(), "by any four of the seeds"
    assert (found["difference_high"] - found["difference_low"]).max() < 0.012, "paired over seeds"


def test_a_wide_spread_decides_nothing() -> None:
    found = rules.gathered(*runs("noise", spread=0.2))
    assert not (found["verdict"].sel(rule="effect") == 1).any()
    one = rules.judged(rules.gathered(*runs("noise")).isel(seed=[0]))
    assert (one["verdict"].sel(rule="effect") == 0).all(), "one seed has no spread"


def test_the_interval_is_student_s() -> None:
    found = rules.gathered(*runs("noise"))
    each = (found["test_error"].sel(row="LG-FG-A") - found["test_error"].sel(row="BP")).isel(images=0)
    its = found.isel(images=0).sel(difference_of="effect")
    assert its["difference"].item() == pytest.approx(float(each.mean()))
    half = 2.7764451 * float(each.std(ddof=1)) / 5**0.5
    assert its["difference_high"].item() == pytest.approx(float(each.mean()) + half)


def test_differences_are_of_what_the_header_says() -> None:
    for factors in rules.DIFFERENCES.values():
        assert sum(factors.values()) == 0
    assert {name for rule in rules.RULES.values() for name in rule} == {*rules.DIFFERENCES} == {*figure.NAMES}
    assert rules.VERDICTS == figure.VERDICTS
    assert {*figure.LOOKS} == {*study.ROWS, rules.DECAYED}


def test_a_row_is_at_the_rate_with_the_lowest_held_out_error() -> None:
    plain, decayed = runs("noise")
    found = rules.gathered(plain, decayed)
    assert (found["best_lr"] == RATES[1]).all()
    assert (found["best_decay"].sel(row=rules.DECAYED) == DECAYS[1]).all()
    assert (found["verdict_at"].sel(rate=RATES[0]) == found["verdict"]).all(), "the same differences at any rate"
    plain["diverged"].loc[{"row": "BP", "lr": RATES[1], "seed": 2}] = 1
    for name in rules.MEASURED:
        plain[name].loc[{"row": "BP", "lr": RATES[1], "seed": 2}] = np.nan
    other = rules.gathered(plain, decayed)
    assert (other["best_lr"].sel(row="BP") == RATES[0]).all(), "a rate at which a seed diverged is none"
    assert list(other["runs_diverged"].values) == [1] * len(IMAGES)
    assert other["seeds_done"].values.tolist() == [5, 5]


def test_a_seed_counts_once_all_its_cells_are_done() -> None:
    plain, decayed = runs("noise")
    for name in plain:
        plain[name].loc[{"row": "LG-BP", "lr": RATES[0], "seed": [3, 4], "images": 5000}] = np.nan
    decayed = decayed.where(decayed["images"] == 2000)
    found = rules.gathered(plain, decayed)
    assert found["seeds_done"].values.tolist() == [5, 0]
    assert found["test_error"].sel(images=5000).isnull().all()
    assert found["test_error"].sel(images=2000).notnull().all()
    assert found["verdict"].sel(images=5000, rule="effect").item() == 0
    assert found["best_lr"].sel(images=5000).isnull().all()
    assert int(found["missing"].sum()) == 2 + 20
    assert int(found["cells"].sum()) == 140


def test_sizes_that_are_made_later_make_the_same_dataset(tmp_path: Path) -> None:
    plain, decayed = runs("noise")
    plain["diverged"].loc[{"row": "BP", "lr": RATES[0], "seed": 2, "images": 2000}] = 1
    whole = rules.gathered(plain, decayed)
    later, first, again = (rules.gathered(*(one.sel(images=sizes) for one in (plain, decayed)))
                           for sizes in ([5000], [2000], [5000, 2000]))  # fmt: skip
    stored = fgvar.save(later.assign_attrs(commit="1"), tmp_path / "later.nc")
    for made in (first, again):
        found = common.onto(stored, made.assign_attrs(commit="2"), made["seeds_done"] > 0, images=int)
        xr.testing.assert_equal(found.drop_attrs(), whole.drop_attrs())
        assert found.attrs["commit"] == "1, 2"
        assert {name: each.dtype for name, each in found.items()} == {
            name: each.dtype for name, each in whole.items()
        }
    more = first.assign(interval=first["noise"])
    assert "interval" not in common.onto(stored, more, more["seeds_done"] > 0, images=int), "of some runs alone"
    with pytest.raises(ValueError, match="has no axis 'network', expected a dataset that this study"):
        common.onto(stored, later, xr.DataArray([True], dims="network"))


def test_rows_have_their_means_and_heads_learn_in_all() -> None:
    problem = default_problems()["mixer"]
    backprop, local = (fgvar.scheme(name).target(problem) for name in ("BP", "LG-BP"))
    heads = [name for name in problem.network.exact if "head" in name]
    assert heads
    for row in study.ROWS:
        target = study.estimator_of(row).target(problem)
        expected = backprop if row.startswith("BP") else local
        for name in problem.perturbed:
            assert torch.equal(target[name], expected[name]), (row, name)
        assert all(target[name].any() for name in heads), row
    with pytest.raises(ValueError, match="row is 'FA', expected one of: BP, BP \\+ noise, LG-BP"):
        study.estimator_of("FA")


def test_images_divide_the_examples_of_a_run(tmp_path: Path) -> None:
    arguments = ["--images", "2000", "7000", "--out", str(tmp_path / "a.nc")]
    with pytest.raises(ValueError, match=r"images has \[7000\], expected divisors of 150000, the examples of 3000"):
        study.main(tyro.cli(study.Config, args=arguments))
    with pytest.raises(FileNotFoundError, match=r"--onto none\.nc: no such file"):
        study.main(tyro.cli(study.Config, args=["--onto", "none.nc", "--out", str(tmp_path / "a.nc")]))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no cell is done; see above, or run without --collect"):
        study.main(tyro.cli(study.Config, args=["--collect", "--out", str(tmp_path / "a.nc")]))


@pytest.fixture(scope="module")
def smoke() -> dict[str, Any]:
    config = study.smoke(study.Config())
    settings = {name: getattr(config, name) for name in study.SETTINGS}
    return settings | {"images": 200, "lr": 0.05, "decay": 0.0, "seed": 0}


def test_a_run_that_diverges_has_no_errors(smoke: dict[str, Any], tmp_path: Path) -> None:
    """The test error is that of the weights at the end; a rate of 1e30 has none."""
    found = []
    for name, lr in (("one", 0.05), ("same", 0.05), ("other", 1e30)):
        (scratch := tmp_path / name).mkdir()
        found.append(study.cell(**smoke | {"lr": lr, "row": "BP", "scratch": scratch}))
    one, same, other = found
    assert one.equals(same)
    assert one["diverged"] == 0
    assert 0 < one["test_error"] < 0.9
    assert one["gap"] == one["test_error"] - one["train_error"]
    assert one["held_out_lowest"] <= one["held_out_error"]
    assert one["noise"] > 0
    assert other["diverged"] == 1
    assert all(np.isnan(other[name]) for name in rules.MEASURED)


def test_smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study.main(tyro.cli(study.Config, args=["--smoke", "--out", str(tmp_path / "a.nc")]))
    printed = capsys.readouterr().out
    assert "seeds that count: [2]; 0 of 12 cells missing" in printed
    assert "200 images: effect " in printed
    found = fgvar.open_dataset(tmp_path / "a_smoke.nc")
    assert found.attrs["study"] == "regularisation"
    assert {*figure.PAGE.needed} <= {*found.variables}
    assert found["test_error"].sizes == {"images": 1, "seed": 2, "row": 6}
    assert str(tmp_path) not in str(found.attrs)
    assert (tmp_path / "a_smoke.txt").read_text().startswith("A smoke run: the numbers mean nothing.")


# ---- the figure -----------------------------------------------------------------------------------------------


def shown(axis: Axis) -> list[Text]:
    """Tick labels within the limits: others are not painted."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


@pytest.mark.parametrize(("venue", "columns"), [("iclr", 2), ("icml", 1)])
def test_nothing_of_the_figure_is_clipped(venue: venues.Venue, columns: venues.Columns) -> None:
    drawn = figure.draw(rules.gathered(*runs("noise")), venue=venue, columns=columns)
    renderer = FigureCanvasAgg(drawn).get_renderer()
    for axes in drawn.axes:
        for text in [axes.title, axes.xaxis.label, *shown(axes.xaxis), *shown(axes.yaxis)]:
            box = text.get_window_extent(renderer)
            assert box.x0 >= -1, text.get_text()
            assert box.x1 <= drawn.bbox.x1 + 1, text.get_text()
        assert axes.get_window_extent(renderer).y1 < drawn.legends[0].get_window_extent(renderer).y0


def test_the_caption_says_verdicts_and_what_would_change() -> None:
    plain, decayed = runs("noise", spread=1e-4)
    text = figure.caption(rules.gathered(plain, decayed))
    for words in (
        "2,000 images: E = −5.0 points, holds, locality fails, noise holds, weight decay fails",
        "(5, 5 of 5, by number of images",
        "BP + decay 0.05, 0.05 (decay 0.01, 0.01)",
        "with one rate for all rows, 0.02 0, 0.05 0; with a seed left out, 0",
        "12 of 12 rates chosen are the lowest or the highest tried",
        "were not tried",
    ):
        assert words in text, words
    nothing = figure.caption(rules.gathered(*runs("no effect", spread=1e-4)))
    assert "E = +5.0 points, fails; 5,000 images" in nothing


def test_foreign_data_is_refused() -> None:
    for use in (figure.draw, figure.caption):
        with pytest.raises(ValueError, match=r"not a dataset of studies/regularisation\.py: it lacks variable"):
            use(xr.Dataset())
