"""docs/answer.md has the curve that lies in docs/results/, and takes over another."""

import json
import shutil
from pathlib import Path

import pytest
from test_curve import make_curve

from docs import fill_numbers
from lesionseg.cli import main
from lesionseg.curve.record import read_curve, write_curve
from lesionseg.curve.text import curve_text

DOCS = Path(__file__).parents[1] / "docs"
ABOUT = ["--data", "phantoms", "--machine", "a machine", "--date", "2027-01-31"]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("lesionseg.curve.power_law.NUM_RESAMPLES", 20)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """What `lesionseg curve` leaves, in a project."""
    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", "params.yaml"):
        Path(name).touch()
    folder = tmp_path / "results/curve"
    write_curve(folder / "curve.json", make_curve(sets=("test", "abroad")))
    (folder / "curve.csv").write_text("set,run\n")
    assert main(["curve", "--from", "results/curve/curve.json"]) == 0
    return folder


@pytest.fixture
def store(tmp_path, monkeypatch):
    """docs/results/ without a curve, and a copy of the page, which is the only one."""
    store = tmp_path / "docs/results"
    shutil.copytree(
        fill_numbers.STORE, store, ignore=lambda _, names: [n for n in names if "curve" in n]
    )
    page = Path(shutil.copy(DOCS / "answer.md", store.parent))
    code = "src/lesionseg/curve"  # which the page takes numbers from
    shutil.copytree(DOCS.parent / code, tmp_path / code)
    monkeypatch.setattr(fill_numbers, "STORE", store)
    monkeypatch.setattr(fill_numbers, "ROOT", tmp_path)
    monkeypatch.setattr(fill_numbers, "PAGES", [page])
    fill_numbers.main([])
    return store


def test_the_text_of_the_committed_curve_is_what_the_program_says_of_it():
    text = DOCS / "results/curve.md"
    if (DOCS / "results/curve.json").exists():
        told = curve_text(read_curve(DOCS / "results/curve.json"))
        again = "Run: lesionseg curve --from docs/results/curve.json && make docs-numbers"
        assert text.read_text(encoding="utf-8") == told, again
        assert (DOCS / "results/curve.svg").is_file()
    else:
        assert not text.exists()
        assert "*Not measured yet" in (DOCS / "answer.md").read_text(encoding="utf-8")


def test_text_page_and_figure_are_written_again_from_the_file_alone(measured, capsys):
    written = {name: (measured / f"curve.{name}").read_bytes() for name in ("md", "html", "svg")}
    for name in written:
        (measured / f"curve.{name}").unlink()
    assert main(["curve", "--from", "results/curve/curve.json"]) == 0
    assert {name: (measured / f"curve.{name}").read_bytes() for name in written} == written
    text = curve_text(read_curve(measured / "curve.json"))
    assert written["md"].decode() == text
    assert capsys.readouterr().out.startswith(text)


def test_a_curve_that_is_taken_over_stands_in_the_page_and_all_else_stays(store, measured):
    page = store.parent / "answer.md"
    before = page.read_text(encoding="utf-8")
    assert "*Not measured yet" in before
    fill_numbers.main(["curve", str(measured), *ABOUT])
    after = page.read_text(encoding="utf-8")
    curve = read_curve(measured / "curve.json")
    assert curve_text(curve).rstrip() in after
    assert "![Jaccard against the number of training images](results/curve.svg)" in after
    assert "Measured on 2027-01-31 at commit `0123456789`, phantoms; a machine, float32 on" in after
    assert fill_numbers.BLOCK.sub("", after) == fill_numbers.BLOCK.sub("", before)
    assert read_curve(store / "curve.json") == curve
    for name in ("curve.csv", "curve.svg", "curve.md"):
        assert (store / name).read_bytes() == (measured / name).read_bytes()


def test_the_short_table_has_each_size_and_set(store, measured):
    fill_numbers.main(["curve", str(measured), *ABOUT])
    heading, _, *rows = fill_numbers.curve_table().splitlines()
    assert heading.count("frozen, fine-tuned") == 2
    curve = read_curve(measured / "curve.json")
    for row, near, far in zip(rows, *(one.points for one in curve.sets), strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        low, high = far.difference.interval
        assert cells[0] == str(near.num_images)
        assert cells[1] == f"{near.train_frozen.mean:.3f}, {near.train_finetuned.mean:.3f}"
        assert cells[4] == f"{far.difference.mean:+.3f} ({low:+.3f} to {high:+.3f})"


def test_one_seed_has_a_short_table_without_intervals(store, measured):
    write_curve(measured / "curve.json", make_curve(num_seeds=1))
    fill_numbers.main(["curve", str(measured), *ABOUT])
    assert " to " not in fill_numbers.curve_table()


@pytest.mark.parametrize("name", ["curve.json", "curve.csv", "curve.md", "curve.svg"])
def test_half_a_curve_is_not_taken_over(store, measured, name):
    (measured / name).unlink()
    with pytest.raises(SystemExit, match=rf"^error: .* has no {name}\. Run: lesionseg curve$"):
        fill_numbers.main(["curve", str(measured), *ABOUT])
    assert not (store / "curve.json").exists()


def test_a_file_that_is_no_curve_is_answered_in_one_line(measured, capsys):
    (measured / "curve.json").write_text(json.dumps({"format": 1}))
    capsys.readouterr()
    assert main(["curve", "--from", "results/curve/curve.json"]) == 1
    assert "is no learning curve" in capsys.readouterr().err
