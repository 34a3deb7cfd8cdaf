"""The networks are the paper's: sizes, initialisation, forward pass; and they are ordinary modules."""

import copy
import math
import pickle

import pytest
import torch
from cases import randn
from refusals import says
from torch import Tensor, nn

import fgvar
from fgvar.networks import MLP, LocalMixer

MNIST, CIFAR, IMAGENET = (1, 28, 28), (3, 32, 32), (3, 224, 224)
# Ren et al. 2023, Table 2 : images, classes, parameters; the last row is the paper's 17.3M.
TABLE_2 = [
    ("S/1/1", {}, MNIST, 10, 271_892),
    ("M/1/16", {}, MNIST, 10, 429_076),
    ("M/8/16", {}, CIFAR, 10, 918_770),
    ("L/8/64", {}, CIFAR, 10, 13_074_674),
    ("L/32/64", {}, IMAGENET, 1000, 26_556_296),
    ("L/32/64", {"classes": 100}, IMAGENET, 100, 17_335_796),
]
EPS = 1e-5  # of every layer norm


def mixer(**sizes) -> LocalMixer:
    """A small LocalMixer in float64 with random biases, so that every parameter counts."""
    words = {"image_shape": (2, 4, 6), "classes": 3, "blocks": 2, "patches": 2, "channels": 12, "groups": 3} | sizes
    model = LocalMixer(**words).double()
    with torch.no_grad():
        for index, (name, p) in enumerate(model.named_parameters()):
            if name.endswith("bias"):
                p.copy_(0.3 * randn(*p.shape, seed=index))
    return model


def mlp(**words) -> MLP:
    return MLP(**{"in_features": 5, "width": 6, "depth": 2, "classes": 3} | words).double()


both = pytest.mark.parametrize("build", [mixer, mlp])


def inputs_of(model: nn.Module, batch: int = 3, seed: int = 0) -> Tensor:
    return randn(batch, *getattr(model, "image_shape", (5,)), seed=seed)


# ---- sizes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "overrides", "image_shape", "classes", "count"), TABLE_2)
def test_presets_are_those_of_table_2(
    name: str, overrides: dict[str, int], image_shape: tuple[int, ...], classes: int, count: int
) -> None:
    """Parameter counts to the last one; and images of the right shape go through, on the meta device."""
    with torch.device("meta"):
        model = LocalMixer.preset(name, **overrides)
        assert sum(p.numel() for p in model.parameters()) == count
        assert model(torch.empty(2, *image_shape)).shape == (2, classes)
    heads = [m for key, m in model.named_modules() if key.endswith("head.linear")]
    assert [head.out_features for head in heads] == [classes] * len(model.block_names)


def test_presets_take_other_words() -> None:
    model = LocalMixer.preset("S/1/1", image_shape=(1, 8, 8), channels=32, groups=4, classes=7, head_init="zero")
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    assert model.block0.grouped.weight.shape == (4, 8, 8)
    assert not model.readout.linear.weight.any()


def test_parameters_of_a_local_mixer_are_named_by_block_and_layer() -> None:
    shapes = {name: tuple(p.shape) for name, p in mixer().named_parameters()}
    weights = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith("weight")}
    assert weights == {
        "block0.channel": (12, 12),
        "block0.grouped": (3, 4, 4),
        "block0.head.linear": (3, 12),
        "block1.token": (4, 4),
        "block1.channel": (12, 12),
        "block1.grouped": (3, 4, 4),
        "block1.head.linear": (3, 12),
        "readout.linear": (3, 12),
    }
    assert {name: shape[:-1] for name, shape in weights.items()} == {
        name.removesuffix(".bias"): shape for name, shape in shapes.items() if name.endswith("bias")
    }


@pytest.mark.parametrize("depth", [1, 3])
def test_shapes_of_an_mlp(depth: int) -> None:
    model = MLP((2, 4, 4), width=7, depth=depth, classes=3)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")}
    hidden = {f"layer{i}.weight": (7, 32 if i == 0 else 7) for i in range(depth)}
    assert shapes == {**hidden, "readout.linear.weight": (3, 7)}
    assert [name for name, m in model.named_modules() if isinstance(m, fgvar.networks.Site)] == [
        f"site{i}" for i in range(depth)
    ]
    images = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert model(images).shape == (5, 3)
    assert torch.equal(model(images.flatten(1)), model(images))


# ---- initialisation ----------------------------------------------------------------------------------------


def spread(weight: Tensor, std: float) -> None:
    """Mean 0 and the given standard deviation, within 6 standard errors (false alarms: 4e-9 a tensor).

    The seed is fixed; the error is that of other seeds. 6/√(2n): 0.4 % for a million weights.
    """
    n = weight.numel()
    assert weight.double().std().item() == pytest.approx(std, rel=6 / math.sqrt(2 * n))
    assert abs(weight.double().mean().item()) < 6 * std / math.sqrt(n)


