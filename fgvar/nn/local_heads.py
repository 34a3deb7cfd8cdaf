"""Local heads: `with_local_heads` hangs classifiers behind chosen modules of any network, which end its blocks."""

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from fgvar.errors import unknown
from fgvar.nn.batch_axis import count_examples
from fgvar.nn.heads import LocalHead, initialise
from fgvar.nn.instrumented import Network
from fgvar.nn.reach import Visit
from fgvar.nn.site_choice import inside
from fgvar.nn.sites import OutputSite, apply_site, copied, free_name, require_module
from fgvar.nn.structures import activity, named, with_activity
from fgvar.nn.traits import declare, traits_of
from fgvar.problem_checks import require_one_device

# Where modules say how many channels they return; layer norms do in normalized_shape.
SIZES = ("out_features", "out_channels", "num_channels", "num_features", "embed_dim", "embedding_dim")
# By the number of axes of the features. Of images the patches lie along two axes, which a site cannot name: they are
# summed, which is unbiased and noisier.
AXES = {2: {"group_axis": 1}, 3: {"patch_axis": 1, "group_axis": 2}, 4: {"group_axis": 1}}


class BlockEnd(nn.Module):
    """What `with_local_heads` hangs on a module: a head, and the layout in which it reads the module's output.

    A hook hands the output, or the first tensor of a tuple, to `read`. Called as a module it is the identity, since
    a Sequential calls all of its children.

    Example:
        >>> BlockEnd("layer1", 8, classes=3, groups=2).read(torch.ones(5, 8, 4, 4)).shape
        torch.Size([5, 8, 4, 4])
    """

    def __init__(
        self, after: str, channels: int, classes: int, groups: int, ndim: int | None = None, *, pool: bool = True
    ) -> None:
        super().__init__()
        self.after, self.channels, self.groups, self.ndim = after, channels, groups, ndim
        # Along which a number of a site just before it moves its own copy of the loss alone.
        declare(self, feature_axes=AXES.get(ndim or 0, {}))
        self.head = LocalHead(channels, classes, pool=pool)

    def forward(self, output: Tensor) -> Tensor:
        return output

    def read(self, output: Tensor) -> Tensor:
        """The same output, after the head's end has seen it as [batch, patches, groups, channels / groups]."""
        if self.ndim not in (None, output.ndim):
            raise ValueError(
                f"module {self.after!r} returned shape {tuple(output.shape)}, but {self.ndim} axes for the example "
                "batch; give with_local_heads inputs= like those of the problem"
            )
        if channels_of(output.shape) != self.channels:
            raise ValueError(
                f"module {self.after!r} returned {channels_of(output.shape)} channels (shape {tuple(output.shape)}), "
                f"its local head was built for {self.channels}; pass with_local_heads an example batch, inputs=x[:1]"
            )
        # To [batch, patches, channels], and back below: behind the end the same numbers go on in their old layout.
        rows = output[:, None] if output.ndim == 2 else output
        rows = output.flatten(2).transpose(1, 2) if output.ndim == 4 else rows
        features: Tensor = self.head.end(rows.unflatten(2, (self.groups, -1))).flatten(2)
        if output.ndim == 4:
            features = features.transpose(1, 2)
        return features.reshape(output.shape)

    def extra_repr(self) -> str:
        return f"after={self.after!r}, groups={self.groups}"


