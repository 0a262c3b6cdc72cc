"""Images and masks as users have them: layouts, names, formats, and the table images.csv."""

import logging
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionseg.data.folder import list_folder
from lesionseg.data.images import read_image
from lesionseg.data.manifest import read_manifest, write_manifest
from lesionseg.data.masks import read_mask
from lesionseg.data.pairs import Pair, draw_test, to_know, write_pairs
from lesionseg.errors import DataError, LesionsegError, MissingFileError

LESION = np.zeros((8, 12), np.uint8)
LESION[2:6, 3:9] = 255
PHOTOGRAPH = np.random.default_rng(0).integers(60, 200, (8, 12, 3), np.uint8)


@pytest.fixture(name="put")
def _put(tmp_path: Path) -> Callable[..., None]:
    """Write files by their paths: a mask where its name ends in `!`, else a photograph."""

    def put(*names: str) -> None:
        for name in names:
            path = tmp_path / name.removesuffix("!")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(LESION if name.endswith("!") else PHOTOGRAPH).save(path)

    return put


def names_of(folder: Path) -> dict[str, tuple[str, str, str]]:
    """Id -> split, image and mask, relative to the folder."""
    return {
        pair.id: (
            pair.split,
            pair.image.relative_to(folder).as_posix(),
            pair.mask.relative_to(folder).as_posix(),
        )
        for pair in list_folder(folder)
    }


