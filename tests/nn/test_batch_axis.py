"""Sites by looking: `with_sites(net, inputs=…)` sees which outputs have a batch axis, and credits the rest behind."""

import random

import numpy as np
import pytest
import torch
from cases import labels, randn
from plain_nets import (
    Embedded,
    LastOfLSTM,
    MixtureOfExperts,
    Positions,
    Repeated,
    Scaled,
    UNet,
    ViT,
    plain,
    sites_of,
)  # fmt: skip
from refusals import says
from torch import Tensor, nn

import fgvar
from fgvar import theory
from fgvar.nn.batch_axis import BatchAxis

IMAGES, TOKENS = randn(2, 1, 4, 4, seed=3), randn(2, 3, 3, seed=3)
IDS = torch.tensor([[0, 4, 2], [1, 1, 3]])
NETWORKS = {
    "ViT": (ViT, IMAGES, labels(2, 3)),
    "positions": (Positions, IDS, IDS),
    "experts": (MixtureOfExperts, TOKENS, labels(2, 3)),
    "U-Net": (UNet, IMAGES, IMAGES.sin()),
    "LSTM": (LastOfLSTM, randn(2, 3, 2, seed=3), labels(2, 3)),
}
LOSSES = {"U-Net": "mse"}
networks = pytest.mark.parametrize("name", NETWORKS)


def problem_of(name: str, net: nn.Module) -> fgvar.Problem:
    _, x, y = NETWORKS[name]
    return fgvar.Problem(net, LOSSES.get(name, "cross_entropy"), (x, y))


def plain_of(name: str) -> nn.Module:
    return plain(NETWORKS[name][0]).eval()


def assert_exact(problem: fgvar.Problem) -> None:
    """The exact mean of FG-A is the gradient by backprop, of every parameter."""
    mean = theory.mean(fgvar.scheme("FG-A"), problem)
    for key, gradient in problem.backprop().items():
        assert gradient.abs().max() > 1e-6 or "in_proj_bias" in key, f"{key}: 0 would be compared with 0"
        torch.testing.assert_close(mean[key], gradient, rtol=0, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


# ---- which sites ---------------------------------------------------------------------------------------------


@networks
def test_exact_by_looking(name: str) -> None:
    problem = problem_of(name, fgvar.with_sites(plain_of(name), inputs=NETWORKS[name][1]))
    assert_exact(problem)
    chunk = 1 if name == "experts" else None  # a choice of rows does not run under vmap
    drawn = fgvar.measure({"FG-A": fgvar.scheme("FG-A")}, problem, draws=8, seed=0, chunk=chunk)
    assert np.isfinite(drawn["relative_variance"]).all()


@pytest.mark.parametrize("name", ["ViT", "U-Net", "LSTM"])
def test_exact_without_looking_where_all_outputs_have_a_batch_axis(name: str) -> None:
    assert_exact(problem_of(name, fgvar.with_sites(plain_of(name))))


def test_the_enumerated_mean_where_positions_are_credited_behind() -> None:
    problem = problem_of("positions", fgvar.with_sites(plain_of("positions"), inputs=IDS))
    mean = fgvar.testing.expectation(fgvar.scheme("FG-A"), problem)
    for key, gradient in problem.backprop().items():
        torch.testing.assert_close(mean[key], gradient, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        # The sum of both embeddings, as the dropout after it returns it, stands for the positions …
        ("positions", ["wte.site", "drop.site", "norm.site", "head.site"]),
        # … and for what the network owns, in place of its output, behind all that class tokens lead to.
        (
            "ViT",
            [
                "patch_embed.site",
                "pos_drop.site",
                "block.self_attn.site",
                "block.linear1.site",
                "block.linear2.site",
                "block.norm1.site",
                "block.norm2.site",
                "head.site",
            ],
        ),
        # Behind router and experts the last layer alone returns one row an example.
        ("experts", ["first.site", "last.site"]),
    ],
)
def test_where_sites_are(name: str, sites: list[str]) -> None:
    assert sites_of(fgvar.with_sites(plain_of(name), inputs=NETWORKS[name][1])) == sites


