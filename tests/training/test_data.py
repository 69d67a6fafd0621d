"""Data: splits, order, augmentation, every kind of source, and what is wrong with bad data."""

# ruff: noqa: E501 (messages stay on one line, as the user reads them)
from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tips_nni.core import TipsError
from tips_nni.specs import DataSpec
from tips_nni.training._data import ImageData, load_data
from tips_nni.training._data_augment import crop_and_flip, seeded_globals
from tips_nni.training._data_images import fit_square, to_channels, to_square
from tips_nni.training._data_kinds import stratified_split


def arrays(
    train: int = 40, test: int = 12, shape: tuple[int, ...] = (16, 16, 3), classes: int = 4
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (train, *shape), dtype=np.uint8),
        "y_train": np.arange(train) % classes,
        "x_test": rng.integers(0, 256, (test, *shape), dtype=np.uint8),
        "y_test": np.arange(test) % classes,
    }


def save(folder: Path, **changes: np.ndarray | None) -> Path:
    values = {**arrays(), **changes}
    np.savez(folder / "data.npz", **{key: value for key, value in values.items() if value is not None})
    return folder / "data.npz"


def npz(path: Path, seed: int = 0, **keys: object) -> ImageData:
    return load_data(DataSpec(kind="npz", path=str(path), batch_size=8, **keys), seed=seed)


def folder(
    root: Path, per_class: int = 6, names: tuple[str, ...] = ("cat", "dog", "emu"), suffix: str = ".png"
) -> Path:
    rng = np.random.default_rng(1)
    for part in ("train", "val"):
        for name in names:
            (root / part / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}{suffix}")
    return root


def photos(root: Path, **keys: object) -> ImageData:
    return load_data(DataSpec(kind="folder", path=str(root), image_size=16, batch_size=4, **keys), seed=0)


def epoch(data: ImageData, number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader = data.train_loader()
    loader.sampler.set_epoch(number)
    return list(loader)


def same(one: list, other: list) -> bool:
    return len(one) == len(other) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(one, other, strict=True)
    )


# Splits and order


def test_digits() -> None:
    data = load_data(DataSpec(kind="digits"), seed=0)
    assert (data.num_classes, data.in_chans, data.image_size) == (10, 1, 32)
    assert data.class_names == tuple("0123456789")
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    parts = [set(split.indices.tolist()) for split in (data.train, data.validation, data.test)]
    assert len(set.union(*parts)) == 1797, "the three parts share no image"
    images, labels = next(iter(data.test_loader()))
    assert (images.shape, images.dtype, labels.dtype) == ((64, 1, 32, 32), torch.float32, torch.int64)


def test_the_test_set_of_digits_is_the_same_for_every_seed() -> None:
    one, other = (load_data(DataSpec(kind="digits"), seed=seed) for seed in (0, 1))
    assert np.array_equal(one.test.indices, other.test.indices)
    assert not np.array_equal(np.sort(one.validation.indices), np.sort(other.validation.indices))
    assert one.digest != other.digest
    assert load_data(DataSpec(kind="digits"), seed=0).digest == one.digest


