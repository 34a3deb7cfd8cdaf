"""Every bad input is refused with what was got and what to do about it."""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from cases import mixer, randn
from torch import Tensor, nn
from torch.nn import functional

import fgvar
from fgvar.errors import NonFiniteError, unknown
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.measurement.draws import Enumeration
from fgvar.networks import MLP, LocalMixer
from fgvar.nn.heads import ReadOut
from fgvar.testing import expectation

NAN, INF = math.nan, math.inf
X, Y = randn(4, 3), torch.tensor([0, 1, 1, 0])


def says(*parts: str) -> str:
    """A pattern of texts that must all occur, in any order: what was got, what was expected, what to do."""
    return "(?s)" + "".join(f"(?=.*(?:{part}))" for part in parts)


def net() -> nn.Sequential:
    """A network whose weights are always the same."""
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    for index, p in enumerate(module.parameters()):
        p.data = randn(*p.shape, seed=index)
    return module


def problem(module: nn.Module | None = None, loss="cross_entropy", batch=(X, Y)) -> fgvar.Problem:
    return fgvar.Problem(net() if module is None else module, loss, batch)


def with_sites(**words) -> fgvar.Problem:
    return problem(fgvar.with_sites(net(), **words))


def activities(where: fgvar.Problem, **words) -> Randomness:
    """What a user meets first, before anything is computed."""
    return fgvar.Estimator(fgvar.ActivitySpace(**words)).randomness(where)


