"""What plots refuse, and what they say then."""

import pytest
import xarray as xr

import fgvar
from fgvar import plot
from fgvar.plot import looks


@pytest.fixture(scope="module")
def dataset() -> xr.Dataset:
    problem = fgvar.testing.default_problems()["linear"]
    return fgvar.measure({"FG-W": fgvar.scheme("FG-W"), "BP": fgvar.scheme("BP")}, problem, draws=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ds: plot.ranking(ds, by="cosin"), "unknown quantity 'cosin'; did you mean 'cosine'"),
        (lambda ds: plot.ranking(ds, reference="truth"), "unknown reference 'truth'"),
        (lambda ds: plot.ranking(ds, by="relative_variance", reference="truth"), "unknown reference 'truth'"),
        (
            lambda ds: plot.sweep(xr.concat([ds, ds], xr.Variable("width", [1, 2])), reference="truth"),
            "unknown reference 'truth'",
        ),
        (
            lambda _: plot.training(xr.Dataset({"loss": ("epoch", [2.0, 1.0])}, {"epoch": [0, 1]}), layer="weight"),
            r"unknown layer 'weight' \(valid: perturbed\)",
        ),
        (
            lambda ds: plot.sweep(xr.concat([ds, ds], xr.Variable("width", [1, 2])), y="loss", layer="weigth"),
            "unknown layer 'weigth'; did you mean 'weight'",
        ),
        (lambda ds: plot.ranking(ds, layer="weigth"), "unknown layer 'weigth'; did you mean 'weight'"),
        (lambda ds: plot.ranking(ds, order=["FGW"]), "unknown estimator 'FGW'; did you mean 'FG-W'"),
        (lambda ds: plot.ranking(ds, looks={"FG-W": 3}), r"looks\['FG-W'\] is 3; expected a colour, as '#D55E00'"),
        (lambda ds: plot.ranking(ds, looks={"FG-W": "blu"}), r"looks\['FG-W'\] is 'blu'; expected a colour"),
        (lambda ds: plot.draws(ds), "no draw_cosine_target, as draws were not kept"),
        (lambda ds: plot.draws(ds, of="cosine"), "unknown scalar 'cosine'"),
        (lambda ds: plot.sweep(ds), "'relative_variance' has no numeric axis with several values"),
        (lambda ds: plot.sweep(ds, y="variane"), "unknown quantity 'variane'; did you mean 'variance'"),
        (lambda ds: plot.training(ds), "is of no training run: it has neither"),
        (
            lambda ds: plot.layers(ds.expand_dims(width=[1, 2])),
            r"over 'width'; choose one, as dataset\.isel\(width=0\)",
        ),
        (lambda ds: plot.tradeoff(ds.drop_vars("sq_bias")), "it lacks variable 'sq_bias'"),
        (lambda ds: plot.caption(ds, "layer"), "unknown kind 'layer'; did you mean 'layers'.*these are the figures"),
        (lambda ds: plot.figures(ds[["loss"]]), "no figure fits: .* got a dataset over no dims of loss"),
        (lambda _: plot.figures(3), "no figure fits: .* got a int"),
        (lambda ds: fgvar.table(ds, to="html"), "unknown form 'html'"),
        (lambda ds: fgvar.table(ds, siunitx=True), "siunitx=True is of LaTeX, and to='pandas'; give to='latex'"),
        (lambda ds: fgvar.table(ds, layer="weigth"), "unknown layer 'weigth'; did you mean 'weight'"),
    ],
)
def test_what_is_refused_is_coached(dataset: xr.Dataset, call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(dataset)


@pytest.mark.parametrize(
    "function", [plot.layers, plot.training, plot.sweep, plot.ranking, plot.tradeoff, fgvar.table]
)
def test_what_is_no_dataset_is_told_so(function) -> None:
    with pytest.raises(TypeError, match="got a dict, expected a dataset"):
        function({})


def test_what_is_no_report_is_told_so() -> None:
    with pytest.raises(
        TypeError, match=r"got a int, expected a report with rows: of fgvar\.testing\.check_estimator"
    ):
        plot.check(3)


def test_places_are_known() -> None:
    with pytest.raises(ValueError, match="unknown venue 'iclm'; did you mean 'icml'"), plot.venue("iclm"):
        pass
    with pytest.raises(ValueError, match="columns=3: 1 or 2 expected"), plot.venue("icml", columns=3):
        pass


def test_looks_go_on_when_colours_run_out() -> None:
    names = [f"estimator {i}" for i in range(40)]
    found = looks.assign([*names, "FG-A"])
    assert next(iter(found)) == "FG-A"
    assert len({(look.color, look.marker, look.line) for look in found.values()}) == 41
    first = [found[name] for name in names[:11]]
    assert len({look.color for look in first} | {found["FG-A"].color}) == 12, "no colour twice before all are used"
    given = looks.assign(
        ["a", "b", "c"], {"a": "FG-W", "b": ("#000000", "o"), "c": plot.Look("red", "s"), "d": "red"}
    )
    assert given["a"] == looks.SCHEMES["FG-W"]
    assert (given["b"].color, given["b"].marker, given["c"].color) == ("#000000", "o", "red")


def test_dollars_of_a_name_begin_no_mathematics() -> None:
    problem = fgvar.testing.default_problems()["linear"]
    ds = fgvar.measure({"$a$": fgvar.scheme("FG-W"), "b": fgvar.scheme("BP")}, problem, draws=64)
    labels = plot.ranking(ds).axes[0].get_yticklabels()
    assert r"\$a\$" in [label.get_text() for label in labels]
    assert "proves none absent: not excluded are biases up to" in plot.caption(ds, "ranking")
    assert "of the target ($a$)" in plot.caption(ds, "ranking")
    renamed = ds.assign_coords(layer=[name.replace("weight", "$w$") for name in ds["layer"].values])
    labels = plot.layers(renamed).axes[0].get_yticklabels()
    assert r"\$w\$" in [label.get_text() for label in labels]


def test_a_report_has_no_address_of_memory() -> None:
    class Mine:  # no dataclass, so that its repr has one
        def __init__(self) -> None:
            its = fgvar.scheme("FG-W")
            self.randomness, self.estimate, self.target = its.randomness, its.estimate, its.target

    report = fgvar.testing.check_estimator(Mine(), checks=["deterministic"])
    assert "Mine object" in report.estimator
    assert " at 0x" not in report.estimator
