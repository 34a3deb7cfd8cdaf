"""Examples: tensors of any structure are drawn as images are, and what is no such data is refused."""

import pytest
import torch
from refusals import says
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import fgvar
from fgvar.data import Examples

IDS = torch.arange(40).reshape(10, 4)
INPUTS = {"ids": IDS, "parts": (IDS > 7, IDS.double() / 40)}
TARGETS = [IDS + 1]


def examples(**words) -> Examples:
    return Examples(INPUTS, TARGETS, **words)


def test_a_batch_holds_the_chosen_examples_in_every_leaf() -> None:
    inputs, targets = examples().batch([7, 2], dtype=torch.float32)
    for leaf, whole in ((inputs["ids"], IDS), (inputs["parts"][0], IDS > 7), (targets[0], IDS + 1)):
        assert torch.equal(leaf, whole[[7, 2]])
        assert leaf.dtype == whole.dtype, "integers and masks stay what they are"
    assert torch.equal(inputs["parts"][1], (IDS.double() / 40)[[7, 2]].float())
    assert examples().batch([0])[0]["parts"][1].dtype == torch.float64, "as it is, where no dtype is asked for"


def test_examples_are_drawn_in_the_order_of_images_of_as_many() -> None:
    digits = fgvar.data.load("digits").subset(range(10))
    rows = Examples(torch.arange(10), digits.labels)
    assert torch.equal(rows.sample(6, seed=3)[1], digits.sample(6, seed=3)[1])
    for rank in range(2):
        words = {"seed": 1, "epoch": 2, "part": (rank, 2), "start": 1}
        found, expected = ([y for _, y in split.batches(2, **words)] for split in (rows, digits))
        assert len(found) == 1
        assert all(map(torch.equal, found, expected))
    seen = torch.cat([x for x, _ in rows.batches(3, seed=0, epoch=0, drop_last=False)])
    assert sorted(seen.tolist()) == list(range(10))
    with pytest.raises(ValueError, match="examples: asked for 11 of 1 … 10 examples"):
        rows.sample(11, seed=0)


def test_a_sample_is_the_batch_of_a_problem() -> None:
    rows = Examples((torch.randn(8, 3), torch.randn(8, 2)), torch.arange(8) % 2)
    problem = fgvar.Problem(torch.nn.Bilinear(3, 2, 2), "cross_entropy", rows.sample(4, seed=0))
    assert problem.batch_size == 4


def test_a_subset_keeps_the_test_set() -> None:
    few = examples(test=(INPUTS, TARGETS), name="texts").subset([3, 1])
    assert torch.equal(few.inputs["ids"], IDS[[3, 1]])
    assert (len(few), len(few.test), few.title, few.test.title) == (2, 10, "texts", "texts (test)")
    assert few.to("cpu").nbytes == few.nbytes == 2 * 4 * (8 + 1 + 8 + 8)


@pytest.mark.parametrize("change", ["value", "dtype", "name"])
def test_the_hash_knows_every_leaf(change: str) -> None:
    from fgvar.training.checkpoint import described_split

    other = {"ids": IDS.clone(), "parts": INPUTS["parts"]}
    if change == "value":
        other["ids"][9, 3] += 1
    if change == "dtype":
        other["ids"] = IDS.int()
    if change == "name":
        other = {"tokens": other.pop("ids"), **other}
    assert described_split(Examples(other, TARGETS)) != described_split(examples())
    same = {"ids": IDS.clone(), "parts": INPUTS["parts"]}
    assert described_split(Examples(same, TARGETS)) == described_split(examples())


class Texts(Dataset):
    """A map-style dataset as people have them: dicts with Python numbers and tensors in them."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[dict[str, Tensor], int]:
        return {"ids": IDS[i], "mask": IDS[i] > 2}, i % 3


def test_a_dataset_is_stacked() -> None:
    found = Examples.from_dataset(Texts(), test=[Texts()[0], Texts()[4]])
    assert torch.equal(found.inputs["ids"], IDS[:6])
    assert found.targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(found.test.inputs["mask"], (IDS > 2)[[0, 4]])
    assert found.test.targets.tolist() == [0, 1]
    pair = Examples.from_dataset(TensorDataset(IDS, IDS), test=(IDS[:2], IDS[:2]))
    assert torch.equal(pair.targets, IDS)
    assert len(pair.test) == 2


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(IDS[0], 0)])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Examples(IDS, IDS[:9]), ValueError, r"inputs \(10, 4\) and targets \(9, 4\) need the same"),
        (lambda: Examples({"ids": IDS, "mask": IDS[:3]}, IDS), ValueError, r"inputs\['mask'\] \(3, 4\)"),
        (lambda: Examples(IDS, torch.tensor(3)), ValueError, r"targets \(\) need the same, nonzero number"),
        (lambda: Examples(IDS[:0], IDS[:0]), ValueError, "nonzero number of examples along the first axis"),
        (lambda: Examples(IDS.numpy(), IDS), TypeError, says("data is tuple of ndarray and Tensor", "as_tensor")),
        (lambda: Examples(IDS / 0, IDS), fgvar.NonFiniteError, "the data: inputs holds NaN or infinity"),
        (lambda: Examples(IDS, IDS, test=IDS), TypeError, "test data is Tensor, expected a pair"),
        (lambda: Examples(IDS, IDS, test=(IDS, IDS[:2])), ValueError, r"inputs \(10, 4\) and targets \(2, 4\)"),
        (
            lambda: examples(test=(INPUTS, IDS)),
            ValueError,
            says("the test data are ", r"targets torch\.int64", "the structure of the data", r"targets\[0\]"),
        ),
        (lambda: Examples(IDS, IDS, test=(IDS.float(), IDS)), ValueError, r"inputs torch\.float32 \(10, 4\)"),
        (lambda: Examples(DataLoader(Texts()), None), TypeError, "fgvar draws the batches itself"),
        (lambda: Examples(IDS, IDS, test=DataLoader(Texts())), TypeError, r"Examples\.from_dataset\(loader\.dataset"),
        (lambda: Examples.from_dataset(DataLoader(Texts())), TypeError, "give its dataset"),
        (lambda: Examples.from_dataset(Texts(), test=DataLoader(Texts())), TypeError, "give its dataset"),
        (lambda: Examples.from_dataset(Stream()), TypeError, "Stream is an IterableDataset, which has no"),
        (lambda: Examples.from_dataset(7), TypeError, "dataset is int, expected what has a length above 0"),
        (lambda: Examples.from_dataset([]), TypeError, "dataset is list, expected what has a length above 0"),
        (
            lambda: Examples.from_dataset([{"ids": IDS[0], "label": 1}]),
            TypeError,
            says(r"dataset\[i\] is dict, expected a pair \(inputs, targets\)", "row in dataset"),
        ),
        (
            lambda: Examples.from_dataset([(IDS[0], 1), (IDS[0, :2], 1)]),
            ValueError,
            says("cannot be stacked", "pad texts to one length"),
        ),
        (lambda: Examples.from_dataset([("a text", 1)]), TypeError, says("data is tuple", r"inputs\[0\] is str")),
    ],
)  # fmt: skip
def test_what_is_no_such_data_is_refused(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