class Wrapped(nn.Module):
    """A linear layer and a function of (layer, input)."""

    def __init__(self, function: Callable[["Wrapped", Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = function
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


# ---- unknown names, with the nearest valid one -------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "valid", "message"),
    [
        (
            "measur",
            ["measure", "train"],
            r"unknown thing 'measur'; did you mean 'measure'\? \(valid: measure, train\)",
        ),
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
    "head init": (lambda: sized(head_init="zeros"), "initialisation 'zeros'", "'zero'"),
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
    "layer": (lambda: fgvar.summary(measured(), layer="0.wieght"), "layer '0.wieght'", "'0.weight'"),
}


def sized(**sizes) -> LocalMixer:
    words = {"image_shape": (1, 4, 4), "classes": 3, "blocks": 1, "patches": 2, "channels": 8, "groups": 2}
    return LocalMixer(**words | sizes)


def measured():
    return fgvar.measure({"BP": fgvar.scheme("BP")}, problem(), draws=2)


@pytest.mark.parametrize("kind", UNKNOWN)
def test_an_unknown_name_is_answered_with_the_nearest(kind: str) -> None:
    call, got, nearest = UNKNOWN[kind]
    with pytest.raises(ValueError, match=rf"unknown {got}; did you mean {nearest}\? \(valid: .*"):
        call()


def test_a_declared_relu_that_is_not_there_is_unknown() -> None:
    site = nn.Sequential(nn.Linear(3, 2), fgvar.networks.Site(relu="act")).double()
    with pytest.raises(ValueError, match=r"unknown module \(the ReLU of site '1'\) 'act' .*valid: 0, 1"):
        activities(problem(site))


@pytest.mark.parametrize("name", ["measur", "__wrapped__"])
def test_a_misspelt_public_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'fgvar'.*{name}"):
        getattr(fgvar, name)
    assert not hasattr(fgvar, name)


def test_a_misspelt_public_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match="unknown name 'with_site'; did you mean 'with_sites'"):
        _ = fgvar.with_site
    with pytest.raises(ImportError, match="mesure"):
        from fgvar import mesure  # noqa: F401


def test_every_public_name_is_there() -> None:
    assert all(getattr(fgvar, name) is not None for name in fgvar.__all__)
    assert set(fgvar.__all__) <= set(dir(fgvar))


# ---- networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "got", "remedy"),
    [
        ({"groups": 3}, "8 channels do not divide into 3 groups", "groups="),
        ({"patches": 3}, "4×4 does not divide into 3×3 patches", "patches="),
        ({"image_shape": (1, 4, 6), "patches": 4}, "4×6 does not divide into 4×4", "patches="),
        ({"patches": 8}, "4×4 does not divide into 8×8", "patches="),
        ({"patches": 4}, "a patch of one number", "fewer patches"),
        ({"groups": 8}, "one channel per group", "fewer groups"),
        ({"classes": 0}, "classes is 0", "at least 1"),
        ({"blocks": 0}, "blocks is 0", "at least 1"),
        ({"patches": -1}, "patches is -1", "at least 1"),
        ({"groups": 0}, "groups is 0", "at least 1"),
        ({"channels": 0}, "channels is 0", "at least 1"),
        ({"channels": -8}, "channels is -8", "at least 1"),
        ({"image_shape": (1, 0, 4)}, r"\(1, 0, 4\)|height is 0", "at least 1"),
        ({"image_shape": (4, 4)}, r"\(4, 4\)", "channels, height, width|colours, height, width"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_sizes_of_a_local_mixer(sizes: dict, got: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=says(got, remedy)):
        sized(**sizes)


@pytest.mark.parametrize("size", ["in_features", "width", "depth", "classes"])
@pytest.mark.parametrize("number", [0, -2])
def test_sizes_of_an_mlp(size: str, number: int) -> None:
    with pytest.raises(ValueError, match=f"{size} is {number}, expected at least 1"):
        MLP(**{"in_features": 3, "width": 4, "depth": 1, "classes": 2} | {size: number})


@pytest.mark.parametrize("shape", [(2, 16), (2, 1, 4, 5), (1, 4, 4), (2, 3, 4, 4)])
def test_images_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=says(rf"images have shape \({', '.join(map(str, shape))}\)", "1, 4, 4")):
        sized()(torch.zeros(shape))


# ---- with_sites --------------------------------------------------------------------------------------------


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
    wrapped = fgvar.with_sites(nn.Sequential(Wrapped(lambda m, x: {"z": m.layer(x)})), types=(Wrapped,))
    with pytest.raises(TypeError, match=says(r"a site after '0' \(Wrapped\) got dict", r"with_sites\(sites=")):
        wrapped(X)


# ---- problems: the module ----------------------------------------------------------------------------------


def test_a_network_without_parameters() -> None:
    with pytest.raises(ValueError, match=says("ReLU has no parameters", "no gradient")):
        problem(nn.ReLU())


def layered(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), layer).double()


BATCH_NORMS = {
    "train": layered(nn.BatchNorm1d(2)),
    "without statistics": layered(nn.BatchNorm1d(2, track_running_stats=False)).eval(),
    "lazy": layered(nn.SyncBatchNorm(2)),
}


@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_batch_norm_in_train_mode(kind: str) -> None:
    with pytest.raises(ValueError, match=says(r"'1' \(\w*BatchNorm\w*\) couples the examples", r"module\.eval\(\)")):
        problem(BATCH_NORMS[kind])


DROPOUTS = {
    "Dropout": layered(nn.Dropout(0.1)),
    "AlphaDropout": layered(nn.AlphaDropout(0.1)),
    "RNN": Wrapped(lambda m, x: m.deep(x)[0], deep=nn.RNN(3, 2, num_layers=2, dropout=0.1)),
    "MultiheadAttention": Wrapped(lambda m, x: m.deep(x, x, x)[0], deep=nn.MultiheadAttention(3, 1, dropout=0.1)),
}


@pytest.mark.parametrize("kind", DROPOUTS)
def test_dropout_in_train_mode(kind: str) -> None:
    name = "1" if isinstance(DROPOUTS[kind], nn.Sequential) else "deep"
    message = says(rf"'{name}' \({kind}\) draws random numbers in train mode", r"module\.eval\(\)", "rate to 0")
    with pytest.raises(ValueError, match=message):
        problem(DROPOUTS[kind])


RANDOM = {
    "functional dropout": Wrapped(lambda m, x: functional.dropout(m.layer(x), 0.1)),
    "functional dropout, by mode": Wrapped(lambda m, x: functional.dropout(m.layer(x), 0.1, m.training)),
    "added noise": Wrapped(lambda m, x: m.layer(x) + torch.randn(2, dtype=torch.float64)),
    "noise like": Wrapped(lambda m, x: torch.randn_like(m.layer(x))),
    "one number": Wrapped(lambda m, x: m.layer(x) * torch.rand(1).item()),
    "random slopes": layered(nn.RReLU()),
}


@pytest.mark.parametrize("kind", RANDOM)
def test_random_numbers_in_the_forward_pass(kind: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=says("draws random numbers", r"module\.eval\(\)")):
        problem(RANDOM[kind])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["BatchNorm", "Dropout", "functional", "rate 0"])
def test_what_does_nothing_is_accepted(kind: str) -> None:
    modules = {
        "BatchNorm": layered(nn.BatchNorm1d(2)).eval(),
        "Dropout": layered(nn.Dropout(0.1)).eval(),
        "functional": Wrapped(lambda m, x: functional.dropout(m.layer(x), 0.1, m.training)).eval(),
        "rate 0": layered(nn.Dropout(0)),
    }
    assert problem(modules[kind]).loss().isfinite()


def test_errors_of_the_network_itself_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        problem(batch=(randn(4, 7), Y))


# ---- problems: batch, targets and loss ---------------------------------------------------------------------


@pytest.mark.parametrize("batch", [{"x": X}, (X, Y, Y), (X,), X, (X.numpy(), Y.numpy()), (X, [0, 1, 1, 0]), None])
def test_a_batch_is_a_pair_of_tensors(batch: object) -> None:
    with pytest.raises(TypeError, match=rf"batch is {type(batch).__name__}.*expected a pair \(inputs, targets\)"):
        problem(batch=batch)


@pytest.mark.parametrize("batch", [(X, Y[:3]), (X[:0], Y[:0]), (X, Y[0]), (X[0, 0], Y[0])])
def test_inputs_and_targets_have_the_same_examples(batch: tuple[Tensor, Tensor]) -> None:
    shapes = [rf"{name} \({', '.join(map(str, t.shape))},?\)" for name, t in zip(("inputs", "targets"), batch)]  # noqa: B905
    with pytest.raises(ValueError, match=says(*shapes, "same, nonzero number of examples along the first axis")):
        problem(batch=batch)


@pytest.mark.parametrize("targets", [[0, 1, 2, 0], [0, -1, 1, 0], [0, 1, -100, 1]])
def test_targets_out_of_range(targets: list[int]) -> None:
    got = f"targets range from {min(targets)} to {max(targets)}"
    with pytest.raises(
        ValueError, match=says(got, r"2 classes \(0 to 1\)", "check the labels or the size of the last")
    ):
        problem(batch=(X, torch.tensor(targets)))


@pytest.mark.parametrize("targets", [Y.double(), Y > 0, functional.one_hot(Y)])
def test_targets_are_class_numbers(targets: Tensor) -> None:
    got = rf"targets are {targets.dtype} of shape \({', '.join(map(str, targets.shape))},?\)"
    with pytest.raises(ValueError, match=says(got, r"class numbers \[batch\] as integers")):
        problem(batch=(X, targets))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_class_numbers_of_any_integer_type_are_accepted_or_explained(dtype: torch.dtype) -> None:
    try:
        loss = problem(batch=(X, Y.to(dtype))).loss()
    except ValueError as error:
        assert str(dtype) in str(error)  # noqa: PT017
    else:
        assert torch.equal(loss, problem().loss())


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2))), r"\(4, 2, 2\)"),
        (nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), r"\(4,\)"),
        (nn.LSTM(3, 2), "tuple"),
    ],
)
def test_cross_entropy_needs_classes(module: nn.Module, shape: str) -> None:
    with pytest.raises(ValueError, match=says(rf"network returned {shape}", r"outputs \[batch, classes\]")):
        problem(module.double())


