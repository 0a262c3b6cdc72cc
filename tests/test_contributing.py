"""CONTRIBUTING.md's recipes apply to the project as it is, and do what they say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = dict(
    re.findall(
        r"## Add an? (\w+)[^\n]*\n.*?```diff\n(.*?)```",
        (ROOT / "CONTRIBUTING.md").read_text(),
        re.S,
    )
)
# What a user of each recipe would see, run in the changed copy.
CHECKS = {
    "decoder": """
config = load_config(change({"model.decoder": "additive"}))
encoder_state = mobilenet_v2(weights=None).features.state_dict()
model = build_segmenter(
    encoder_state=encoder_state, decoder=config.model.decoder, dropout=0.1, frozen=True, seed=0
)
assert model(torch.zeros(2, 3, 64, 96)).shape == (2, 1, 64, 96)
""",
    "loss": """
others = {f"loss.{name}": 0 for name in ("bce", "dice", "iou")}
config = load_config(change({"loss.log_cosh_dice": 1, **others}))
assert load_config(Path("params.yaml")).loss.log_cosh_dice == 0
masks = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
logits = torch.zeros_like(masks)  # dice loss by hand: 1 - (2 * 0.5 + 1) / (1 + 1 + 1) = 1 / 3
value = weighted_sum(logits, masks, weights=dataclasses.asdict(config.loss))
assert abs(value.item() - math.log(math.cosh(1 / 3))) < 1e-6
""",
    "score": """
mask, other = np.zeros((2, 30, 40), bool)  # a diagonal of 50 pixels
mask[0, 0] = other[0, 0] = other[0, 30] = True  # distances 0, 0 and 30: a mean of 10
scores = score_mask(mask, other, surface_tolerance=1.0)
assert abs(scores["assd"] - 20) < 1e-9, scores
assert score_mask(mask, mask, surface_tolerance=1.0)["assd"] == 0
assert score_mask(mask, np.zeros_like(mask), surface_tolerance=1.0)["assd"] == 100
assert summarise(pd.DataFrame([scores]))["assd"] == scores["assd"]
better, worse = ({name: np.full(9, value) for name in METRICS} for value in (1.0, 2.0))
compared = compare(worse, better, interval=lambda values: (0.0, 0.0))
assert compared["assd"].wins == 9 and compared["jaccard"].losses == 9
""",
    "source": """
for number in range(5):
    level = 40 * number
    Image.new("L", (8, 8), level).convert("RGB").save(f"given/{number}.jpg")
    mask = Image.new("L", (8, 8))
    mask.paste(255, (2, 2, 6, 6))
    mask.save(f"given/{number}_mask.png")
given = {"source": "beside", "folder": "given", "weights": "none"}
change({f"download.{key}": value for key, value in given.items()}).replace("params.yaml")
stages.download.main([])
rows = list(csv.DictReader(open("data/raw/manifest.csv")))
assert sorted(row["split"] for row in rows) == ["test", *4 * ["train"]]
""",
}
PREAMBLE = """
import csv, dataclasses, math
from pathlib import Path
import numpy as np, pandas as pd, torch
from lesionseg.config import load_config, override, read_yaml
from lesionseg.evaluation.scoring import score_mask, summarise
from lesionseg.evaluation.statistics import compare
from lesionseg.losses import weighted_sum
from lesionseg.mobilenet import mobilenet_v2
from lesionseg.models.segmenter import build_segmenter
from lesionseg.results.vocabulary import METRICS
from PIL import Image
import stages.download

def change(values):
    path = Path("changed.yaml")
    path.write_text(override(read_yaml(Path("params.yaml")), values))
    return path
"""

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="no git to apply a diff with")


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the project with all recipes applied."""
    folder = tmp_path_factory.mktemp("changed")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("params.yaml", "dvc.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "given").mkdir()
    for recipe in RECIPES.values():
        command = ["git", "apply", "--whitespace=error-all"]
        done = subprocess.run(command, cwd=folder, input=recipe, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
    return folder


def test_each_recipe_is_checked():
    assert set(RECIPES) == set(CHECKS)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_changes_fewer_than_30_lines(name):
    assert 5 < len(re.findall(r"(?m)^[+-](?![+-]{2} )", RECIPES[name])) < 30


def test_the_recipes_do_what_they_say(changed):
    code = PREAMBLE + "".join(CHECKS.values())
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=changed,
        env={**os.environ, "PYTHONPATH": str(changed / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_recipes_pass_lint_and_format(changed):
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."],
            cwd=changed,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout
