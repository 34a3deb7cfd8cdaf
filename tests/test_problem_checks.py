"""Modules, batches, losses and words of the wrong kind: got, expected, and what to do."""

import threading
from collections import UserDict
from collections.abc import Callable

import pytest
import torch
from cases import labels, randn
from refusals import Calls, X, Y, assert_measured, net, problem
from torch import Tensor, nn
from torch.nn import functional

import fgvar
from fgvar import Problem

# ---- modules -----------------------------------------------------------------------------------------------


MODULES = {
    "function": (lambda: lambda x: x, "module is function, expected a torch.nn.Module"),
    "text": (lambda: "mlp", "module is str, expected a torch.nn.Module"),
    "nothing": (lambda: ..., "module is ellipsis, expected a torch.nn.Module"),
    "class": (lambda: nn.Linear, r"module is the class Linear, expected an instance: Linear\(…\)"),
    "script": (lambda: torch.jit.trace(net(), X), r"the network \(TopLevelTracedModule\) is compiled by torch\.jit"),
    "script inside": (lambda: nn.Sequential(torch.jit.trace(net(), X)), r"'0' \(TopLevelTracedModule\) is compiled"),
    "many devices": (lambda: nn.DataParallel(net()), r"\(DataParallel\) spreads batches.*its \.module"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("call", ["Problem", "with_sites", "with_local_heads", "Contrastive"])
def test_what_is_no_network_to_follow(kind: str, call: str) -> None:
    build, message = MODULES[kind]
    module = build()
    calls = {
        "Problem": lambda: problem(module),
        "with_sites": lambda: fgvar.with_sites(module),
        "with_local_heads": lambda: fgvar.with_local_heads(module, after=("0",), classes=2),
        "Contrastive": lambda: fgvar.contrastive.Contrastive(module, fgvar.contrastive.InfoNCE(), (X, X)),
    }
    with pytest.raises(TypeError, match=message):
        calls[call]()


def test_lazy_layers_want_a_batch_first() -> None:
    lazy = nn.Sequential(nn.LazyLinear(2)).double()
    for call in (problem, fgvar.with_sites):
        with pytest.raises(
            ValueError, match=r"'0' \(LazyLinear\) has parameters without a shape yet; call the network"
        ):
            call(lazy)
    lazy(X)
    assert_measured(lazy, "FG-W")


def test_a_module_without_a_forward_of_one_tensor() -> None:
    with pytest.raises(TypeError, match="ModuleList has no forward"):
        problem(nn.ModuleList([nn.Linear(3, 2)]))
    with pytest.raises(TypeError, match=r"forward\(input1.*of Bilinear cannot be called with one tensor.*wrap it"):
        problem(nn.Bilinear(3, 3, 2))


def with_parameter(value: Tensor) -> nn.Module:
    module = Calls(lambda m, x: m.layer(x))
    module.own = nn.Parameter(value)
    return module


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            torch.ones(2),
            r"several dtypes \('own' is torch\.float32, 'layer\.weight' is torch\.float64\).*module\.to\(",
        ),
        (torch.ones(2).double().to_sparse(), r"parameter 'own' is torch\.sparse_coo, expected a dense.*to_dense\(\)"),
        (
            torch.ones(2) + 0j,
            r"parameter 'own' is torch\.complex64, expected floating-point.*view_as_complex.*frozen",
        ),
    ],
)
def test_parameters_of_other_kinds(value: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        problem(with_parameter(value))


def test_a_module_that_stands_twice_works() -> None:
    shared = nn.Linear(3, 3)
    module = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(3, 2)).double()
    assert_measured(module, "FG-W")
    where = problem(fgvar.with_sites(module))
    assert fgvar.scheme("FA").estimate(where, {}).gradient.keys() == where.params.keys()
    with pytest.raises(ValueError, match=r"'0\.site' is called twice"):
        fgvar.scheme("FG-A").randomness(where)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm], ids=["new", "old"])