@pytest.mark.parametrize("targets", [randn(4), randn(4, 3), randn(4, 1, 1)])
def test_mse_needs_targets_of_the_shape_of_the_outputs(targets: Tensor) -> None:
    """Broadcasting would compare every example with the targets of all."""
    module = nn.Linear(3, 1).double()
    shape = rf"\({', '.join(map(str, targets.shape))},?\)"
    with pytest.raises(ValueError, match=says("mse", r"\(4, 1\)", shape)):
        problem(module, "mse", (X, targets))


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (lambda outputs, _: outputs.argmax(1), "torch.int64"),
        (lambda outputs, targets: outputs.argmax(1) == targets, "torch.bool"),
        (lambda outputs, targets: (outputs, targets), "tuple"),
        (lambda outputs, _: outputs.sum().item(), "float"),
    ],
)
def test_a_loss_is_floating_point(loss, kind: str) -> None:
    with pytest.raises(TypeError, match=says(f"the loss is {kind}", "expected a floating-point tensor")):
        problem(loss=loss)


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (functional.cross_entropy, r"\(\)"),
        (nn.CrossEntropyLoss(), r"\(\)"),
        (lambda outputs, _: outputs, r"\(4, 2\)"),
        (lambda outputs, _: outputs[:2, 0], r"\(2,\)"),
    ],
)
def test_a_loss_is_one_number_an_example(loss, shape: str) -> None:
    message = says(f"the loss has shape {shape}", r"one number an example, \(4,\)", "reduction='none'")
    with pytest.raises(ValueError, match=message):
        problem(loss=loss)


