"""requires_grad decides: what requires a gradient is estimated, and the rest is constant, as buffers are."""

import math

import pytest
import torch
import xarray as xr
from cases import randn
from exact import assert_exact
from frozen import fixed, in_buffers, lora, partly_frozen, problem_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fgvar
from fgvar import theory
from fgvar.errors import NonFiniteError
from fgvar.estimators.guesses import drawn

FROZEN = {"0.bias", "2.weight", "2.bias", "1.local.head.linear.weight"}
# What reads the weights of frozen layers knows that they are weights; of buffers it does not.
BACK = {"FA", "L-FA", "LG-FA", "NTK-guess", "transposed-guess", "orthogonalised-guess", "SVD-guess"}
SCHEMES = [scheme.name for scheme in fgvar.schemes() if scheme.name not in BACK]
REPLAY = fgvar.scheme("LG-FG-A", oracle=fgvar.oracles.Replay())


def autograd(net: nn.Module, problem: fgvar.Problem) -> dict[str, Tensor]:
    net.zero_grad()
    nn.functional.cross_entropy(net(problem.inputs), problem.targets).backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in net.named_parameters()
        if p.requires_grad
    }


# ---- LoRA ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2])
def test_lora_has_the_variance_of_its_own_numbers_alone(rank: int) -> None:
    """E‖ĝ − ∇‖² = (d + 1)‖∇‖² with d the numbers that train, in both routes (drawn: 5 standard errors, < 1e-6)."""
    net = lora(rank=rank)
    problem = problem_of(net)
    d = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert sum(p.numel() for p in problem.params.values()) == d == rank * (3 + 6 + 6 + 2)
    for name, value in autograd(net, problem).items():
        torch.testing.assert_close(problem.backprop()[name], value, rtol=0, atol=1e-12)
    found = fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem, route="exact")
    its = found["relative_variance"].sel(layer="perturbed", estimator="FG-W")
    assert float(its) == pytest.approx(d + 1, rel=1e-9)
    found = fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem, draws=2000)
    its = found.sel(layer="perturbed", estimator="FG-W")
    assert abs(float(its["relative_variance"]) - d - 1) < 5 * float(its["relative_variance_se"])


@pytest.mark.parametrize("name", ["MeZO", "FG-W", "SPSA", "EGGROLL", "multi-FG-W"])
def test_noise_is_of_what_trains(name: str) -> None:
    problem = problem_of(lora())
    leaves = fgvar.scheme(name).randomness(problem).sample(0, [0], dtype=problem.dtype, device=problem.device)
    assert set(leaves) == set(problem.params) == {"0.A", "0.B", "3.A", "3.B"}