def test_weight_norm_is_measured(norm: Callable[..., nn.Module], dim: int | None) -> None:
    """Torch's own operation has no forward mode; its values, and autograd's gradients, are the same."""
    module = nn.Sequential(norm(nn.Linear(3, 4), dim=dim), nn.Tanh(), nn.Linear(4, 2)).double()
    wrapped = fgvar.with_sites(module)
    assert [name for name, child in wrapped.named_modules() if isinstance(child, fgvar.networks.Site)] == [
        "0.site",
        "2.site",
    ]
    torch.testing.assert_close(wrapped(X), module(X), rtol=0, atol=1e-14)
    torch.testing.assert_close(problem(wrapped).run(problem(wrapped).params)[0], module(X), rtol=0, atol=1e-14)
    assert_measured(wrapped, *(("FG-W", "FG-A") if dim is not None else ()))  # enumerations take no single numbers
    ds = fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem(wrapped), draws=16)
    assert bool(ds["slope"].notnull().all())


def test_a_site_in_what_makes_weights_is_refused() -> None:
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    with pytest.raises(
        ValueError, match=r"'0\.parametrizations\.weight' makes weights, no activity; name the module"
    ):
        fgvar.with_sites(module, sites=["0.parametrizations.weight"])


def test_a_pruned_layer_is_measured() -> None:
    module = net()
    nn.utils.prune.l1_unstructured(module[0], "weight", 5)
    assert_measured(fgvar.with_sites(module), "FG-W", "FG-A")


def test_a_compiled_module_is_measured() -> None:
    assert_measured(torch.compile(net(), backend="eager"), "FG-W")


@pytest.mark.parametrize("call", [problem, fgvar.with_sites])
def test_what_cannot_be_copied(call: Callable[[nn.Module], object]) -> None:
    module = Calls(lambda m, x: m.layer(x))
    module.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"Calls cannot be copied \(cannot pickle.*lock.*keep locks, open files"):
        call(module)


def test_an_attribute_with_a_graph_is_refused() -> None:
    module = Calls(lambda m, x: m.layer(x) * m.factor)
    module.inner = Calls(lambda _, x: x)
    module.inner.factor = module.factor = module.layer.weight.sum()
    with pytest.raises(
        ValueError, match=r"'factor' is a tensor with a graph, here a constant; compute it in forward"
    ):
        problem(module)


# ---- batches, devices, dtypes ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64])
def test_inputs_of_another_dtype(dtype: torch.dtype) -> None:
    got = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"inputs are torch\.{got}.*parameters torch\.float64.*inputs\.to\("):
        problem(batch=(X.to(dtype), Y))


def test_inputs_that_the_network_takes_are_its_own_business() -> None:
    words = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2)).double()
    assert problem(words, batch=(labels(2 * len(X), 5).reshape(-1, 2), Y)).loss().isfinite()


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        ((X.numpy(), Y.numpy()), "tuple of ndarray and ndarray"),
        ((X, Y.tolist()), "tuple of Tensor and list"),
        ([X.tolist(), Y], "list of list and Tensor"),
        ({"x": X}, "dict"),
    ],
)
def test_batches_are_pairs_of_tensors(batch: object, got: str) -> None:
    with pytest.raises(TypeError, match=rf"batch is {got}, expected a pair \(inputs, targets\).*torch\.as_tensor"):
        problem(batch=batch)
    with pytest.raises(TypeError, match=rf"batch is {got}, expected a pair"):
        problem().at(batch=batch)


def test_other_views_are_two_tensors() -> None:
    images = randn(3, 1, 4, 4)
    model = fgvar.networks.LocalMixer((1, 4, 4), 3, blocks=1, patches=2, channels=8, groups=2).double()
    with pytest.raises(ValueError, match=r"inputs are torch\.float32, the network's parameters torch\.float64"):
        fgvar.contrastive.Contrastive(model, fgvar.contrastive.InfoNCE(), (images.float(), images.float()))
    with pytest.raises(TypeError, match=r"temperature is '0\.1', expected a number"):
        fgvar.contrastive.InfoNCE(temperature="0.1")
    with pytest.raises(TypeError, match=r"the second view is dict, expected images"):
        fgvar.contrastive.Contrastive(model, fgvar.contrastive.InfoNCE(), (images, images)).at(
            batch=(images, {"view": images})
        )
    with pytest.raises(TypeError, match=r"batch is tuple of ndarray and ndarray, expected a pair"):
        fgvar.contrastive.Contrastive(model, fgvar.contrastive.InfoNCE(), (images, images)).at(
            batch=(images.numpy(), images.numpy())
        )


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_batches_are_dense() -> None:
    with pytest.raises(ValueError, match=r"inputs are torch\.sparse_coo, expected a dense tensor.*to_dense\(\)"):
        problem(batch=(X.to_sparse(), Y))
    with pytest.raises(ValueError, match=r"inputs are nested, expected a dense tensor \(padded"):
        problem(batch=(torch.nested.nested_tensor(list(X)), Y))


