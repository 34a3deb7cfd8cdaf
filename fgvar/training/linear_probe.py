"""Linear probe: `read_out` trains a linear classifier on the frozen features of a network that learned no labels."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fgvar.data.images import Images
from fgvar.estimators.estimator import ExactGradient
from fgvar.nn.heads import ReadOut, headless, initialise
from fgvar.training.schedule import Schedule
from fgvar.training.train import Run, choose_device, train

BATCH = 256  # of the forward passes

SCHEDULE = Schedule(epochs=20, batch=128, lr=1e-3, optimiser="adam", weight_decay=0.0)


def read_out(
    module: nn.Module,
    params: Mapping[str, Tensor],
    data: tuple[Images, Images],
    schedule: Schedule = SCHEDULE,
    *,
    seed: int = 0,
    device: torch.device | str = "auto",
    name: str = "read-out",
) -> Run:
    """Train a linear classifier on a network's frozen features, by `train` with the exact gradient.

    Features are those that the network's own read-out would see, of the images as they are (no augmentation), each
    with mean 0 and variance 1 over the train split; weights start at 0.

    Args:
        module: the network that has learned; its local heads and read-outs are left out.
        params: what it has learned, such as ``run.params``.
        data: train and test split, with labels.
        schedule: of the classifier.
        seed: of data order.
        device: "auto" takes CUDA where there is one.
        name: shown in the progress bar.

    Returns:
        The classifier's run: ``loss``, ``train_error`` and ``test_error`` over ``epoch`` (of the read-out).

    Raises:
        ValueError: parameters that are not this network's.
        NonFiniteError: features that are NaN or infinite.

    Source: Ren et al. 2023, Table 4.

    Example:
        >>> from fgvar import data
        >>> from fgvar.networks import LocalMixer
        >>> model = LocalMixer((1, 8, 8), 10, blocks=1, patches=2, channels=16, groups=2)
        >>> digits = data.load("digits").subset(range(200)), data.load("digits", "test")
        >>> read_out(model, dict(model.named_parameters()), digits, device="cpu").dataset.sizes["epoch"]
        21
    """
    where = choose_device(device)
    network = headless(module)
    own = dict(network.named_parameters())
    if missing := own.keys() - params.keys():
        raise ValueError(f"the parameters lack {min(missing)!r} of the network; give those of a run that trained it")
    frozen = {key: params[key].detach().to(where) for key in own}
    train_split, test_split = (_features(network.to(where), frozen, images) for images in data)
    rows = train_split.pixels.flatten(1).double()
    # A feature that never varies says nothing: it stays 0.
    mean, std = rows.mean(0), rows.std(0, correction=0)
    scale = tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist())
    classifier = ReadOut(rows.shape[1], train_split.classes, norm=False)
    # Convex, so that 0 is as good a start as any, and no seed is needed.
    initialise(classifier.linear, "zero", torch.Generator())
    return train(
        nn.Sequential(nn.Flatten(), classifier),
        ExactGradient(),
        (_scaled(train_split, *scale), _scaled(test_split, *scale)),
        schedule,
        seed=seed,
        device=where,
        name=name,
    )


def _features(network: nn.Module, params: Mapping[str, Tensor], images: Images) -> Images:
    """The features [n, width, 1, 1] in place of a split's pixels."""
    one = next(iter(params.values()))
    found = []
    with torch.no_grad():
        for numbers in torch.arange(len(images)).split(BATCH):
            x = images.batch(numbers, device=one.device, dtype=one.dtype)[0]
            found.append(functional_call(network, dict(params), (x,)).flatten(1).float().cpu())
    pixels = torch.cat(found)[:, :, None, None]
    width = pixels.shape[1]
    return replace(images, pixels=pixels, mean=(0.0,) * width, std=(1.0,) * width)


def _scaled(features: Images, mean: tuple[float, ...], std: tuple[float, ...]) -> Images:
    return replace(features, mean=mean, std=std)