@given(
    counts=st.lists(st.integers(2, 40), min_size=2, max_size=6),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_stratified_split(counts: list[int], share: float, seed: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    rest, part = stratified_split(labels, share, np.random.default_rng(seed), [""] * len(counts))
    assert sorted([*rest, *part]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        kept = int((labels[part] == label).sum())
        assert 1 <= kept <= count - 1
        assert abs(kept - share * count) <= 1
    again = stratified_split(labels, share, np.random.default_rng(seed), [""] * len(counts))
    assert np.array_equal(rest, again[0])
    assert np.array_equal(part, again[1])


@pytest.mark.parametrize("augment", ["none", "light", "standard"])
def test_an_epoch_is_a_function_of_seed_and_epoch(tmp_path: Path, augment: str) -> None:
    path = save(tmp_path)
    data = npz(path, augment=augment)
    first, second = epoch(data, 0), epoch(data, 1)
    random.random(), np.random.random(), torch.rand(1)  # noqa: NPY002
    assert same(epoch(npz(path, augment=augment), 1), second), "after a restart, without the epoch before"
    assert not same(first, second)
    assert not same(epoch(npz(path, augment=augment, seed=1), 0), first)


@pytest.mark.parametrize("augment", ["light", "standard"])
def test_workers_change_nothing(tmp_path: Path, augment: str) -> None:
    path = save(tmp_path)
    data = npz(path, augment=augment, workers=2)
    loader = data.train_loader()
    alone = [epoch(npz(path, augment=augment), number) for number in (0, 1)]
    for number in (0, 1):
        loader.sampler.set_epoch(number)
        assert same(list(loader), alone[number])


def test_every_image_once_per_epoch(tmp_path: Path) -> None:
    data = npz(save(tmp_path), augment="none", validation=0.2)
    loader = data.train_loader()
    positions = np.concatenate([key.positions for key in loader.sampler])
    assert sorted(positions) == list(range(len(data.train)))
    assert len(loader) == len(data.train) // 8 == 4


def test_the_incomplete_batch_is_left_out_of_training_only(tmp_path: Path) -> None:
    data = npz(save(tmp_path), validation=0.1)
    assert [len(y) for _, y in epoch(data, 0)] == [8] * (36 // 8)
    assert [len(y) for _, y in data.test_loader()] == [8, 4]
    assert [len(y) for _, y in data.validation_loader()] == [4]


def test_fewer_images_than_a_batch(tmp_path: Path) -> None:
    data = npz(save(tmp_path), limit=5)
    assert [len(y) for _, y in epoch(data, 0)] == [5]


def test_limit(tmp_path: Path) -> None:
    path = save(tmp_path)
    whole, some = npz(path), npz(path, limit=9)
    assert len(some.train) == 9
    assert set(some.train.indices) < set(whole.train.indices)
    assert np.array_equal(some.validation.indices, whole.validation.indices)
    assert len(npz(path, limit=1000).train) == len(whole.train)


@pytest.mark.parametrize("augment", ["none", "light", "standard"])
def test_several_devices_share_every_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augment: str) -> None:
    import tips_nni.training._data as module

    data = npz(save(tmp_path), augment=augment)
    alone = epoch(data, 3)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(module, "_rank_and_world", lambda rank=rank: (rank, 2))
        parts.append(epoch(data, 3))
    together = [tuple(map(torch.cat, zip(*both, strict=True))) for both in zip(*parts, strict=True)]
    assert all(len(labels) == 4 for part in parts for _, labels in part)
    assert same(together, alone)


def test_loaders_do_not_augment(tmp_path: Path) -> None:
    values = arrays()
    data = npz(save(tmp_path), augment="light")
    expected = torch.from_numpy(values["x_test"]).permute(0, 3, 1, 2).double() / 255
    expected = (expected - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None]
    images, labels = (torch.cat(parts) for parts in zip(*data.test_loader(), strict=True))
    torch.testing.assert_close(images, expected.float())
    assert labels.tolist() == values["y_test"].tolist()
    seen = torch.from_numpy(values["x_train"][data.train.indices]).permute(0, 3, 1, 2).flatten(2).double() / 255
    np.testing.assert_allclose(data.mean, seen.mean(dim=(0, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, seen.transpose(0, 1).flatten(1).std(dim=1, correction=0), rtol=1e-9)


def test_calibration_and_validation_subsets(tmp_path: Path) -> None:
    data = npz(save(tmp_path))
    calibration = list(data.calibration_loader(20))
    assert [len(y) for _, y in calibration] == [8, 8, 4]
    assert same(calibration, list(data.calibration_loader(20)))
    assert sum(len(y) for _, y in data.calibration_loader(1000)) == len(data.train)
    whole = torch.cat([x for x, _ in data.validation_loader()])
    assert torch.equal(torch.cat([x for x, _ in data.validation_loader(3)]), whole[:3])


def test_given_normalisation(tmp_path: Path) -> None:
    spec = DataSpec(kind="npz", path=str(save(tmp_path)))
    data = load_data(spec, seed=0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images, _ = next(iter(data.test_loader()))
    assert torch.equal(images[0], torch.from_numpy(arrays()["x_test"][0]).permute(2, 0, 1).float() / 255)
    with pytest.raises(TipsError, match=r"^mean has 1 values; the images have 3 channels, give one for each$"):
        load_data(spec, seed=0, mean=(0.5,))


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning's use of torch
def test_lightning_chooses_the_epoch(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    class Recorder(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.seen: list[torch.Tensor] = []

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            self.seen.append(batch[0])
            return self.layer(batch[0].mean().reshape(1)).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = npz(save(tmp_path))
    model = Recorder()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, data.train_loader())
    expected = [x for number in (0, 1) for x, _ in epoch(data, number)]
    assert len(model.seen) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(model.seen, expected, strict=True))


# Augmentation


@given(
    n=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    side=st.integers(3, 20),
    seed=st.integers(0, 999),
    flip=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_crop_and_flip_is_a_padded_shift(n: int, channels: int, side: int, seed: int, flip: bool) -> None:
    images = torch.from_numpy(np.random.default_rng(seed).integers(1, 256, (n, channels, side, side), dtype=np.uint8))
    result = crop_and_flip(images, np.random.default_rng(seed), flip)
    assert result.shape == images.shape
    assert result.dtype == images.dtype
    reach = max(1, side // 8)
    for image, found in zip(images.numpy(), result.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)))
        windows = [
            padded[:, top : top + side, left : left + side]
            for top in range(2 * reach + 1)
            for left in range(2 * reach + 1)
        ]
        candidates = windows + ([window[:, :, ::-1] for window in windows] if flip else [])
        assert any(np.array_equal(found, candidate) for candidate in candidates)


def test_crop_and_flip_uses_every_shift_and_flips_half() -> None:
    image = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8) + 1
    results = crop_and_flip(image.repeat(4000, 1, 1, 1), np.random.default_rng(0), True)
    assert len(torch.unique(results.flatten(1), dim=0)) == 3 * 3 * 2
    flipped = results[:, 0, 4, 3] > results[:, 0, 4, 4]
    assert abs(int(flipped.sum()) - 2000) < 4 * 32


@pytest.mark.parametrize(("kind", "channels", "flip", "expected"), [
    ("npz", 3, None, True), ("npz", 1, None, False), ("npz", 1, True, True), ("npz", 3, False, False),
])  # fmt: skip
def test_who_is_mirrored(tmp_path: Path, kind: str, channels: int, flip: bool | None, expected: bool) -> None:
    values = arrays(shape=(16, 16, channels))
    values["x_train"][:, :, :8] = 0  # the right half is bright
    values["x_train"][:, :, 8:] = 200
    data = npz(save(tmp_path, **values), flip=flip)
    brighter = [bool(x[0, :, 4:6].mean() > x[0, :, -6:-4].mean()) for xs, _ in epoch(data, 0) for x in xs]
    assert any(brighter) is expected


def test_augmentation_restores_the_global_generators() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(1))  # noqa: NPY002

    with seeded_globals(5):
        expected = draw()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    with seeded_globals(5):
        assert draw() == expected
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002


def test_standard_augmentation_of_grey_images(tmp_path: Path) -> None:
    data = npz(save(tmp_path, **arrays(shape=(16, 16))), augment="standard")
    images, _ = epoch(data, 0)[0]
    assert images.shape == (8, 1, 16, 16)
    assert torch.isfinite(images).all()


# Sizes and channels


def test_resize_of_arrays_and_pictures() -> None:
    assert to_square(torch.zeros(2, 3, 20, 30, dtype=torch.uint8), 16).shape == (2, 3, 16, 16)
    ramp = torch.arange(12, dtype=torch.float32).repeat(4, 1)[None, None]
    assert torch.equal(to_square(ramp, 4), ramp[..., 4:8]), "the middle is cut"
    assert fit_square(Image.new("RGB", (30, 20)), 16).size == (16, 16)
    picture = fit_square(Image.fromarray(np.arange(12, dtype=np.uint8).repeat(4).reshape(12, 4).T.copy()), 4)
    assert np.asarray(picture).tolist() == [[4, 5, 6, 7]] * 4


def test_channels() -> None:
    grey = torch.tensor([[[[7]]]], dtype=torch.uint8)
    assert to_channels(grey, 3).flatten().tolist() == [7, 7, 7]
    colour = torch.tensor([1, 2, 5], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert to_channels(colour, 1).flatten().tolist() == [3]
    with pytest.raises(TipsError, match="the images have 3 channels, the backbone wants 4; set in_chans to 3"):
        to_channels(colour, 4)


@pytest.mark.parametrize(("shape", "in_chans", "expected"), [
    ((16, 16), None, 1), ((16, 16, 1), None, 1), ((16, 16, 3), None, 3), ((16, 16, 5), None, 5),
    ((16, 16), 3, 3), ((16, 16, 3), 1, 1),
])  # fmt: skip
def test_in_chans(tmp_path: Path, shape: tuple[int, ...], in_chans: int | None, expected: int) -> None:
    spec = DataSpec(kind="npz", path=str(save(tmp_path, **arrays(shape=shape))))
    data = load_data(spec, seed=0, in_chans=in_chans)
    assert data.in_chans == expected == len(data.mean) == len(data.std)
    assert next(iter(data.train_loader()))[0].shape[1] == expected


def test_float_images(tmp_path: Path) -> None:
    values = arrays()
    x = {key: values[key].astype(np.float64) * 3 - 100 for key in ("x_train", "x_test")}
    data = npz(save(tmp_path, **x), augment="light")
    images = torch.cat([x for x, _ in data.calibration_loader(1000)])
    assert images.dtype == torch.float32
    assert abs(float(images.mean())) < 1e-4
    assert abs(float(images.std(correction=0)) - 1) < 1e-3
    with pytest.raises(
        TipsError, match=r"data.augment = standard: needs uint8 images with 1 or 3 channels, not torch.float32"
    ):
        npz(tmp_path / "data.npz", augment="standard")


def test_a_constant_channel_is_not_divided_by_zero(tmp_path: Path) -> None:
    values = arrays()
    values["x_train"][..., 1] = 9
    data = npz(save(tmp_path, **values))
    assert data.std[1] == 1.0
    assert all(torch.isfinite(x).all() for x, _ in data.train_loader())


def test_class_names_of_npz(tmp_path: Path) -> None:
    assert npz(save(tmp_path)).class_names == ("0", "1", "2", "3")
    assert npz(save(tmp_path, class_names=np.array(["a", "b", "c", "d"]))).class_names == ("a", "b", "c", "d")
    assert npz(save(tmp_path, y_train=arrays()["y_train"][:, None])).num_classes == 4


def test_digest_tells_data_apart(tmp_path: Path) -> None:
    base = npz(save(tmp_path)).digest
    assert npz(save(tmp_path)).digest == base
    values = arrays()
    values["x_train"][3, 2, 1, 0] ^= 1
    changes = [
        {"x_train": values["x_train"]},
        {"y_test": arrays()["y_test"][::-1].copy()},
        {"class_names": np.array(list("abcd"))},
    ]
    digests = [npz(save(tmp_path, **change)).digest for change in changes]
    assert len({base, *digests}) == 4


# Image folders


def test_folder(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos")
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "cat" / "notes.txt").write_text("not an image, not read")
    Image.new("L", (40, 40), 9).save(root / "train" / "cat" / "grey.png")
    data = photos(root)
    assert data.class_names == ("cat", "dog", "emu")
    assert (data.in_chans, data.image_size, len(data.test)) == (3, 16, 18)
    assert len(data.train) + len(data.validation) == 19
    first = [list(data.test_loader()) for _ in range(2)]
    assert same(*first), "the images kept in memory are the images read"
    source = Image.open(root / "val" / "cat" / "0.png")
    pixels = np.asarray(fit_square(source, 16)).astype(np.float64) / 255
    expected = (pixels - np.array(data.mean)) / np.array(data.std)
    np.testing.assert_allclose(first[0][0][0][0].permute(1, 2, 0), expected, atol=1e-6)
    assert [len(y) for _, y in epoch(photos(root, augment="standard"), 0)] == [4] * (len(data.train) // 4)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-600])


def test_a_truncated_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos")
    broken = root / "val" / "dog" / "3.png"
    truncate(broken)
    for workers in (0, 2):
        with pytest.raises(TipsError) as caught:
            list(photos(root, workers=workers).test_loader())
        assert str(caught.value).startswith(f"{broken}: cannot be read as an image (")
        assert str(caught.value).endswith("; replace or remove it")
        assert "\n" not in str(caught.value)


FOLDER_ERRORS: list[tuple[Callable[[Path], object], str]] = [
    (lambda r: (r / "train").rename(r / "training"), "@: has no folder train/; it needs train/ and val/, each with a folder per class"),
    (lambda r: (r / "val").rename(r / "test"), "@: has no folder val/; it needs train/ and val/, each with a folder per class"),
    (lambda r: (r / "val/dog").rename(r / "val/dogs"), "@/train/dog: the class 'dog' is not in val/; did you mean 'dogs'?; both need the same classes"),
    (lambda r: (r / "val/owl").mkdir(), "@/val/owl: the class 'owl' is not in train/; both need the same classes"),
    (lambda r: [p.unlink() for p in (r / "train/emu").iterdir()], "@/train/emu: the class has no images; add some (bmp, gif, jpeg, jpg, pgm, png, ppm, tif, tiff, webp) or remove the folder"),
    (lambda r: [p.unlink() for p in (r / "val/emu").iterdir()], "@/val/emu: the class has no images; add some (bmp, gif, jpeg, jpg, pgm, png, ppm, tif, tiff, webp) or remove the folder"),
    (lambda r: (r / "train/cat/1.png").write_text("no image"), "@/train/cat/1.png: cannot be read as an image (not an image); replace or remove it"),
    (lambda r: (r / "train/cat/1.png").write_bytes(b""), "@/train/cat/1.png: cannot be read as an image (not an image); replace or remove it"),
    (lambda r: [p.unlink() for p in sorted((r / "train/emu").iterdir())[1:]], "data: class 'emu' has a single training image; it needs at least 2, one to learn from and one for the search: add images or remove the class"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "expected"), FOLDER_ERRORS)
def test_bad_folder(tmp_path: Path, damage: Callable[[Path], object], expected: str) -> None:
    root = folder(tmp_path / "photos")
    damage(root)
    with pytest.raises(TipsError) as caught:
        photos(root)
    assert str(caught.value) == expected.replace("@", str(root))


@pytest.mark.parametrize(("names", "found"), [((), "no folder"), (("cat",), "one folder only")])
def test_too_few_classes(tmp_path: Path, names: tuple[str, ...], found: str) -> None:
    (tmp_path / "train").mkdir()
    folder(tmp_path, names=names) if names else None
    with pytest.raises(TipsError, match=f"train: holds {found}; it needs one for each of two or more classes$"):
        photos(tmp_path)


# .npz files

x, y = arrays()["x_train"], arrays()["y_train"]
nan = x.astype(np.float32)
nan[17, 3, 3, 0] = np.nan
NPZ_ERRORS: list[tuple[dict[str, np.ndarray | None], str]] = [
    ({"y_test": None}, "has no array y_test (found: x_train, y_train, x_test); it needs x_train, y_train, x_test, y_test"),
    ({"x_train": x.astype(object)}, "x_train holds Python objects, which are not read; save it again as a plain array of numbers"),
    ({"y_train": np.array(["a"] * 40)}, "y_train is of type <U1; labels must be integers, 0 for the first class"),
    ({"y_train": y.astype(float)}, "y_train is of type float64; labels must be integers, 0 for the first class"),
    ({"y_train": y[:39]}, "y_train has shape (39,); it must be (40,), one for every image"),
    ({"y_train": np.eye(40, dtype=int)}, "y_train has shape (40, 40); it must be (40,), one for every image"),
    ({"y_train": y - 1}, "y_train holds the label -1; the 3 classes are 0 to 2"),
    ({"y_train": y * 2}, "y_train: class 1 has no images; number the classes from 0 without gaps"),
    ({"y_train": y * 0}, "y_train: there is one class only; a classifier needs two or more"),
    ({"y_test": arrays()["y_test"] + 1}, "y_test holds the label 4; the 4 classes are 0 to 3"),
    ({"class_names": np.array(["a", "b"])}, "y_train holds the label 2; the 2 classes are 0 to 1"),
    ({"x_train": x.reshape(40, -1)}, "x_train has shape (40, 768); it must be (N, height, width) or (N, height, width, channels)"),
    ({"x_train": x[:0], "y_train": y[:0]}, "x_train has shape (0, 16, 16, 3); it must be (N, height, width) or (N, height, width, channels)"),
    ({"x_train": x.transpose(0, 3, 1, 2)}, "x_train has shape (40, 3, 16, 16); channels come last: (N, height, width, channels), so transpose it"),
    ({"x_train": x.astype(np.int64)}, "x_train is of type int64; it must be uint8 (0 to 255) or float"),
    ({"x_train": nan}, "x_train[17] holds NaN or infinite values; clean or remove the image"),
    ({"x_test": arrays()["x_test"][..., :1]}, "x_train holds uint8 images of 16x16 pixels with 3 channels and x_test uint8 images of 16x16 pixels with 1 channels; make them alike"),
    ({"x_train": x[:, :12], "x_test": arrays()["x_test"][:, :12]}, "images are 12x16 pixels, not square; add data.image_size to resize them"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), NPZ_ERRORS)
def test_bad_npz(tmp_path: Path, changes: dict[str, np.ndarray | None], expected: str) -> None:
    path = save(tmp_path, **changes)
    with pytest.raises(TipsError) as caught:
        npz(path)
    assert str(caught.value) == f"{path}: {expected}"


def test_files_that_are_not_npz(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with pytest.raises(TipsError, match=r"data\.npz: no such file; write it with numpy\.savez$"):
        npz(path)
    for content in (b"", b"text", b"PK\x03\x04", b"\x80\x04K\x01."):
        path.write_bytes(content)
        with pytest.raises(
            TipsError, match=r"data\.npz: not an \.npz file, or a damaged one; write it with numpy\.savez$"
        ):
            npz(path)
    with path.open("wb") as file:
        np.save(file, x)
    with pytest.raises(TipsError, match=r"data\.npz: holds one bare array; it needs x_train"):
        npz(path)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_damaged_npz_is_one_line_or_other_pixels(seed: int) -> None:
    import tempfile

    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        path = save(Path(name))
        content = bytearray(path.read_bytes())
        if rng.random() < 0.5:
            del content[int(rng.integers(len(content))) :]
        else:
            content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(content))
        message = ""
        try:
            npz(path)
        except TipsError as error:
            message = str(error)
        assert "\n" not in message


# torchvision


def torchvision(name: str, path: Path | None = None, **keys: object) -> ImageData:
    spec = DataSpec(kind="torchvision", name=name, path=str(path) if path else None, batch_size=8, **keys)
    return load_data(spec, seed=0)


def write_mnist(root: Path) -> tuple[np.ndarray, np.ndarray]:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4BIII", 0, 0, 8, 3, n, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, n) + labels.tobytes())
    return images, labels


def test_torchvision_with_train(tmp_path: Path) -> None:
    images, labels = write_mnist(tmp_path)
    data = torchvision("MNIST", tmp_path)
    assert (data.in_chans, data.image_size, data.num_classes) == (1, 28, 10)
    assert data.class_names[0] == "0 - zero"
    assert (len(data.train) + len(data.validation), len(data.test)) == (40, 20)
    found, targets = (torch.cat(parts) for parts in zip(*data.test_loader(), strict=True))
    torch.testing.assert_close(found[:, 0], (torch.from_numpy(images) / 255 - data.mean[0]) / data.std[0])
    assert targets.tolist() == labels.tolist()


def test_torchvision_with_split(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            (tmp_path / "imagenette2-160" / part / wnid).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (20, 24), (i, 0, 0)).save(tmp_path / "imagenette2-160" / part / wnid / f"{i}.jpeg")
    data = torchvision("Imagenette", tmp_path, args={"size": "160px"}, image_size=16)
    assert (len(data.train), len(data.validation), len(data.test), data.num_classes) == (4, 2, 6, 2)
    assert data.class_names == ("tench, Tinca tinca", "English springer, English springer spaniel")
    with pytest.raises(TipsError, match=r"images are 24x20 pixels, not square; add data.image_size to resize them$"):
        torchvision("Imagenette", tmp_path, args={"size": "160px"})


def test_torchvision_in_one_piece() -> None:
    args = {"size": 60, "image_size": [3, 16, 16], "num_classes": 3}
    data = torchvision("FakeData", args=args, augment="standard")
    parts = [set(split.indices.tolist()) for split in (data.train, data.validation, data.test)]
    assert len(set.union(*parts)) == 60
    assert abs(len(data.test) - 12) <= 2
    assert next(iter(data.train_loader()))[0].shape == (8, 3, 16, 16)


TORCHVISION_ERRORS: list[tuple[str, dict[str, object], str]] = [
    ("CIFAR1O", {}, "data.name = CIFAR1O: torchvision has no such data set; did you mean 'CIFAR10'?"),
    ("ImageFolder", {}, "data.name = ImageFolder: torchvision has no such data set"),
    ("CIFAR10", {"path": None}, "data.name = CIFAR10: needs data.path, the folder that holds the data or will"),
    ("CIFAR10", {}, "data.name = CIFAR10: torchvision cannot read it: Dataset not found or corrupted."),
    ("CIFAR10", {"args": {"trian": 1}}, "data.args.trian: not an argument of torchvision's CIFAR10; remove it"),
    ("CIFAR10", {"args": {"train": True}}, "data.args.train: not an argument of torchvision's CIFAR10; remove it"),
    ("EMNIST", {"args": {"split": "leters"}}, "data.name = EMNIST: torchvision cannot read it: Unknown value 'leters' for argument split."),
    ("Imagenette", {"args": {"size": "1px"}}, "data.name = Imagenette: torchvision cannot read it: Unknown value '1px' for argument size."),
    ("SVHN", {}, "data.name = SVHN: torchvision cannot read it: "),
    ("FakeData", {"path": None, "download": True}, "data.download: torchvision cannot download FakeData; get it yourself, set download: false"),
    ("FakeData", {"path": None, "args": {"image_size": [3]}}, "data.name = FakeData: image 0 cannot be read ("),
]  # fmt: skip


@pytest.mark.parametrize(("name", "keys", "expected"), TORCHVISION_ERRORS)
def test_bad_torchvision(tmp_path: Path, name: str, keys: dict[str, object], expected: str) -> None:
    with pytest.raises(TipsError) as caught:
        torchvision(name, **{"path": tmp_path, **keys})
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)
