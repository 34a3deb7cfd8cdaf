"""Loading: every source gives the same thing, and every broken source says what is wrong and what to do."""

import dataclasses
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encode, noise, write_folder, write_parquet

from fgvar.data import images as module
from fgvar.data import sources

NUMBERS = tuple("0123456789")


@pytest.fixture(scope="module")
def digits() -> module.Images:
    return module.load("digits")


# ---- digits and the methods of Images ----------------------------------------------------------------------


def test_digits_splits_are_the_file_in_order(digits: module.Images) -> None:
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    test = module.load("digits", "test")
    assert (len(digits), len(test), digits.classes) == (1437, 360, 10)
    assert digits.pixels.dtype == torch.uint8
    assert digits.labels.dtype == torch.int64
    assert digits.image_shape == (1, 8, 8)
    np.testing.assert_array_equal(np.concatenate([digits.labels, test.labels]), labels)
    pixels = torch.cat([digits.pixels, test.pixels]).reshape(-1, 64).double().numpy()
    assert np.abs(pixels * 16 / 255 - values).max() <= 0.5 * 16 / 255  # rounding alone
    assert (test.mean, test.std) == (digits.mean, digits.std)


def test_digits_stated_mean_and_std_are_those_of_train(digits: module.Images) -> None:
    unit = digits.pixels.double() / 255
    assert digits.mean == (round(unit.mean().item(), 4),)
    assert digits.std == (round(unit.std(correction=0).item(), 4),)


def test_batch_is_normalised(digits: module.Images) -> None:
    x, y = digits.batch([3, 3, 0], dtype=torch.float64)
    assert torch.equal(y, digits.labels[[3, 3, 0]])
    torch.testing.assert_close(x, (digits.pixels[[3, 3, 0]].double() / 255 - digits.mean[0]) / digits.std[0])
    everything, _ = digits.batch(torch.arange(len(digits)))
    assert everything.dtype == torch.float32
    assert abs(everything.mean().item()) < 1e-3
    assert abs(everything.std().item() - 1) < 1e-3


def test_each_channel_has_its_own_mean_and_std() -> None:
    pixels = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
    images = module.Images(pixels, torch.tensor([0, 1]), 2, (0.1, 0.2, 0.3), (0.5, 1.0, 2.0), "tiny", "train")
    x, _ = images.batch([1, 0])
    for channel, (mean, std) in enumerate(zip(images.mean, images.std, strict=True)):
        torch.testing.assert_close(x[:, channel], (pixels[[1, 0], channel] / 255 - mean) / std)


