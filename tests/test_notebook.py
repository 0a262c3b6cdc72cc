"""notebooks/answer.ipynb is committed without outputs; tests/test_pipeline.py runs it."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CELLS = json.loads((ROOT / "notebooks/answer.ipynb").read_text(encoding="utf-8"))["cells"]


def test_it_holds_no_output_and_so_no_path_of_a_machine():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert len(code) >= 8
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"]] == []


def test_what_it_says_to_install_is_an_extra_and_its_links_lead_somewhere():
    text = "".join(line for cell in CELLS for line in cell["source"])
    extras = re.findall(r"\.\[(\w+)\]", text)
    assert extras
    assert all(f"\n{name} = [" in (ROOT / "pyproject.toml").read_text() for name in extras)
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    assert all((ROOT / "notebooks" / link).exists() for link in links)