# ---- non-finite anything -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_non_finite_problems(value: float) -> None:
    spoilt = net()
    with torch.no_grad():
        spoilt[2].bias[1] = value
    with pytest.raises(NonFiniteError, match=r"parameters: 2\.bias holds NaN or infinity"):
        problem(spoilt)
    inputs = X.clone()
    inputs[1, 2] = value
    with pytest.raises(NonFiniteError, match="batch: inputs holds NaN or infinity"):
        problem(batch=(inputs, Y))
    with pytest.raises(NonFiniteError, match="batch: targets holds NaN or infinity"):
        problem(loss="mse", batch=(X, inputs[:, 1:]))
    with pytest.raises(NonFiniteError, match=r"loss.*holds NaN or infinity"):
        problem(loss=lambda outputs, _: outputs.sum(1) * value)
    assert issubclass(NonFiniteError, ArithmeticError)


@dataclass(frozen=True)
class Spoilt:
    """Backprop with one value in one draw's estimate, or in the target."""

    value: float = NAN
    draw: int = 0
    target_too: bool = False
    layer: str = "2.bias"

    def randomness(self, where: fgvar.Problem) -> Randomness:  # noqa: ARG002
        return Randomness({"k": Leaf((), fgvar.Gaussian())})

    def estimate(self, where: fgvar.Problem, noise: Mapping[str, Tensor]) -> fgvar.Estimate:
        chosen = self.randomness(where).sample(0, [self.draw], dtype=torch.float64)["k"][0]
        gradient = where.backprop()
        gradient[self.layer] = torch.where(noise["k"] == chosen, self.value, gradient[self.layer])
        return fgvar.Estimate(gradient)

    def target(self, where: fgvar.Problem) -> dict[str, Tensor]:
        gradient = where.backprop()
        return gradient | {self.layer: gradient[self.layer] * (self.value if self.target_too else 1)}


@pytest.mark.parametrize("draw", [0, 5, 21, 39])
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("chunk", [1, 16])
def test_a_non_finite_estimate_is_named_by_estimator_layer_and_draw(draw: int, value: float, chunk: int) -> None:
    estimators = {"good": fgvar.scheme("FG-W"), "spoilt": Spoilt(value, draw)}
    with pytest.raises(NonFiniteError, match=says("'spoilt'", "'2.bias'", rf"\bdraw {draw}\b", "NaN or infinity")):
        fgvar.measure(estimators, problem(), draws=40, chunk=chunk)