def test_pixels_in_floating_point_have_1_for_white(digits: module.Images) -> None:
    unit = dataclasses.replace(digits, pixels=digits.pixels.double() / 255)
    indices = range(0, 40, 7)
    torch.testing.assert_close(unit.batch(indices, dtype=torch.float64), digits.batch(indices, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_batch_of_small_floats_is_rounded_once(digits: module.Images, dtype: torch.dtype) -> None:
    made, exact = (digits.batch(range(200), dtype=kind)[0] for kind in (dtype, torch.float32))
    assert torch.equal(made, exact.to(dtype))


@pytest.mark.cuda
def test_batches_are_normalised_on_the_device(digits: module.Images) -> None:
    x, y = digits.sample(8, seed=0, device="cuda")
    assert (x.device.type, y.device.type) == ("cuda", "cuda")
    torch.testing.assert_close(x.cpu(), digits.sample(8, seed=0)[0])


def test_sample_depends_on_its_seed_only(digits: module.Images) -> None:
    before = torch.random.get_rng_state()
    x, y = digits.sample(64, seed=7)
    torch.manual_seed(torch.initial_seed() + 1)
    again, _ = digits.sample(64, seed=7)
    torch.random.set_rng_state(before)
    assert torch.equal(x, again)
    assert torch.equal(digits.sample(16, seed=7)[0], x[:16])  # a prefix: more examples keep the first
    assert not torch.equal(digits.sample(64, seed=8)[1], y)
    assert torch.equal(digits.sample(len(digits), seed=0)[1].bincount(), digits.labels.bincount())  # distinct


def test_sampling_leaves_the_global_generator_alone(digits: module.Images) -> None:
    before = torch.random.get_rng_state()
    digits.sample(5, seed=0)
    list(digits.batches(500, seed=0, epoch=0))
    assert torch.equal(before, torch.random.get_rng_state())


def test_batches_visit_every_example_once_in_an_order_of_the_epoch(digits: module.Images) -> None:
    def order(epoch: int, **kind: bool) -> list[torch.Tensor]:
        numbered = replace(digits, labels=torch.arange(len(digits)))
        return [y for _, y in numbered.batches(100, seed=3, epoch=epoch, **kind)]

    assert [len(y) for y in order(0)] == [100] * 14
    whole = order(0, drop_last=False)
    assert [len(y) for y in whole] == [100] * 14 + [37]
    assert torch.equal(torch.cat(whole).sort().values, torch.arange(len(digits)))
    assert torch.equal(torch.cat(whole), torch.cat(order(0, drop_last=False)))
    assert not torch.equal(torch.cat(whole), torch.cat(order(1, drop_last=False)))
    assert [len(y) for _, y in digits.subset(range(8)).batches(4, seed=0, epoch=0)] == [4, 4]  # none dropped


def test_subset_keeps_the_normalisation(digits: module.Images) -> None:
    few = digits.subset([5, 1])
    assert (len(few), few.mean, few.classes, few.split) == (2, digits.mean, 10, "train")
    assert torch.equal(few.pixels, digits.pixels[[5, 1]])
    assert torch.equal(few.labels, digits.labels[[5, 1]])


def test_misuse_is_named(digits: module.Images) -> None:
    with pytest.raises(ValueError, match=r"digits \(train\): asked for 1438 of 1 … 1437 examples"):
        digits.sample(1438, seed=0)
    with pytest.raises(ValueError, match="asked for 0 of"):
        digits.batches(0, seed=0, epoch=0)
    with pytest.raises(TypeError, match=r"cannot be torch.int32; give a floating dtype"):
        digits.batch([0], dtype=torch.int32)
    with pytest.raises(ValueError, match="unknown split 'tset'; did you mean 'test'"):
        module.load("digits", "tset")
    with pytest.raises(ValueError, match="digits are 8×8, got image_size=16"):
        module.load("digits", image_size=16)
    with pytest.raises(ValueError, match="image_size is 0; give a positive number"):
        module.load("anything", image_size=0)
    with pytest.raises(ValueError, match=r"mean .* cannot normalise 1 channel.*one of each per channel"):
        replace(digits, mean=(0.1, 0.2))


# ---- tiny data on disk -------------------------------------------------------------------------------------


def test_parquet_shards_are_read_in_order(tmp_path: Path) -> None:
    images = noise(5)
    write_parquet(tmp_path / "train-00000-of-00002.parquet", images[:3], [0, 1, 2])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", images[3:], [2, 0])
    write_parquet(tmp_path / "validation.parquet", images[:1], [1])
    train = module.load(tmp_path)
    assert (train.name, train.split, train.classes) == (tmp_path.name, "train", 3)
    assert train.labels.tolist() == [0, 1, 2, 2, 0]
    np.testing.assert_array_equal(train.pixels, np.stack(images).transpose(0, 3, 1, 2))
    validation = module.load(str(tmp_path), "validation")
    assert (len(validation), validation.classes) == (1, 3)  # classes are those of train
    assert (validation.mean, validation.std) == (train.mean, train.std)


def test_mean_and_std_are_those_of_the_train_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(300)  # more than one chunk
    write_parquet(tmp_path / "train.parquet", images, [0, 1] * 150)
    write_parquet(tmp_path / "test.parquet", images[:2], [0, 1])
    unit = np.stack(images) / 255
    train = module.load(tmp_path)
    np.testing.assert_allclose(train.mean, unit.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(train.std, unit.std((0, 1, 2)), rtol=1e-12)
    monkeypatch.setattr(module, "STATISTICS_EXAMPLES", 100)  # every third example, whichever split is loaded
    sampled = module.load(tmp_path)
    np.testing.assert_allclose(sampled.mean, unit[::3].mean((0, 1, 2)), rtol=1e-12)
    assert (module.load(tmp_path, "test").mean, module.load(tmp_path, "test").std) == (sampled.mean, sampled.std)


@pytest.mark.parametrize("column", ["labels", "fine_label"])
def test_columns_may_have_the_other_names(tmp_path: Path, column: str) -> None:
    write_parquet(tmp_path / "train.parquet", noise(2), [1, 0], columns=["img", column])
    assert module.load(tmp_path).labels.tolist() == [1, 0]


def test_label_is_preferred_and_images_may_be_plain_bytes(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the extra fgvar[data]")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra fgvar[data]")
    image = pa.array([encode(image) for image in noise(2)])
    table = {"fine_label": [7, 8], "label": pa.array([1, 0], pa.uint8()), "image": image}
    parquet.write_table(pa.table(table), tmp_path / "train.parquet")
    assert module.load(tmp_path).labels.tolist() == [1, 0]


def test_named_classes_need_not_all_occur(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", noise(2), [0, 3], names=["a", "b", "c", "d", "e"])
    assert module.load(tmp_path).classes == 5


def test_image_folder_with_and_without_splits(tmp_path: Path) -> None:
    cats, dogs = noise(3), noise(2, seed=1)
    write_folder(tmp_path / "plain", {"dog": dogs, "cat": cats, ".hidden": []})
    write_folder(tmp_path / "splits" / "train", {"dog": dogs, "cat": cats})
    write_folder(tmp_path / "splits" / "test", {"dog": dogs})
    plain, train = module.load(tmp_path / "plain"), module.load(tmp_path / "splits")
    assert plain.labels.tolist() == train.labels.tolist() == [0, 0, 0, 1, 1]  # sorted class names
    assert torch.equal(plain.pixels, train.pixels)
    test = module.load(tmp_path / "splits", "test")
    assert test.labels.tolist() == [1, 1]  # numbered by train's folders
    assert (test.mean, test.classes) == (train.mean, 2)


def test_grey_stays_one_channel_and_colour_wins_among_the_first(tmp_path: Path) -> None:
    grey = noise(2, size=(6, 6))
    write_folder(tmp_path / "grey", {"a": grey})
    assert module.load(tmp_path / "grey").image_shape == (1, 6, 6)
    write_folder(tmp_path / "mixed", {"a": [*grey, *noise(1), *noise(1, size=(6, 6, 4))]})
    mixed = module.load(tmp_path / "mixed")
    assert mixed.image_shape == (3, 6, 6)
    np.testing.assert_array_equal(mixed.pixels[0], np.stack([grey[0]] * 3))


def test_image_size_resizes_the_shorter_side_and_crops_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 200  # the centre square
    square = np.full((16, 16), 100, np.uint8)
    write_folder(tmp_path, {"a": [wide, square], "b": noise(1, size=(200, 300))})
    images = module.load(tmp_path, image_size=4)
    assert images.image_shape == (1, 4, 4)
    assert (images.pixels[0] >= 150).all()  # only the outermost pixels feel the neighbourhood
    assert (images.pixels[0, :, :, 1:3] == 200).all()
    assert (images.pixels[1] == 100).all()


def test_large_images_decoded_by_threads_keep_their_order(tmp_path: Path) -> None:
    images = noise(40, size=(128, 128))
    write_parquet(tmp_path / "train.parquet", images, [0] * 40)
    np.testing.assert_array_equal(module.load(tmp_path).pixels[:, 0], np.stack(images))


def test_pixels_beyond_the_memory_budget_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = tmp_path / "source", tmp_path / "cache"
    write_folder(source, {"a": noise(3), "b": noise(2, seed=1)})
    in_memory = module.load(source, cache=cache)
    assert not cache.exists()
    monkeypatch.setattr(module, "_memory_budget", lambda: 5 * 6 * 6 * 3 - 1)
    mapped = module.load(source, cache=cache)
    assert torch.equal(mapped.pixels, in_memory.pixels)
    assert (mapped.mean, mapped.std) == (in_memory.mean, in_memory.std)
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    assert torch.equal(module.load(source, cache=cache).pixels, in_memory.pixels)
    assert file.stat().st_mtime_ns == written  # reused, not decoded again
    (source / "a" / "0.png").write_bytes(encode(noise(1, seed=9)[0]))
    assert not torch.equal(module.load(source, cache=cache).pixels, in_memory.pixels)
    assert len(list(cache.iterdir())) == 2  # changed sources are decoded anew; no partial file is left


def test_mapped_pixels_go_to_the_users_cache_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "source", {"a": noise(1)})
    monkeypatch.setattr(module, "_memory_budget", lambda: 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    module.load(tmp_path / "source")
    assert len(list((tmp_path / "home" / "fgvar").glob("*.npy"))) == 1


def test_a_failure_leaves_no_partial_file_and_a_full_disk_is_foreseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_memory_budget", lambda: 0)
    monkeypatch.setattr(sources, "CHUNK", 1)
    write_folder(tmp_path / "source", {"a": noise(3)})
    (tmp_path / "source" / "a" / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2\.png: not a readable image"):
        module.load(tmp_path / "source", cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 7}))
    with pytest.raises(OSError, match=r"7 bytes free, 324 needed for decoded pixels; give cache="):
        module.load(tmp_path / "source", cache=tmp_path / "cache")


def test_local_data_needs_neither_network_nor_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "train.parquet", noise(2), [0, 1])
    monkeypatch.setitem(sys.modules, "datasets", None)  # which counts downloads even of local files
    for variable in ("HOME", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    assert len(module.load(tmp_path)) == 2
    assert not (tmp_path / "home").exists()