def with_local_heads(
    module: nn.Module,
    *,
    after: Sequence[str],
    classes: int,
    groups: int = 1,
    inputs: Any = None,
    pool: bool = True,
    readout: str | Collection[str] = (),
    head_init: str = "kaiming",
    seed: int = 0,
) -> nn.Module:
    """A copy of ``module`` whose blocks end after the named modules, each with a `LocalHead` of its own.

    The copy computes the same function and keeps every parameter's name, and the schemes of local losses
    ("LG-FG-A", "LG-FG-W", "LG-BP", "L-BP") run on it: gradients stop at the named modules' outputs. (What is
    led around a named module is not stopped; credit counts it.) Features are read as patches of channels:
    ``[batch, channels]`` is one patch, ``[batch, tokens, channels]`` one patch a token,
    ``[batch, channels, height, width]`` one patch a pixel; of a tuple that a module returns, the first tensor
    is read. Combine with `with_sites`, in either order.

    A head's loss is the problem's loss of the head's outputs, a tensor [batch, classes]. A language model's loss is
    one of positions: ``pool=False`` gives each token's features, through one linear map for all positions, the head's
    outputs there, [batch, tokens, classes], with classes the vocabulary; "causal_lm", and "cross_entropy" of targets
    [batch, tokens], take them. A loss of one's own gets that tensor where it would get the network's output (which
    may have it as ``.logits``).

    Args:
        module: any network.
        after: names of the modules that end a block; heads are used in the order of the forward pass.
        classes: outputs of each head.
        groups: channel groups, consecutive and equal: the head normalises within each.
        inputs: an example batch. With it channels are read off a forward pass, and problems are found at once;
            without, channels are those that the modules up to the end of the block declare (``out_features``,
            …), and problems are found in the first forward pass. Only with it are the groups (and tokens) of the
            named modules themselves credited apart, which lowers the variance; elsewhere copies are summed. As
            `Problem` takes inputs: a tensor, or a tuple or dict of tensors.
        pool: heads average over patches (True), or keep the positions of token features (False).
        readout: names of modules that learn from their exact gradient, as heads do: the classifier at the end.
            Without it the classifier is perturbed like all other modules.
        head_init: of the heads: "kaiming", "constant" or "zero" (as in training: no gradient at first).
        seed: of the heads' weights; the global random state is neither read nor moved.

    Raises:
        ValueError: an unknown or repeated name, a network that has local heads already, channels that do not
            fall into groups, a module that is not called or called twice, an output without a batch axis or
            with another number of axes.
        TypeError: what is no network to follow (see `with_sites`), numbers that are no integers, inputs that are no
            tensor, a module that returns no tensor.

    Source: Ren et al. 2023, Sec. 4 and Fig. 3.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        >>> blocks = with_local_heads(net, after=("1", "3"), classes=3, groups=2, readout="4")
        >>> [name for name, child in blocks.named_modules() if isinstance(child, LocalHead)]
        ['1.local.head', '3.local.head']
    """
    require_module(module)
    for what, names in (("after", after), ("readout", readout)):
        if not isinstance(names, str | Iterable):
            raise TypeError(f"{what} is {names!r}, expected names of modules")
    readout = (readout,) if isinstance(readout, str) else tuple(readout)
    after = after if isinstance(after, str) else tuple(after)
    _check_names(module, after, readout)
    for what, number in (("classes", classes), ("groups", groups), ("seed", seed)):
        if not isinstance(number, Integral) or isinstance(number, bool):
            raise TypeError(f"{what} is {number!r}, expected an integer")
        if number < 1 and what != "seed":
            raise ValueError(f"{what} is {number}, expected at least 1")
    # Of the plain network: what is called twice, or returns no features, is told before heads are hung on it.
    shapes = dict.fromkeys(after) if inputs is None else _shapes(module, after, inputs, pool)
    channels = {name: channels_of(shape) if shape else _declared(module, name) for name, shape in shapes.items()}
    _check_groups(channels, groups)
    network = copied(module)
    for child in network.modules():
        if traits_of(child).group_rows:
            declare(child, group_rows=False)  # which held of other features than these heads read
    for name in readout:  # on the copy alone
        declare(network.get_submodule(name), learns_exactly=True)
    # What is trained tells the heads' precision: frozen parameters may be in another.
    floating = sorted((p for p in module.parameters() if p.is_floating_point()), key=lambda p: not p.requires_grad)
    like = floating[0] if floating else torch.empty(0)
    # One generator for all heads: they differ from each other, and are the same again by the same seed.
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        end = BlockEnd(name, channels[name], classes, groups, len(shape) if shape else None, pool=pool)
        initialise(end.head.linear, head_init, generator)
        _attach(network.get_submodule(name), end.to(like.device, like.dtype))
    if inputs is not None:  # once more, now with the heads: what they refuse shows here, and not in training
        _dry_run(network, inputs)
    return network


def channels_of(shape: Sequence[int]) -> int:
    """The size of a layout's channel axis: the second of four, else the last."""
    return shape[1] if len(shape) == 4 else shape[-1]


def require_features(name: str, output: Tensor | None, pool: bool) -> None:
    """Raise where a module's activity is not a tensor that a local head can read."""
    if output is None:
        raise TypeError(
            f"module {name!r} returned neither a tensor nor a tuple with one, expected features with the batch axis "
            "first; name a module in after= that returns the features alone"
        )
    if output.ndim not in ((2, 3, 4) if pool else (3,)):
        expected = "[batch, channels], [batch, tokens, channels] or [batch, channels, height, width]"
        expected = expected if pool else "[batch, tokens, channels], whose positions pool=False keeps"
        raise ValueError(
            f"module {name!r} returned shape {tuple(output.shape)}, expected {expected}; name a module in after= "
            "that returns such features"
        )


