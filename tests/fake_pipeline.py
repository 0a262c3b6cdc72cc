"""A repository whose pipeline takes no time, for tests of what runs pipelines."""

import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from lesionseg.processes import child_environment, git_identity
from lesionseg.results.evaluation import Compared, Comparison, Limits
from lesionseg.results.layout import RUNS
from lesionseg.results.training import TrainingRecord, seed_scores_table
from lesionseg.results.vocabulary import METRICS

ROOT = Path(__file__).parents[1]
PARAMS = ROOT / "params.yaml"
IDENTITY = git_identity(ROOT, stranger="tester")
# A pipeline of the same stages that takes no time, and fails where dropout is large. Jaccards are
# 1 - dropout on val and 0.1 less on test, and 0.01 less for each further seed. On test, a training
# on n of the 100 images costs 1 / n, the fine-tuned model's 2 / n; the external set costs 0.1 more.
FAKE_PIPELINE = """
stages:
  preprocess:
    cmd: python fake.py preprocess
    params: [preprocess]
    deps: [fake.py]
    outs: [data/processed]
  external:
    cmd: python fake.py external
    params: [external]
    deps: [fake.py, data/processed]
    outs: [data/external]
  train_frozen:
    cmd: python fake.py train_frozen
    params: [train, model]
    deps: [fake.py, data/processed]
    outs:
      - results/train_frozen/run.json
      - results/train_frozen/seeds
      - results/train_frozen/metrics.json
  train_finetuned:
    cmd: python fake.py train_finetuned
    params: [train, model]
    deps: [fake.py, data/processed]
    outs:
      - results/train_finetuned/run.json
      - results/train_finetuned/seeds
      - results/train_finetuned/metrics.json
  evaluate:
    cmd: python fake.py evaluate
    params: [train, model]
    deps: [fake.py, results/train_frozen/seeds, results/train_finetuned/seeds]
    outs:
      - results/evaluate/seeds.csv
      - results/evaluate/external
      - results/evaluate/comparison.json: {cache: false}
    metrics: [results/metrics.json: {cache: false}]
"""
FAKE_STAGE = """
import json, os, sys, time, yaml
from pathlib import Path

def write(path, *lines):
    path = Path("results") / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\\n".join([*lines, ""]))

name = sys.argv[1]
params = yaml.safe_load(Path("params.yaml").read_text())
dropout, seeds = params["model"]["dropout"], range(params["train"]["num_seeds"])
with (Path(os.environ["FAKE_RUNS"])).open("a") as stream:
    stream.write(f"{name} {dropout} {os.getpid()}\\n")
num_images = params["train"]["num_images"]
if name == "preprocess":
    for split, num in (("train", 100), ("val", 20)):
        write(f"../data/processed/{split}/index.csv", "id", *map(str, range(num)))
    sys.exit()
if name == "external":
    Path("data/external").mkdir()
    sys.exit()
if name == "evaluate":
    costs = {"train_frozen": 1, "train_finetuned": 2}
    for folder, less in (("evaluate", 0), ("evaluate/external/abroad", 0.1)):
        best = 0.9 - dropout - less
        write(f"{folder}/comparison.json", json.dumps(COMPARISON))
        write(f"{folder}/seeds.csv", "run,seed,scope,METRICS", *(
            f"{run},{seed},{scope},{best - seed / 100 - (num_images and costs[run] / num_images)},"
            f"{0.95 - dropout}" + ",0" * NUM_OTHERS
            for run in costs for seed in seeds for scope in ("test", "test_own_size")
        ))
    test = {"jaccard": 0.9 - dropout, "dice": 0.95 - dropout}
    write("metrics.json", json.dumps({"frozen": test, "tuned": test | {"val": 1 - dropout}}))
    sys.exit()
if dropout > 0.5:
    time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
    sys.exit("error: so much dropout is too much")
val = [1 - dropout - seed / 100 for seed in seeds]
write(f"{name}/metrics.json", json.dumps({"best_epoch": 1, "val": {"jaccard": val[0]}}))
rows = [f"{seed},{val[seed]}" + ",0" * NUM_SCORES for seed in seeds]
write(f"{name}/seeds/scores.csv", "SCORES", *rows)
for seed in seeds:
    folder = f"{name}/seeds/{seed}" if seed else name
    own = {"run": name, "seconds": 10 + seed, "num_images": num_images or 100}
    own["params"] = {
        f"{section}.{key}": value
        for section in ("download", "preprocess", "train") for key, value in params[section].items()
    }
    write(f"{folder}/run.json", json.dumps(RECORD | own))
"""