def test_a_non_finite_estimate_without_noise_is_named() -> None:
    class Once(Spoilt):
        def randomness(self, where: fgvar.Problem) -> Randomness:  # noqa: ARG002
            return Randomness({})

        def estimate(self, where: fgvar.Problem, noise: Mapping[str, Tensor]) -> fgvar.Estimate:  # noqa: ARG002
            return fgvar.Estimate(where.backprop() | {"0.weight": torch.full((4, 3), NAN, dtype=torch.float64)})

    with pytest.raises(NonFiniteError, match=says("'once'", "'0.weight'", "NaN or infinity")):
        fgvar.measure({"once": Once()}, problem(), draws=2)


def test_a_non_finite_target_is_not_blamed_on_a_draw() -> None:
    with pytest.raises(NonFiniteError, match=says("'spoilt'", "'2.bias'", "target")):
        fgvar.measure({"spoilt": Spoilt(target_too=True, draw=10**6)}, problem(), draws=2)


def test_a_non_finite_backprop_is_an_error() -> None:
    """√|z| at z = 0: the loss is finite and its gradient is not, though the estimator never looks at it."""

    class Zero(Spoilt):
        def estimate(self, where: fgvar.Problem, noise: Mapping[str, Tensor]) -> fgvar.Estimate:  # noqa: ARG002
            return fgvar.Estimate(self.target(where))

        def target(self, where: fgvar.Problem) -> dict[str, Tensor]:
            return {name: torch.ones_like(p) for name, p in where.params.items()}

    flat = nn.Linear(3, 2).double()
    nn.init.zeros_(flat.weight)
    nn.init.zeros_(flat.bias)
    where = problem(flat, lambda outputs, _: outputs.abs().sqrt().sum(1))
    with pytest.raises(NonFiniteError, match=says("weight", "NaN or infinity")):
        fgvar.measure({"zero": Zero()}, where, draws=2)
    with pytest.raises(NonFiniteError, match=says("weight", "NaN or infinity")):
        fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, where, draws=2)


# ---- spaces and losses on networks that they do not fit ----------------------------------------------------


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
        fgvar.with_sites(Wrapped(lambda m, x: m.layer(x) + m.side(x.detach()[:1] * 0 + 1), side=side)),
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
    module = Wrapped(lambda m, x: m.site(m.layer(x)) + m.layer(x), site=fgvar.networks.Site())
    with pytest.raises(ValueError, match=says(r"\['layer.weight', 'layer.bias'\] reach the loss past the sites")):
        activities(problem(module))


def test_raw_parameters_after_the_sites_are_named() -> None:
    module = Wrapped(lambda m, x: m.layer(x) * m.scale)
    module.scale = nn.Parameter(torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=says(r"\['scale'\] reach the loss past the sites")):
        activities(problem(fgvar.with_sites(module, sites=["layer"])))
    assert activities(problem(fgvar.with_sites(module))).size == 16


@pytest.mark.parametrize("name", ["FG-W", "FG-A"])
def test_nothing_left_to_perturb(name: str) -> None:
    heads = nn.Sequential(fgvar.networks.Site(), ReadOut(3, 2)).double()
    with pytest.raises(ValueError, match=says("all parameters belong to heads", "nothing is left to perturb")):
        fgvar.scheme(name).randomness(problem(heads))


@pytest.mark.parametrize("name", ["L-BP", "LG-BP", "LG-FG-W", "LG-FG-A"])
def test_local_schemes_need_local_heads(name: str) -> None:
    message = says("no local heads, so it has no local losses", "LocalMixer", r"global loss \(FG-W, FG-A\)")
    with pytest.raises(ValueError, match=message):
        fgvar.scheme(name).randomness(with_sites())


@pytest.mark.parametrize("name", ["FG-W", "FG-A", "BP"])
def test_credit_needs_local_losses(name: str) -> None:
    with pytest.raises(ValueError, match=says("credit='published'", "copies of local losses", f"{name} has none")):
        fgvar.scheme(name, credit="published")


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


