"""Published data sets, from made archives and folders that are called as the real ones are."""

import csv
import io
import logging
import shutil
import stat
import zipfile
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import stages.preprocess
from lesionseg.config import DownloadConfig, load_config
from lesionseg.data import isic
from lesionseg.data.dataset import SPLITS, load_split
from lesionseg.data.isic2016_test import IDS as ISIC2016_TEST
from lesionseg.data.manifest import read_manifest, write_manifest
from lesionseg.data.masks import read_mask
from lesionseg.data.pairs import to_know, write_pairs
from lesionseg.data.preprocessing import SOURCES_WITH_UNIQUE_IDS
from lesionseg.data.sources import SOURCES, Places
from lesionseg.errors import DataError, DiskSpaceError, DownloadError, MissingFileError, rerun
from tests.raw_data import (
    IMAGE,
    MASK,
    REPOSITORY,
    Members,
    begin_project,
    download,
    fake_challenge,
    fill_zip,
    numbered_image,
    refused,
)

IDS = {"train": ("ISIC_0000000", "ISIC_0000001"), "test": ("ISIC_0000003",)}
# 3 and 12 are in ISIC 2016's test.
LATER_IDS = {
    "train": ("ISIC_0000000", "ISIC_0000003", "ISIC_0012088"),
    "val": ("ISIC_0000012", "ISIC_0001769"),
    "test": ("ISIC_0012086", "ISIC_0012092"),
}
SHARED = REPOSITORY.parent / "shared"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(name="project")
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, the working directory."""
    project = begin_project(tmp_path / "project")
    monkeypatch.chdir(project)
    monkeypatch.setenv("DVC_ROOT", str(project))
    return project


@pytest.fixture(name="fake")
def _fake(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that puts tiny archives of ISIC 2016 in the place of the real ones."""

    def fake(**changes: Any) -> None:
        fake_challenge(monkeypatch, project / "data/archives", "isic2016", IDS, **changes)

    return fake


def placed() -> dict[tuple[str, str], str]:
    """Split and id of every image of the manifest -> its group."""
    return {(row.split, row.id): row.group for row in read_manifest(Path("data/raw"))}


TRAIN_IMAGES, _, _, TEST_MASKS = (
    Path("data/archives") / archive.name for archive in isic.CHALLENGES["isic2016"].archives
)


# ISIC's challenges


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("isic2016", {"train": 900, "test": 379}),
        ("isic2017", {"train": 2000, "val": 150, "test": 600}),
        ("isic2018", {"train": 2594, "val": 100, "test": 1000}),
    ],
)
def test_the_table_of_archives_has_each_split_s_number_of_pairs(
    name: str, numbers: dict[str, int]
) -> None:
    challenge = isic.CHALLENGES[name]
    counts = {(one.split, one.kind): one.num_files for one in challenge.archives}
    assert counts == {
        (split, kind): number for split, number in numbers.items() for kind in ("images", "masks")
    }
    assert all(bool(one.md5) != bool(one.sha256) for one in challenge.archives)
    assert {len(one.md5 + one.sha256) for one in challenge.archives} <= {32, 64}
    for url in challenge.urls:
        assert url.startswith("https://")
        assert url.endswith(f"/{name[4:]}/")


def test_the_ids_of_isic_2016_s_test_are_379_and_those_of_the_real_images() -> None:
    assert len(ISIC2016_TEST) == 379
    if not SHARED.exists():
        pytest.skip("real images are not beside the checkout (../shared)")
    ids = {
        split: {path.stem for path in (SHARED / "isic2016-256" / split / "images").iterdir()}
        for split in ("train", "test")
    }
    assert ids["test"] <= ISIC2016_TEST
    assert not ids["train"] & ISIC2016_TEST


def test_the_four_archives_of_2016_become_raw_data(
    project: Path, fake: Callable[..., None]
) -> None:
    fake()
    download("isic2016", folder="")
    image_path = Path("data/raw/train/images/ISIC_0000001.jpg")
    assert image_path.read_bytes() == numbered_image(1)
    assert Path("data/raw/test/masks/ISIC_0000003.png").read_bytes() == MASK
    assert list(placed()) == [
        ("test", "ISIC_0000003"),
        ("train", "ISIC_0000000"),
        ("train", "ISIC_0000001"),
    ]


