"""Where images lie: broken data is named by file or row with its remedy; the hub without a network; the real data."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from image_files import encode, noise, write_folder, write_parquet

from fgvar.data import images as module
from fgvar.data import sources

SHARED = Path(__file__).parents[3] / "shared" / "data"


# ---- broken data: file or row, and the remedy --------------------------------------------------------------


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no directory {tmp_path}/mnist"):
        module.load(tmp_path / "mnist")
    with pytest.raises(FileNotFoundError, match="did you mean 'digits'"):
        module.load("./digit")
    with pytest.raises(FileNotFoundError, match=r"no data; expected train\*.parquet, or images as <class>/"):
        module.load(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="file is a file; give the directory"):
        module.load(tmp_path / "file")


def test_missing_split_lists_those_there(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", noise(1), [0])
    write_parquet(tmp_path / "validation.parquet", noise(1), [0])
    with pytest.raises(ValueError, match=r"unknown split 'test' \(valid: train, validation\)"):
        module.load(tmp_path, "test")
    with pytest.raises(ValueError, match="did you mean 'validation'"):
        module.load(tmp_path, "validate")
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(ValueError, match="unknown split 'train'"):  # states classes and normalisation
        module.load(tmp_path, "validation")


def test_truncated_parquet_is_named(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    write_parquet(file, noise(50), [0] * 50)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train\.parquet: not a readable parquet file.*download it again"):
        module.load(tmp_path)
    file.write_bytes(whole[:100] + bytes(1000) + whole[1100:])  # the footer is whole, the pages are not
    with pytest.raises(ValueError, match=r"train\.parquet"):
        module.load(tmp_path)


def test_missing_shard_is_counted(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00001-of-00002.parquet", noise(1), [0])
    with pytest.raises(FileNotFoundError, match="1 of 2 files; download the missing ones"):
        module.load(tmp_path)


@pytest.mark.parametrize("broken", [b"", None, b"no image", "truncated"])
def test_broken_image_is_named_by_its_row(tmp_path: Path, broken: Any) -> None:
    images = noise(3, size=(40, 40, 3))
    content = encode(images[0], "jpeg")[:700] if broken == "truncated" else broken
    write_parquet(tmp_path / "train-00000-of-00002.parquet", images, [0, 0, 0])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [images[0], content], [0, 0])
    with pytest.raises(ValueError, match=r"00001-of-00002\.parquet, row 1: not a readable image.*fetch it again"):
        module.load(tmp_path)


def test_missing_columns_list_those_there(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", noise(1), [0], columns=["picture", "label"])
    with pytest.raises(ValueError, match=r"no image column in \['picture', 'label'\]; name it image or img"):
        module.load(tmp_path)
    write_parquet(tmp_path / "train.parquet", noise(1), [0], columns=["image", "class"])
    with pytest.raises(ValueError, match=r"no label column in \['image', 'class'\]; name it label or"):
        module.load(tmp_path)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, -1, 1], None, r"train\.parquet, row 1: label -1, expected 0 … 1; correct it"),
        ([0, 1, None], None, r"row 2: no label \(null\), expected 0 … 1"),
        ([0, 1, 2], ["a", "b"], r"row 2: label 2, expected 0 … 1"),
        ([1, 2, 3], None, "3 different labels between 1 and 3; number the classes 0, 1, 2, … without gaps"),
    ],
)
def test_labels_out_of_range_are_named(tmp_path: Path, labels: Any, names: Any, message: str) -> None:
    write_parquet(tmp_path / "train.parquet", noise(3), labels, names=names)
    with pytest.raises(ValueError, match=message):
        module.load(tmp_path)


def test_test_labels_are_held_against_the_classes_of_train(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", noise(2), [0, 1])
    write_parquet(tmp_path / "test.parquet", noise(2), [0, 2])
    with pytest.raises(ValueError, match=r"test\.parquet, row 1: label 2, expected 0 … 1"):
        module.load(tmp_path, "test")


def test_labels_that_are_no_integers_are_named(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the extra fgvar[data]")
    write_parquet(tmp_path / "train.parquet", noise(2), pa.array(["cat", "dog"]))
    with pytest.raises(ValueError, match="column label holds string, not integers; number the classes"):
        module.load(tmp_path)


def test_no_rows_is_an_error(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [], [])
    with pytest.raises(ValueError, match=r"\(train\): no examples; expected at least one row"):
        module.load(tmp_path)
    (tmp_path / "folder" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"\(train\): no examples"):
        module.load(tmp_path / "folder")


def test_wrong_class_folders_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"cat": noise(1), "dog": noise(1)})
    write_folder(tmp_path / "test", {"dgo": noise(1)})
    with pytest.raises(ValueError, match="test/dgo: unknown class 'dgo'; did you mean 'dog'"):
        module.load(tmp_path, "test")
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(ValueError, match="train/empty: no image in this class folder; fill or remove it"):
        module.load(tmp_path)


def test_images_that_do_not_fit_together_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "sizes", {"a": [*noise(2), *noise(1, size=(6, 9, 3))]})
    with pytest.raises(ValueError, match=r"a/2\.png: 9×6 pixels, but the first image has 6×6; give image_size=6"):
        module.load(tmp_path / "sizes")
    monkeypatch.setattr(sources, "CHUNK", 2)
    write_folder(tmp_path / "modes", {"a": [*noise(2, size=(6, 6)), *noise(1)]})
    with pytest.raises(ValueError, match=r"a/2\.png: colour \(RGB\) among grey images; convert all"):
        module.load(tmp_path / "modes")
    write_folder(tmp_path / "deep", {"a": [np.zeros((6, 6), np.uint16)]})
    with pytest.raises(ValueError, match=r"a/0\.png: pixels of mode I;16; convert the images to 8 bits"):
        module.load(tmp_path / "deep")


def test_constant_channel_cannot_be_normalised(tmp_path: Path) -> None:
    image = noise(1)[0]
    image[:, :, 1] = 9
    write_folder(tmp_path, {"a": [image]})
    with pytest.raises(ValueError, match=r"cannot normalise 3 channel.*drop a channel that is constant"):
        module.load(tmp_path)


@pytest.mark.parametrize("needed", ["pyarrow.parquet", "PIL.Image", "datasets"])
def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needed: str) -> None:
    write_parquet(tmp_path / "train.parquet", noise(1), [0])
    monkeypatch.setitem(sys.modules, needed, None)  # import then fails
    with pytest.raises(ImportError, match=rf"needs {needed}: pip install 'fgvar\[data\]'"):
        module.load("someone/something" if needed == "datasets" else tmp_path)


# ---- the hub, without a network ----------------------------------------------------------------------------


def test_hub_name_goes_through_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = pytest.importorskip("datasets", reason="needs the extra fgvar[data]")
    images = noise(3)
    (tmp_path / "0.png").write_bytes(encode(images[0]))
    contents = [{"bytes": None, "path": str(tmp_path / "0.png")}]  # how the hub's image folders arrive
    contents += [{"bytes": encode(image), "path": None} for image in images[1:]]
    features = hub.Features({"img": hub.Image(), "label": hub.ClassLabel(names=["a", "b", "c"])})
    train = hub.Dataset.from_dict({"img": contents, "label": [0, 1, 0]}, features=features)
    asked = []

    def load_dataset(name: str) -> dict[str, Any]:
        asked.append(name)
        return {"train": train}

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    loaded = module.load("someone/something")
    assert asked == ["someone/something"]
    assert (loaded.name, loaded.classes, loaded.labels.tolist()) == ("someone/something", 3, [0, 1, 0])
    np.testing.assert_array_equal(loaded.pixels, np.stack(images).transpose(0, 3, 1, 2))
    with pytest.raises(ValueError, match=r"someone/something: unknown split 'test' \(valid: train\)"):
        module.load("someone/something", "test")
    unlabelled = {"img": contents[1:], "label": [0, -1]}
    train = hub.Dataset.from_dict(unlabelled, features=features)
    with pytest.raises(ValueError, match=r"someone/something \(train\), row 1: label -1"):
        module.load("someone/something")


def test_unreachable_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub(ModuleType):
        def load_dataset(self, name: str) -> None:
            raise ConnectionError(f"no route to {name}")

    monkeypatch.setitem(sys.modules, "datasets", Hub("datasets"))
    with pytest.raises(FileNotFoundError, match=r"hub does not give it: check name and network.*no route to a/b"):
        module.load("a/b")


# ---- the real data, where it lies ------------------------------------------------------------------------


def shared(name: str) -> tuple[sources.Encoded, module.Images]:
    """The train split as it lies there (decoding it takes ten seconds), and the test split decoded."""
    pytest.importorskip("pyarrow", reason="needs the extra fgvar[data]")
    pytest.importorskip("PIL", reason="needs the extra fgvar[data]")
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs {SHARED / name}")
    return sources.local(SHARED / name)["train"](), module.load(SHARED / name, "test")


def test_mnist() -> None:
    train, test = shared("mnist")
    assert (len(train.labels), len(test), test.classes, test.image_shape) == (60_000, 10_000, 10, (1, 28, 28))
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert (test.mean, test.std) == ((0.1307,), (0.3081,)), "of the train split"
    unit = test.pixels.float() / 255
    assert unit.mean().item() == pytest.approx(0.1325, abs=1e-4)
    assert unit.std().item() == pytest.approx(0.3105, abs=1e-4)
    assert "mnist" in test.name


def test_cifar10() -> None:
    train, test = shared("cifar10")
    assert (len(train.labels), len(test), test.classes, test.image_shape) == (50_000, 10_000, 10, (3, 32, 32))
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    assert test.mean == (0.4914, 0.4822, 0.4465)
    assert test.std == (0.2023, 0.1994, 0.2010)
    some = test.pixels[::2].flatten(2).float() / 255
    np.testing.assert_allclose(some.mean((0, 2)), test.mean, atol=5e-3)
    # The field's std averages each image's own; a copy stored as JPEG is a little smoother.
    np.testing.assert_allclose(some.std(2, correction=0).mean(0), test.std, atol=5e-3)