# ---- noise and enumerations --------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "draws"), [(-1, [0]), (0, []), (0, [3, -1])])
def test_seeds_and_draws_are_not_negative(seed: int, draws: list[int]) -> None:
    leaves = Randomness({"w": Leaf((2,), fgvar.Gaussian())})
    message = says(rf"seed {seed} and draws \[{', '.join(map(str, draws))}\]", "non-negative integers, at least one")
    with pytest.raises(ValueError, match=message):
        leaves.sample(seed, draws)


def test_enumerations() -> None:
    leaves = Randomness({"w": Leaf((19,), fgvar.Rademacher())})
    with pytest.raises(ValueError, match=says("unknown method 'sings'", "mean 'signs'", "hermite, nodes, signs")):
        Enumeration(leaves, "sings")
    with pytest.raises(ValueError, match=says(r"19 random numbers have 2\^19", r"2\^18", "smaller problem.*'nodes'")):
        Enumeration(leaves, "signs")
    with pytest.raises(ValueError, match=says(r"19 random numbers have 3\^19", r"3\^11")):
        Enumeration(leaves, "hermite")
    with pytest.raises(ValueError, match=says("needs no noise", "its only estimate is its expectation")):
        expectation(fgvar.scheme("BP"), problem())


# ---- measure, datasets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [1, 0, -3])
def test_one_draw_has_no_spread(draws: int) -> None:
    with pytest.raises(ValueError, match=says(f"draws is {draws}", "at least 2")):
        fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem(), draws=draws)


@pytest.mark.parametrize("chunk", [0, -1, 3, 12, 17, 24])
def test_chunks_fill_blocks(chunk: int) -> None:
    with pytest.raises(ValueError, match=says(f"chunk is {chunk}", "1, 2, 4, 8 or a multiple of 16")):
        fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem(), draws=4, chunk=chunk)


@pytest.mark.parametrize("name", ["FG-W", "BP"])
def test_a_negative_seed(name: str) -> None:
    with pytest.raises(ValueError, match=says("seed.*-1", "non-negative")):
        fgvar.measure({name: fgvar.scheme(name)}, problem(), draws=4, seed=-1)


@pytest.mark.parametrize(
    ("estimators", "kind"),
    [
        (fgvar.scheme("FG-A"), "Estimator"),
        (["FG-A"], "list"),
        ("FG-A", "str"),
        ({}, "dict"),
        (problem(), "Problem"),
        (None, "NoneType"),
    ],
)
def test_estimators_are_a_mapping(estimators: object, kind: str) -> None:
    message = says(f"estimators is {kind}", r'for instance \{"FG-A": fgvar.scheme\("FG-A"\)\}')
    with pytest.raises(TypeError, match=message):
        fgvar.measure(estimators, problem(), draws=2)


def test_a_name_is_no_estimator() -> None:
    with pytest.raises(TypeError, match=says("'mine' is the text 'FG-W'", r"fgvar\.scheme\('FG-W'\)")):
        fgvar.measure({"mine": "FG-W"}, problem(), draws=2)


@pytest.mark.parametrize("wrong", [fgvar.scheme, nn.Linear(3, 2), 3, fgvar.Gaussian()])
def test_what_is_no_estimator_is_named(wrong: object) -> None:
    message = says(f"'mine' is {type(wrong).__name__}", "expected", "randomness, estimate and target methods")
    with pytest.raises(TypeError, match=message):
        fgvar.measure({"FG-W": fgvar.scheme("FG-W"), "mine": wrong}, problem(), draws=2)


def test_a_class_is_no_estimator() -> None:
    with pytest.raises(TypeError, match=says("'mine'", r"instance|class|\(\)")):
        fgvar.measure({"mine": fgvar.Estimator}, problem(), draws=2)


@pytest.mark.parametrize("name", ["FG-A", "LG-FG-W"])
def test_measure_refuses_problems_that_do_not_fit(name: str) -> None:
    with pytest.raises(ValueError, match=r"no site to perturb|no local heads"):
        fgvar.measure({name: fgvar.scheme(name)}, problem(), draws=2)


