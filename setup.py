"""What pyproject.toml cannot say: the wheel carries the files of a project, for `lesionseg new`."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "src"))

from lesionseg.new.archive import PACKED, pack  # noqa: E402


class BuildWithProject(build_py):
    """Builds the package, and the one file in it that no source folder has."""

    def run(self) -> None:
        """Copy the modules, and write the files of a project beside them."""
        super().run()
        if not self.editable_mode:  # then the files themselves are in reach
            place = PACKED.relative_to(ROOT / "src")
            (Path(self.build_lib) / place).write_bytes(pack(ROOT))


setup(cmdclass={"build_py": BuildWithProject})
