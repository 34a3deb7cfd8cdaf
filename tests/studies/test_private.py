"""Private gradients: the study's parts against loops over examples, its stored run, its text and its figure."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import fgvar
from fgvar import transforms
from fgvar.plot import intervals, venues
from figures import private as figure
from studies import private as study

ROOT = Path(__file__).parents[2]
CLIP, SIGMA = 0.3, [0.5, 1.0]


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return fgvar.open_dataset(ROOT / "figures/data/private.nc")


@pytest.fixture(scope="module")
def problem() -> fgvar.Problem:
    return study.halfway(6, 8, 0)


def kept(rank: int, size: torch.Size, left_only: bool) -> int:
    """Numbers of noise that come back of a matrix of m rows and n columns."""
    m, n = size[0], size[1:].numel()
    r = min(rank, m, n)
    return r * m if left_only else r * (m + n - r)


@pytest.mark.parametrize("left_only", [False, True])
@pytest.mark.parametrize("rank", [1, 3])
def test_parts_are_those_of_a_loop_over_examples(rank: int, left_only: bool, problem: fgvar.Problem) -> None:
    """Projection, clip, (1 − q)/q Σ‖c_n‖²/N² and the noise of r(m + n − r) numbers, layer by layer."""
    there = transforms.Carriers(rank, left_only)
    found = study.exact((there,), problem, CLIP, SIGMA)
    g, n = problem.backprop(), problem.batch_size
    carried = [there(problem.example(index).backprop(), problem, {}) for index in range(n)]
    lengths = [sum(float(u.square().sum()) for u in one.values()) ** 0.5 for one in carried]
    assert max(lengths) > CLIP
    each = [
        there.back({k: min(1, CLIP / size) * u for k, u in one.items()}, problem, {})
        for one, size in zip(carried, lengths, strict=True)
    ]
    seen, std = there.back(there(g, problem, {}), problem, {}), CLIP / (study.RATE * n)
    total = dict.fromkeys(study.PARTS, 0.0)
    for name in g:
        mean = torch.stack([one[name] for one in each]).mean(0)
        squares = sum(float(one[name].square().sum()) for one in each)
        parts = {
            "projection": float((seen[name] - g[name]).square().sum()),
            "clip": float((mean - seen[name]).square().sum()),
            "sampling": (1 - study.RATE) / study.RATE * squares / n**2,
            "noise": std**2 * (kept(rank, g[name].shape, left_only) if g[name].ndim > 1 else g[name].numel()),
        }
        total = {part: total[part] + value for part, value in parts.items()}
        if name in study.LAYERS:
            its = found.sel(layer=name)
            np.testing.assert_allclose(its["energy"], list(parts.values()), rtol=1e-9, atol=1e-14)
            assert float(its["sq_bias"]) == pytest.approx(parts["projection"] + parts["clip"], rel=1e-10)
    np.testing.assert_allclose(found["energy"].sel(layer="total"), list(total.values()), rtol=1e-9)


def test_efficiency_is_the_library_s(problem: fgvar.Problem) -> None:
    found = study.exact(study.low_rank(2), problem, CLIP, SIGMA)
    rows = {str(s): study.private(study.low_rank(2), CLIP, study.std_of(CLIP, s, problem)) for s in SIGMA}
    ds = fgvar.measure(rows, problem, route="exact")["efficiency"].sel(layer="total", reference="target")
    np.testing.assert_allclose(found["efficiency"], ds, rtol=1e-9)


def test_of_all_rows_without_a_clip_nothing_is_lost_but_by_sampling(problem: fgvar.Problem) -> None:
    found = study.exact(study.low_rank(99), problem, float("inf"), [1e-9, 1e-9]).sel(layer="total")
    assert float(found["energy"].sel(part=["projection", "clip"]).max()) < 1e-24
    assert float(found["energy"].sel(part="sampling")) > 1e-6


def test_the_clip_is_the_median_norm(problem: fgvar.Problem) -> None:
    norms = [study.by_layer(problem.example(n).backprop())[-1] ** 0.5 for n in range(6)]
    assert study.median_norm(problem) == pytest.approx(float(torch.tensor(norms).double().median()), rel=1e-6)


def test_one_sigma_is_told(tmp_path: Path) -> None:
    config = study.Config(sigma=(1.0,), run=study.Options(tmp_path / "a.nc"))
    with pytest.raises(ValueError, match=r"sigma is \[1\.0\], expected two positive ones at least"):
        study.main(config)


def test_stored_parts_add_up_and_noise_is_that_of_the_rank(stored: xr.Dataset) -> None:
    assert (stored["status"] == "done").all()
    assert not stored.attrs["commit"].endswith("+"), "made from a clean commit"
    assert stored.sizes["seed"] == 10
    bias = stored["energy"].sel(part=["projection", "clip"]).sum("part")
    assert float(abs(bias - stored["sq_bias"]).max() / stored["sq_bias"].max()) < 1e-12
    for layer in study.LAYERS[:-1]:
        m, n = (int(side) for side in stored["matrix"].isel(seed=0).sel(layer=layer))
        for kind, left_only in study.CARRIERS.items():
            its = stored["energy"].sel(layer=layer, kind=kind, part="noise")
            for rank in stored["rank"].values:
                expected = kept(int(rank), torch.Size((m, n)), left_only) * stored["std"] ** 2
                np.testing.assert_allclose(its.sel(rank=rank), expected, rtol=1e-6)


def test_stored_draws_are_about_the_exact_parts(stored: xr.Dataset) -> None:
    """24 errors and 12 efficiencies: one beyond 4.5 errors has a probability of 3e-4, if they were normal."""
    exact = stored["energy"].sel(kind=figure.BOTH).sum("part")
    error = (stored["drawn_error_se"] ** 2).sum("seed") ** 0.5 / 10
    assert float(abs((stored["drawn_error"] - exact).mean("seed") / error).max()) < 4.5
    for kind in study.CARRIERS:
        its, mean = figure.drawn_gain(stored, kind), figure.gain(stored).sel(kind=kind, sigma=1.0).mean("seed")
        half = (its["drawn_efficiency_high"] - its["drawn_efficiency_low"]) / 2 / intervals.Z
        assert float(abs((its["drawn_efficiency"] - mean) / half).max()) < 4.5


def test_the_header_and_the_text_say_what_the_dataset_has(stored: xr.Dataset) -> None:
    gain = figure.gain(stored)
    best = {kind: gain.mean("seed").sel(kind=kind).max("rank").values for kind in study.CARRIERS}
    ranks = {kind: [figure._best(stored, kind, s) for s in stored["sigma"].values] for kind in study.CARRIERS}
    both, left, header = figure.BOTH, figure.LEFT, " ".join((study.__doc__ or "").split())
    assert f"falls from {ranks[both][0]} to {ranks[both][-1]} as σ grows from 0.5 to 2" in header
    assert f"{best[both][-1]:.2f} times the efficiency of DP-SGD" in header
    assert f"{best[left][-1]:.2f} times with the left ones" in header
    sparse = [float(figure.drawn_gain(stored, name)["drawn_efficiency"].max()) for name in study.SPARSE]
    text = section()
    for words in (
        "with both carriers {}, {} and {} at σ = 0.5, 1 and 2".format(*ranks[both]),
        "for {:.2f}, {:.2f} and {:.2f} times the efficiency of DP-SGD".format(*best[both]),
        "{:.2f}, {:.2f} and {:.2f} times, at ranks {}, {} and {}".format(*best[left], *ranks[left]),
        "{:.2f} times DP-SGD at best for the largest, {:.2f} for random ones".format(*sparse),
    ):
        assert words in text, words
    ahead = gain.sel(kind=left, sigma=2.0).max("rank") > gain.sel(kind=both, sigma=2.0).max("rank")
    assert "falls in 6 of 10 with both, in 2 with" in figure.caption(stored)
    assert all("in six of ten networks" in said for said in (header, text))
    assert ahead.all(), "at σ = 2 the best of the left ones is ahead in all ten networks"


def section() -> str:
    text = (ROOT / "studies/README.md").read_text()
    found = re.search(r"^## [^\n]*\n\n`private\.py`.*?(?=^## |\Z)", text, re.M | re.S)
    assert found, "studies/README.md has no section on private.py"
    return " ".join(found[0].split())


@pytest.mark.parametrize(("venue", "columns"), [("iclr", 2), ("icml", 1)])
def test_what_is_drawn(stored: xr.Dataset, venue: venues.Venue, columns: venues.Columns) -> None:
    drawn = figure.draw(stored, venue=venue, columns=columns)
    titles = [axes.get_title() for axes in drawn.axes]
    assert titles == [
        "block0.channel", "block1.channel", "readout", "total", "σ = 0.5", "σ = 1", "σ = 2", "quarter kept, σ = 1"
    ]  # fmt: skip
    total = drawn.axes[3]
    tops = [bar.get_y() + bar.get_height() for bar in total.patches[-7:]]
    exact = figure.share(stored.sel(layer="total"), "energy").sel(kind=figure.BOTH).sum("part")
    np.testing.assert_allclose(tops[:-1], exact, rtol=1e-9)
    assert [label.get_text() for label in total.get_xticklabels()][-1] == "all"