@pytest.mark.parametrize("name", ["S/1/1", "M/8/16", "L/8/64"])
def test_kaiming_std_is_the_papers(name: str) -> None:
    """min(2/√fan-in, 0.1), where a grouped layer's fan-in is that of one group and a token layer's the tokens."""
    model = LocalMixer.preset(name)
    seen = set()
    for key, weight in model.named_parameters():
        if key.endswith("weight") and weight.numel() >= 1000:
            std = min(2 / math.sqrt(weight.shape[-1]), 0.1)
            spread(weight, std)
            seen.add(round(std, 4))
    assert seen == {"S/1/1": {0.1, 0.0714}, "M/8/16": {0.1, 0.0884}, "L/8/64": {0.1, 0.0442}}[name]


def test_constant_std_is_one_tenth_whatever_the_fan_in() -> None:
    model = LocalMixer.preset("M/8/16", init="constant", head_init="constant")
    large = [weight for weight in model.parameters() if weight.numel() >= 1000]
    assert any(weight.shape[-1] > 400 for weight in large)
    for weight in large:
        spread(weight, 0.1)


def test_initial_std_of_an_mlp() -> None:
    model = MLP(3000, width=900, depth=2, classes=100)
    for layer, fan_in in ((model.layer0, 3000), (model.layer1, 900), (model.readout.linear, 900)):
        spread(layer.weight, 2 / math.sqrt(fan_in))
    spread(MLP(3000, width=900, depth=1, classes=2, init="constant").layer0.weight, 0.1)


@pytest.mark.parametrize("head_init", ["kaiming", "constant", "zero"])
@pytest.mark.parametrize("model", [LocalMixer, MLP])
def test_biases_start_at_zero_and_heads_as_asked(model: type[nn.Module], head_init: str) -> None:
    sizes = {"width": 8, "depth": 2} if model is MLP else {"blocks": 2, "patches": 2, "channels": 8, "groups": 2}
    net = model((1, 4, 4), classes=3, **sizes, head_init=head_init)
    for name, p in net.named_parameters():
        head = "readout" in name or "head" in name
        assert p.any() == (name.endswith("weight") and not (head and head_init == "zero")), name


def test_trunks_do_not_depend_on_how_heads_start() -> None:
    ours, theirs = (dict(mixer(head_init=how).named_parameters()) for how in ("kaiming", "zero"))
    for name in ours:
        assert torch.equal(ours[name], theirs[name]) == ("linear.weight" not in name), name


@both
def test_seeds_make_the_weights(build) -> None:
    one, same, other = (dict(build(seed=seed).named_parameters()) for seed in (1, 1, 2))
    weights = [name for name in one if name.endswith("weight")]
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in weights)
    distinct = {round(one[name].flatten()[0].item(), 12) for name in weights}
    assert len(distinct) == len(weights)  # no two layers start with the same numbers


@both
def test_building_neither_moves_nor_reads_the_global_generator(build) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        before = torch.get_rng_state()
        one = build(seed=3)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(8)
        same = build(seed=3)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), same.parameters(), strict=True))


# ---- LocalMixer's forward pass, written out from the paper ----------------------------------------------


def norm(values: Tensor) -> Tensor:
    """Layer norm of one vector: no gain, no bias."""
    centred = values - values.sum() / len(values)
    return centred / (centred.square().sum() / len(values) + EPS).sqrt()


