"""dvc.yaml says what the stages do: their modules, their parameters, their order."""

import ast
import re
from pathlib import Path

import pytest
from dvc.repo import Repo

from lesionseg.config import read_yaml
from lesionseg.results.layout import RUNS

ROOT = Path(__file__).parents[1]
# What a stage imports and its outputs cannot depend on, with what only these import.
EXEMPT = {
    "config.py": "DVC tracks the values of params.yaml themselves",
    "errors.py": "words at the terminal",
    "memory.py": "speed",
    "processes.py": "who may run, and until when",
    "project.py": "words at the terminal, and who may run",
    "tracking/attempts.py": "MLflow",
    "tracking/availability.py": "MLflow, which reads results and writes none",
    "tracking/database.py": "MLflow",
    "tracking/handle.py": "MLflow",
    "tracking/parents.py": "MLflow",
    "tracking/replay.py": "MLflow",
    "tracking/runs.py": "MLflow",
    "tracking/scores.py": "MLflow",
    "tracking/store.py": "MLflow",
    "tracking/views.py": "MLflow",
}
PIPELINE = read_yaml(ROOT / "dvc.yaml")
STAGES = PIPELINE["stages"]


def module_path(name: str) -> Path | None:
    """The file of one of our own modules."""
    base = ROOT / ("src" if name.startswith("lesionseg") else "") / name.replace(".", "/")
    found = [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]
    return found[0] if found else None


def imported_names(path: Path) -> set[str]:
    """Every name that a file imports, with the packages above it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.rsplit(".", cut)[0] for name in names for cut in range(name.count(".") + 1)}


def is_exempt(path: Path) -> bool:
    return exempt_name(path) in EXEMPT


def exempt_name(path: Path) -> str:
    package = ROOT / "src/lesionseg"
    return path.relative_to(package).as_posix() if path.is_relative_to(package) else ""


def import_closure(*paths: Path, is_exempt=lambda path: False) -> set[Path]:
    """Our own files that running `paths` reads, and the template beside the page among them."""
    found, todo = set(), set(paths)
    while todo:
        path = todo.pop()
        if is_exempt(path):
            continue
        found.add(path)
        ours = {n for n in imported_names(path) if re.match(r"(lesionseg|stages)(\.|$)", n)}
        todo |= {file for file in map(module_path, ours) if file} - found
    pages = {
        part for file in found if file.name == "page.py" for part in file.parent.glob("page.*")
    }
    return {file for file in found | pages if file.stat().st_size}


def test_no_dep_is_a_folder_around_other_deps_or_outs():
    """`dvc repro --pull` brings nothing for a folder of which a part is there already."""
    paths = {
        name if isinstance(name, str) else next(iter(name))
        for stage in STAGES.values()
        for kind in ("deps", "outs", "metrics")
        for name in stage.get(kind, [])
    }
    data = {path for path in paths if path.startswith(("data/", "results/"))}
    deps = {dep for stage in STAGES.values() for dep in stage.get("deps", [])} & data
    assert [(dep, path) for dep in deps for path in data if path.startswith(f"{dep}/")] == []


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_modules_it_imports(name):
    script = ROOT / STAGES[name]["cmd"].split()[2].replace(".", "/")
    closure = import_closure(
        script.with_suffix(".py"), ROOT / "stages/__init__.py", is_exempt=is_exempt
    )
    expected = {path.relative_to(ROOT).as_posix() for path in closure}
    assert sorted(listed_files(name)) == sorted(expected)


def listed_files(name: str) -> list[str]:
    """Our own files that a stage depends on, folders taken for what they hold."""
    listed = [ROOT / dep for dep in STAGES[name]["deps"] if re.match(r"(src|stages)/", dep)]
    files = [file for dep in listed for file in (dep.rglob("*") if dep.is_dir() else [dep])]
    return [
        file.relative_to(ROOT).as_posix()
        for file in files
        if file.is_file() and file.stat().st_size and "__pycache__" not in file.parts
    ]


def test_what_is_exempt_is_there_and_imported_by_a_stage():
    closure = import_closure(*(ROOT / "stages").glob("*.py"))
    assert {exempt_name(path) for path in closure if is_exempt(path)} == set(EXEMPT)


def test_the_stages_are_those_of_the_design_in_its_order():
    assert list(STAGES) == [
        "download",
        "preprocess",
        "external",
        "train_frozen",
        "train_finetuned",
        "evaluate",
        "report",
    ]


def sections_read(path: Path) -> set[str]:
    """Sections of params.yaml that a file takes from a `Config`, its own or a given one."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    given = {n.arg for n in nodes if isinstance(n, ast.arg) and is_config(n.annotation)}
    loaded = {
        ast.unparse(target)
        for node in nodes
        if isinstance(node, ast.Assign)
        for target, value in zip(parts(node.targets[0]), parts(node.value), strict=False)
        if is_call_of(value, "load_config")
    }
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and (ast.unparse(node.value) in given | loaded or is_call_of(node.value, "load_config"))
    } - {"encoder_lr", "seeds", "training_params"}


def parts(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def is_config(annotation: ast.expr | None) -> bool:
    return isinstance(annotation, ast.Name) and annotation.id == "Config"


def is_call_of(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == name


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_parameters_it_reads(name):
    script = ROOT / STAGES[name]["cmd"].split()[2].replace(".", "/")
    files = import_closure(script.with_suffix(".py"), is_exempt=is_exempt)
    expected = set.union(*(sections_read(file) for file in files if file.suffix == ".py"))
    if name.startswith("train_"):
        expected |= {name, "preprocess", "augment", "loss"}  # through Config.training_params
    assert {parameter.split(".")[0] for parameter in STAGES[name]["params"]} == expected


def test_both_trainings_depend_on_the_same_but_for_their_own_section():
    frozen, finetuned = STAGES["train_frozen"], STAGES["train_finetuned"]
    assert frozen["deps"] == finetuned["deps"]
    assert set(frozen["params"]) ^ set(finetuned["params"]) == {"train_frozen", "train_finetuned"}


def test_both_models_are_artifacts_each_an_output_of_its_stage():
    artifacts = PIPELINE["artifacts"]
    assert [f"train_{name}" for name in artifacts] == list(RUNS)
    for name, artifact in artifacts.items():
        assert artifact["path"] in STAGES[f"train_{name}"]["outs"]
        assert (artifact["type"], bool(artifact["desc"])) == ("model", True)


def test_dvc_finds_the_artifacts():
    with Repo(str(ROOT), uninitialized=True) as repo:
        found = repo.artifacts.read()
    assert sorted(found["dvc.yaml"]) == ["finetuned", "frozen"]
