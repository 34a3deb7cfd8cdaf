"""Local heads: every error says what was got, what was expected and what to do."""

import pytest
import torch
from cases import labels, randn
from torch import nn

import fgvar
from fgvar.nn.local_heads import BlockEnd


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def heads(net: nn.Module | None = None, **words) -> nn.Module:
    return fgvar.with_local_heads(net or mlp(), **{"after": ("1", "3"), "classes": 3, **words})


class Twice(nn.Module):
    """One block, applied twice; another, never."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.unused, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.block(self.block(x)))


class Dicts(nn.Module):
    """A block that returns a dict."""

    class Block(nn.Linear):
        def forward(self, x):
            return {"features": super().forward(x)}

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = self.Block(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.block(x)["features"])


class Turned(nn.Module):
    """Tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.block(x.expand(2, *x.shape))[0])


def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 1, 1, 3)), nn.Conv3d(1, 4, 1), nn.Flatten(), nn.Linear(12, 3)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"after": "1"}, TypeError, r"after is the text '1', expected a sequence of names: \('1',\)"),
        ({"after": ()}, ValueError, "after is empty, expected the names"),
        ({"after": ("1", "5")}, ValueError, r"unknown module '5'.*valid: 0, 1, 2, 3, 4"),
        ({"readout": "last"}, ValueError, "unknown module 'last'"),
        ({"after": ("",)}, ValueError, "unknown module ''"),
        ({"after": ("1", "3", "1")}, ValueError, "names one module twice"),
        ({"readout": "3"}, ValueError, "module '3' belongs to the read-out"),
        ({"classes": 0}, ValueError, "classes is 0, expected at least 1"),
        ({"groups": -1}, ValueError, "groups is -1, expected at least 1"),
        ({"groups": 4}, ValueError, "one channel per group .4 channels of module '1'.*use fewer groups|6 channels"),
        ({"groups": 3}, ValueError, "4 channels of module '1' do not divide into 3 groups; choose groups="),
        ({"head_init": "ones"}, ValueError, "unknown initialisation 'ones'"),
    ],
)
def test_words(words: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        heads(**words)


def test_one_channel_per_group() -> None:
    with pytest.raises(
        ValueError, match=r"one channel per group \(4 channels of module '1', 4 groups\).*fewer groups"
    ):
        heads(after=("1",), groups=4)


def test_heads_twice() -> None:
    with pytest.raises(
        ValueError, match=r"Sequential has local heads already \('1\.local\.head', …\).*at once in after="
    ):
        heads(heads())
    mixer = fgvar.networks.LocalMixer((1, 4, 4), 3, blocks=1, patches=2, channels=8, groups=2)
    with pytest.raises(ValueError, match=r"LocalMixer has local heads already \('block0\.head'"):
        heads(mixer, after=("block0",))


def test_one_module_under_two_names() -> None:
    shared = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"names one module twice \('0' and '1'\)"):
        heads(nn.Sequential(shared, shared), after=("0", "1"))


def test_channels_that_nobody_declares() -> None:
    with pytest.raises(ValueError, match=r"no module up to '0' declares.*inputs=x\[:1\]"):
        heads(nn.Sequential(nn.Flatten(), nn.Linear(3, 3)), after=("0",))


def test_channels_that_are_not_as_declared() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 2), nn.Flatten(), nn.Linear(16, 3))
    words = {"after": ("1",), "classes": 3}
    with pytest.raises(ValueError, match=r"'1' returned 16 channels .* built for 4; pass .*inputs=x\[:1\]"):
        fgvar.with_local_heads(net, **words)(randn(2, 1, 3, 3).float())
    fgvar.with_local_heads(net, **words, inputs=randn(1, 1, 3, 3).float())(randn(2, 1, 3, 3).float())


def test_another_number_of_axes_than_the_example() -> None:
    ours = fgvar.with_local_heads(nn.Sequential(nn.Linear(3, 4)), after=("0",), classes=3, inputs=torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"returned shape \(2, 5, 4\), but 2 axes for the example.*inputs= like"):
        ours(torch.ones(2, 5, 3))


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize(
    ("build", "after", "error", "message"),
    [
        (Twice, "block", ValueError, "'block.*2 times in one forward pass, expected once"),
        (Twice, "unused", ValueError, "'unused.*0 times in one forward pass, expected once"),
        (Dicts, "block", TypeError, "'block' returned neither a tensor nor a tuple.*batch axis first.* after="),
        (Turned, "block", ValueError, r"'block.* have shape \(2, 1?3?, .*expected the batch axis \(\d\) first"),
        (conv3d, "1", ValueError, r"'1' returned shape \(.*\), expected \[batch, channels\].* after="),
    ],
)
def test_modules_that_cannot_end_a_block(build, after: str, error, message: str, example: bool) -> None:
    net, x = build(), torch.randn(3, 3, generator=torch.Generator().manual_seed(0))

    def build_and_run() -> None:
        ours = fgvar.with_local_heads(net, after=(after,), classes=3, inputs=x if example else None)
        assert not example, "found at once"
        fgvar.Problem(ours, "cross_entropy", (x, labels(3, 3)))

    with pytest.raises(error, match=message):
        build_and_run()


def test_a_block_end_is_the_identity() -> None:
    end, x = BlockEnd("layer", 4, 3, 2), torch.ones(2, 4)
    assert end(x) is x
    assert torch.equal(end.read(x), x)
    assert repr(end).startswith("BlockEnd(\n  after='layer', groups=2")
