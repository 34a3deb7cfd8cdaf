"""Spaces on networks that they do not fit: sites, masks, and parameters that no site covers."""

import pytest
import torch
from refusals import Calls, activities, problem, says, with_sites
from torch import Tensor, nn

import fgvar
from fgvar.nn.heads import ReadOut


def test_a_declared_relu_that_is_not_there_is_unknown() -> None:
    site = nn.Sequential(nn.Linear(3, 2), fgvar.networks.Site(relu="act")).double()
    with pytest.raises(ValueError, match=r"unknown module \(the ReLU of site '1'\) 'act' .*valid: 0, 1"):
        activities(problem(site))


def test_activity_space_without_sites() -> None:
    with pytest.raises(ValueError, match=says("no site to perturb", r"fgvar\.with_sites\(net\)")):
        activities(problem())


def test_a_site_called_twice() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.map(self.map(x)))

    where = problem(fgvar.with_sites(Again().double()))
    message = says("'map.site' is called twice in one forward pass", "give each call a module of its own")
    with pytest.raises(ValueError, match=message):
        activities(where)
    with pytest.raises(ValueError, match=message):
        where.run(where.params, watch=("map.site",))
    assert fgvar.scheme("FG-W").randomness(where).size == 20  # weights may be used as often as one likes


def test_a_site_without_a_batch_axis() -> None:
    side = nn.Linear(3, 2)
    where = problem(
        fgvar.with_sites(Calls(lambda m, x: m.layer(x) + m.side(x.detach()[:1] * 0 + 1), side=side)),
    )
    message = says(r"site 'side.site' has shape \(1, 2\)", r"batch axis \(4\) first", r"with_sites\(sites=")
    with pytest.raises(ValueError, match=message):
        activities(where)


@pytest.mark.parametrize(
    ("sites", "uncovered"),
    [(["0"], r"\['2.weight', '2.bias'\]"), (["1"], r"\['2.weight', '2.bias'\]")],
)
def test_parameters_past_the_sites_are_named(sites: list[str], uncovered: str) -> None:
    message = says(rf"parameters {uncovered} reach the loss past the sites", r"with_sites\(net, sites=")
    with pytest.raises(ValueError, match=message):
        activities(with_sites(sites=sites))


def test_parameters_on_a_way_around_a_site_are_named() -> None:
    module = Calls(lambda m, x: m.site(m.layer(x)) + m.layer(x), site=fgvar.networks.Site())
    with pytest.raises(ValueError, match=says(r"\['layer.weight', 'layer.bias'\] reach the loss past the sites")):
        activities(problem(module))


def test_raw_parameters_after_the_sites_are_named() -> None:
    module = Calls(lambda m, x: m.layer(x) * m.scale)
    module.scale = nn.Parameter(torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=says(r"\['scale'\] reach the loss past the sites")):
        activities(problem(fgvar.with_sites(module, sites=["layer"])))
    assert activities(problem(fgvar.with_sites(module))).size == 16


@pytest.mark.parametrize("name", ["FG-W", "FG-A"])
def test_nothing_left_to_perturb(name: str) -> None:
    heads = nn.Sequential(fgvar.networks.Site(), ReadOut(3, 2)).double()
    with pytest.raises(ValueError, match=says("all parameters belong to heads", "nothing is left to perturb")):
        fgvar.scheme(name).randomness(problem(heads))


def test_masks_of_another_shape() -> None:
    message = says(r"site '2.site' has shape \(4, 2\)", r"ReLU '1' named for it \(4, 4\)")
    with pytest.raises(ValueError, match=message):
        activities(with_sites(), relu_after={"2.site": "1"})
    declared = nn.Sequential(
        nn.Linear(3, 2), fgvar.networks.Site(relu="2"), nn.Linear(2, 3), nn.Linear(3, 2)
    ).double()
    with pytest.raises(ValueError, match=says(r"site '1' has shape \(4, 2\)", r"ReLU '2' named for it \(4, 3\)")):
        activities(problem(declared))


def test_masks_by_a_relu_that_is_called_twice() -> None:
    """One nn.ReLU for all layers is common; which of its outputs is meant, nobody knows."""
    relu = nn.ReLU()
    module = nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu, nn.Linear(3, 2)).double()
    with pytest.raises(ValueError, match=says("'1'", "called twice", "module of its own")):
        activities(problem(fgvar.with_sites(module)), relu_after={"0.site": "1"})