@pytest.mark.parametrize("shape", [(1,), (4, 1), (3, 4), (12,)], ids=str)
def test_an_estimate_of_another_shape_is_named(shape: tuple[int, ...]) -> None:
    """Not broadcast, and not reshaped: (3, 4) for (4, 3) is a forgotten transpose."""

    class Other(Spoilt):
        def estimate(self, where: fgvar.Problem, noise: Mapping[str, Tensor]) -> fgvar.Estimate:  # noqa: ARG002
            return fgvar.Estimate(where.backprop() | {"0.weight": torch.ones(shape, dtype=torch.float64)})

    got = rf"\({', '.join(map(str, shape))},?\)"
    with pytest.raises(ValueError, match=says("'other'", "'0.weight'", got, r"\(4, 3\)")):
        fgvar.measure({"other": Other()}, problem(), draws=2)


def test_a_parameter_without_an_estimate_is_named() -> None:
    class Some(Spoilt):
        def estimate(self, where: fgvar.Problem, noise: Mapping[str, Tensor]) -> fgvar.Estimate:  # noqa: ARG002
            return fgvar.Estimate({k: g for k, g in where.backprop().items() if k != "2.bias"})

    with pytest.raises(ValueError, match=says("'some'", r"2\.bias")):
        fgvar.measure({"some": Some()}, problem(), draws=2)


def test_a_missing_dataset(tmp_path: Path) -> None:
    for path in (tmp_path / "none.nc", tmp_path):
        with pytest.raises(FileNotFoundError, match=says(f"no dataset at {path}", r"fgvar\.save\(dataset, path\)")):
            fgvar.open_dataset(path)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.9999])
def test_a_truncated_dataset(tmp_path: Path, share: float) -> None:
    whole = fgvar.save(measured(), tmp_path / "whole.nc").read_bytes()
    broken = tmp_path / "broken.nc"
    broken.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=says(f"{broken} is not a whole netCDF file", "make it again")):
        fgvar.open_dataset(broken)


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "text.nc").write_text("a,b\n1,2\n" * 1000)
    with pytest.raises(ValueError, match=says("text.nc is not a whole netCDF file", "make it again")):
        fgvar.open_dataset(tmp_path / "text.nc")


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = fgvar.save(measured(), tmp_path / "a.nc")
    before = path.read_bytes()
    unwritable = measured()
    unwritable["loss"].attrs["object"] = {"a": object()}
    with pytest.raises(TypeError, match="attr"):
        fgvar.save(unwritable, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match=r"a\.nc"):
        fgvar.save(measured(), path / "b.nc")


# ---- training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        {"epochs": 0},
        {"batch": 0},
        {"lr": 0.0},
        {"lr": -0.1},
        {"lr": NAN},
        {"lr": INF},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"momentum": NAN},
        {"weight_decay": -1e-4},
        {"weight_decay": NAN},
        {"weight_decay": INF},
    ],
    ids=str,
)
def test_schedules_out_of_range(words: dict[str, float]) -> None:
    ((name, value),) = words.items()
    with pytest.raises(ValueError, match=says(f"{name}={value}", "epochs, batch ≥ 1, lr > 0, 0 ≤ momentum < 1")):
        fgvar.Schedule(**words)


@pytest.fixture(scope="module")
def digits():
    return fgvar.data.load("digits").subset(range(64)), fgvar.data.load("digits", "test").subset(range(8))


def digit_net(**words) -> MLP:
    return MLP((1, 8, 8), **{"width": 6, "depth": 1, "classes": 10} | words)


BRIEF = fgvar.Schedule(epochs=2, batch=32)


def test_fewer_examples_than_a_batch(digits) -> None:
    with pytest.raises(ValueError, match=says("64 training examples", "fewer than one batch of 65")):
        fgvar.train(digit_net(), fgvar.scheme("BP"), digits, fgvar.Schedule(batch=65))


