"""Training with frozen parameters: they stay, the rest learns as if they were buffers; a checkpoint knows them."""

import copy
from pathlib import Path

import pytest
import torch
import xarray as xr
from cases import randn
from frozen import in_buffers
from torch import Tensor, nn

import fgvar
from fgvar.training import loop
from fgvar.training.train import Run

DATA = tuple(fgvar.data.load("digits", split).subset(range(64)) for split in ("train", "test"))
SCHEDULE = fgvar.Schedule(epochs=2, batch=16, lr=0.05, momentum=0.9, weight_decay=0.1)


def network() -> nn.Module:
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), fgvar.networks.ReadOut(8, 10)
    )  # fmt: skip
    for index, p in enumerate(net.parameters()):
        p.data = (0.3 * randn(*p.shape, seed=index)).float()
    net[1].bias.requires_grad_(False)
    net[3].requires_grad_(False)
    return fgvar.with_sites(net)


def trained(net: nn.Module, scheme: str = "FG-A", **words: object) -> Run:
    return fgvar.train(net, fgvar.scheme(scheme), DATA, SCHEDULE, device="cpu", **words)


@pytest.mark.parametrize("scheme", ["BP", "FG-A", "MeZO"])
def test_it_trains_what_requires_a_gradient_and_as_if_the_rest_were_buffers(scheme: str) -> None:
    probe = fgvar.Probe({"FG-W": fgvar.scheme("FG-W")}, DATA[0].sample(8, seed=1), (0, 3), draws=4)
    net, before = network(), copy.deepcopy(network().state_dict())
    run, twin = trained(net, scheme, probe=probe), trained(in_buffers(network()), scheme, probe=probe)
    for name in ("1.weight", "5.linear.weight", "5.linear.bias"):
        assert torch.equal(run.params[name], twin.params[name]), name
        assert not torch.equal(run.params[name], before[name]), name
    xr.testing.assert_allclose(
        run.dataset.drop_vars("seconds", errors="ignore"), twin.dataset.drop_vars("seconds", errors="ignore")
    )
    for name in ("1.bias", "3.weight", "3.bias"):
        assert torch.equal(run.params[name], before[name]), name
    net.load_state_dict(run.params, strict=True)


def frozen_otherwise(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        net[3].weight[0, 0] += 1
    return net


def test_a_checkpoint_knows_what_was_frozen(tmp_path: Path) -> None:
    path = tmp_path / "run.checkpoint"
    run = trained(network(), "FG-W", checkpoint=path)
    again: dict[str, Tensor] = trained(network(), "FG-W", checkpoint=path).params
    assert all(torch.equal(value, again[name]) for name, value in run.params.items())
    for other in (frozen_otherwise(network()), network().requires_grad_(True)):
        with pytest.raises(ValueError, match="is the checkpoint of another run: its network is"):
            trained(other, "FG-W", checkpoint=path)


def test_a_linear_probe_takes_frozen_parameters_from_the_network() -> None:
    net, schedule = network(), fgvar.Schedule(1, 16)
    run = trained(net)
    every = {**dict(net.named_parameters()), **run.params}
    found, expected = (
        fgvar.read_out(net, params, DATA, schedule, device="cpu").params for params in (run.params, every)
    )
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    with pytest.raises(ValueError, match=r"the parameters lack '1\.weight' of the network"):
        fgvar.read_out(net, {}, DATA, schedule, device="cpu")


def test_constants_alone_have_nothing_to_learn() -> None:
    with pytest.raises(ValueError, match="no parameter of Sequential requires a gradient"):
        trained(network().requires_grad_(False))


def test_all_processes_take_the_constants_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the first one's frozen weights are zeros, which arrive in place."""
    zeros = network()
    zeros[3].weight.data.zero_()
    expected = trained(zeros, "FG-W").params
    monkeypatch.setattr(loop, "broadcast_params", lambda params: params["3.weight"].zero_())
    found = trained(network(), "FG-W").params
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