@pytest.mark.parametrize("name", ["isic2017", "isic2018"])
def test_later_years_keep_their_splits_and_leave_out_what_isic_2016_tests_with(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    fake_challenge(monkeypatch, project / "data/archives", name, LATER_IDS)
    with caplog.at_level(logging.INFO):
        download(name, folder="")
    assert sorted(placed()) == [
        ("test", "ISIC_0012086"),
        ("test", "ISIC_0012092"),
        ("train", "ISIC_0000000"),
        ("train", "ISIC_0012088"),
        ("val", "ISIC_0001769"),
    ]
    assert f"{name}: 2 images to learn from are in ISIC 2016's test, and left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("isic2017", ["ISIC_0000000_superpixels.png", "ISIC-2017_Training_Data_metadata.csv"]),
        ("isic2018", ["LICENSE.txt", "ATTRIBUTION.txt"]),
    ],
)
def test_what_else_the_archives_of_a_year_hold_is_left_out(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str, extras: list[str]
) -> None:
    members = {f"x/{id_}.jpg": IMAGE for id_ in LATER_IDS["train"]}
    members |= {f"x/{extra}": b"" for extra in extras}
    archives_dir = project / "data/archives"
    fake_challenge(monkeypatch, archives_dir, name, LATER_IDS, train_images=members)
    download(name, folder="")
    assert len(placed()) == 5