def naive_forward(model: LocalMixer, image: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits of one image and, block by block, of the local heads: one patch, one group, one unit at a time."""
    side, groups = model.patches, model.block0.groups
    _, height, width = image.shape
    tall, wide = height // side, width // side
    tokens = []
    for row in range(side):
        for column in range(side):
            patch = image[:, row * tall : (row + 1) * tall, column * wide : (column + 1) * wide]
            tokens.append(patch.permute(1, 2, 0).reshape(-1))  # rows, columns, colours
    heads = []
    for index, name in enumerate(model.block_names):
        block = getattr(model, name)
        h = [norm(token) for token in tokens]
        if index > 0:  # mix tokens, the same way in every channel
            mixed = []
            for target in range(len(h)):
                value = block.token.bias[target] + torch.zeros_like(h[0])
                for source in range(len(h)):
                    value = value + block.token.weight[target, source] * h[source]
                mixed.append(norm(norm(value).clamp(min=0)))
            h = mixed
        new_tokens, normed = [], []
        for p in range(len(h)):
            hidden = norm(block.channel.weight @ h[p] + block.channel.bias).clamp(min=0)
            size = len(hidden) // groups
            parts = []
            for g in range(groups):
                chunk = slice(g * size, (g + 1) * size)
                z = norm(block.grouped.weight[g] @ norm(hidden[chunk]) + block.grouped.bias[g])
                parts.append((z if index == 0 else z + tokens[p][chunk]).clamp(min=0))
            new_tokens.append(torch.cat(parts))
            normed.append(torch.cat([norm(part) for part in parts]))
        tokens = new_tokens
        average = sum(normed) / len(normed)
        heads.append(block.head.linear.weight @ average + block.head.linear.bias)
    pooled = norm(sum(tokens) / len(tokens))
    return model.readout.linear.weight @ pooled + model.readout.linear.bias, heads


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("patches", [1, 2])
@pytest.mark.parametrize("groups", [1, 3])
def test_forward_is_the_papers(blocks: int, patches: int, groups: int) -> None:
    model = mixer(blocks=blocks, patches=patches, groups=groups, seed=blocks)
    images = inputs_of(model)
    problem = fgvar.Problem(model, lambda outputs, _: outputs.sum(1), (images, torch.zeros(3)))
    outputs, values = problem.run(problem.params, watch=tuple(problem.trace.ends))
    with torch.no_grad():
        torch.testing.assert_close(outputs, model(images), rtol=0, atol=1e-12)
        for n, image in enumerate(images):
            logits, heads = naive_forward(model, image)
            torch.testing.assert_close(outputs[n], logits, rtol=0, atol=1e-12)
            for end, expected in zip(problem.trace.ends, heads, strict=True):
                ours = model.get_submodule(problem.trace.ends[end])(values[end])[n]
                torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "linear"])
def test_forward_of_an_mlp(activation: str) -> None:
    model, x = mlp(activation=activation, depth=3), randn(4, 5)
    functions = {
        "relu": lambda z: z.clamp(min=0),
        "tanh": lambda z: (z.exp() - (-z).exp()) / (z.exp() + (-z).exp()),
        "gelu": lambda z: z * (1 + torch.erf(z / math.sqrt(2))) / 2,
        "linear": lambda z: z,
    }
    h = x
    for layer in (model.layer0, model.layer1, model.layer2):
        h = functions[activation](h @ layer.weight.T + layer.bias)
    logits = h @ model.readout.linear.weight.T + model.readout.linear.bias
    torch.testing.assert_close(model(x), logits, rtol=0, atol=1e-12)


def test_only_a_relu_is_declared_to_have_inactive_units() -> None:
    declared = {name: mlp(activation=name).site0.relu for name in ("relu", "tanh", "gelu", "linear")}
    assert declared == {"relu": "act0", "tanh": None, "gelu": None, "linear": None}


# ---- what layer norm cannot see ----------------------------------------------------------------------------


def test_a_token_bias_is_a_dead_parameter() -> None:
    """The layer norm after the token layer cancels it: its gradient is 0 within rounding, and no other one is."""
    model = mixer()
    problem = fgvar.Problem(model, "cross_entropy", (inputs_of(model), torch.tensor([0, 1, 2])))
    sizes = {name: g.abs().max().item() for name, g in problem.backprop().items() if ".head." not in name}
    assert {name for name, size in sizes.items() if size < 1e-12} == {"block1.token.bias"}


def test_the_first_layer_norm_hides_brightness_and_contrast_of_patches() -> None:
    model = mixer()
    images = inputs_of(model)
    torch.testing.assert_close(model(3 * images - 5), model(images), rtol=0, atol=1e-4)  # but for EPS
    assert (model(inputs_of(model, seed=1)) - model(images)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_shape": (1, 4, 4), "patches": 4}, "a patch of one number.*blind.*fewer patches"),
        ({"groups": 12}, "one channel per group.*blind.*fewer groups"),
        ({"channels": 1, "groups": 1}, "one channel per group.*blind.*fewer groups"),
    ],
)
def test_a_layer_norm_over_one_number_is_refused(sizes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixer(**sizes)


@pytest.mark.parametrize("sizes", [{"image_shape": (2, 4, 4), "patches": 4}, {"groups": 6}])
def test_a_layer_norm_over_two_numbers_is_accepted(sizes: dict) -> None:
    assert mixer(**sizes)(inputs_of(mixer(**sizes))).isfinite().all()


# ---- ordinary modules --------------------------------------------------------------------------------------


@both
def test_state_dict_holds_the_parameters_and_no_tap(build) -> None:
    model = build()
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]
    assert any(name.endswith(".tap") for name, _ in model.named_buffers())
    other = build(seed=5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(inputs_of(model)), model(inputs_of(model)))


@both
@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_models_can_be_copied_and_pickled(build, again) -> None:
    model = build()
    twin = again(model)
    x = inputs_of(model)
    assert torch.equal(twin(x), model(x))
    assert repr(twin) == repr(model)  # sites keep what they declare
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not torch.equal(next(twin.parameters()), next(model.parameters()))


@both
def test_models_move_between_types_with_their_taps(build) -> None:
    model = build().float()
    assert {t.dtype for t in (*model.parameters(), *model.buffers())} == {torch.float32}
    assert model(inputs_of(model).float()).dtype == torch.float32


@both
def test_every_example_is_on_its_own(build) -> None:
    model = build()
    x = inputs_of(model, batch=4)
    each = torch.cat([model(x[n : n + 1]) for n in range(4)])
    torch.testing.assert_close(model(x), each, rtol=0, atol=1e-12)


# ---- sizes that do not fit -----------------------------------------------------------------------------


def sized(**sizes) -> LocalMixer:
    words = {"image_shape": (1, 4, 4), "classes": 3, "blocks": 1, "patches": 2, "channels": 8, "groups": 2}
    return LocalMixer(**words | sizes)


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
