"""What the files around the code say is true: versions, Pythons, what is trusted."""

import ast
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def calls(path):
    """The calls in a file, each as its name and its keywords' values."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            yield ast.unparse(node.func), keywords


def test_nothing_that_is_loaded_can_run_code():
    found = [call for path in SOURCES for call in calls(path)]
    assert [name for name, _ in found if re.match(r"(pickle|joblib|dill)\.loads?$", name)] == []
    assert [keywords for name, keywords in found if name == "numpy.load"] == []
    loads = [keywords for name, keywords in found if name == "torch.load"]
    assert len(loads) >= 3
    assert all(keywords.get("weights_only") is True for keywords in loads)
    arrays = [keywords for name, keywords in found if name == "np.load"]
    assert not any(keywords.get("allow_pickle") for keywords in arrays)


def test_the_citation_and_the_changelog_know_the_version():
    version = PROJECT["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_github_tests_the_oldest_and_the_newest_python_that_make_setup_takes():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    oldest, newest = jobs["test"]["strategy"]["matrix"]["python"]
    assert PROJECT["project"]["requires-python"] == f">={oldest}"
    range_ = re.search(
        r"\((3), (\d+)\) <= sys.version_info < \(3, (\d+)\)", (ROOT / "Makefile").read_text()
    )
    assert (oldest, newest) == (f"3.{range_[2]}", f"3.{int(range_[3]) - 1}")


def test_the_package_ships_every_file_beside_its_modules():
    package = ROOT / "src/lesionseg"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["lesionseg"]
    others = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    ]
    assert others
    assert [name for name in others if not any(fnmatch(name, p) for p in patterns)] == []


@pytest.mark.parametrize(
    "name",
    [".pre-commit-config.yaml", *(f".github/ISSUE_TEMPLATE/{n}.yml" for n in ("bug", "idea"))],
)
def test_what_github_and_pre_commit_read_is_yaml(name):
    assert isinstance(yaml.safe_load((ROOT / name).read_text()), dict)
