"""Views: random crops, flips and colours of a batch of images, on its device, from an explicit generator."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

ASPECTS = (3 / 4, 4 / 3)  # of a crop: width over height
GREY = (0.299, 0.587, 0.114)  # brightness of red, green and blue
NUMBERS = 8  # random numbers an example, whatever is switched on
STREAM = 2  # among those of a seed; the order of data has 0 and 1


@dataclass(frozen=True)
class Views:
    """Random views of images, each example with its own crop, flip and colour, for contrastive learning.

    A crop of a random share of the area and a random aspect is resized to the image's size (bilinear); then the
    view is mirrored; then brightness, contrast and saturation are multiplied, in this order, each result kept
    between black and white. The same generator state gives the same views; example i's depends on its own random
    numbers alone, and as many are drawn whatever is switched on. No gradient flows through.

    Args:
        crop: least and largest share of the area, uniform between; (1, 1) is off.
        flip: probability of a left-right mirror image; 0 is off (and right for digits).
        colour: each factor is uniform in [1 − colour, 1 + colour]; 0 is off.
        mean, std: the normalisation of the images by channel, such as those of `fgvar.data`'s images; needed to
            know black (0) and white (1). For images that are not normalised (0.0,) and (1.0,).

    Shapes: images [batch, channels, height, width] → the same shape, dtype and device. One mean and one std serve
    all channels.

    Raises:
        ValueError: shares, probability or strength out of range, colour without mean and std, images of another
            number of axes or channels.
        TypeError: images that are not floating point, a seed in place of a generator.

    Source: Ren et al. 2023, Table 4; Chen et al. 2020 (SimCLR), appendix A.

    Example:
        >>> views, generator = Views(colour=0.4, mean=(0.5,), std=(0.25,)), torch.Generator().manual_seed(0)
        >>> one, two = views.pair(torch.zeros(5, 3, 8, 8), generator)
        >>> one.shape, bool((one == two).all())
        (torch.Size([5, 3, 8, 8]), False)
    """

    crop: tuple[float, float] = (0.2, 1.0)
    flip: float = 0.5
    colour: float = 0.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        low, high = self.crop
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop is {self.crop}, expected shares of the area, 0 < least ≤ largest ≤ 1")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}, expected a probability")
        if not 0 <= self.colour <= 1:
            raise ValueError(f"colour is {self.colour}, expected a strength between 0 and 1")
        if len(self.mean) != len(self.std) or min(self.std, default=1) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std} need one number a channel each, std > 0")
        if self.colour and not self.mean:
            raise ValueError(
                "colours change between black and white, which a normalised image does not tell: give mean= and std= "
                "of the normalisation (images.mean, images.std), or (0.0,) and (1.0,) for images in 0 … 1"
            )

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One view of each image."""
        self._check(images, generator)
        drawn = torch.rand(len(images), NUMBERS, generator=generator, device=generator.device)
        given = images.dtype
        images = images.to(torch.promote_types(given, torch.float32))  # places of 8 bits are whole pixels
        random = drawn.to(images.device, images.dtype)
        with torch.no_grad():
            if self.crop != (1, 1):
                images = self._crop(images, random[:, :4])
            if self.flip:
                images = torch.where((random[:, 4] < self.flip)[:, None, None, None], images.flip(3), images)
            return (self._colour(images, random[:, 5:]) if self.colour else images).to(given)

    def pair(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two independent views of each image."""
        return self(images, generator), self(images, generator)

    def _crop(self, images: Tensor, random: Tensor) -> Tensor:
        area = self.crop[0] + (self.crop[1] - self.crop[0]) * random[:, 0]
        least, most = (math.log(aspect) for aspect in ASPECTS)
        aspect = (least + (most - least) * random[:, 1]).exp()
        width, height = ((area * aspect).sqrt().clamp_max(1), (area / aspect).sqrt().clamp_max(1))
        across, down = ((1 - width) * (2 * random[:, 2] - 1), (1 - height) * (2 * random[:, 3] - 1))
        none = torch.zeros_like(width)
        rows = torch.stack([width, none, across, none, height, down], 1).unflatten(1, (2, 3))
        grid = functional.affine_grid(rows, list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def _colour(self, images: Tensor, random: Tensor) -> Tensor:
        mean, std = (images.new_tensor(s)[:, None, None] for s in (self.mean, self.std))
        brightness, contrast, saturation = (1 + self.colour * (2 * random - 1)).T[..., None, None, None]
        x = ((images * std + mean) * brightness).clamp(0, 1)
        middle = _grey(x).mean((2, 3), keepdim=True)
        x = (middle + (x - middle) * contrast).clamp(0, 1)
        grey = _grey(x)
        x = (grey + (x - grey) * saturation).clamp(0, 1)
        return (x - mean) / std

    def _check(self, images: Tensor, generator: torch.Generator) -> None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator is {type(generator).__name__}, expected torch.Generator().manual_seed(…): views never "
                "touch the global random state"
            )
        if not isinstance(images, Tensor):
            raise TypeError(
                f"images are {type(images).__name__}, expected one tensor [batch, channels, height, width]"
            )
        if images.ndim != 4:
            raise ValueError(f"images have shape {tuple(images.shape)}, expected [batch, channels, height, width]")
        if not images.is_floating_point():
            raise TypeError(f"images are {images.dtype}, expected floating point, as fgvar.data's batches are")
        if len(self.mean) not in (0, 1, images.shape[1]):
            raise ValueError(f"mean {self.mean} and std {self.std} do not fit images of {images.shape[1]} channels")


def generator(seed: int, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of these views of a run: another key, other views.

    On the device, so that no step waits for random numbers from the CPU (on meta, where there are none, on the CPU).
    """
    state = np.random.SeedSequence(seed, spawn_key=(STREAM, *key)).generate_state(1, np.uint64)[0]
    where = torch.device(device)
    return torch.Generator("cpu" if where.type == "meta" else where).manual_seed(int(state) >> 1)


def _grey(x: Tensor) -> Tensor:
    """Brightness of each pixel, [batch, 1, height, width]; the channels' mean where they are not three."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
