"""Images from Parquet and npz: pixels to the bit, and faults by file and row."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fedexperts.data.images import pixels, read_images, size
from fedexperts.data.source import some
from fedexperts.errors import InputError
from pictures import encoded, images, npz, parquet

DATA = Path(os.environ.get("FEDEXPERTS_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def read(folder, spec, image="image", label="label"):
    return read_images(spec, folder, image, label)


def everything(found):
    return pixels(found, range(size(found)))


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("group", [False, True])
def test_encoded_images_keep_every_pixel(form, group, tmp_path):
    x, y = images(6)
    values = [{"bytes": encoded(one, form), "path": None} if group else encoded(one, form) for one in x]
    found = read(tmp_path, parquet(tmp_path / "a.parquet", values, y.tolist()))
    assert torch.equal(everything(found), torch.from_numpy(x).permute(0, 3, 1, 2))
    assert everything(found).dtype == torch.uint8
    assert found[0].labels == y.tolist()


def test_columns_can_have_other_names(tmp_path):
    x, _ = images(2)
    name = parquet(tmp_path / "a.parquet", [b"", b""], [9, 9], img=[encoded(one) for one in x], kind=["cat", "dog"])
    found = read(tmp_path, name, "img", "kind")
    assert everything(found).shape == (2, 3, 8, 8)
    assert found[0].labels == ["cat", "dog"]


@pytest.mark.parametrize("grey", [False, True])
def test_npz_holds_pixels_as_they_are(grey, tmp_path):
    x, y = images(5)
    x = x[..., 0] if grey else x
    np.savez(tmp_path / "a.npz", x=x, y=y.astype(np.uint8))
    found = read(tmp_path, "a.npz")
    wanted = x[:, None] if grey else x.transpose(0, 3, 1, 2)
    assert np.array_equal(everything(found).numpy(), wanted)
    assert found[0].labels == y.tolist()


def test_grey_and_transparent_images(tmp_path):
    x, _ = images(2)
    grey = read(tmp_path, parquet(tmp_path / "g.parquet", [encoded(one[..., 0]) for one in x], [0, 1]))
    assert torch.equal(everything(grey)[:, 0], torch.from_numpy(x[..., 0]))
    clear = np.dstack([x[0], np.full((8, 8), 255, np.uint8)])
    assert torch.equal(
        everything(read(tmp_path, parquet(tmp_path / "t.parquet", [encoded(clear)], [0])))[0],
        torch.from_numpy(x[0]).permute(2, 0, 1),
    )


def test_only_the_chosen_of_several_files_are_decoded(tmp_path):
    x, y = images(6)
    npz(tmp_path / "a-0.npz", 3)
    parquet(tmp_path / "a-1.parquet", [b"broken", *(encoded(one) for one in x[4:])], y[3:].tolist())
    found = read(tmp_path, "a-*")
    assert size(found) == 6
    assert torch.equal(pixels(found, [1, 4, 5])[1:], torch.from_numpy(x[4:]).permute(0, 3, 1, 2))
    with pytest.raises(InputError, match=r"a-1.parquet, row 1: is not an image that can be read"):
        everything(found)


def test_some_images_depend_on_the_seed_and_runs_of_them_are_disjoint():
    assert some(100, 0, 30, 1) == some(100, 0, 30, 1) != some(100, 0, 30, 2)
    assert sorted(some(100, 0, 30, 1) + some(100, 30, 70, 1)) == list(range(100))


def truncated() -> bytes:
    return encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))[:-500]


BAD_ROWS = {
    "no image": (lambda x: b"GIF?", r"a.parquet, row 2: is not an image that can be read"),
    "a truncated image": (lambda x: truncated(), r"a.parquet, row 2: is not an image .*truncated"),
    "another size": (lambda x: encoded(x[:6]), r"row 2: an image of 3 × 6 × 8 .*, but .*a.parquet, row 1 has 3 × 8 × 8"),
    "grey among colour": (lambda x: encoded(x[..., 0]), r"a.parquet, row 2: an image of 1 × 8 × 8"),
    "nothing": (lambda x: None, r"a.parquet, row 2: the image column has no value; fill it in"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_image_is_named_by_file_and_row(case, tmp_path):
    spoil, message = BAD_ROWS[case]
    x, y = images(3)
    values = [encoded(one) for one in x]
    values[1] = spoil(x[1])
    found = read(tmp_path, parquet(tmp_path / "a.parquet", values, y.tolist()))
    with pytest.raises(InputError, match=message):
        everything(found)


def test_a_group_without_bytes_or_a_column_of_numbers_is_no_image(tmp_path):
    only_path = read(tmp_path, parquet(tmp_path / "p.parquet", [{"bytes": None, "path": "a.png"}], [0]))
    with pytest.raises(InputError, match="row 1: the image column holds no bytes"):
        everything(only_path)
    with pytest.raises(InputError, match="row 1: the image column holds a int"):
        everything(read(tmp_path, parquet(tmp_path / "n.parquet", [3], [0])))


X, Y = images(3)
BAD_NPZ = {
    "no labels": ({"x": X}, r"there is no array 'y'"),
    "other numbers": ({"x": X / 255, "y": Y}, r"x is float64 \[3, 8, 8, 3\]; it must be uint8"),
    "four channels": ({"x": X[..., [0, 1, 2, 0]], "y": Y}, r"x is uint8 \[3, 8, 8, 4\]"),
    "too few labels": ({"x": X, "y": Y[:2]}, r"y has shape \[2\] beside 3 images"),
    "no images": ({"x": X[:0], "y": Y[:0]}, r"holds no images"),
    "pickled": ({"x": np.array([{}, {}, {}]), "y": Y}, r"x holds Python objects, which only a pickle can"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_NPZ)
def test_a_bad_npz_is_told(case, tmp_path):
    arrays, message = BAD_NPZ[case]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read(tmp_path, "a.npz")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 no zip")
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, X)
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    (tmp_path / "a.png").write_bytes(encoded(X[0]))
    parquet(tmp_path / "b.parquet", [encoded(X[0])], [None])
    for spec, message in (
        ("a.npz", r"a.npz': cannot be read as .npz"),
        ("array.npz", r"array.npz': cannot be read as .npz"),
        ("none.npz", r"none.npz': cannot be read \(No such file"),
        ("a.parquet", r"a.parquet': is damaged or not Parquet"),
        ("none.parquet", r"none.parquet': cannot be read \(.*No such file"),
        ("a.png", r"a.png': of unknown kind; images must come from .parquet or .npz"),
        ("b.parquet", r"b.parquet, row 1: column 'label' has no value"),
    ):
        with pytest.raises(InputError, match=message):
            read(tmp_path, spec)
    with pytest.raises(InputError, match=r"there is no column 'photo'; the columns are 'image', 'label'"):
        read(tmp_path, "b.parquet", image="photo")


def real(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"no {name} in $FEDEXPERTS_DATA (or ../shared/data)")
    return DATA


def test_cifar10_has_the_published_mean_and_is_balanced():
    found = read(real("cifar10/test.parquet"), "cifar10/test.parquet")
    x = pixels(found, range(1000)).double() / 255
    assert x.shape == (1000, 3, 32, 32)
    assert x.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.02)
    assert np.bincount(found[0].labels).tolist() == [800] * 10


def test_fashion_mnist_has_the_published_mean():
    found = read(real("fashion_mnist/test.npz"), "fashion_mnist/test.npz")
    x = everything(found).double() / 255
    assert x.shape == (8000, 1, 28, 28)
    assert float(x.mean()) == pytest.approx(0.2860, abs=0.003)