class Largest(TorchDispatchMode):
    """The most numbers of any tensor that is made within."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, out.numel() if isinstance(out, Tensor) and not func.is_view else 0)
        return out


@pytest.mark.parametrize("name", ["MeZO", "FG-W"])
def test_memory_holds_no_noise_of_what_is_frozen(name: str) -> None:
    """No tensor that measuring makes is a tenth of one frozen weight, though 16 draws are held at once."""
    wide = nn.Sequential(nn.Linear(3, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 2))
    wide.requires_grad_(False)[4].requires_grad_(True)
    problem = problem_of(wide.double(), batch=2)
    with Largest() as largest:
        fgvar.measure({name: fgvar.scheme(name)}, problem, draws=16)
    assert 16 * 2 * 512 <= largest.numbers < problem.frozen["2.weight"].numel() / 10


def test_activity_perturbation_of_lora() -> None:
    """Sites stand where something trains; estimates are unbiased and their variance that of the closed form."""
    net = fgvar.with_sites(lora())
    problem = problem_of(net)
    assert list(problem.trace.sites) == ["0.site", "3.site"]
    assert_exact(fgvar.scheme("FG-A"), problem)
    trained = problem.at({k: v + 0.3 * randn(*v.shape, seed=9) for k, v in problem.params.items()})
    assert_exact(fgvar.scheme("FG-A"), trained)
    assert_exact(fgvar.scheme("FG-W"), trained)


# ---- constants, as buffers are ---------------------------------------------------------------------------------


def test_constants_are_no_parameters() -> None:
    net = partly_frozen()
    problem = problem_of(net)
    assert set(problem.frozen) == FROZEN
    assert problem.params.keys() | FROZEN == dict(net.named_parameters()).keys()
    assert problem.network.exact == {"6.weight", "6.bias", "1.local.head.linear.bias"} | {
        f"5.local.head.linear.{kind}" for kind in ("weight", "bias")
    }
    assert "frozen '2.weight'" in problem.tensors()
    copied = problem.clone()
    copied.frozen["2.weight"].zero_()
    assert problem.frozen["2.weight"].any()
    assert {v.dtype for v in problem.to(torch.float32).frozen.values()} == {torch.float32}
    with torch.no_grad():
        net.get_parameter("2.weight").zero_()
    assert problem.frozen["2.weight"].any(), "a problem reads the module once"


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_estimates_as_of_buffers(name: str) -> None:
    frozen, buffers = problem_of(partly_frozen()), problem_of(in_buffers(partly_frozen()))
    assert frozen.params.keys() == buffers.params.keys()
    estimator = fgvar.scheme(name)
    for chunk in (1, None):
        found, expected = (
            fgvar.measure({name: estimator}, problem, draws=4, chunk=chunk).drop_vars("seconds")
            for problem in (frozen, buffers)
        )
        xr.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("route", ["drawn", "exact"])
def test_measurements_are_those_of_buffers(route: str) -> None:
    """Paired comparison, data variance, `Replay` and closed forms."""
    estimators = {name: fgvar.scheme(name) for name in ("LG-FG-A", "FG-A", "FG-W", "LG-FG-W")} | {"replay": REPLAY}
    words = {"draws": 8, "paired": True} if route == "drawn" else {"route": "exact"}
    found, expected = (
        fgvar.measure(estimators, problem_of(net), **words).drop_vars("seconds", errors="ignore")
        for net in (partly_frozen(), in_buffers(partly_frozen()))
    )
    xr.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["FG-W", "FG-A", "LG-FG-A", "LG-FG-W", "NP"])
def test_closed_forms_are_the_enumerated_variances(name: str) -> None:
    assert_exact(fgvar.scheme(name, **({"oracle": fgvar.Jvp()} if name == "NP" else {})), problem_of(partly_frozen()))


def test_gradients_are_autograd_s() -> None:
    net = partly_frozen()
    problem = problem_of(net)
    for name, value in autograd(net, problem).items():
        torch.testing.assert_close(problem.backprop()[name], value, rtol=0, atol=1e-12)


def test_a_tied_parameter_is_frozen_under_both_names() -> None:
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    two.weight = one.weight
    tied = fixed(nn.Sequential(one, nn.Tanh(), two, nn.Tanh(), nn.Linear(3, 2)))
    tied[2].weight.requires_grad_(False)
    problem = problem_of(fgvar.with_sites(tied))
    assert list(problem.frozen) == ["0.weight"]
    assert list(problem.params) == ["0.bias", "2.bias", "4.weight", "4.bias"]
    torch.testing.assert_close(problem.run(problem.params)[0], tied(problem.inputs), rtol=0, atol=0)
    for name in ("FG-A", "FG-W"):
        assert_exact(fgvar.scheme(name), problem)


def test_the_checks_take_a_partly_frozen_network() -> None:
    report = fgvar.testing.check_estimator(fgvar.scheme("FG-A"), {"frozen": problem_of(fgvar.with_sites(lora()))})
    assert report.passed, str(report)


# ---- what knows weights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
def test_feedback_passes_frozen_layers_by_weights_of_its_own(wrapped: bool) -> None:
    net = fixed(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))
    net[2].requires_grad_(False)
    problem = problem_of(fgvar.with_sites(net) if wrapped else net)
    found = fgvar.scheme("FA").estimate(problem, {}).gradient
    back = {name: drawn(problem, name, 0) for name in ("2.weight", "4.weight")}
    w, x = {**problem.params, **problem.frozen}, problem.inputs
    assert not torch.equal(back["2.weight"], w["2.weight"])
    h0 = (x @ w["0.weight"].T + w["0.bias"]).tanh()
    h1 = (h0 @ w["2.weight"].T + w["2.bias"]).tanh()
    error = (h1 @ w["4.weight"].T + w["4.bias"]).softmax(1) - nn.functional.one_hot(problem.targets, 2)
    d1 = (error @ back["4.weight"]) * (1 - h1.square())
    d0 = (d1 @ back["2.weight"]) * (1 - h0.square())
    expected = {"0.weight": d0.T @ x, "0.bias": d0.sum(0), "4.weight": error.T @ h1, "4.bias": error.sum(0)}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value / len(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(BACK))
def test_schemes_that_read_weights_read_frozen_ones(name: str) -> None:
    """The estimate is that of the whole network, at the parameters that train."""
    # The same sites in both, with all weights trained in one of them.
    frozen, whole = problem_of(partly_frozen()), problem_of(partly_frozen().requires_grad_(True))
    estimator = fgvar.scheme(name)
    randomness = estimator.randomness(frozen)
    noise = {k: u[0] for k, u in randomness.sample(0, [0], dtype=torch.float64, device=frozen.device).items()}
    found, expected = (estimator.estimate(problem, noise).gradient for problem in (frozen, whole))
    assert any(value.any() for value in found.values())
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-10)


def test_a_frozen_bias_is_no_part_of_fan_in() -> None:
    """Against the layer without a bias, and the constant added behind it."""

    class Plus(nn.Module):
        def __init__(self, constant: Tensor) -> None:
            super().__init__()
            self.register_buffer("constant", constant)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.constant

    layer, bare = fixed(nn.Linear(3, 2)), nn.Linear(3, 2, bias=False).double()
    bare.weight.data, layer.bias.requires_grad = layer.weight.data, False
    batch = randn(2, 5, 3), randn(2, 5, 2, seed=1)
    found, expected = (
        theory.activity_ratio(fgvar.Problem(net, "mse", batch))
        for net in (nn.Sequential(layer), nn.Sequential(bare, Plus(layer.bias.detach())))
    )
    assert found.keys() == expected.keys() == {"0.weight"}
    assert found["0.weight"].fan_in == 3
    assert found["0.weight"].ratio == pytest.approx(expected["0.weight"].ratio, rel=1e-12)


# ---- what is refused, and what is not --------------------------------------------------------------------------


def test_a_network_of_constants_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no parameter of Sequential requires a gradient.*requires_grad_\(True\)"):
        problem_of(lora().requires_grad_(False))


def test_constants_that_alone_lead_to_the_output_are_refused() -> None:
    net = partly_frozen()
    for name, p in net.named_parameters():
        p.requires_grad_(".local." in name)
    with pytest.raises(ValueError, match=r"no parameter leads to the network's outputs.*frozen.*unfreeze them"):
        problem_of(net)


def test_frozen_parameters_are_finite_and_on_one_device() -> None:
    net = lora()
    net[1].bias.data[0] = math.nan
    with pytest.raises(NonFiniteError, match=r"parameters: 1\.bias holds NaN"):
        problem_of(net)
    net[1].bias = nn.Parameter(torch.zeros(6, device="meta"), requires_grad=False)
    with pytest.raises(ValueError, match=r"1\.bias is on meta, 0\.A on cpu"):
        problem_of(net)


def test_all_parameters_of_a_module_are_taken_and_no_others() -> None:
    net = lora()
    problem, every = problem_of(net), {name: 2 * p.detach() for name, p in net.named_parameters()}
    moved = problem.at(every)
    assert moved.params.keys() == problem.params.keys()
    assert all(torch.equal({**moved.params, **moved.frozen}[name], value) for name, value in every.items())
    with pytest.raises(ValueError, match=r"params lack \[\] and have \['mine'\]"):
        problem.at({**every, "mine": torch.ones(1)})


class Quantised(nn.Module):
    """A linear layer whose weight is stored in another type, and a low-rank one beside it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        stored = (8 * randn(4, 3)).to(dtype)
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(0.125, dtype=torch.bfloat16), requires_grad=False)
        self.low = nn.Linear(3, 4).double()
        self.last = nn.Linear(4, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(x @ (self.scale.to(x.dtype) * self.weight.to(x.dtype)).T + self.low(x)))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bfloat16, torch.float8_e4m3fn, torch.bool])
