"""Who imports whom is what docs/architecture.md says."""

import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.test_dvc import import_closure, imported_names, module_path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/lesionseg"
OURS = [
    *(
        path
        for folder in ("src", "stages", "experiments", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ),
]


def table(heading: str) -> dict[str, set[str]]:
    """The rows of a table of docs/architecture.md, by their first cells."""
    text = (ROOT / "docs/architecture.md").read_text()
    rows = text[text.index(heading) :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows]
    return {name: set(re.split(r", ", rest)) for name, rest in cells}


def room_of(name: str) -> str | None:
    """The folder or module of the package that an imported name lies in."""
    parts = name.split(".")
    is_room = len(parts) > 1 and parts[0] == "lesionseg"
    known = is_room and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file())
    return parts[1] if known else None


def test_each_room_imports_what_the_architecture_says():
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        others = {room_of(name) for name in imported_names(path)} - {None, own}
        found[own] = found.get(own, set()) | others
    used = {room: others for room, others in found.items() if others and room != "__main__"}
    assert used == table("| module | imports |")
    TopologicalSorter(used).prepare()  # raises where rooms import each other in a circle


@pytest.mark.parametrize(("package", "importer"), table("| package | imported by |").items())
def test_a_large_package_has_one_importer(package, importer):
    [place] = importer
    importers = [path for path in OURS if package in imported_names(path)]
    assert importers
    assert all(path.is_relative_to(ROOT / place) for path in importers)


def test_nothing_imports_a_stage_and_the_package_no_script():
    names = {path: imported_names(path) for path in OURS}
    outside = {path: own for path, own in names.items() if not path.is_relative_to(ROOT / "stages")}
    assert [path for path, own in outside.items() if "stages" in own] == []
    package = [own for path, own in names.items() if path.is_relative_to(PACKAGE)]
    assert not {"stages", "experiments", "benchmarks"} & set.union(*package)


def test_what_stages_hand_each_other_is_read_without_torch():
    names = set.union(*map(imported_names, import_closure(*(PACKAGE / "results").glob("*.py"))))
    assert "pandas" in names
    assert not {"torch", "torchvision", "mlflow"} & names


@pytest.mark.parametrize("path", list((ROOT / "stages").glob("*.py")), ids=lambda path: path.stem)
def test_a_stage_is_thin(path):
    assert len(path.read_text().splitlines()) < 90


def test_each_step_of_the_walks_is_there():
    text = (ROOT / "docs/architecture.md").read_text()
    walks = text.partition("## Three walks")[2].partition("\n## ")[0]
    steps = re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)*\.[A-Za-z_]+)`", walks)
    steps = [step for step in steps if step.rpartition(".")[2] not in ("csv", "npy", "yaml", "jpg")]
    assert len(steps) > 25
    for step in steps:
        module, _, name = step.rpartition(".")
        if module == "train":  # a parameter
            continue
        path = module_path(f"lesionseg.{module}")
        assert path, step
        assert re.search(rf"(?m)^(?:def|class) {name}\b|^{name} = ", path.read_text()), step