@pytest.mark.parametrize("where", ["inputs", "targets", "module"])
def test_everything_is_on_one_device(where: str) -> None:
    batch = {"inputs": (X.to("meta"), Y), "targets": (X, Y.to("meta")), "module": (X, Y)}[where]
    module = net().to("meta") if where == "module" else net()
    named = "inputs" if where == "module" else where
    with pytest.raises(ValueError, match=rf"{named} is on (meta|cpu), 0\.weight on (cpu|meta); expected one device"):
        problem(module, batch=batch)


def test_inference_mode() -> None:
    with torch.inference_mode():
        inputs, targets, module = X.clone(), Y.clone(), net()
        with pytest.raises(ValueError, match=r"torch\.inference_mode\(\) is on.*leave it"):
            problem(module)
    assert problem(module, batch=(inputs, targets)).backprop()["0.weight"].isfinite().all()


def test_other_parameters_are_those_of_the_problem() -> None:
    where = problem()
    with pytest.raises(ValueError, match=r"params lack \['0\.weight'\] and have \['weight'\] beyond them"):
        where.at({**{name: p for name, p in where.params.items() if name != "0.weight"}, "weight": X})


@pytest.mark.parametrize("dtype", [torch.int32, "float64"])
def test_precisions_are_of_floating_point(dtype: object) -> None:
    with pytest.raises(TypeError, match=r"expected a floating-point torch\.dtype"):
        problem().to(dtype)