def test_frozen_parameters_may_be_of_any_type(dtype: torch.dtype) -> None:
    """One type is asked of what is estimated; what is stored in another is cast by the network itself."""
    problem = problem_of(fgvar.with_sites(Quantised(dtype)))
    assert problem.dtype == torch.float64
    assert problem.frozen["weight"].dtype == dtype
    for name in ("FG-W", "FG-A"):
        assert_exact(fgvar.scheme(name), problem)
    # An estimator of somebody else's gets a copy of it all, which is compared afterwards.
    theirs = fgvar.testing.from_function(lambda problem, _: problem.backprop())
    estimators = {name: fgvar.scheme(name) for name in ("FA", "SVD-guess", "MeZO", "EGGROLL")} | {"theirs": theirs}
    found = fgvar.measure(estimators, problem, draws=2)["variance"].sel(layer="perturbed")
    assert (found.sel(estimator=["SVD-guess", "MeZO", "EGGROLL"]) > 0).all()
    assert (found.sel(estimator=["FA", "theirs"]) == 0).all()


def test_complex_constants_are_taken() -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filter = nn.Parameter(torch.complex(randn(2), randn(2, seed=1)), requires_grad=False)
            self.last = nn.Linear(3, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=3))

    assert set(problem_of(Spectrum()).params) == {"last.weight", "last.bias"}


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_contrastive_problems_have_constants_too(stop_gradient: bool) -> None:
    net = fgvar.networks.LocalMixer((1, 4, 4), 3, blocks=2, patches=2, channels=8, groups=2).double()
    net.get_parameter("block0.channel.weight").requires_grad_(False)
    net.get_parameter("block1.token.bias").requires_grad_(False)
    views = randn(3, 1, 4, 4), randn(3, 1, 4, 4, seed=1)
    infonce = fgvar.contrastive.InfoNCE(stop_gradient=stop_gradient)
    found, expected = (fgvar.contrastive.Contrastive(each, infonce, views) for each in (net, in_buffers(net)))
    assert found.frozen.keys() == {"block0.channel.weight", "block1.token.bias"}
    estimators = {name: fgvar.scheme(name) for name in ("BP", "FG-W", "LG-FG-A")}
    one, other = (fgvar.measure(estimators, each, draws=4).drop_vars("seconds") for each in (found, expected))
    xr.testing.assert_allclose(one, other, rtol=1e-12)
    assert (one["variance"].sel(layer="perturbed", estimator=["FG-W", "LG-FG-A"]) > 0).all()


class Last(nn.Module):
    """A recurrent layer's last output, read by a linear one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.read = layer, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.layer(x[:, None].expand(-1, 2, -1))[0][:, -1])


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_recurrent_layer_may_be_frozen_in_part(kind: type[nn.RNNBase]) -> None:
    net = fixed(Last(kind(3, 2, num_layers=2, batch_first=True)))
    for name, p in net.layer.named_parameters():
        p.requires_grad_(name.endswith("_l1"))
    problem = problem_of(fgvar.with_sites(net))
    for name, value in autograd(net, problem).items():
        torch.testing.assert_close(problem.backprop()[name], value, rtol=0, atol=1e-12)
    for name in ("FG-W", "FG-A"):
        assert_exact(fgvar.scheme(name), problem)