def test_the_place_behind_the_sum_makes_the_variance_of_positions_small() -> None:
    """Credited at the norms that they reach, positions get the norms' Jacobian for noise: 1/σ² of its rows."""
    net = plain_of("positions")
    for table in (net.wte, net.wpe):
        nn.init.normal_(table.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    looked = problem_of("positions", fgvar.with_sites(net, inputs=IDS))
    bare = problem_of("positions", fgvar.with_sites(net, sites=["wte", "norm", "head"]))
    near, far = (float(theory.trace(fgvar.scheme("FG-A"), p)["wpe.weight"].sum()) for p in (looked, bare))
    assert near < far / 10


def test_a_first_axis_that_is_as_long_as_the_batch_by_chance() -> None:
    ids = torch.tensor([[0, 4, 2], [1, 1, 3], [2, 0, 0]])  # three examples of three positions: wpe returns [3, 4]
    assert "wpe.site" not in sites_of(fgvar.with_sites(plain_of("positions"), inputs=ids))
    assert "wpe.site" not in sites_of(fgvar.with_sites(plain_of("positions"), inputs=ids[:1, :1]))


def test_sites_that_are_added_to_in_place() -> None:
    class InPlace(Positions):
        def forward(self, ids: Tensor) -> Tensor:
            h = self.wte(ids)
            h += self.wpe(torch.arange(ids.shape[1]))
            return self.head(torch.tanh(self.norm(self.drop(h))))

    net = fgvar.with_sites(plain(InPlace).eval(), inputs=IDS)
    assert "drop.site" in sites_of(net)  # at wte, which returned before, the positions were not yet in the sum
    assert_exact(fgvar.Problem(net, "cross_entropy", (IDS, IDS)))


def test_types_take_those_with_a_batch_axis() -> None:
    net = plain_of("positions")
    assert sites_of(fgvar.with_sites(net, types=(nn.Embedding, nn.Linear), inputs=IDS)) == ["wte.site", "head.site"]
    with pytest.raises(ValueError, match=says("no module to follow in MixtureOfExperts")):
        fgvar.with_sites(plain_of("experts"), types=(nn.ReLU,), inputs=TOKENS)


def test_inputs_of_several_tensors() -> None:
    class Masked(Positions):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return super().forward(ids) * mask[:, :, None]

    net, mask = plain(Masked).eval(), torch.ones(2, 3, dtype=torch.float64)
    for inputs in ({"ids": IDS, "mask": mask}, (IDS, mask)):
        wrapped = fgvar.with_sites(net, inputs=inputs)
        assert sites_of(wrapped) == ["wte.site", "drop.site", "norm.site", "head.site"]
        assert_exact(fgvar.Problem(wrapped, "cross_entropy", (inputs, IDS)))


# ---- modules that are shared, called twice, or never ----------------------------------------------------------


def shared() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer)


@pytest.mark.parametrize(
    ("build", "sites"), [(shared, ["1.site", "site"]), (Repeated, ["last.site"]), (Scaled, None)]
)
def test_a_module_called_twice_is_credited_behind_each_call(build, sites: list[str] | None) -> None:
    net, x = plain(build), randn(3, 4)
    wrapped = fgvar.with_sites(net, inputs=x)
    assert sites_of(wrapped) == sites if sites else sites_of(fgvar.with_sites(net))
    assert_exact(fgvar.Problem(wrapped, "cross_entropy", (x, labels(3, 3))))


def test_a_shared_module_by_its_second_name() -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
            self.same = self.layer

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.same(x)))

    wrapped = fgvar.with_sites(plain(Aliased), sites=["same", "last"])
    assert sites_of(wrapped) == ["layer.site", "last.site"]
    assert_exact(fgvar.Problem(wrapped, "cross_entropy", (randn(2, 4), labels(2, 3))))


def test_a_shared_module_called_under_both_names() -> None:
    problem = fgvar.Problem(
        fgvar.with_sites(plain(shared), sites=["2"]), "cross_entropy", (randn(2, 4), labels(2, 3))
    )
    with pytest.raises(ValueError, match=says("'0.site' is called twice", r"with_sites\(net, inputs=")):
        fgvar.scheme("FG-A").randomness(problem)


def test_a_module_that_is_never_called_gets_no_site() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    wrapped = fgvar.with_sites(plain(Half), inputs=randn(2, 4))
    assert sites_of(wrapped) == ["used.site"]
    problem = fgvar.Problem(wrapped, "cross_entropy", (randn(2, 4), labels(2, 3)))
    found = fgvar.testing.expectation(fgvar.scheme("FG-A"), problem)
    for name, gradient in problem.backprop().items():  # what the loss does not use has gradient and estimate 0
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-12)
        assert bool(gradient.any()) == name.startswith("used")


# ---- nothing else is moved ------------------------------------------------------------------------------------


