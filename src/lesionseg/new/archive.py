"""The files of a project in one zip file: those at the top of this repository, and a README.

They exist only once. The wheel contains the zip file, which setup.py makes with `pack`; a checkout
makes it on demand. Unpacked among the installed packages, they would look like a second dvc.yaml to
a DVC whose project contains its environment.
"""

import io
import zipfile
from pathlib import Path

PACKED = Path(__file__).with_name("project.zip")
_ROOT = Path(__file__).resolve().parents[3]  # of a checkout
_FILES = (".dvc/.gitignore", ".dvc/config", ".dvcignore", ".gitignore", "dvc.yaml", "params.yaml")
_README = "src/lesionseg/new/README.md"
_OLDEST = (1980, 1, 1, 0, 0, 0)  # the oldest date of a zip file: equal files give equal bytes


def pack(root: Path) -> bytes:
    """A zip file of a new project's files.

    Args:
        root: Root of the repository.
    """
    stages = sorted(path.relative_to(root).as_posix() for path in root.glob("stages/*.py"))
    places = {name: name for name in (*_FILES, *stages)} | {"README.md": _README}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, place in sorted(places.items()):
            archive.writestr(zipfile.ZipInfo(name, _OLDEST), (root / place).read_bytes())
    return stream.getvalue()


def read_files() -> dict[str, str]:
    """The text of each file of a project by its path, with slashes."""
    content = PACKED.read_bytes() if PACKED.exists() else pack(_ROOT)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}
