import argparse
import contextlib
import errno
import hashlib
import io
import logging
import math
import os
import shutil
import unicodedata
import zipfile
from collections import namedtuple
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import stages.download
from lesionseg.data import weights as weights_module
from lesionseg.data.manifest import COLUMNS, read_manifest
from lesionseg.data.weights import write_encoder
from lesionseg.errors import (
    DataError,
    DiskSpaceError,
    MissingFileError,
)
from lesionseg.files import sha256
from lesionseg.mobilenet import mobilenet_v2
from tests.raw_data import (
    IMAGE,
    MASK,
    begin_project,
    download,
    image_bytes,
    mask_bytes,
    raw_files,
    refused,
)

REPOSITORY = Path(__file__).resolve().parents[1]
IDS = {"train": ("ISIC_0000000", "ISIC_0000001"), "test": ("ISIC_0000003",)}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(name="project")
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, the working directory; `source/` holds good images and masks."""
    project = begin_project(tmp_path / "project")
    for split, ids in IDS.items():
        for kind in ("images", "masks"):
            (project / "source" / split / kind).mkdir(parents=True)
        for name in ids:
            (project / "source" / split / "images" / f"{name}.jpg").write_bytes(IMAGE)
            (project / "source" / split / "masks" / f"{name}_Segmentation.png").write_bytes(MASK)
    monkeypatch.chdir(project)
    monkeypatch.setenv("DVC_ROOT", str(project))
    return project


# Source: folder


def test_a_folder_becomes_raw_data(project: Path) -> None:
    download()
    assert raw_files() == {
        "data/raw/encoder.pth",
        "data/raw/manifest.csv",
        "data/raw/test/images/ISIC_0000003.jpg",
        "data/raw/test/masks/ISIC_0000003.png",
        "data/raw/train/images/ISIC_0000000.jpg",
        "data/raw/train/images/ISIC_0000001.jpg",
        "data/raw/train/masks/ISIC_0000000.png",
        "data/raw/train/masks/ISIC_0000001.png",
    }
    assert Path("data/raw/train/images/ISIC_0000000.jpg").read_bytes() == IMAGE
    assert Path("data/raw/train/masks/ISIC_0000000.png").read_bytes() == MASK


def test_the_stage_leaves_no_staging_folder(project: Path) -> None:
    download()
    assert [path.name for path in Path("data").iterdir()] == ["raw"]


def test_the_stage_ends_with_a_line_for_each_split(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (project / "source/train/images/b.jpg").write_bytes(image_bytes(size=(20, 8)))
    (project / "source/train/masks/b.png").write_bytes(mask_bytes(20, size=(20, 8)))
    (project / "source/train/images/c.jpg").write_bytes(IMAGE)
    (project / "source/train/masks/c.png").write_bytes(mask_bytes(0))
    with caplog.at_level(logging.INFO):
        download()
    assert caplog.messages == [
        "data/raw/train: 4 images of 8 x 12-20 pixels (height x width); masks: 37.5 % lesion on "
        "average, 1 empty, 1 full",
        "data/raw/test: 1 images of 8 x 12 pixels (height x width); masks: 25.0 % lesion on "
        "average, 0 empty, 0 full",
    ]


def test_a_second_run_replaces_the_first(project: Path) -> None:
    download()
    for path in (project / "source/train").glob("*/ISIC_0000001*"):
        path.unlink()
    download()
    assert len(raw_files()) == 6
    assert [row.id for row in read_manifest(Path("data/raw"))] == ["ISIC_0000003", "ISIC_0000000"]


def test_what_a_killed_run_has_left_is_cleared_away(project: Path) -> None:
    leftover = project / "data/.raw.part/train/images/ISIC_9999999.jpg"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(IMAGE)
    download()
    assert "data/raw/train/images/ISIC_9999999.jpg" not in raw_files()


def test_a_failed_run_leaves_the_data_of_the_last_good_one(project: Path) -> None:
    download()
    before = raw_files()
    with pytest.raises(MissingFileError):
        download(folder="nowhere")
    assert raw_files() == before


def test_the_copies_are_no_links_to_the_users_files(project: Path) -> None:
    source = project / "source/train/images/ISIC_0000000.jpg"
    elsewhere = source.rename(project / "elsewhere.jpg")
    source.symlink_to(elsewhere)
    download()
    copied = Path("data/raw/train/images/ISIC_0000000.jpg")
    assert not copied.is_symlink()
    assert copied.stat().st_nlink == 1


def test_a_relative_folder_starts_at_the_original_repository(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tmp_path / "workspace"  # as `dvc exp run --temp` makes one
    workspace.mkdir()
    monkeypatch.chdir(workspace)
    download()
    assert (workspace / "data/raw/manifest.csv").exists()
    assert not (project / "data").exists()


def test_endings_may_be_of_any_case_and_masks_without_suffix(project: Path) -> None:
    images, masks = project / "source/train/images", project / "source/train/masks"
    (images / "b.PNG").write_bytes(image_bytes(kind="PNG"))
    (masks / "b.PNG").write_bytes(MASK)
    (images / "c.JPEG").write_bytes(IMAGE)
    (masks / "c_SEGMENTATION.Png").write_bytes(MASK)
    download()
    assert {
        "data/raw/train/images/b.png",
        "data/raw/train/masks/b.png",
        "data/raw/train/images/c.jpeg",
        "data/raw/train/masks/c.png",
    } <= raw_files()


def test_a_jpeg_mask_becomes_a_grey_png(project: Path) -> None:
    mask_path = project / "source/test/masks/ISIC_0000003_Segmentation.png"
    mask_path.unlink()
    mask_path.with_suffix(".jpg").write_bytes(mask_bytes(8, "JPEG"))
    download()
    with Image.open("data/raw/test/masks/ISIC_0000003.png") as mask:
        assert (mask.format, mask.mode, mask.size) == ("PNG", "L", (12, 8))


def test_masks_of_any_meaning_become_black_and_white_and_a_line_says_how(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    masks = project / "source/train/masks"
    lesion = np.zeros((8, 12), np.uint8)
    lesion[2:5, 3:9] = 1
    Image.fromarray(lesion).save(masks / "ISIC_0000000_Segmentation.png")  # 0 and 1
    layers = np.dstack([np.full((8, 12, 3), 255, np.uint8), lesion * np.uint8(255)])
    Image.fromarray(layers).save(masks / "ISIC_0000001_Segmentation.png")  # in the alpha channel
    with caplog.at_level("INFO"):
        download()
    for name in IDS["train"]:
        with Image.open(f"data/raw/train/masks/{name}.png") as written:
            assert written.mode == "L"
            np.testing.assert_array_equal(np.array(written), lesion * 255)
    assert "train: in 1 of 2 masks 0 is skin and 1 is lesion" in caplog.messages
    assert "train: in 1 of 2 masks what is not transparent is lesion" in caplog.messages
    assert not any("test: in" in message for message in caplog.messages)


def test_a_turned_mask_lies_as_its_turned_image_does(project: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lesion = np.zeros((8, 12), np.uint8)
    lesion[1:4, 1:7] = 255
    source = project / "source/test"
    Image.new("RGB", (12, 8)).save(source / "images/ISIC_0000003.jpg", exif=exif)
    (source / "masks/ISIC_0000003_Segmentation.png").unlink()
    mask_path = source / "masks/ISIC_0000003.jpg"
    Image.fromarray(lesion).resize((96, 64), 0).save(mask_path, quality=95, exif=exif)
    Image.new("RGB", (96, 64)).save(source / "images/ISIC_0000003.jpg", exif=exif)
    download()
    with Image.open("data/raw/test/masks/ISIC_0000003.png") as written:
        assert written.getexif().get(0x0112) is None
        small = np.array(written.resize((8, 12), 0))
    np.testing.assert_array_equal(small, np.rot90(lesion, -1))


def test_hidden_files_are_no_images(project: Path) -> None:
    (project / "source/train/images/.DS_Store").write_bytes(b"")
    download()
    assert len(raw_files()) == 8


def test_a_missing_layout_folder_is_named(project: Path) -> None:
    shutil.rmtree(project / "source/test/masks")
    with refused(MissingFileError, "source/test/masks is missing", "Make it, or write another"):
        download()


def test_without_a_test_folder_a_share_becomes_test(project: Path) -> None:
    shutil.rmtree(project / "source/test")
    download(test_fraction=0.5)
    rows = read_manifest(Path("data/raw"))
    assert [row.split for row in rows] == ["test", "train"]
    assert sorted(row.id for row in rows) == list(IDS["train"])


def test_groups_and_folds_are_in_the_manifest(project: Path) -> None:
    (project / "source/images.csv").write_text(
        "image,mask,split,group,fold\n"
        "train/images/ISIC_0000000.jpg,train/masks/ISIC_0000000_Segmentation.png,train,P1,2\n"
        "test/images/ISIC_0000003.jpg,test/masks/ISIC_0000003_Segmentation.png,test,P2,\n"
    )
    download()
    rows = read_manifest(Path("data/raw"))
    assert [(row.id, row.split, row.group, row.fold) for row in rows] == [
        ("ISIC_0000003", "test", "P2", ""),
        ("ISIC_0000000", "train", "P1", "2"),
    ]


def test_an_empty_folder_is_refused(project: Path) -> None:
    for path in (project / "source/test/images").iterdir():
        path.unlink()
    with refused(DataError, "source/test/images is empty", "Put .jpg or .jpeg or .png or"):
        download()


def test_images_without_masks_are_counted_and_named(project: Path) -> None:
    for number in range(5):
        (project / f"source/train/images/x{number}.jpg").write_bytes(IMAGE)
    with refused(
        DataError,
        "source/train has 7 images and 2 masks; no mask for x0, x1, x2 and 2 more",
        "Add masks/x0.png",
        "dvc repro -sf download && dvc repro",
    ):
        download()


def test_a_mask_without_image_is_named(project: Path) -> None:
    (project / "source/train/images/ISIC_0000001.jpg").unlink()
    with refused(
        DataError,
        "no image for ISIC_0000001_Segmentation.png",
        "dvc repro -sf download && dvc repro",
    ):
        download()


def test_two_images_of_one_id_are_refused(project: Path) -> None:
    (project / "source/train/images/ISIC_0000001.png").write_bytes(IMAGE)
    with refused(DataError, "two files for ISIC_0000001", "ISIC_0000001.png", "Keep one"):
        download()


def test_two_masks_of_one_id_are_refused(project: Path) -> None:
    (project / "source/train/masks/ISIC_0000001.png").write_bytes(MASK)
    with refused(DataError, "two files for ISIC_0000001", "Keep one"):
        download()


def test_a_file_that_is_no_image_by_name_is_refused(project: Path) -> None:
    (project / "source/train/images/labels.csv").write_bytes(b"")
    with refused(
        DataError,
        "images only (.jpg, .jpeg, .png, .bmp, .tif, .tiff, .webp), got labels.csv",
        "take out",
    ):
        download()


def test_an_unreadable_jpeg_mask_is_refused(project: Path) -> None:
    mask_path = project / "source/test/masks/ISIC_0000003_Segmentation.png"
    mask_path.unlink()
    mask_path.with_suffix(".jpg").write_bytes(IMAGE[: len(IMAGE) // 2])
    with refused(DataError, "ISIC_0000003_Segmentation.jpg cannot be read as an image", "Replace"):
        download()


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_are_the_same_in_both_unicode_forms_and_ids_are_in_nfc(
    project: Path, forms: tuple[str, str]
) -> None:
    name = "l\u00e9sion"
    image_name, mask_name = (unicodedata.normalize(form, name) for form in forms)
    (project / f"source/train/images/{image_name}.jpg").write_bytes(IMAGE)
    (project / f"source/train/masks/{mask_name}_segmentation.png").write_bytes(MASK)
    download()
    assert read_manifest(Path("data/raw"))[-1].id == name
    assert {f"data/raw/train/images/{name}.jpg", f"data/raw/train/masks/{name}.png"} <= raw_files()


def test_two_files_that_look_the_same_are_told_apart(project: Path) -> None:
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, "\u00e9")
        (project / f"source/train/images/{name}.jpg").write_bytes(IMAGE)
    with refused(DataError, "two files for \u00e9: 'e\\u0301.jpg' and '\\xe9.jpg'. Keep one"):
        download()


def test_two_endings_that_differ_in_case_only_are_two_files_of_one_id(project: Path) -> None:
    (project / "source/train/images/ISIC_0000001.JPG").write_bytes(IMAGE)
    with refused(DataError, "two files for ISIC_0000001: ISIC_0000001.JPG and ISIC_0000001.jpg"):
        download()


def test_ids_may_differ_in_case_only(project: Path) -> None:
    (project / "source/train/images/isic_0000001.jpg").write_bytes(IMAGE)
    (project / "source/train/masks/isic_0000001.png").write_bytes(MASK)
    download()
    rows = read_manifest(Path("data/raw"))
    assert [row.id for row in rows][1:] == ["ISIC_0000000", "ISIC_0000001", "isic_0000001"]


def test_an_image_whose_own_name_ends_like_a_mask_s_finds_its_mask(project: Path) -> None:
    (project / "source/train/images/a_segmentation.jpg").write_bytes(IMAGE)
    (project / "source/train/masks/a_segmentation.png").write_bytes(MASK)
    download()
    assert read_manifest(Path("data/raw"))[-1].id == "a_segmentation"


@pytest.mark.parametrize(
    ("name", "shown"), [(b"l\xe9sion.jpg", "l\\xe9sion.jpg"), (b"a\nb\r.jpg", "a\\nb\\r.jpg")]
)
def test_a_name_that_is_no_text_is_shown_with_escapes_before_anything_is_copied(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: bytes, shown: str
) -> None:
    monkeypatch.setattr(shutil, "copyfile", None)
    (project / "source/test/images" / os.fsdecode(name)).write_bytes(IMAGE)
    with refused(DataError, f"source/test/images has a file called {shown}: ", "UTF-8", "Rename"):
        download()


@pytest.mark.parametrize("letter", ["a", "\u00e9"])
def test_a_name_too_long_for_its_predicted_mask_is_refused_before_anything_is_copied(
    project: Path, monkeypatch: pytest.MonkeyPatch, letter: str
) -> None:
    fits = letter * (238 // len(letter.encode()))
    (project / f"source/test/images/{fits}.jpg").write_bytes(IMAGE)
    (project / f"source/test/masks/{fits}_Segmentation.png").write_bytes(MASK)
    download()
    assert len(read_manifest(Path("data/raw"))) == 4
    shutil.rmtree("data")
    monkeypatch.setattr(shutil, "copyfile", None)
    (project / f"source/test/images/{fits}b.jpg").write_bytes(IMAGE)
    (project / f"source/test/masks/{fits}b.png").write_bytes(MASK)
    with refused(DataError, f"{fits}b.jpg has too long a name", "255 bytes, got 256", "Shorten"):
        download()


def test_what_stands_alone_is_named_on_both_sides_with_the_endings_that_would_do(
    project: Path,
) -> None:
    mask = project / "source/test/masks/ISIC_0000003_Segmentation.png"
    mask.rename(mask.with_name("ISIC_0000003-mask.png"))
    with refused(
        DataError,
        "no mask for ISIC_0000003; no image for ISIC_0000003-mask.png",
        "image's name, or that with _segmentation or _mask behind it or mask_ before it, in any "
        "case; both end in .jpg, .jpeg, .png, .bmp, .tif, .tiff, .webp",
        "Add masks/ISIC_0000003.png or take out",
    ):
        download()


def make_broken_link(path: Path) -> None:
    path.symlink_to("nowhere.jpg")


@pytest.mark.parametrize(
    ("make", "what"),
    [(make_broken_link, "a broken link"), (Path.mkdir, "a folder"), (os.mkfifo, "no regular file")],
)
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_what_is_no_file_is_named_before_anything_is_copied(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
    what: str,
    kind: str,
) -> None:
    monkeypatch.setattr(shutil, "copyfile", None)
    path = project / "source/test" / kind / "x.jpg"
    make(path)
    with refused(DataError, f"{path} must be an image file, it is {what}", "Replace it"):
        download()


def test_a_file_that_may_not_be_read_is_named_before_anything_is_copied(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / "source/test/images/ISIC_0000003.jpg"
    whole = Path.open

    def guarded(self: Path, *args: Any, **options: Any) -> Any:  # root may read everything
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return whole(self, *args, **options)

    monkeypatch.setattr(Path, "open", guarded)
    monkeypatch.setattr(shutil, "copyfile", None)
    with refused(DataError, f"{path} cannot be opened (Permission denied)", "Mend it"):
        download()


def lesion_bytes(mask: bool) -> bytes:
    """A photograph of a lesion, or the mask of it, as PNG."""
    pixels = np.random.default_rng(0).normal([200, 160, 140], 6, (64, 64, 3))
    pixels[16:48, 16:48] -= 90
    stream = io.BytesIO()
    shown = 255 * (pixels[..., 0] < 160) if mask else pixels
    Image.fromarray(shown.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("exchanged", ["images", "both", "none"])
def test_images_that_look_like_masks_draw_a_warning(
    project: Path, caplog: pytest.LogCaptureFixture, exchanged: str
) -> None:
    for path in (project / "source/train").glob("*/*"):
        path.unlink()
    for number in range(7):
        for kind in ("images", "masks"):
            content = lesion_bytes((kind == "masks") ^ (exchanged in (kind, "both")))
            (project / f"source/train/{kind}/{number}.png").write_bytes(content)
    refusal = pytest.raises(DataError, match="looks like a photograph")
    with refusal if exchanged == "both" else contextlib.nullcontext():
        download()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    said = [text for text in warnings if "exchanged" in text]
    assert len(said) == (exchanged != "none")
    for text in said:
        assert text.startswith(f"WARNING: {project}/source/train/images: the files look like masks")
        assert "\n" not in text


def test_a_grey_photograph_is_no_mask_and_an_unreadable_one_no_traceback(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = Image.open(io.BytesIO(lesion_bytes(mask=False))).convert("L")
    image.save(project / "source/test/images/ISIC_0000003.jpg")
    mask_path = project / "source/test/masks/ISIC_0000003_Segmentation.png"
    mask_path.write_bytes(lesion_bytes(mask=True))
    (project / "source/train/images/ISIC_0000000.jpg").write_bytes(b"not an image")
    with refused(DataError, "train/images/ISIC_0000000.jpg is not a readable JPEG"):
        download()
    assert "exchanged" not in caplog.text


# Manifest


def test_the_manifest_has_a_row_for_each_image(project: Path) -> None:
    download()
    rows = read_manifest(Path("data/raw"))
    assert [(row.split, row.id) for row in rows] == [
        ("test", "ISIC_0000003"),
        ("train", "ISIC_0000000"),
        ("train", "ISIC_0000001"),
    ]
    assert (rows[0].height, rows[0].width) == (8, 12)
    assert rows[0].image_path == "test/images/ISIC_0000003.jpg"
    assert rows[0].image_sha256 == hashlib.sha256(IMAGE).hexdigest()
    assert rows[0].mask_path == "test/masks/ISIC_0000003.png"
    assert rows[0].mask_sha256 == hashlib.sha256(MASK).hexdigest()


def test_two_runs_write_the_same_manifest(project: Path) -> None:
    download()
    first = sha256(Path("data/raw/manifest.csv"))
    download()
    assert sha256(Path("data/raw/manifest.csv")) == first


def test_a_mask_of_another_size_is_refused(project: Path) -> None:
    mask_path = project / "source/train/masks/ISIC_0000001_Segmentation.png"
    mask_path.write_bytes(mask_bytes(3, size=(11, 8)))
    with refused(
        DataError,
        "mask of ISIC_0000001 must be 8 x 12 pixels",
        "got 8 x 11",
        "dvc repro -sf download && dvc repro",
    ):
        download()


def test_sizes_are_those_of_the_turned_image(project: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image_path = project / "source/test/images/ISIC_0000003.jpg"
    image_path.write_bytes(image_bytes(size=(8, 12), exif=exif))
    download()
    row = read_manifest(Path("data/raw"))[0]
    assert (row.height, row.width) == (8, 12)


def test_an_unreadable_image_is_named(project: Path) -> None:
    (project / "source/train/images/ISIC_0000001.jpg").write_bytes(b"not an image")
    with refused(
        DataError,
        "train/images/ISIC_0000001.jpg is not a readable JPEG or PNG",
        "dvc repro -sf download && dvc repro",
    ):
        download()


def test_an_image_of_too_many_pixels_is_named_with_their_number(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "source/train/images/ISIC_0000001.jpg").write_bytes(image_bytes(size=(3000, 2000)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_900_000)
    with refused(
        DataError,
        "train/images/ISIC_0000001.jpg is too large: 6.0 megapixels, more than",
        "dvc repro -sf download && dvc repro",
    ):
        download()


def test_a_truncated_png_is_named(project: Path) -> None:
    (project / "source/train/images/ISIC_0000001.jpg").unlink()
    content = image_bytes(size=(12, 8), kind="PNG")
    (project / "source/train/images/ISIC_0000001.png").write_bytes(content[:50])
    with refused(DataError, "train/images/ISIC_0000001.png is not a readable JPEG or PNG"):
        download()


def test_a_missing_manifest_says_which_stage_makes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"manifest\.csv is missing\. Run: dvc repro down"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "id,split\n",
        "id,split\nISIC_0000000,train\n",
        ",".join(COLUMNS) + "\nISIC_0000000,train,high,wide,a,b,c,d\n",
        ",".join(COLUMNS) + "\nISIC_0000000,train,8,12\n",
        ",".join(COLUMNS) + "\nISIC_0000000,valid,8,12,a,b,c,d\n",
        ",".join(COLUMNS) + "\nISIC_0000000,train,8,12,a,b,c,d,e\n",
        "\0\xff",
    ],
)
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.csv").write_text(text, encoding="latin-1")
    with pytest.raises(
        DataError, match=r"manifest\.csv .*Run: dvc repro -sf download && dvc repro$"
    ):
        read_manifest(tmp_path)


def test_a_folder_that_does_not_fit_on_the_disk_is_not_copied(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 100))
    with refused(DiskSpaceError, "0.0 MB are free", "Make room"):
        download()


# Source: phantom


def test_phantoms_become_raw_data(project: Path) -> None:
    download("phantom", phantom_num_train=3, phantom_num_test=2, phantom_size=32)
    rows = read_manifest(Path("data/raw"))
    assert [row.split for row in rows] == ["test"] * 2 + ["train"] * 3
    assert {(row.height, row.width) for row in rows} == {(32, 32)}


# The encoder's weights


@pytest.fixture(name="state", scope="module")
def _state() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return dict(mobilenet_v2(weights=None).state_dict())


def load(path: Path) -> dict[str, torch.Tensor]:
    loaded = torch.load(path, weights_only=True)
    assert isinstance(loaded, dict)
    return loaded


def test_random_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(1)
        write_encoder(tmp_path / name, weights="none", seed=seed, archives_dir=tmp_path)
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")
    assert sha256(tmp_path / "a") != sha256(tmp_path / "c")


def test_random_weights_leave_the_global_random_state_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    write_encoder(tmp_path / "encoder.pth", weights="none", seed=0, archives_dir=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_encoder_loads_into_the_features_of_mobilenet_v2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, torch.Tensor]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    torch.save(state, tmp_path / "mine.pth")
    write_encoder(tmp_path / "encoder.pth", weights="mine.pth", seed=0, archives_dir=tmp_path)
    loaded = load(tmp_path / "encoder.pth")
    mobilenet_v2(weights=None).features.load_state_dict(loaded, strict=True)
    for name, tensor in loaded.items():
        assert torch.equal(tensor, state[f"features.{name}"])


def test_the_same_weights_give_the_same_bytes_from_any_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, torch.Tensor]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    torch.save(state, tmp_path / "a.pth")
    double = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in reversed(state.items())
    }
    torch.save(double, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    for name in "ab":
        write_encoder(tmp_path / name, weights=f"{name}.pth", seed=0, archives_dir=tmp_path)
    write_encoder(tmp_path / "c", weights="none", seed=7, archives_dir=tmp_path)
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b") == sha256(tmp_path / "c")


def test_imagenet_weights_are_fetched_into_the_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, torch.Tensor]
) -> None:
    def fetch(urls: list[str], path: Path, *, sha256_prefix: str) -> None:
        assert urls == ["https://download.pytorch.org/models/mobilenet_v2-7ebf99e0.pth"]
        assert path == tmp_path / "archives/mobilenet_v2-7ebf99e0.pth"
        assert sha256_prefix == "7ebf99e0"
        path.parent.mkdir()
        torch.save(state, path)

    monkeypatch.setattr(weights_module, "fetch", fetch)
    archives_dir = tmp_path / "archives"
    write_encoder(tmp_path / "e.pth", weights="imagenet", seed=0, archives_dir=archives_dir)
    assert len(load(tmp_path / "e.pth")) == 312


def test_an_unknown_weights_file_is_named(project: Path) -> None:
    with refused(MissingFileError, f"{project}/mine.pth is missing", "Write imagenet, none or"):
        download(weights="mine.pth")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"\x80\x02."])
def test_a_weights_file_of_something_else_is_refused(project: Path, content: bytes) -> None:
    Path("mine.pth").write_bytes(content)
    with refused(DataError, "mine.pth is damaged or no file of weights", "Write imagenet"):
        download(weights="mine.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_weights_file_is_refused(
    project: Path, state: dict[str, torch.Tensor], zipped: bool
) -> None:
    torch.save(state, "mine.pth", _use_new_zipfile_serialization=zipped)
    Path("mine.pth").write_bytes(Path("mine.pth").read_bytes()[:5_000_000])
    with refused(DataError, "mine.pth is damaged", "Write imagenet"):
        download(weights="mine.pth")


def test_a_weights_file_that_would_run_code_is_refused(project: Path) -> None:
    torch.save({"features.0.0.weight": Path}, "mine.pth")
    with refused(DataError, "mine.pth is damaged or no file of weights"):
        download(weights="mine.pth")


@pytest.mark.parametrize("content", [torch.zeros(1), [1], {1: 2}])
def test_weights_that_are_no_state_dict_are_refused(project: Path, content: Any) -> None:
    torch.save(content, "mine.pth")
    with refused(DataError, "mine.pth must hold a state dict", "Write imagenet"):
        download(weights="mine.pth")


def test_a_missing_tensor_is_named(project: Path, state: dict[str, torch.Tensor]) -> None:
    key = "features.3.conv.1.1.running_mean"
    torch.save({name: value for name, value in state.items() if name != key}, "mine.pth")
    with refused(DataError, f"mine.pth has no tensor {key}", "Write imagenet"):
        download(weights="mine.pth")


def test_a_tensor_of_another_shape_is_named(project: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state | {"features.0.0.weight": torch.zeros(16, 3, 3, 3)}, "mine.pth")
    with refused(
        DataError,
        "features.0.0.weight of shape (32, 3, 3, 3), got (16, 3, 3, 3)",
        "Write imagenet",
    ):
        download(weights="mine.pth")


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_tensor_that_is_not_finite_is_named(
    project: Path, state: dict[str, torch.Tensor], value: float
) -> None:
    key = "features.3.conv.1.1.running_mean"
    torch.save(state | {key: state[key] + value}, "mine.pth")
    with refused(DataError, f"values that are not finite in {key}", "Write imagenet"):
        download(weights="mine.pth")


def test_a_tensor_that_mobilenet_v2_does_not_have_is_named(
    project: Path, state: dict[str, torch.Tensor]
) -> None:
    torch.save(state | {"features.19.0.weight": torch.zeros(1)}, "mine.pth")
    with refused(DataError, "unknown key features.19.0.weight", "Write imagenet"):
        download(weights="mine.pth")


def narrow_state() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = mobilenet_v2(weights=None, width_mult=0.5).state_dict()
    return {name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}


def with_prefix(prefix: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder's part of a state dict under another prefix, beside tensors of other parts."""
    encoder = {
        prefix + name.removeprefix("features."): tensor
        for name, tensor in state.items()
        if name.startswith("features.")
    }
    return {"decoder.0.0.weight": torch.zeros(2), **encoder, "head.1.bias": torch.zeros(1)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}},
        lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
        lambda state: {"model_state_dict": state, "model": "mobilenet_v2"},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: with_prefix("", state),
        lambda state: with_prefix("encoder.", state),
        lambda state: with_prefix("encoder.features.", state),
        lambda state: {"state_dict": with_prefix("module.model.backbone.features.", state)},
        lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    ],
)
def test_any_usual_wrapping_of_a_state_dict_gives_the_same_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, torch.Tensor], wrap: Any
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    torch.save(wrap(state), tmp_path / "mine.pth")
    write_encoder(tmp_path / "a", weights="mine.pth", seed=0, archives_dir=tmp_path)
    found = load(tmp_path / "a")
    assert len(found) == 312
    for name, tensor in found.items():
        assert torch.equal(tensor, state[f"features.{name}"]), name