# ---- losses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (None, r"the loss is NoneType, expected a callable \(outputs, targets\)"),
        (3, "the loss is int, expected a callable"),
        (nn.CrossEntropyLoss, r"the loss is the class CrossEntropyLoss.*CrossEntropyLoss\(reduction='none'\)"),
        (lambda o: o.sum(1), r"the loss <lambda>\(o\) cannot be called so \(too many positional arguments\)"),
        (lambda o, _, mask: o + mask, r"the loss <lambda>\(o, _, mask\) cannot be called so \(missing .*'mask'\)"),
        (nn.TripletMarginLoss(reduction="none"), r"the loss TripletMarginLoss\(.*cannot be called so"),
        (lambda o, _: o.sum(1).numpy(), "the loss is ndarray, expected a floating-point tensor, made by torch"),
        (lambda *_: 1.0, "the loss is float, expected a floating-point tensor"),
        (lambda *_: [1.0] * len(X), "the loss is list, expected a floating-point tensor"),
    ],
)  # fmt: skip
def test_losses_of_other_kinds(loss: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        problem(loss=loss)


def test_a_builtin_loss_is_called_to_see() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"):
        problem(loss=max)


def test_an_instance_of_a_loss_is_measured() -> None:
    module = net()
    found = problem(module, nn.CrossEntropyLoss(reduction="none")).loss()
    torch.testing.assert_close(found, functional.cross_entropy(module(X), Y).detach())


# ---- words of with_sites and with_local_heads --------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"sites": 3}, "sites is 3, expected a collection of names"),
        ({"types": [nn.Linear]}, r"types is \[.*\], expected a tuple of classes: \(torch\.nn\.Linear,\)"),
        ({"types": "Linear"}, "types is 'Linear', expected a tuple of classes"),
        ({"types": ("Linear",)}, r"types is \('Linear',\), expected a tuple of classes"),
    ],
)
def test_words_of_with_sites(words: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fgvar.with_sites(net(), **words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"after": 1}, "after is 1, expected names of modules"),
        ({"after": None}, "after is None, expected names of modules"),
        ({"readout": 2}, "readout is 2, expected names of modules"),
        ({"classes": 2.5}, "classes is 2.5, expected an integer"),
        ({"classes": True}, "classes is True, expected an integer"),
        ({"groups": "2"}, "groups is '2', expected an integer"),
        ({"seed": 1.5}, "seed is 1.5, expected an integer"),
        ({"inputs": X.numpy()}, r"inputs is ndarray, expected a tensor of examples, or .*: torch\.as_tensor"),
    ],
)
def test_words_of_with_local_heads(words: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fgvar.with_local_heads(net(), **{"after": ("1",), "classes": 2, **words})


def test_inputs_of_with_local_heads() -> None:
    words = {"after": ("1",), "classes": 2}
    with pytest.raises(ValueError, match=r"inputs are torch\.float32.*parameters torch\.float64.*inputs\.to\("):
        fgvar.with_local_heads(net(), inputs=X.float(), **words)
    with pytest.raises(ValueError, match=r"inputs is on meta, 0\.weight on cpu; expected one device"):
        fgvar.with_local_heads(net(), inputs=X.to("meta"), **words)
    with pytest.raises(ValueError, match=r"'0' \(Linear\) does not take .*shapes cannot be multiplied"):
        fgvar.with_local_heads(net(), inputs=X[:, :2], **words)


# ---- batches that the network does not take -----------------------------------------------------------------


def test_a_tokenizer_s_mapping_is_a_dict() -> None:
    """Of a class that torch does not take apart, within a tuple, too."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2).double()

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.layer(x) * scale

    data = {"x": X, "scale": torch.full((len(X), 1), 2.0, dtype=torch.float64)}
    net = Named()
    one, plain = (Problem(net, "cross_entropy", (kind(data), Y)) for kind in (UserDict, dict))
    assert type(one.inputs) is dict
    assert torch.equal(one.loss(), plain.loss())
    other = plain.at(batch=(UserDict(data), Y))
    assert torch.equal(other.loss(), plain.loss())
    with pytest.raises(
        TypeError, match=r"^inputs\['flag'\] is False, and a batch has tensors alone, .* model's config"
    ):
        Problem(net, "cross_entropy", ({**data, "flag": False}, Y))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions, self.out = nn.Embedding(7, 4), nn.Embedding(5, 4), nn.Linear(4, 7)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.tokens(ids) + self.positions(torch.arange(ids.shape[1])))


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ([[2, 9], [0, 1]], r"'tokens' .* looks up numbers from 0 to 9 and has those from 0 to 6; give token"),
        ([[2, -1], [0, 1]], r"'tokens' .* looks up numbers from -1 to 2 and has those from 0 to 6"),
        ([[1] * 6, [0] * 6], r"'positions' \(Emb.* looks up numbers from 0 to 5 and has those from 0 to 4; .* no m"),
    ],
)  # fmt: skip
def test_numbers_that_an_embedding_has_not(ids: list[list[int]], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Problem(Tokens(), "causal_lm", (torch.tensor(ids), torch.zeros(2, len(ids[0]), dtype=torch.long)))


@pytest.mark.parametrize(
    ("net", "sentence"),
    [
        (nn.Sequential(nn.Linear(5, 2)), r"'0' \(Linear\) does not take .* \(4x3 and 5x2\)\), of inputs \(4, 3\);"),
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(2)), r"'1' \(LayerNorm\) does not take .*normalized_shape"),
        (nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(2, 1, 1)), r"'1' \(Conv1d\) does not take .* 2 channels"),
    ],
)  # fmt: skip
def test_a_width_that_a_layer_does_not_take(net: nn.Module, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Problem(net.double(), "cross_entropy", (X, Y))


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (torch.tensor([0, -100, 1, 0]), r"targets \[batch\] hold -100, which stands for no target at a position of"),
        (functional.one_hot(torch.tensor([0, 1, 1, 0])), r"of shape \(4, 2\); of one-hot rows give targets\.argmax"),
        (torch.eye(2).repeat(2, 1), r"torch\.float32 of shape \(4, 2\); of one-hot rows give targets\.argmax\(1\)"),
        (torch.zeros(4, 3), r"torch\.float32 of shape \(4, 3\)$"),
    ],
)  # fmt: skip
def test_targets_that_are_no_class_numbers(targets: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Problem(nn.Linear(3, 2).double(), "cross_entropy", (X, targets))
