"""Examples: data in memory, tensors of any structure, such as token ids with masks and labels."""

from collections.abc import Sized
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, IterableDataset, default_collate

from fgvar.data.split import Batch, Device, Indices, Split
from fgvar.nn.structures import cast, leaves
from fgvar.problem_checks import checked_batch, named_leaves

__all__ = ["Examples"]


@dataclass(frozen=True, eq=False)
class Examples(Split):
    """Inputs and targets of any structure, in memory: what `fgvar.train` takes beside images.

    A batch is the pair (inputs, targets) of some of the examples, as `Problem` takes it. Floating-point numbers are
    given the network's precision by training; class numbers, token ids and masks stay as they are.

    Args:
        inputs, targets: each a tensor, or a tuple, list or dict of tensors (a pytree), all with the n examples
            along the first axis; not copied.
        test: other examples of the same structure, for a run's curves: an `Examples` or a pair (inputs, targets).
        name: shown in a run's dataset and in errors.

    Raises:
        TypeError: inputs or targets that are not tensors; a `DataLoader`.
        ValueError: tensors of different numbers of examples, without examples, or a test set of another structure.
        NonFiniteError: NaN or infinity in them.

    Example:
        >>> ids = torch.arange(24).reshape(6, 4)
        >>> texts = Examples({"input_ids": ids[:4]}, ids[:4], test=({"input_ids": ids[4:]}, ids[4:]))
        >>> inputs, labels = texts.sample(2, seed=0)
        >>> inputs["input_ids"].shape, labels.dtype, len(texts), len(texts.test)
        (torch.Size([2, 4]), torch.int64, 4, 2)
    """

    inputs: Any = field(repr=False)
    targets: Any = field(repr=False)
    test: Any = field(default=None, repr=False)
    name: str = "examples"

    def __post_init__(self) -> None:
        refuse_loaders(self.inputs, self.targets, self.test)
        inputs, targets = checked_batch((self.inputs, self.targets), "data")
        test = self.test
        if test is not None:
            pair = (test.inputs, test.targets) if isinstance(test, Examples) else test
            test = Examples(*checked_batch(pair, "test data"), name=f"{self.name} (test)")
            _require_same_structure((inputs, targets), (test.inputs, test.targets))
        # Frozen, so that what has been checked stays: its fields are set once, here.
        for key, value in (("inputs", inputs), ("targets", targets), ("test", test)):
            object.__setattr__(self, key, value)

    @classmethod
    def from_dataset(cls, dataset: Any, *, test: Any = None, name: str = "examples") -> "Examples":
        """The examples of a torch ``Dataset`` of pairs (inputs, targets), read once and stacked.

        Args:
            dataset: what has a length and ``dataset[i]``, a pair of numbers, arrays, tensors or structures of them,
                stacked as a `DataLoader` does by default.
            test: the same, or what `Examples` takes.
            name: see `Examples`.

        Raises:
            TypeError: a `DataLoader`, an `IterableDataset`, or what is no dataset of pairs.
            ValueError: examples that cannot be stacked.

        Example:
            >>> dataset = torch.utils.data.TensorDataset(torch.rand(5, 3), torch.arange(5))
            >>> Examples.from_dataset(dataset).sample(2, seed=0)[0].shape
            torch.Size([2, 3])
        """
        # A pair of tensors is a test set, and a list of pairs is a dataset.
        given = test is None or isinstance(test, Examples | tuple)
        return cls(*_stacked(dataset), test=test if given else _stacked(test), name=name)

    def __len__(self) -> int:
        return len(leaves(self.inputs)[0])

    @property
    def title(self) -> str:
        return self.name

    def tensors(self) -> dict[str, Tensor]:
        return named_leaves(self.inputs, self.targets)

    def hashed(self) -> dict[str, Tensor]:
        return self.tensors()  # a second for every GB, as they are in memory

    def batch(self, indices: Indices, *, device: Device = "cpu", dtype: torch.dtype | None = None) -> Batch:
        """The examples at ``indices`` [b]; with a dtype, floating-point numbers in it."""
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.device)
        chosen: Batch = tree_map(lambda leaf: leaf.index_select(0, index).to(device), (self.inputs, self.targets))
        return chosen if dtype is None else cast(chosen, dtype)

    def subset(self, indices: Indices) -> "Examples":
        """The examples at ``indices``, with the same test set."""
        inputs, targets = self.batch(indices, device=self.device)
        return replace(self, inputs=inputs, targets=targets)

    def to(self, device: Device) -> "Examples":
        """On another device, so that batches there cost no transfer."""
        inputs, targets = tree_map(lambda leaf: leaf.to(device), (self.inputs, self.targets))
        return replace(self, inputs=inputs, targets=targets)


def refuse_loaders(*given: object) -> None:
    """Raise where a loader stands for data: its batches have an order and a size of their own."""
    if any(isinstance(one, DataLoader) for one in given):
        raise TypeError(
            "got a DataLoader, expected data: give its dataset, fgvar.data.Examples.from_dataset(loader.dataset), as "
            "fgvar draws the batches itself, in an order that the seed alone decides"
        )


def _stacked(dataset: Any) -> Batch:
    """All examples of a dataset, stacked."""
    refuse_loaders(dataset)
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"{type(dataset).__name__} is an IterableDataset, which has no examples by number, so that a run could "
            "not go on where it stopped; give a list of as many of its examples as memory holds, "
            "list(itertools.islice(dataset, 10_000))"
        )
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__") or not len(dataset):
        raise TypeError(
            f"dataset is {type(dataset).__name__}, expected what has a length above 0 and dataset[i], a pair "
            "(inputs, targets), as torch.utils.data.Dataset has; of tensors give fgvar.data.Examples(inputs, targets)"
        )
    rows = [dataset[number] for number in range(len(dataset))]
    wrong = next((row for row in rows if not isinstance(row, tuple | list) or len(row) != 2), None)
    if wrong is not None:
        raise TypeError(
            f"dataset[i] is {type(wrong).__name__}, expected a pair (inputs, targets); choose these from it, as in "
            "[({'input_ids': row['input_ids']}, row['labels']) for row in dataset.with_format('torch')]"
        )
    try:
        inputs, targets = default_collate(rows)
    except (RuntimeError, TypeError, KeyError) as error:
        raise ValueError(
            f"the examples cannot be stacked ({str(error).strip().splitlines()[0]}); all need tensors, arrays or "
            "numbers of the same shapes: pad texts to one length"
        ) from error
    return inputs, targets


def _require_same_structure(train: Batch, test: Batch) -> None:
    """Raise where a network that takes the one does not take the other: other names, axes or kinds of numbers."""
    forms = [
        {name: (leaf.ndim, leaf.is_floating_point()) for name, leaf in named_leaves(*pair).items()}
        for pair in (train, test)
    ]
    if forms[0] != forms[1]:
        ours, theirs = (
            ", ".join(f"{name} {leaf.dtype} {tuple(leaf.shape)}" for name, leaf in named_leaves(*pair).items())
            for pair in (train, test)
        )
        raise ValueError(f"the test data are {theirs}, expected the structure of the data, {ours}")
