"""Tiny images and masks, archives of the real names with them, and the stage that reads both."""

import contextlib
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import stages.download
from lesionseg.config import override, read_yaml
from lesionseg.data import isic
from lesionseg.errors import LesionsegError
from lesionseg.project import FILES

REPOSITORY = Path(__file__).resolve().parents[1]
Members = dict[str, bytes]


def phantoms(*, num_train: int, num_test: int, image_size: int = 64) -> dict[str, Any]:
    """What makes the pipeline small, and ask for no network: few phantoms of 96 px."""
    return {
        "download.source": "phantom",
        "download.weights": "none",
        "download.phantom_num_train": num_train,
        "download.phantom_num_test": num_test,
        "download.phantom_size": 96,
        "preprocess.image_size": image_size,
    }


def image_bytes(
    mode: str = "RGB", size: tuple[int, int] = (12, 8), kind: str = "JPEG", **options: Any
) -> bytes:
    """A grey picture, or an all white mask (mode L), of (width, height) pixels."""
    stream = io.BytesIO()
    Image.new(mode, size, "white" if mode == "L" else "grey").save(stream, kind, **options)
    return stream.getvalue()


def mask_bytes(width: int, kind: str = "PNG", size: tuple[int, int] = (12, 8)) -> bytes:
    """A mask with a lesion from the left edge to `width` pixels."""
    stream = io.BytesIO()
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, width, size[1]))
    mask.save(stream, kind)
    return stream.getvalue()


IMAGE = image_bytes()
MASK = mask_bytes(3)


def begin_project(folder: Path) -> Path:
    """The folder with what makes it a project's root, and no more."""
    folder.mkdir(exist_ok=True)
    for name in FILES:
        (folder / name).touch()
    return folder


def download(source: str | list[str] = "folder", **values: Any) -> None:
    """Run the stage with some values of its section changed."""
    changes = {"source": source, "folder": "source", "weights": "none"} | values
    content = read_yaml(REPOSITORY / "params.yaml")
    text = override(content, {f"download.{key}": value for key, value in changes.items()})
    Path("params.yaml").write_text(text)
    stages.download.main([])


@contextlib.contextmanager
def refused(error: type[LesionsegError], *parts: str) -> Iterator[None]:
    """A block that ends in `error`, one line with all `parts`, and leaves nothing behind."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert list(Path("data").glob("raw/*")) == []
    assert not Path("data/.raw.part").exists()


def raw_files() -> set[str]:
    return {path.as_posix() for path in Path("data/raw").rglob("*") if path.is_file()}


def fill_zip(path: Path, members: Members | Callable[[zipfile.ZipFile], None]) -> None:
    """Write a zip file of these members, or as a function fills it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        if callable(members):
            members(opened)
        else:
            for name, content in members.items():
                opened.writestr(name, content)


def fake_challenge(
    monkeypatch: pytest.MonkeyPatch,
    archives_dir: Path,
    name: str,
    ids: Mapping[str, Sequence[str]],
    **changes: Members | Callable[[zipfile.ZipFile], None],
) -> None:
    """Put tiny archives of the real names in the place of a challenge's.

    Args:
        monkeypatch: Which takes them out again.
        archives_dir: Where they are written.
        name: The challenge's.
        ids: Those of each split.
        changes: Other contents, as `train_images={...}`.
    """
    challenge = isic.CHALLENGES[name]
    archives = []
    for real in challenge.archives:
        path = archives_dir / real.name
        members = members_of(name, real, ids[real.split])
        fill_zip(path, changes.get(f"{real.split}_{real.kind}", members))
        archives.append(replace(real, num_files=len(ids[real.split]), **checksums(path)))
    fake = replace(challenge, archives=tuple(archives))
    monkeypatch.setitem(isic.CHALLENGES, name, fake)
    monkeypatch.setattr(isic, "HOSTS", ())


def members_of(name: str, archive: isic.Archive, ids: Sequence[str]) -> Members:
    """What an archive of that name holds: real names, one folder deep; all images differ."""
    folder = archive.name.removesuffix(".zip")
    if archive.kind == "masks":
        ending = "_Segmentation.png" if name == "isic2016" else "_segmentation.png"
        return {f"{folder}/{id_}{ending}": MASK for id_ in ids}
    return {f"{folder}/{id_}.jpg": numbered_image(int(id_[5:])) for id_ in ids}


def numbered_image(number: int) -> bytes:
    """A JPEG of 12 x 8 pixels whose colours no other number has."""
    stream = io.BytesIO()
    colour = (number * 37 % 256, number * 101 % 256, number * 11 % 256)
    Image.new("RGB", (12, 8), colour).save(stream, "JPEG", quality=95, comment=str(number).encode())
    return stream.getvalue()


def checksums(path: Path) -> dict[str, str]:
    return {"md5": hashlib.md5(path.read_bytes()).hexdigest(), "sha256": ""}