# The columns and fields of the real stages' own files, most of them without a meaning.
_OTHERS = [name for name in METRICS if name not in ("jaccard", "dice")]
_SCORES = seed_scores_table("").columns
_SCORES = ["seed", "val_jaccard", *(n for n in _SCORES if n not in ("seed", "val_jaccard"))]
_TEXTS = dict.fromkeys(["commit", "dvc_stage", "dvc_experiment", "data_sha256", "device"], "-")
_RECORD = TrainingRecord(
    **_TEXTS,
    run="-",
    model_sha256="-",
    precision="-",
    training_key="-",
    seconds=0.0,
    images_per_second=0.0,
    num_images=1,
    num_parameters=1,
    num_trained_parameters=1,
    versions={},
    params={},
)
_COMPARED = Compared(
    train_frozen=0.0,
    train_frozen_interval=(0.0, 0.0),
    train_finetuned=0.0,
    train_finetuned_interval=(0.0, 0.0),
    difference=0.0,
    interval=(0.0, 0.0),
    wilcoxon_p=1.0,
    rank_biserial=0.0,
    wins=0,
    ties=0,
    losses=0,
)
_COMPARISON = Comparison(
    num_images=30,
    confidence=0.95,
    num_resamples=100,
    threshold=0.5,
    surface_tolerance=1.0,
    limits=Limits(perfect_own_size=1.0, pixel_larger=1.0, pixel_smaller=1.0),
    models=dict.fromkeys(RUNS, "-"),
    test=dict.fromkeys(METRICS, _COMPARED),
    test_own_size=dict.fromkeys(METRICS, _COMPARED),
    seeds=None,
)
FAKE_STAGE = (
    FAKE_STAGE.replace("METRICS", ",".join(["jaccard", "dice", *_OTHERS]))
    .replace("NUM_OTHERS", str(len(_OTHERS)))
    .replace("NUM_SCORES", str(len(_SCORES) - 2))
    .replace("SCORES", ",".join(_SCORES))
    .replace("RECORD", repr(asdict(_RECORD)))
    .replace("COMPARISON", repr(asdict(_COMPARISON)))
)


def call(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {
        **child_environment(),
        **IDENTITY,
        "PYTHONPATH": str(ROOT / "src"),
        "MLFLOW_TRACKING_URI": "unused",
        "FAKE_RUNS": str(folder.parent / "runs.txt"),
        **more,
    }


def fake_repository(folder: Path) -> Path:
    folder.mkdir()
    shutil.copyfile(PARAMS, folder / "params.yaml")
    (folder / "dvc.yaml").write_text(FAKE_PIPELINE)
    (folder / "fake.py").write_text(FAKE_STAGE)
    (folder / ".gitignore").write_text("/data/\n/.checkpoints/\n")
    call(folder, "git", "init", "--quiet")
    call(folder, "dvc", "init", "--quiet")
    call(folder, "git", "add", "--all")
    call(folder, "git", "commit", "--quiet", "--message", "start")
    return folder


def start(folder: Path, *arguments: str, **more: str) -> "subprocess.Popen[str]":
    """`lesionseg ARGUMENTS` in a repository, in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "lesionseg", *arguments],
        cwd=folder,
        env=environment(folder, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def trainings(folder: Path) -> list[str]:
    """What the fake stages ran, without preprocess and the process ids."""
    path = folder.parent / "runs.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return sorted(line.rsplit(" ", 1)[0] for line in lines if line.startswith("train"))


def experiments(folder: Path) -> list[str]:
    text = call(folder, "git", "for-each-ref", "--format=%(refname:lstrip=4)", "refs/exps")
    return text.split()
