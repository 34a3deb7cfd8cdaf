"""Words of `with_sites` that do not fit the network."""

import pytest
from refusals import Calls, X, net, says
from torch import nn

import fgvar


def test_with_sites_twice() -> None:
    with pytest.raises(ValueError, match=says("sites? already", "plain network")):
        fgvar.with_sites(fgvar.with_sites(net()))


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"sites": ["0"], "types": (nn.Linear,)}, ValueError, says("sites= or types=", "not both")),
        ({"sites": ["fc1"]}, ValueError, says("unknown module 'fc1'", "valid: 0, 1, 2")),
        ({"sites": []}, ValueError, says("no module .*in Sequential", "sites=", "types=")),
        ({"types": (nn.Conv2d,)}, ValueError, says("no module .*in Sequential", "Conv2d", "sites=", "types=")),
        # a text is a collection, too: of letters, and of "", which is the name of the whole network
        ({"sites": "0"}, (TypeError, ValueError), says("sites", "'0'")),
    ],
)
def test_words_of_with_sites(words: dict, error, message: str) -> None:
    with pytest.raises(error, match=message):
        fgvar.with_sites(net(), **words)


def test_with_sites_on_a_network_without_parameters() -> None:
    with pytest.raises(ValueError, match=says("no module .*in ReLU", "sites=")):
        fgvar.with_sites(nn.ReLU())


def test_a_site_after_a_module_that_returns_no_tensor() -> None:
    wrapped = fgvar.with_sites(nn.Sequential(Calls(lambda m, x: {"z": m.layer(x)})), types=(Calls,))
    with pytest.raises(TypeError, match=says(r"a site after '0' \(Calls\) got dict", r"with_sites\(sites=")):
        wrapped(X)