def test_relative_archives_start_at_the_original_repository(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_challenge(monkeypatch, project / "kept", "isic2016", IDS)
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    monkeypatch.chdir(workspace)
    download("isic2016", archives="kept", folder="")
    assert len(read_manifest(workspace / "data/raw")) == 3


def test_what_macos_adds_to_an_archive_is_left_out(
    project: Path, fake: Callable[..., None]
) -> None:
    members = {f"folder/{id_}.jpg": IMAGE for id_ in IDS["train"]}
    clutter = {"__MACOSX/._ISIC_0000000.jpg": b"", "folder/.DS_Store": b"", "folder/": b""}
    fake(train_images=members | clutter)
    download("isic2016", folder="")
    assert len(placed()) == 3


def test_an_archive_with_a_wrong_checksum_is_refused(
    project: Path, fake: Callable[..., None]
) -> None:
    fake()
    with (project / TEST_MASKS).open("ab") as stream:
        stream.write(b"x")
    with refused(DownloadError, TEST_MASKS.name, "must have md5", "Delete it and run"):
        download("isic2016", folder="")


def test_an_archive_that_no_host_has_is_named(project: Path, fake: Callable[..., None]) -> None:
    fake()
    (project / TEST_MASKS).unlink()
    with refused(DownloadError, TEST_MASKS.name, "put the file into"):
        download("isic2016", folder="")


@pytest.fixture(name="unchecked")
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives whose checksums nobody looks at."""
    monkeypatch.setattr(isic, "fetch", lambda *args, **options: None)


def test_a_truncated_archive_is_named(
    project: Path, fake: Callable[..., None], unchecked: None
) -> None:
    fake()
    path = project / TRAIN_IMAGES
    path.write_bytes(path.read_bytes()[:-30])
    with refused(DataError, f"{path} is damaged", "Delete it or", f"run: {rerun('download')}"):
        download("isic2016", folder="")


def test_a_member_with_a_wrong_crc_is_found(
    project: Path, fake: Callable[..., None], unchecked: None
) -> None:
    fake()
    path = project / TRAIN_IMAGES
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as opened:
        for id_ in IDS["train"]:
            opened.writestr(f"{id_}.jpg", IMAGE)
    path.write_bytes(path.read_bytes().replace(IMAGE, IMAGE[:-1] + b"x", 1))
    with refused(DataError, f"{path} is damaged (Bad CRC-32", "Delete it"):
        download("isic2016", folder="")


@pytest.mark.parametrize(
    "name",
    [
        "../evil.jpg",
        "../ISIC_0000009.jpg",
        "/ISIC_0000009.jpg",
        "/tmp/ISIC_0000009.jpg",
        "C:/ISIC_0000009.jpg",
        "a/b/ISIC_0000009.jpg",
        "a/../ISIC_0000009.jpg",
        "ISIC_0000009_superpixels.png",
        "ISIC_0000009_Segmentation.png",
        "ISIC_000009.jpg",
        "ISIC_0000009.jpg.exe",
        "ISIC_0000009.jpg\n",
        "other/ISIC_0000000.jpg",
    ],
)
def test_an_unexpected_member_is_refused_before_anything_is_unpacked(
    project: Path, fake: Callable[..., None], name: str
) -> None:
    fake(train_images={f"folder/{id_}.jpg": IMAGE for id_ in IDS["train"]} | {name: IMAGE})
    with refused(DataError, f"unexpected or repeated member {name!r}", "Delete it and run"):
        download("isic2016", folder="")
    assert list(project.parent.rglob("*evil*")) == []


def test_a_link_in_an_archive_is_refused(project: Path, fake: Callable[..., None]) -> None:
    def with_link(opened: zipfile.ZipFile) -> None:
        link = zipfile.ZipInfo("ISIC_0000000.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(link, "/etc/passwd")

    fake(train_images=with_link)
    with refused(DataError, "holds the link 'ISIC_0000000.jpg'", "Delete it and run"):
        download("isic2016", folder="")


def test_a_wrong_number_of_images_is_refused(project: Path, fake: Callable[..., None]) -> None:
    fake(train_images={"ISIC_0000000.jpg": IMAGE})
    with refused(DataError, f"{TRAIN_IMAGES.name} must hold 2 images, got 1", "Delete it"):
        download("isic2016", folder="")


def test_an_image_of_the_archives_without_mask_is_named(
    project: Path, fake: Callable[..., None]
) -> None:
    fake(test_masks={"ISIC_0000009_Segmentation.png": MASK})
    with refused(DataError, "test has 1 images and 1 masks; ISIC_0000003 has no mask"):
        download("isic2016", folder="")


def test_files_that_do_not_fit_on_the_disk_are_not_unpacked(
    project: Path, fake: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 100))
    with refused(DiskSpaceError, "0.0 MB are free", "Make room"):
        download("isic2016", folder="")


# PH2

PH2_IDS = ("IMD002", "IMD003", "IMD417", "IMD437", "IMD440")
LESION = np.zeros((8, 12), np.uint8)
LESION[2:6, 3:9] = 1


def as_bmp(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "BMP")
    return stream.getvalue()


def ph2_members() -> Members:
    """The files of PH2, by their paths in its archive."""
    members: Members = {"PH2Dataset/PH2_dataset.txt": b"", "PH2Dataset/Readme.txt": b""}
    for number, id_ in enumerate(PH2_IDS):
        folder = f"PH2Dataset/PH2 Dataset images/{id_}"
        image = Image.new("RGB", (12, 8), (200, 40 * number, 90))
        members[f"{folder}/{id_}_Dermoscopic_Image/{id_}.bmp"] = as_bmp(image)
        mask = Image.fromarray(LESION.astype(bool))  # of 1 bit, as the real ones are
        members[f"{folder}/{id_}_lesion/{id_}_lesion.bmp"] = as_bmp(mask)
        members[f"{folder}/{id_}_roi/{id_}_R1_Label3.bmp"] = as_bmp(mask)
    return members


def unpack(members: Members, folder: Path) -> None:
    for name, content in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize(
    "place", ["folder", "inner folder", "zip", "folder of a zip", "archives", "archives, zip"]
)
def test_ph2_is_read_from_wherever_it_lies(
    project: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    home = project / ("data/archives" if "archives" in place else "mine")
    if "zip" in place:
        fill_zip(home / "PH2Dataset.zip", ph2_members())
    else:
        unpack(ph2_members(), home)
    folder = {
        "folder": "mine",
        "inner folder": "mine/PH2Dataset/PH2 Dataset images",
        "zip": "mine/PH2Dataset.zip",
        "folder of a zip": "mine",
    }.get(place, "")
    download("ph2", folder=folder)
    found = placed()
    assert sorted(id_ for _, id_ in found) == list(PH2_IDS)
    assert sorted(split for split, _ in found) == ["test", *["train"] * 4]
    for row in read_manifest(Path("data/raw")):
        np.testing.assert_array_equal(read_mask(Path("data/raw") / row.mask_path), LESION)
        with Image.open(Path("data/raw") / row.image_path) as image:
            number = PH2_IDS.index(row.id)
            assert (image.format, image.getpixel((0, 0))) == ("PNG", (200, 40 * number, 90))
    assert "PH2 has 200 images, got 5" in caplog.text


def test_ph2_that_is_nowhere_is_answered_with_its_layout(project: Path) -> None:
    (project / "data/archives").mkdir(parents=True)
    with refused(
        MissingFileError,
        f"PH2 is in none of {project / 'mine'}, {project / 'data/archives'}: there must be IMD002/",
        "Unpack PH2Dataset.rar into",
    ):
        download("ph2", folder="mine")


@pytest.mark.parametrize("folder", ["mine", "mine/PH2Dataset.rar"])
def test_the_archive_of_ph2_that_only_other_programs_unpack_is_named(
    project: Path, folder: str
) -> None:
    (project / "mine").mkdir()
    (project / "mine/PH2Dataset.rar").write_bytes(b"Rar!\x1a\x07\x00")
    with refused(MissingFileError, f"Unpack {project / 'mine/PH2Dataset.rar'}, then run: dvc"):
        download("ph2", folder=folder)


def test_an_image_of_ph2_without_mask_is_named(project: Path) -> None:
    members = ph2_members()
    del members["PH2Dataset/PH2 Dataset images/IMD003/IMD003_lesion/IMD003_lesion.bmp"]
    unpack(members, project / "mine")
    with refused(DataError, "PH2 has 5 images and 4 masks", "no mask for IMD003. There must be"):
        download("ph2", folder="mine")


def test_a_mask_in_an_archive_that_means_nothing_is_named_with_its_archive(project: Path) -> None:
    members = ph2_members()
    name = "PH2Dataset/PH2 Dataset images/IMD003/IMD003_lesion/IMD003_lesion.bmp"
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8))
    members[name] = as_bmp(colours)
    fill_zip(project / "mine/PH2Dataset.zip", members)
    with refused(DataError, f"mine/PH2Dataset.zip/{name}: a mask must be 0 outside", "colours"):
        download("ph2", folder="mine")


# HAM10000

LESIONS = {24306: "HAM_1", 24307: "HAM_1", 24308: "HAM_2", 24309: "HAM_3", 24310: "HAM_1"}
METADATA = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\r\n" + "".join(
    f"{lesion},ISIC_00{number},nv,histo,45.0,male,back,vidir_modern\r\n"
    for number, lesion in LESIONS.items()
)
GROUPINGS = "image,lesion_id,diagnosis_confirm_type\n" + "".join(
    f"ISIC_00{number},{lesion},histopathology\n" for number, lesion in LESIONS.items()
)
HAM_ZIPS: dict[str, Members] = {
    "HAM10000_images_part_1.zip": {
        f"ISIC_00{number}.jpg": numbered_image(number) for number in (24306, 24307, 24308)
    },
    "HAM10000_images_part_2.zip": {
        f"ISIC_00{number}.jpg": numbered_image(number) for number in (24309, 24310)
    },
    "HAM10000_segmentations_lesion_tschandl.zip": {
        f"HAM10000_segmentations_lesion_tschandl/ISIC_00{number}_segmentation.png": MASK
        for number in LESIONS
    },
}


def write_ham10000(folder: Path, *, unpacked: bool = False) -> None:
    for name, members in HAM_ZIPS.items():
        if unpacked:
            unpack(members, folder / name.removesuffix(".zip"))
        else:
            fill_zip(folder / name, members)


@pytest.mark.parametrize("unpacked", [True, False])
@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("HAM10000_metadata", METADATA),
        ("HAM10000_metadata.csv", METADATA),
        ("HAM10000_metadata.tab", METADATA.replace(",", "\t")),
        ("ISIC2018_Task3_Training_LesionGroupings.csv", GROUPINGS),
    ],
)
def test_the_lesions_of_ham10000_are_groups_and_never_torn(
    project: Path, unpacked: bool, name: str, table: str
) -> None:
    write_ham10000(project / "mine", unpacked=unpacked)
    (project / "mine" / name).write_text(table)
    (project / "mine/ISIC_0000000.jpg").write_bytes(IMAGE)  # of another data set
    download("ham10000", folder="mine", test_fraction=0.3)
    found = placed()
    assert {id_: group for (_, id_), group in found.items()} == {
        f"ISIC_00{number}": lesion for number, lesion in LESIONS.items()
    }
    splits = {(group, split) for (split, _), group in found.items()}
    assert sorted(split for _, split in splits) == ["test", "train", "train"]


def test_images_of_ham10000_without_mask_are_left_out_and_counted(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_ham10000(project / "mine", unpacked=True)
    (project / "mine/HAM10000_metadata").write_text(METADATA)
    masks = project / "mine/HAM10000_segmentations_lesion_tschandl"
    for path in sorted(masks.rglob("*.png"))[:2]:
        path.unlink()
    (project / "mine/HAM10000_images_part_2/ISIC_0024309.jpg").unlink()
    download("ham10000", folder="mine", test_fraction=0.5)
    assert sorted(id_ for _, id_ in placed()) == ["ISIC_0024308", "ISIC_0024310"]
    assert "1 of the 5 images in HAM10000_metadata have no image and are left out" in caplog.text
    assert "2 of the 5 images in HAM10000_metadata have no mask and are left out: I" in caplog.text


def test_ham10000_without_its_metadata_is_refused(project: Path) -> None:
    write_ham10000(project / "data/archives")
    with refused(
        MissingFileError,
        f"the metadata of HAM10000 are in none of {project / 'data/archives'}: there must be",
        "HAM10000_metadata (or ISIC2018_Task3_Training_LesionGroupings.csv) with the lesion",
    ):
        download("ham10000", folder="")


def test_ham10000_without_masks_is_refused(project: Path) -> None:
    fill_zip(project / "mine/HAM10000_images_part_1.zip", HAM_ZIPS["HAM10000_images_part_1.zip"])
    (project / "mine/HAM10000_metadata").write_text(METADATA)
    with refused(MissingFileError, "has 3 images and 0 masks of HAM10000, and no image has a mask"):
        download("ham10000", folder="mine")


@pytest.mark.parametrize(
    ("table", "problem"),
    [("", "has no id"), ("a,b\n1,2\n", "columns lesion_id and image_id"), (b"\xff", "columns")],
)
def test_damaged_metadata_of_ham10000_are_refused(
    project: Path, table: str | bytes, problem: str
) -> None:
    write_ham10000(project / "mine")
    content = table if isinstance(table, bytes) else table.encode()
    (project / "mine/HAM10000_metadata").write_bytes(content)
    with refused(DataError, "mine/HAM10000_metadata", problem, "Get it anew, then run: dvc"):
        download("ham10000", folder="mine")


# Joined sources

JOINED_IDS = {
    "train": tuple(f"ISIC_{n:07d}" for n in (0, 3, 12088, 12089, 12090, 12095)),
    "val": ("ISIC_0001769",),
    "test": ("ISIC_0012086",),
}


@pytest.fixture(name="joined")
def _joined(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ISIC 2016 joined with a 2018 that has its images again: by id, as a file, and by looks.

    Of 2018's train, 0 is in 2016's train, 3 in its test, 12088 is a file of its test under another
    id, and 12089 is that image saved again.
    """
    fake_challenge(monkeypatch, project / "data/archives", "isic2016", IDS)
    members = {f"{id_}.jpg": numbered_image(int(id_[5:])) for id_ in JOINED_IDS["train"]}
    members["ISIC_0012088.jpg"] = numbered_image(3)
    with Image.open(io.BytesIO(numbered_image(3))) as image:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=70)
        members["ISIC_0012089.jpg"] = stream.getvalue()
    archives_dir = project / "data/archives"
    fake_challenge(monkeypatch, archives_dir, "isic2018", JOINED_IDS, train_images=members)
    return project