def _check_names(module: nn.Module, after: Sequence[str], readout: Collection[str]) -> None:
    if isinstance(after, str):
        raise TypeError(f"after is the text {after!r}, expected a sequence of names: ({after!r},)")
    if not after:
        raise ValueError("after is empty, expected the names of the modules that end a block")
    if present := [name for name, child in module.named_modules() if isinstance(child, LocalHead)]:
        raise ValueError(
            f"{type(module).__name__} has local heads already ({present[0]!r}, …); call with_local_heads on a "
            "network without, naming all blocks at once in after="
        )
    # With duplicates: two names of one shared module are both known, and told to be one.
    modules = {name: child for name, child in module.named_modules(remove_duplicate=False) if name}
    for name in (*after, *readout):
        if name not in modules:
            raise ValueError(unknown("module", name, modules))
    first_names: dict[int, str] = {}
    for name in after:
        other = first_names.setdefault(id(modules[name]), name)
        if name in after[: after.index(other)] or list(after).count(name) > 1 or other != name:
            raise ValueError(f"after names one module twice ({other!r} and {name!r}); a block ends once")
        if inside(name, readout):
            raise ValueError(f"module {name!r} belongs to the read-out {readout}, which comes after all blocks")


def _check_groups(channels: dict[str, int], groups: int) -> None:
    for name, size in channels.items():
        if size % groups:
            raise ValueError(
                f"{size} channels of module {name!r} do not divide into {groups} groups; choose groups= that divides"
            )
        if size == groups:
            raise ValueError(
                f"one channel per group ({size} channels of module {name!r}, {groups} groups) is constant after "
                "layer norm, so the head is blind; use fewer groups"
            )


def _declared(module: nn.Module, name: str) -> int:
    """The channels that the last module up to the end of block ``name`` declares, in order of registration."""
    # Registration stands in for the order of calls, which no one knows without a pass. A wrong guess is found by the
    # first one (`BlockEnd.read`).
    channels = None
    reached = False
    for path, child in module.named_modules():
        if reached and not inside(path, [name]):
            break
        reached = reached or path == name
        # An activation declares none: its input's number is the last one found.
        sizes = [size for key in SIZES if isinstance(size := getattr(child, key, None), int)]
        shape = getattr(child, "normalized_shape", None)
        sizes += shape[-1:] if isinstance(shape, tuple) else ()
        channels = sizes[0] if sizes else channels
    if channels is None:
        raise ValueError(
            f"no module up to {name!r} declares its number of channels (out_features, out_channels, …); pass "
            "with_local_heads an example batch, inputs=x[:1]"
        )
    return channels


def _dry_run(module: nn.Module, inputs: Any) -> dict[str, list[Visit]]:
    """The visits of one forward pass, which finds what is wrong with ends."""
    count_examples(inputs)
    tensors = {k: v.detach() for k, v in (*module.named_parameters(), *module.named_buffers())}
    require_one_device({**tensors, **named("inputs", inputs)})
    with torch.no_grad():
        return Network(module).trace(tensors, inputs)[1].visits


def _shapes(module: nn.Module, after: Sequence[str], inputs: Any, pool: bool) -> dict[str, tuple[int, ...] | None]:
    visits = _dry_run(module, inputs)
    shapes: dict[str, tuple[int, ...] | None] = {}
    for name in after:
        calls = visits.get(name, [])
        if len(calls) != 1:
            raise ValueError(
                f"module {name!r} is called {len(calls)} times in one forward pass, expected once; name a module in "
                "after= that ends one block"
            )
        shape = calls[0].activity
        # The shape is all that is looked at.
        require_features(name, None if shape is None else torch.empty(shape, device="meta"), pool)
        shapes[name] = shape
    return shapes


def _attach(module: nn.Module, end: BlockEnd) -> None:
    """Hang a block's end on a module, after its site, which learns along which axes the copies lie."""
    # Other hooks between the site and the head may mix what the site keeps apart.
    hooks = [getattr(hook, "func", None) for hook in module._forward_hooks.values()]
    if hooks == [apply_site]:
        site = next(child for child in module.children() if isinstance(child, OutputSite))
        axes = traits_of(end).feature_axes or {}
        site.patch_axis, site.group_axis = axes.get("patch_axis"), axes.get("group_axis")
    name = free_name(module, "local")
    module.add_module(name, end)
    module.register_forward_hook(partial(_read, name))


def _read(name: str, module: nn.Module, _inputs: Any, output: Any) -> Any:
    end, features = getattr(module, name), activity(output)
    require_features(end.after, features, end.head.pool)
    return with_activity(output, end.read(features))