def refusal_of(folder: Path, error: type[LesionsegError] = DataError) -> str:
    with pytest.raises(error) as caught:
        list_folder(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Layouts and names


@pytest.mark.parametrize(
    "mask",
    [
        "a.png",
        "a.bmp",
        "a.tif",
        "a_mask.png",
        "a_MASK.png",
        "a_segmentation.png",
        "a_Segmentation.PNG",
        "mask_a.tiff",
        "Mask_a.png",
    ],
)
@pytest.mark.parametrize("image", ["a.jpg", "a.PNG", "a.bmp", "a.tif", "a.webp"])
def test_a_mask_is_found_under_each_usual_name_and_in_each_usual_format(
    put: Callable[..., None], tmp_path: Path, image: str, mask: str
) -> None:
    put(f"images/{image}", f"masks/{mask}!")
    assert names_of(tmp_path) == {"a": ("train", f"images/{image}", f"masks/{mask}")}


@pytest.mark.parametrize(
    "mask", ["a_mask.png", "a_Segmentation.png", "mask_a.bmp", "a.png", "a.tif"]
)
def test_images_and_masks_may_lie_in_one_folder(
    put: Callable[..., None], tmp_path: Path, mask: str
) -> None:
    put("a.jpg", f"{mask}!", "b.png", "b_mask.png!")
    assert names_of(tmp_path) == {
        "a": ("train", "a.jpg", mask),
        "b": ("train", "b.png", "b_mask.png"),
    }


def test_splits_may_each_have_another_layout_and_folders_names_any_case(
    put: Callable[..., None], tmp_path: Path
) -> None:
    put("Train/Images/a.jpg", "Train/Masks/a.png!", "test/c.jpg", "test/c_mask.png!")
    put("val/images/b.jpg", "val/masks/b.png!")
    assert {id_: split for id_, (split, *_) in names_of(tmp_path).items()} == {
        "a": "train",
        "b": "val",
        "c": "test",
    }


def test_images_of_val_and_train_with_one_name_are_both_kept(
    put: Callable[..., None], tmp_path: Path
) -> None:
    put("train/1.jpg", "train/1_mask.png!", "val/1.jpg", "val/1_mask.png!", "test/1.jpg")
    put("test/1_mask.png!")
    found = list_folder(tmp_path)
    assert [(pair.split, pair.id) for pair in found] == [
        ("train", "1"),
        ("val", "val_1"),
        ("test", "1"),
    ]
    write_pairs(tmp_path / "raw", found)
    write_manifest(tmp_path / "raw", to_know(found))
    rows = read_manifest(tmp_path / "raw")
    assert [(row.split, row.id, row.image_path) for row in rows] == [
        ("test", "1", "test/images/1.jpg"),
        ("train", "1", "train/images/1.jpg"),
        ("val", "val_1", "train/images/val_1.jpg"),
    ]


def test_folders_beside_the_splits_are_named_as_not_used(
    put: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put("train/a.jpg", "train/a_mask.png!", "testing/b.jpg")
    with caplog.at_level(logging.INFO):
        list_folder(tmp_path)
    assert "not used, as it is none of train, val, test: testing" in caplog.text


def test_what_cannot_be_paired_in_one_folder_is_listed_with_the_names_that_would_do(
    put: Callable[..., None], tmp_path: Path
) -> None:
    put("a.jpg", "a_mask.png!", "b.jpg", "c-mask.png!", "d_mask.png!")
    message = refusal_of(tmp_path)
    assert "3 images and 2 masks; no mask for b, c-mask; no image for d_mask.png." in message
    assert "_segmentation or _mask behind it or mask_ before it, in any case" in message
    assert "both end in .jpg, .jpeg, .png, .bmp, .tif, .tiff, .webp" in message
    assert "Add b_mask.png or take out what is alone, or name the pairs in images.csv" in message


@pytest.mark.parametrize("names", [("a.png", "a.bmp!"), ("a.jpg", "a.jpeg!")])
def test_two_files_of_one_name_of_which_either_may_be_the_mask_are_refused(
    put: Callable[..., None], tmp_path: Path, names: tuple[str, str]
) -> None:
    put(*names)
    assert "two files for a: " in refusal_of(tmp_path)


def test_two_masks_of_one_image_are_refused(put: Callable[..., None], tmp_path: Path) -> None:
    put("images/a.jpg", "masks/a_mask.png!", "masks/mask_a.png!")
    assert "masks has two files for a: a_mask.png and mask_a.png. Keep one" in refusal_of(tmp_path)


def test_a_missing_folder_is_answered_with_what_it_may_hold(tmp_path: Path) -> None:
    message = refusal_of(tmp_path / "nowhere", MissingFileError)
    assert "nowhere is missing" in message
    assert "{train,test}/{images,masks} or {images,masks} or images and masks in one" in message
    assert "or images.csv. Make it, or write another folder" in message


def test_a_test_folder_alone_is_answered_with_the_missing_train(
    put: Callable[..., None], tmp_path: Path
) -> None:
    put("test/a.jpg", "test/a_mask.png!")
    assert "train/images is missing" in refusal_of(tmp_path, MissingFileError)


def test_what_is_no_jpeg_or_png_becomes_png_with_the_same_pixels(
    put: Callable[..., None], tmp_path: Path
) -> None:
    put("a.bmp", "a_mask.bmp!", "b.tif", "b_mask.tif!", "c.png", "c_mask.png!")
    write_pairs(tmp_path / "raw", list_folder(tmp_path))
    for name in "abc":
        image_path = tmp_path / f"raw/train/images/{name}.png"
        np.testing.assert_array_equal(read_image(image_path), PHOTOGRAPH)
        mask = read_mask(tmp_path / f"raw/train/masks/{name}.png")
        np.testing.assert_array_equal(mask * 255, LESION)
    assert (tmp_path / "raw/train/images/c.png").read_bytes() == (tmp_path / "c.png").read_bytes()


# Test images where there are none


def pairs_of(groups: str, *, split: str = "train") -> list[Pair]:
    """A pair for each letter, which is its group; a dot has none."""
    return [
        Pair(
            id=f"{split}{number:02d}",
            image=Path(f"{number}.jpg"),
            mask=Path(f"{number}.png"),
            split=split,
            group=letter.strip("."),
        )
        for number, letter in enumerate(groups)
    ]


@pytest.mark.parametrize(
    ("groups", "num_groups"), [("." * 10, 2), ("aabbccddee", 1), ("aaaaaaaaaabcdefg.", 2)]
)
def test_a_share_of_the_groups_becomes_test(groups: str, num_groups: int) -> None:
    found = draw_test(pairs_of(groups), fraction=0.2, seed=3)
    drawn = {pair.group or pair.id for pair in found if pair.split == "test"}
    rest = {pair.group or pair.id for pair in found if pair.split == "train"}
    assert len(drawn) == num_groups
    assert not drawn & rest
    assert len(found) == len(groups)


def test_the_draw_depends_on_the_seed_and_not_on_the_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pairs = pairs_of("aabbccddeeffgghhii")

    def drawn(some: list[Pair], seed: int) -> set[str]:
        return {p.id for p in draw_test(some, fraction=0.3, seed=seed) if p.split == "test"}

    with caplog.at_level(logging.INFO):
        assert drawn(pairs, 0) == drawn(pairs[::-1], 0)
    assert len({frozenset(drawn(pairs, seed)) for seed in range(5)}) > 1
    assert caplog.messages[0] == (
        "No images are named as test: 6 of 18 became test, drawn by download.seed "
        "(0.3 of the groups)"
    )


def test_named_test_images_are_kept_and_val_is_never_drawn() -> None:
    pairs = [*pairs_of("...."), *pairs_of(".", split="test")]
    assert draw_test(pairs, fraction=0.5, seed=0) == pairs
    pairs = [*pairs_of("...."), *pairs_of("......", split="val")]
    found = draw_test(pairs, fraction=0.5, seed=0)
    assert [pair.split for pair in found].count("test") == 2
    assert [pair.split for pair in found].count("val") == 6


@pytest.mark.parametrize(
    ("groups", "fraction", "what"), [("aaab", 0.2, "none"), ("ab", 0.9, "all")]
)
def test_a_share_of_no_group_or_of_all_is_refused(groups: str, fraction: float, what: str) -> None:
    with pytest.raises(DataError) as caught:
        draw_test(pairs_of(groups), fraction=fraction, seed=0)
    assert str(caught.value) == (
        "there are no test images, and 2 images or groups of images with download.test_fraction "
        f"{fraction} leave {what} for test. Change test_fraction in params.yaml, or add images"
    )


# The table images.csv


@pytest.fixture(name="write")
def _write(tmp_path: Path, put: Callable[..., None]) -> Callable[[str], None]:
    """Write images.csv, beside the files `a/1.jpg` to `b/3.jpg` and their masks."""
    for folder in "ab":
        for number in (1, 2, 3):
            put(f"{folder}/{number}.jpg", f"{folder}/m{number}.png!")

    def write(text: str) -> None:
        (tmp_path / "images.csv").write_text(text, encoding="utf-8")

    return write


def test_the_table_says_where_everything_belongs(
    write: Callable[[str], None], tmp_path: Path
) -> None:
    write(
        "image,mask,split,group,fold\n"
        "a/1.jpg,a/m1.png,train,P1,0\n"
        "a/2.jpg,b/m2.png,Training,P1,0\n"
        "b/3.jpg,a/m3.png,,P2,1\n"
        "\n"
        "b/2.jpg,a/m2.png,test,P3,1\n"
        "b/1.jpg,b/m1.png,validation,,\n"
    )
    found = [
        (
            pair.split,
            pair.id,
            pair.group,
            pair.fold,
            *(path.relative_to(tmp_path).as_posix() for path in (pair.image, pair.mask)),
        )
        for pair in list_folder(tmp_path)
    ]
    assert found == [
        ("test", "2", "P3", "", "b/2.jpg", "a/m2.png"),
        ("train", "2", "P1", "0", "a/2.jpg", "b/m2.png"),
        ("train", "3", "P2", "1", "b/3.jpg", "a/m3.png"),
        ("train", "a_1", "P1", "0", "a/1.jpg", "a/m1.png"),
        ("val", "b_1", "", "", "b/1.jpg", "b/m1.png"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "image,mask\na/1.jpg,a/m1.png\n",
        "\ufeffImage;Mask;age\r\na\\1.jpg;a\\m1.png;70\r\n",
        ' mask , image ,comment\n a/m1.png , a/1.jpg ,"two\nlines, and a comma"\n',
    ],
)
def test_tables_of_spreadsheets_are_read_too(
    write: Callable[[str], None], tmp_path: Path, text: str
) -> None:
    write(text)
    assert names_of(tmp_path) == {"1": ("train", "a/1.jpg", "a/m1.png")}


def test_columns_of_other_things_are_named_as_not_used(
    write: Callable[[str], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write("image,mask,age,diagnosis\na/1.jpg,a/m1.png,70,nevus\n")
    with caplog.at_level(logging.INFO):
        list_folder(tmp_path)
    assert "images.csv: columns not used: age, diagnosis" in caplog.text


def test_names_in_the_table_may_be_in_another_form_of_unicode(
    write: Callable[[str], None], put: Callable[..., None], tmp_path: Path
) -> None:
    nfd, nfc = (unicodedata.normalize(form, "l\u00e9sion") for form in ("NFD", "NFC"))
    put(f"{nfd}.jpg", f"{nfd}_mask.png!")
    write(f"image,mask\n{nfc}.jpg,{nfc}_mask.png\n")
    assert names_of(tmp_path) == {nfc: ("train", f"{nfd}.jpg", f"{nfd}_mask.png")}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it has no column image"),
        ("image,mask\n", "names no images"),
        ("image,masks\na/1.jpg,a/m1.png\n", "it has no column mask"),
        ("image,mask,mask\na/1.jpg,a/m1.png,a/m2.png\n", "it has two columns mask"),
        ("image,mask,splits\na/1.jpg,a/m1.png,test\n", "unknown column 'splits'; did you mean sp"),
        ("image,mask\na/1.jpg,\n", "line 2: no mask. Name its file"),
        ("image,mask\na/1.jpg,a/m1.png,x\n", "line 2: 3 values for 2 columns"),
        ("image,mask,split\na/1.jpg,a/m1.png,dev\n", "line 2: split must be train, val, test or"),
        ("image,mask\na/1.jpg,a/m1.xcf\n", "line 2: a/m1.xcf must end in .jpg, .jpeg, .png, .b"),
        ('image,mask\n"a/1.jpg,a/m1.png\n', "line 2: unexpected end of data"),
        (
            "image,mask\na/1.jpg,a/m1.png\na/1.jpg,a/m2.png\n",
            "a/1.jpg is in line 2 and in line 3. A file is one image, or the mask of one",
        ),
        ("image,mask\na/1.jpg,a/m1.png\nb/1.jpg,a/m1.png\n", "a/m1.png is in line 2 and in"),
        (
            "image,mask,split,group\na/1.jpg,a/m1.png,train,P1\na/2.jpg,a/m2.png,test,P1\n",
            "group P1 is in split train (1) and in split test (2). A group has one split",
        ),
        (
            "image,mask,group,fold\na/1.jpg,a/m1.png,P1,0\na/2.jpg,a/m2.png,P1,\n",
            "group P1 is in fold 0 (1) and in fold none (2). A group has one fold",
        ),
        (
            "image,mask,split,fold\na/1.jpg,a/m1.png,val,0\na/2.jpg,a/m2.png,,0\n",
            "fold 0 is in split val (1) and in split train (2). A fold has one split",
        ),
    ],
)
def test_a_table_that_contradicts_itself_is_refused_in_one_line(
    write: Callable[[str], None], tmp_path: Path, text: str, problem: str
) -> None:
    write(text)
    message = refusal_of(tmp_path)
    assert message.startswith(f"{tmp_path / 'images.csv'}")
    assert problem in message
    assert message.endswith("then run: dvc repro -sf download && dvc repro")


def test_files_that_are_not_there_are_listed(write: Callable[[str], None], tmp_path: Path) -> None:
    lines = "".join(f"c/{n}.jpg,a/m{n}.png\n" for n in (1, 2, 3, 4))
    write(f"image,mask\n{lines}")
    message = refusal_of(tmp_path, MissingFileError)
    assert "names 5 files that are not there: c/1.jpg, c/2.jpg, c/3.jpg and 2 more" in message
    assert f"Paths start at {tmp_path}. Add the files or correct the lines" in message


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_bytes("image,mask\nl\u00e9.jpg,m.png\n".encode("latin-1"))
    assert "must be UTF-8 text. Save it again as such" in refusal_of(tmp_path)


def test_images_that_no_folder_tells_apart_are_refused(
    write: Callable[[str], None], put: Callable[..., None], tmp_path: Path
) -> None:
    put("a/1.png")
    write("image,mask\na/1.jpg,a/m1.png\na/1.png,a/m2.png\n")
    message = refusal_of(tmp_path)
    assert "a/1.jpg and a/1.png cannot be told apart by their names (a_1). Rename one" in message


def test_images_and_masks_in_the_wrong_columns_draw_a_warning(
    write: Callable[[str], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write("mask,image\na/1.jpg,a/m1.png\nb/1.jpg,b/m1.png\n")
    list_folder(tmp_path)
    assert "images.csv: the files look like masks, black and white." in caplog.text