def test_training_refuses_what_does_not_fit(digits) -> None:
    with pytest.raises(ValueError, match=says("targets range from 0 to 9", "3 classes")):
        fgvar.train(digit_net(classes=3), fgvar.scheme("BP"), digits, BRIEF)
    with pytest.raises(ValueError, match="no local heads"):
        fgvar.train(digit_net(), fgvar.scheme("LG-FG-A"), digits, BRIEF)
    with pytest.raises(ValueError, match="unknown loss 'msee'; did you mean 'mse'"):
        fgvar.train(digit_net(), fgvar.scheme("BP"), digits, BRIEF, loss="msee")
    with pytest.raises(ValueError, match="non-negative"):
        fgvar.train(digit_net(), fgvar.scheme("FG-W"), digits, BRIEF, seed=-1)


class SpoiltAt:
    """Backprop whose estimate number ``step`` is spoilt in one parameter."""

    def __init__(self, step: int, layer: str, value: float = NAN) -> None:
        self.step, self.layer, self.value, self.calls = step, layer, value, 0

    def randomness(self, where: fgvar.Problem) -> Randomness:  # noqa: ARG002
        return Randomness({})

    def estimate(self, where: fgvar.Problem, noise: Mapping[str, Tensor]) -> fgvar.Estimate:  # noqa: ARG002
        gradient = where.backprop()
        if self.calls == self.step:
            gradient[self.layer] = gradient[self.layer] + self.value
        self.calls += 1
        return fgvar.Estimate(gradient)

    def target(self, where: fgvar.Problem) -> dict[str, Tensor]:
        return where.backprop()


@pytest.mark.parametrize("step", [0, 1, 3])
@pytest.mark.parametrize("value", [NAN, -INF])
def test_a_non_finite_gradient_in_training_is_named_by_parameter_and_step(digits, step: int, value: float) -> None:
    message = says("gradient of 'layer0.bias'", rf"at step {step}\b", "NaN or infinity", "lower the learning rate")
    with pytest.raises(NonFiniteError, match=message):
        fgvar.train(digit_net(), SpoiltAt(step, "layer0.bias", value), digits, BRIEF)


def test_a_run_that_diverges_is_stopped(digits) -> None:
    """In the first epoch, and where only the last update of all goes wrong: no gradient sees it, the loss does."""
    with pytest.raises(NonFiniteError, match=says("NaN or infinity", r"step \d", "lower the learning rate")):
        fgvar.train(digit_net(), fgvar.scheme("BP"), digits, fgvar.Schedule(epochs=3, batch=8, lr=1e30))
    with pytest.raises(NonFiniteError, match=says("loss", "NaN or infinity", "lower the learning rate")):
        fgvar.train(digit_net(), fgvar.scheme("BP"), digits, fgvar.Schedule(epochs=1, batch=64, lr=1e38))


def test_probes_are_refused_before_the_run(digits) -> None:
    """Raised before any computing where it can be known: not after hours, at the first probe."""
    batch = digits[0].sample(4, seed=0)
    wrong = [
        fgvar.Probe({"FG-W": fgvar.scheme("FG-W")}, batch, steps=(4,), draws=1),
        fgvar.Probe({"LG-FG-W": fgvar.scheme("LG-FG-W")}, batch, steps=(4,)),
        fgvar.Probe({"FG-W": fgvar.scheme("FG-W")}, (batch[0], batch[1] + 90), steps=(4,)),
    ]
    for probe, message in zip(wrong, ("draws is 1", "no local heads", "targets range"), strict=True):
        counting = SpoiltAt(-1, "layer0.bias")
        with pytest.raises(ValueError, match=message):
            fgvar.train(digit_net(), counting, digits, BRIEF, probe=probe)
        assert counting.calls == 0


# ---- all of them -------------------------------------------------------------------------------------------


def test_good_problems_raise_nothing() -> None:
    """The other side of every test above."""
    where = mixer()
    for name in ("BP", "L-BP", "LG-BP", "FG-W", "FG-A", "LG-FG-W", "LG-FG-A"):
        fgvar.measure({name: fgvar.scheme(name)}, where, draws=2)
    assert fgvar.scheme("LG-FG-W", credit="published").losses.credit == "published"
