"""An unknown name is answered with the valid ones, nearest first, wherever names are given."""

from collections import OrderedDict
from collections.abc import Callable

import pytest
from refusals import activities, problem, with_sites
from torch import nn

import fgvar
from fgvar.errors import unknown
from fgvar.networks import MLP, LocalMixer


@pytest.mark.parametrize(
    ("got", "valid", "message"),
    [
        (
            "measur",
            ["measure", "train"],
            r"unknown thing 'measur'; did you mean 'measure'\? \(valid: measure, train\)",
        ),
        ("MEASURE", ["measure"], r"unknown thing 'MEASURE'; did you mean 'measure'\?"),
        ("zzz", ["measure"], r"unknown thing 'zzz' \(valid: measure\)"),
        ("zzz", [], r"\(valid: none\)"),
        (3, ["b", "a"], r"unknown thing 3 \(valid: a, b\)"),
    ],
)
def test_unknown_names_list_the_valid_ones(got: object, valid: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        raise ValueError(unknown("thing", got, valid))


UNKNOWN: dict[str, tuple[Callable[[], object], str, str]] = {
    "scheme": (lambda: fgvar.scheme("LGFGA"), "scheme 'LGFGA'", "'LG-FG-A'"),
    "preset": (lambda: LocalMixer.preset("M/8/61"), "preset 'M/8/61'", "'M/8/16'"),
    "word of a scheme": (lambda: fgvar.scheme("FG-W", nois=1), "word of FG-W 'nois'", "'noise'"),
    "word of an exact scheme": (lambda: fgvar.scheme("BP", loses=1), "word of BP 'loses'", "'losses'"),
    "credit": (lambda: fgvar.LocalLosses(credit="publshed"), "credit 'publshed'", "'published'"),
    "credit of a scheme": (lambda: fgvar.scheme("LG-FG-W", credit="biased"), "credit 'biased'", "'unbiased'"),
    "loss": (lambda: problem(loss="crossentropy"), "loss 'crossentropy'", "'cross_entropy'"),
    "activation": (lambda: MLP(3, width=4, depth=1, classes=2, activation="rellu"), "activation 'rellu'", "'relu'"),
    "init": (lambda: MLP(3, width=4, depth=1, classes=2, init="kaming"), "initialisation 'kaming'", "'kaiming'"),
    "head init": (lambda: LocalMixer.preset("S/1/1", head_init="zeros"), "initialisation 'zeros'", "'zero'"),
    "site": (lambda: activities(with_sites(), sites=("0.sit",)), "site '0.sit'", "'0.site'"),
    "site of a mask": (lambda: activities(with_sites(), relu_after={"1.site": "1"}), "site '1.site'", "'[02].site'"),
    "ReLU of a mask": (
        lambda: activities(problem(MLP(3, width=4, depth=1, classes=2).double()), relu_after={"site0": "atc0"}),
        r"module \(the ReLU of site 'site0'\) 'atc0'",
        "'act0'",
    ),
    "module of with_sites": (
        lambda: fgvar.with_sites(nn.Sequential(OrderedDict(layer0=nn.Linear(3, 2))), sites=["layer1"]),
        "module 'layer1'",
        "'layer0'",
    ),
    "layer": (
        lambda: fgvar.summary(fgvar.measure({"BP": fgvar.scheme("BP")}, problem(), draws=2), layer="0.wieght"),
        "layer '0.wieght'",
        "'0.weight'",
    ),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_an_unknown_name_is_answered_with_the_nearest(kind: str) -> None:
    call, got, nearest = UNKNOWN[kind]
    with pytest.raises(ValueError, match=rf"unknown {got}; did you mean {nearest}\? \(valid: .*"):
        call()