def test_joined_sources_train_together_and_the_first_gives_test(
    joined: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        download(["isic2016", "isic2018"], folder="")
    rows = read_manifest(Path("data/raw"))
    assert [(row.source, row.split, row.id) for row in rows] == [
        ("isic2016", "test", "ISIC_0000003"),
        ("isic2016", "train", "ISIC_0000000"),
        ("isic2016", "train", "ISIC_0000001"),
        ("isic2018", "train", "ISIC_0001769"),
        ("isic2018", "train", "ISIC_0012088"),
        ("isic2018", "train", "ISIC_0012089"),
        ("isic2018", "train", "ISIC_0012090"),
        ("isic2018", "train", "ISIC_0012095"),
        ("isic2018", "train", "isic2018_ISIC_0000000"),
    ]
    assert "isic2018: 1 images to learn from are in ISIC 2016's test, and left out" in caplog.text
    assert (
        "isic2018: 6 images join those of isic2016 for training; its 1 test images are left out"
    ) in caplog.text


def test_leaks_between_joined_sources_are_found_by_id_file_and_looks(
    joined: Path, caplog: pytest.LogCaptureFixture
) -> None:
    download(["isic2016", "isic2018"], folder="")
    stages.preprocess.main([])
    with Path("data/processed/leaks.csv").open(newline="") as stream:
        leaks = {(row["id"], row["other_id"], row["kind"]) for row in csv.DictReader(stream)}
    assert ("isic2018_ISIC_0000000", "ISIC_0000000", "id") in leaks
    assert {leak for leak in leaks if leak[1] == "ISIC_0000003"} == {
        ("ISIC_0012088", "ISIC_0000003", "sha256"),
        ("ISIC_0012089", "ISIC_0000003", "near"),
    }
    ids = {name: load_split(Path("data/processed"), name).ids for name in SPLITS}
    assert ids["test"] == ("ISIC_0000003",)
    assert sorted([*ids["train"], *ids["val"]]) == [
        "ISIC_0000000",
        "ISIC_0000001",
        "ISIC_0001769",
        "ISIC_0012090",
        "ISIC_0012095",
    ]
    assert "Dropped 1 from train: an earlier source in the list has the same" in caplog.text
    assert "from train: the same images are in another split" in caplog.text


def test_groups_of_joined_sources_are_kept_apart_and_the_first_s_val_is_val(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_challenge(monkeypatch, project / "data/archives", "isic2018", LATER_IDS)
    unpack({f"{n}.jpg": numbered_image(n) for n in (1, 2)}, project / "mine")
    unpack({f"{n}_mask.png": MASK for n in (1, 2)}, project / "mine")
    table = "image,mask,split,group,fold\n1.jpg,1_mask.png,val,P1,0\n2.jpg,2_mask.png,,P2,1\n"
    (project / "mine/images.csv").write_text(table)
    write_ham10000(project / "data/archives")
    (project / "data/archives/HAM10000_metadata").write_text(METADATA.replace("HAM_1", "P1"))
    download(["isic2018", "folder", "ham10000"], folder="mine")
    rows = [row for row in read_manifest(Path("data/raw")) if row.source != "isic2018"]
    assert {(row.split, row.fold) for row in rows} == {("train", "")}
    assert {row.group for row in rows} == {
        "folder: P1",
        "folder: P2",
        "ham10000: P1",
        "ham10000: HAM_2",
        "ham10000: HAM_3",
    }
    assert ("val", "ISIC_0001769") in placed()


def test_a_test_set_is_drawn_from_the_first_source_alone(project: Path) -> None:
    unpack(ph2_members(), project / "data/archives")
    write_ham10000(project / "data/archives")
    (project / "data/archives/HAM10000_metadata").write_text(METADATA)
    download(["ham10000", "ph2"], folder="", test_fraction=0.3)
    test = [row.source for row in read_manifest(Path("data/raw")) if row.split == "test"]
    assert set(test) == {"ham10000"}


# All sources


def test_params_yaml_knows_the_sources_and_phantoms() -> None:
    choices = DownloadConfig.__dataclass_fields__["source"].metadata["choices"]
    assert set(choices) == {*SOURCES, "phantom"}
    assert set(SOURCES_WITH_UNIQUE_IDS) <= set(SOURCES)
    assert load_config(REPOSITORY / "params.yaml").download.source in choices


def test_any_source_fills_a_folder_of_test_images_alone(project: Path) -> None:
    unpack(ph2_members(), project / "mine")
    pairs = SOURCES["ph2"].read(Places(folder=project / "mine", archives_dir=project))
    write_pairs(Path("external/ph2"), [replace(pair, split="test") for pair in pairs])
    write_manifest(Path("external/ph2"), to_know(pairs), folders=["test"])
    rows = read_manifest(Path("external/ph2"))
    assert [row.id for row in rows] == list(PH2_IDS)
    assert {path.name for path in Path("external/ph2").iterdir()} == {"test", "manifest.csv"}