ACCEPTED = (
    "Write imagenet, none or the path of a state dict of torchvision's mobilenet_v2 at width 1.0, "
    "saved by torch.save, for download.weights in params.yaml; it may lie under state_dict, "
    "model_state_dict, model, and its names may have a prefix such as module., encoder. or "
    "features."
)


def a_zip(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(8), "is an HDF5 file, as Keras writes them"),
        (a_zip("metadata.json", "config.json", "model.weights.h5"), "is a Keras file"),
        (a_zip("mine/data.pkl", "mine/constants.pkl"), "is a TorchScript model"),
        (b"\x1c\0\0\0TFL3" + bytes(8), "is a file of TensorFlow Lite"),
        (b'\x18\0\0\0\0\0\0\0{"a":{}}' + bytes(16), "is a safetensors file"),
    ],
)
def test_files_of_other_frameworks_are_refused_with_what_is_accepted(
    project: Path, content: bytes, what: str
) -> None:
    Path("mine.h5").write_bytes(content)
    with refused(DataError, f"mine.h5 {what}. {ACCEPTED}"):
        download(weights="mine.h5")


def test_a_folder_of_weights_is_refused(project: Path) -> None:
    (project / "saved_model").mkdir()
    with refused(DataError, "saved_model is a folder, as a SavedModel of TensorFlow", ACCEPTED):
        download(weights="saved_model")


