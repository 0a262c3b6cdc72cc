"""docs/data.md says what the sources do."""

import re
from pathlib import Path

from lesionseg.config import load_config
from lesionseg.data.isic import CHALLENGES
from lesionseg.data.pairs import SUFFIXES
from lesionseg.data.sources import SOURCES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/data.md").read_text(encoding="utf-8")


def test_each_source_has_its_row_with_its_numbers_and_a_command():
    for name in [*SOURCES, "phantom"]:
        assert f"| `{name}` |" in TEXT
        assert re.search(rf"^## .*\b{name}\b", TEXT, re.MULTILINE)
    for name, challenge in CHALLENGES.items():
        row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |"))
        for archive in challenge.archives:
            assert f"{archive.split} {archive.num_files:,}" in row


def test_the_parameters_it_names_exist():
    known = load_config(ROOT / "params.yaml").flat("download", "preprocess", "train")
    named = set(re.findall(r"\b(?:download|preprocess|train)\.[a-z]\w+", TEXT))
    assert {name for name in named if name not in known} == {"download.phantom_"}


def test_the_external_test_sets_it_shows_are_read(tmp_path):
    shown = re.search(r"```yaml\n(external:\n.*?)```", TEXT, re.DOTALL)[1]
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text("utf-8").replace("external: []\n", shown))
    assert [one.name for one in load_config(path).external] == ["ph2", "our-clinic"]


def test_the_endings_are_those_that_are_read():
    assert all(f"`{suffix}`" in TEXT for suffix in SUFFIXES)


def test_each_message_is_one_that_the_program_has():
    files = (ROOT / "src/lesionseg/data").glob("*.py")
    code = re.sub(r'"\s+f?"', "", "\n".join(path.read_text("utf-8") for path in files))
    code = re.sub(r"\{[^{}]*\}|%[dsg]", "…", code)  # what the program fills in
    rows = TEXT.partition("| it says | it means |")[2].splitlines()[2:]
    messages = [m for row in rows for m in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    assert len(messages) > 25
    assert [message for message in messages if message not in code] == []
