"""Linear probe: `read_out` trains a linear classifier on the frozen features of a network that learned no labels."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fgvar.data.examples import Examples
from fgvar.data.images import Images
from fgvar.data.split import Split
from fgvar.estimators.estimator import ExactGradient
from fgvar.nn.heads import ReadOut, headless, initialise
from fgvar.nn.structures import arguments
from fgvar.training.schedule import Schedule
from fgvar.training.train import Run, choose_device, splits_of, train

BATCH = 64  # of the forward passes: memory of larger activities is faulted in anew at each

SCHEDULE = Schedule(epochs=20, batch=128, lr=1e-3, optimiser="adam", weight_decay=0.0)


def read_out(
    module: nn.Module,
    params: Mapping[str, Tensor],
    data: Examples | tuple[Split, Split],
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
        module: the network that has learned; its local heads, read-outs and others that learn exactly are left out.
        params: what it has learned, such as ``run.params``.
        data: as for `train`, with class numbers as targets.
        schedule: of the classifier.
        seed: of data order.
        device: "auto" takes CUDA where there is one.
        name: shown in the progress bar.

    Returns:
        The classifier's run: ``loss``, ``test_loss``, ``train_error`` and ``test_error`` over its ``epoch``.

    Raises:
        ValueError: parameters that are not this network's, targets that are no class numbers.
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
    # What was frozen is no part of a run's params, and is as it was.
    if missing := {key for key, value in own.items() if value.requires_grad} - params.keys():
        raise ValueError(f"the parameters lack {min(missing)!r} of the network; give those of a run that trained it")
    frozen = {key: params.get(key, value).detach().to(where) for key, value in own.items()}
    splits = splits_of(data)
    found = {key: _features(network.to(where), frozen, split) for key, split in splits.items()}
    rows = found["train"][0].double()
    # A feature that never varies says nothing: it stays 0.
    mean, std = rows.mean(0), rows.std(0, correction=0)
    scale = mean.float(), torch.where(std > 0, std, 1.0).float()
    scaled = {key: ((features - scale[0]) / scale[1], labels) for key, (features, labels) in found.items()}
    classifier = ReadOut(rows.shape[1], _classes(splits, found), norm=False)
    # Convex, so that 0 is as good a start as any, and no seed is needed.
    initialise(classifier.linear, "zero", torch.Generator())
    return train(
        classifier,
        ExactGradient(),
        Examples(*scaled["train"], test=scaled.get("test"), name=splits["train"].name),
        schedule,
        seed=seed,
        device=where,
        name=name,
    )


def _features(network: nn.Module, params: Mapping[str, Tensor], split: Split) -> tuple[Tensor, Tensor]:
    """The features [n, width] of a split, in float32 on the CPU, and the labels [n]."""
    one = next(iter(params.values()))
    features, labels = [], []
    with torch.no_grad():
        for numbers in torch.arange(len(split)).split(BATCH):
            inputs, targets = split.batch(numbers, device=one.device, dtype=one.dtype)
            _require_labels(split.title, targets)
            args, keywords = arguments(inputs)
            features.append(functional_call(network, dict(params), args, keywords).flatten(1).float().cpu())
            labels.append(targets.cpu())
    return torch.cat(features), torch.cat(labels)


def _require_labels(title: str, targets: object) -> None:
    """Raise unless targets are one class number an example."""
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        got = (
            f"{targets.dtype} [n{', …' * (targets.ndim > 1)}]"
            if isinstance(targets, Tensor)
            else type(targets).__name__
        )
        raise ValueError(f"{title}: targets are {got}, expected class numbers [n], integers, to be read out")


def _classes(splits: Mapping[str, Split], found: Mapping[str, tuple[Tensor, Tensor]]) -> int:
    """How many classes there are: images know, of other examples it is what labels there are."""
    train = splits["train"]
    return train.classes if isinstance(train, Images) else 1 + max(int(labels.max()) for _, labels in found.values())