def test_looking_moves_nothing() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).double().train()
    x = randn(3, 4)
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    states = torch.random.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    wrapped = fgvar.with_sites(net, inputs=x)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tobytes(), random.getstate()) == states[1:]
    for module in (net, wrapped):
        assert all(torch.equal(value, kept[name]) for name, value in module.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert not any(module._forward_hooks for module in net.modules())


# ---- sentences ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "site", "message"),
    [
        (
            "positions",
            "wpe",
            says(r"'wpe' \(Embedding\) returns shape \(3, 4\).*not the batch's", "leave it out"),
        ),
        ("experts", "gate", says(r"'gate' \(Linear\) returns shape \(6, 2\)", "leave it out of sites=")),
        ("LSTM", "rnn.odd", says(r"'rnn.odd' \(Linear\) is never called", "sites=")),
    ],
)
def test_named_modules_without_a_batch_axis(name: str, site: str, message: str) -> None:
    net = plain_of(name)
    if name == "LSTM":
        net.rnn.odd = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=message):
        fgvar.with_sites(net, sites=[site], inputs=NETWORKS[name][1])


def test_named_modules_that_are_called_twice_or_return_no_tensor() -> None:
    with pytest.raises(ValueError, match=says(r"'map' \(Linear\) is called 2 times in one forward pass", "sites=")):
        fgvar.with_sites(plain(Repeated), sites=["map"], inputs=randn(2, 4))

    class Dicts(nn.Linear):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"z": super().forward(x)}

    with pytest.raises(ValueError, match=says(r"'0' \(Dicts\) returns neither a tensor nor a tuple", "sites=")):
        fgvar.with_sites(nn.Sequential(Dicts(4, 3)), sites=["0"], inputs=randn(2, 4).float())


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([[1.0]], TypeError, says(r"inputs\[0\]\[0\] is float, expected a tensor", r"torch\.as_tensor")),
        ((), TypeError, says("inputs hold no tensor, expected a tensor of examples")),
        (torch.ones(0, 4), ValueError, says(r"inputs \(0, 4\) need the same, nonzero number of examples")),
        (
            (torch.ones(2, 4), torch.ones(3, 4)),
            ValueError,
            says(r"inputs\[0\] \(2, 4\) and inputs\[1\] \(3, 4\) need the same"),
        ),
        (torch.ones(2, 5), ValueError, says("Sequential does not take inputs of 2 examples .*shape", "inputs= as")),
    ],
)
def test_inputs_that_do_not_fit(inputs: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fgvar.with_sites(nn.Sequential(nn.Linear(4, 3)), inputs=inputs)


def test_a_network_for_one_batch_size_alone() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Unflatten(0, (2, 1)))
    with pytest.raises(ValueError, match=says("does not take inputs of 3 examples", "any number of examples")):
        BatchAxis(net, torch.ones(2, 4))


@pytest.mark.parametrize("name", ["positions", "experts"])
def test_without_looking_the_sentence_names_inputs(name: str) -> None:
    site = {"positions": r"'wpe.site' has shape \(3, 4\)", "experts": r"'gate.site' has shape \(6, 2\)"}[name]
    problem = problem_of(name, fgvar.with_sites(plain_of(name)))
    with pytest.raises(ValueError, match=says(site, r"with_sites\(inputs=", "routers of flattened tokens")):
        fgvar.scheme("FG-A").randomness(problem)


# ---- what the network itself owns -----------------------------------------------------------------------------


class Around(ViT):
    """Class token and positions, and what the block makes of them, side by side."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return h[:, 0, :3] + self.head(self.block(h))[:, 0]


class Cured(Around):
    """The same with the first step as a module."""

    def __init__(self) -> None:
        super().__init__()
        del self.cls_token, self.pos_embed, self.patch_embed
        self.first = Embedded(4, 4)

    def embed(self, x: Tensor) -> Tensor:
        return self.first(x)


INNER = ["block.self_attn", "block.linear1", "block.linear2", "block.norm1", "block.norm2", "head"]


def test_class_tokens_that_pass_all_sites_are_named_with_cures_that_work() -> None:
    def problem(net: nn.Module, *sites: str) -> fgvar.Problem:
        return fgvar.Problem(fgvar.with_sites(net, sites=[*INNER, *sites]), "cross_entropy", (IMAGES, labels(2, 3)))

    net = plain(Around).eval()
    message = says(
        r"\['cls_token', 'pos_embed'\] reach the loss past", "module of its own", r"requires_grad_\(False\)"
    )
    with pytest.raises(ValueError, match=message):
        fgvar.scheme("FG-A").randomness(problem(net, "patch_embed"))
    assert_exact(problem(plain(Cured).eval(), "first"))
    for parameter in (net.cls_token, net.pos_embed):
        parameter.requires_grad_(False)
    assert_exact(problem(net, "patch_embed"))