def test_another_width_is_refused_with_what_is_accepted(project: Path) -> None:
    torch.save(narrow_state(), "mine.pth")
    with refused(
        DataError,
        "must have features.0.0.weight of shape (32, 3, 3, 3), got (16, 3, 3, 3): another width",
        ACCEPTED,
    ):
        download(weights="mine.pth")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({}, "has no tensor of torchvision's mobilenet_v2."),
        ({"layer1.0.conv1.weight": torch.zeros(1)}, "has no tensor of torchvision's mobilenet_v2."),
        (
            {"conv_stem.weight": torch.zeros(1), "bn1.weight": torch.zeros(1)},
            "has no tensor of torchvision's mobilenet_v2; it is a MobileNet of another package.",
        ),
    ],
)
def test_another_network_is_refused_with_what_is_accepted(
    project: Path, content: dict[str, torch.Tensor], what: str
) -> None:
    torch.save({"state_dict": content}, "mine.pth")
    with refused(DataError, f"mine.pth {what} {ACCEPTED}"):
        download(weights="mine.pth")


def test_a_file_with_two_encoders_is_refused(project: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(with_prefix("student.", state) | with_prefix("teacher.", state), "mine.pth")
    with refused(DataError, "holds several encoders: under 'student.', 'teacher.'", ACCEPTED):
        download(weights="mine.pth")


def test_a_whole_model_is_refused(project: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), "mine.pth")
    with refused(DataError, "or holds a whole model or other objects", ACCEPTED):
        download(weights="mine.pth")


# The command


def test_help_says_what_the_stage_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        stages.download.main(["--help"])
    assert caught.value.code == 0
    assert "data/raw" in capsys.readouterr().out
