"""Views: shapes, ranges, determinism, independence of examples, and the three transforms one by one."""

from typing import Any

import pytest
import torch
from cases import randn
from torch import Tensor

import fgvar
from fgvar.data.augmentation import Views

OFF: dict[str, Any] = {"crop": (1.0, 1.0), "flip": 0.0, "colour": 0.0}
PLAIN: dict[str, Any] = {"mean": (0.0,), "std": (1.0,)}
EACH: dict[str, dict[str, Any]] = {
    "crop": {**OFF, "crop": (0.2, 1.0)},
    "flip": {**OFF, "flip": 0.5},
    "colour": {**OFF, "colour": 0.5, **PLAIN},
    "all": {"colour": 0.4, **PLAIN},
}


def images(n: int = 6, channels: int = 3, side: int = 8) -> Tensor:
    return randn(n, channels, side, side).sigmoid()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_off_is_the_identity() -> None:
    assert torch.equal(Views(**OFF)(images(), generator()), images())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", EACH)
def test_shape_range_and_determinism(kind: str, channels: int, dtype: torch.dtype) -> None:
    x, views = images(channels=channels).to(dtype), Views(**EACH[kind])
    before = torch.get_rng_state()
    found = views(x, generator())
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert torch.equal(found, views(x, generator()))
    assert not torch.equal(found, views(x, generator(1)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", EACH)
def test_examples_are_independent(kind: str) -> None:
    """Another first image changes no other view, and equal images get different ones."""
    x, views = images(), Views(**EACH[kind])
    other = torch.cat([1 - x[:1], x[1:]])
    assert torch.equal(views(x, generator())[1:], views(other, generator())[1:])
    same = views(x[:1].expand(32, -1, -1, -1), generator())
    assert len(torch.unique(same.flatten(1), dim=0)) > 1


def test_the_two_views_of_a_pair_differ() -> None:
    one, two = Views()(images(), state := generator()), Views()(images(), state)
    both = Views().pair(images(), generator())
    assert torch.equal(both[0], one)
    assert torch.equal(both[1], two)
    assert not torch.equal(one, two)


def test_flips_are_mirror_images_of_about_half() -> None:
    x = images(400)
    found = Views(**EACH["flip"])(x, generator())
    mirrored = (found == x.flip(3)).flatten(1).all(1)
    assert torch.equal(mirrored | (found == x).flatten(1).all(1), torch.ones(400, dtype=torch.bool))
    assert 150 < int(mirrored.sum()) < 250


def test_views_of_small_floats_are_those_of_single_precision() -> None:
    """Uniform numbers of 8 bits can be 1, and a view that is flipped for certain would not be."""
    images = torch.rand(512, 1, 4, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    views = Views(crop=(1.0, 1.0), flip=1.0, colour=0.0)
    assert torch.equal(views(images, torch.Generator().manual_seed(1)), images.flip(3))
    cropped = Views(crop=(0.5, 1.0), flip=0.5, colour=0.0)
    small, wide = (cropped(x, torch.Generator().manual_seed(1)) for x in (images, images.float()))
    assert torch.equal(small, wide.bfloat16())


def test_crops_are_boxes_of_the_stated_area() -> None:
    """An image that holds its own coordinates shows the box that a crop came from."""
    side = 32
    place = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    x = torch.stack(torch.meshgrid(place, place, indexing="ij"))[None].expand(500, -1, -1, -1)
    found = Views(crop=(0.3, 0.6), flip=0.0)(x, generator())
    # Between the middles of the outermost pixels: (side − 1)/side of the box.
    height = (found[:, 0, 16, 0] - found[:, 0, 15, 0]) * side
    width = (found[:, 1, 0, 16] - found[:, 1, 0, 15]) * side
    area, aspect = height * width, width / height
    assert 0.3 - 1e-9 <= float(area.min()) < 0.32 < 0.58 < float(area.max()) <= 0.6 + 1e-9
    assert 0.75 - 1e-9 <= float(aspect.min()) < 0.77 < 1.3 < float(aspect.max()) <= 4 / 3 + 1e-9


def test_a_centred_crop_of_everything_is_the_image() -> None:
    """Shares just below 1 take the resampling path and move nothing by more than they must."""
    found = Views(crop=(1 - 1e-12, 1.0), flip=0.0)(torch.ones(3, 1, 5, 7, dtype=torch.float64), generator())
    torch.testing.assert_close(found, torch.ones_like(found))


def test_normalised_images_change_colour_between_black_and_white() -> None:
    x, mean, std = images(), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    m, s = (torch.tensor(t, dtype=x.dtype)[:, None, None] for t in (mean, std))
    plain = Views(**{**OFF, "colour": 0.5, **PLAIN})(x, generator())
    found = Views(**{**OFF, "colour": 0.5, "mean": mean, "std": std})((x - m) / s, generator())
    torch.testing.assert_close(found * s + m, plain)


def test_grey_images_have_no_saturation() -> None:
    """A grey image stays grey in three channels."""
    x = images(channels=1).expand(-1, 3, -1, -1)
    found = Views(**EACH["colour"])(x, generator())
    torch.testing.assert_close(found, found.mean(1, keepdim=True).expand_as(found))


def test_meta_device() -> None:
    found = Views(**EACH["all"])(images().to("meta"), generator())
    assert found.is_meta
    assert found.shape == (6, 3, 8, 8)


@pytest.mark.cuda
def test_device() -> None:
    x, views = images().cuda(), Views(**EACH["all"])
    torch.testing.assert_close(views(x, generator()).cpu(), views(images(), generator()))
    there = torch.Generator("cuda").manual_seed(0)
    assert views(x, there).is_cuda


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"crop": (0.0, 1.0)}, r"crop is \(0.0, 1.0\), expected shares"),
        ({"flip": 1.5}, "flip is 1.5, expected a probability"),
        ({"colour": -0.1, **PLAIN}, "colour is -0.1, expected a strength"),
        ({"colour": 0.4}, "give mean= and std="),
        ({"mean": (0.5,), "std": (0.0,)}, "std > 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Views(**settings)


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match=r"generator is int, expected torch\.Generator"):
        fgvar.data.Views()(images(), 0)
    with pytest.raises(ValueError, match=r"expected \[batch, channels, height, width\]"):
        Views()(images()[0], generator())
    with pytest.raises(TypeError, match="expected floating point"):
        Views()(images().byte(), generator())
    with pytest.raises(ValueError, match="do not fit images of 3 channels"):
        Views(mean=(0.0, 0.0), std=(1.0, 1.0))(images(), generator())
