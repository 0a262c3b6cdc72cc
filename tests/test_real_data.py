"""A short training on real dermoscopy and real weights, where they lie beside the checkout."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lesionseg import provenance
from lesionseg.config import load_config, override, read_yaml
from lesionseg.data.dataset import load_split
from lesionseg.inference.prediction import predict_split
from lesionseg.metrics import count_pixels, mean_scores, pool_scores, score_images
from lesionseg.models.segmenter import load_model
from lesionseg.results.layout import RUNS, Results
from lesionseg.training.run import write_results
from lesionseg.training.setup import Inputs, make_training
from stages import download, evaluate, external, preprocess

SHARED = Path(__file__).parents[2] / "shared"
WEIGHTS = SHARED / "weights/mobilenet_v2_imagenet.pth"
NUM_IMAGES = {"train": 160, "test": 60}
LAST_BATCH = 4
MASKS, MASKS_DIR = Path("data/raw/test/masks"), Path("results/evaluate/masks/train_finetuned")

pytestmark = pytest.mark.skipif(
    not WEIGHTS.exists(), reason="real images and weights are not beside the checkout (../shared)"
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project of part of the real images, ready to train on."""
    tmp_path = tmp_path_factory.mktemp("real")
    for split, num_images in NUM_IMAGES.items():
        for kind in ("images", "masks"):
            target = tmp_path / "source" / split / kind
            target.mkdir(parents=True)
            for path in sorted((SHARED / "isic2016-256" / split / kind).iterdir())[:num_images]:
                shutil.copyfile(path, target / path.name)
    values = {
        "download.source": "folder",
        "download.folder": str(tmp_path / "source"),
        "download.weights": str(WEIGHTS),
        "preprocess.image_size": 64,
        "train.epochs": 8,
    }
    params = override(read_yaml(Path(__file__).parents[1] / "params.yaml"), values)
    (tmp_path / "params.yaml").write_text(params)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DVC_ROOT", str(tmp_path))
        download.main([])
        preprocess.main([])
        external.main([])
        yield tmp_path


@pytest.fixture(scope="module")
def trained(project):
    """The project with one briefly fine-tuned model in the place of both."""
    config = load_config(Path("params.yaml"))
    training = make_training(config, "train_finetuned", seed=0, inputs=Inputs())
    for _ in training:
        pass
    for name in RUNS:
        facts = {"data_sha256": "-", "device": "cpu", "precision": "float32", "training_key": name}
        tags = {**provenance.tags(stage=name), **facts}
        params = config.training_params(name, seed=0)
        training.recipe = replace(training.recipe, run=name)
        write_results(Results().training(name), config, training, tags=tags, params=params)
    evaluate.main([])
    return project


def test_eight_epochs_of_fine_tuning_segment_unseen_real_lesions(trained):
    """The best mask that is the same for all images has 0.55, this training 0.82 on one machine."""
    scores = json.loads((trained / "results/evaluate/train_finetuned.json").read_text())
    assert scores["test"]["jaccard"] > 0.75
    assert scores["test_own_size"]["jaccard"] > 0.75


def test_the_same_model_twice_shows_no_difference(trained):
    comparison = json.loads((trained / "results/evaluate/comparison.json").read_text())
    row = comparison["test"]["jaccard"]
    assert (row["difference"], row["interval"], row["wilcoxon_p"]) == (0, [0, 0], 1)
    assert (row["wins"], row["ties"], row["losses"]) == (0, NUM_IMAGES["test"], 0)


# The scorer calls pandas in a way that pandas 3.1 deprecates.
@pytest.mark.filterwarnings("ignore:The inplace keyword in Series.rename:DeprecationWarning")
@pytest.mark.parametrize("scope", ["test", "test_own_size"])
def test_the_official_scorer_agrees_on_real_predictions(trained, tmp_path, scope):
    official = pytest.importorskip(
        "isic_challenge_scoring.segmentation", reason="the official scorer needs Python < 3.13"
    )
    truths, predictions = trained / "data/raw/test/masks", trained / MASKS_DIR
    if scope == "test":
        truths, predictions = write_at_network_size(trained, tmp_path)
    score = official.SegmentationScore.from_dir(truths, predictions)
    theirs = score.to_dict()["macro_average"]
    ours = json.loads((trained / "results/evaluate/train_finetuned.json").read_text())[scope]
    assert len(theirs) == 6
    assert {metric: ours[metric] for metric in theirs} == pytest.approx(theirs, abs=1e-9)


def write_at_network_size(project, folder):
    """Truth and predictions at 64 x 64 as PNG files, in two folders."""
    test = load_split(project / "data/processed", "test")
    model, _ = load_model(project / "results/train_finetuned/model.pt", stage="train_finetuned")
    probabilities = predict_split(
        model, test, batch_size=32, device=torch.device("cpu"), label="test"
    )
    truths, predictions = folder / "truths", folder / "predictions"
    truths.mkdir()
    predictions.mkdir()
    for image_id, truth, probability in zip(test.ids, test.masks, probabilities, strict=True):
        Image.fromarray(truth * np.uint8(255)).save(truths / f"{image_id}.png")
        mask = (probability > 0.5) * np.uint8(255)
        Image.fromarray(mask).save(predictions / f"{image_id}.png")
    return truths, predictions


def test_the_wrong_formulas_give_other_numbers_on_real_masks(project):
    """Of large lesions the upper half is found, small ones are found whole.

    So the images that are last in order of size, and all pixels together, say less than the mean
    over images, and columns without lesion say more: by construction, whatever a training gives.
    """
    truths = [np.asarray(Image.open(path)) > 128 for path in sorted((project / MASKS).iterdir())]
    truths.sort(key=lambda truth: truth.mean())
    small, large = truths[: len(truths) // 2], truths[len(truths) // 2 :]
    pairs = list(zip([*small, *map(upper_half, large)], truths, strict=True))
    counts = np.concatenate([count_pixels(p[None], t[None]) for p, t in pairs])
    ours = mean_scores(score_images(counts))["jaccard"]
    assert ours == pytest.approx(np.mean([(p & t).sum() / (p | t).sum() for p, t in pairs]))
    wrong = {
        "over columns": np.mean([score_columns(p, t) for p, t in pairs]) - ours,
        "last batch only": ours - score_images(counts[-LAST_BATCH:])["jaccard"].mean(),
        "pooled over images": ours - pool_scores(counts)["pooled_jaccard"],
    }
    assert min(wrong.values()) > 0.05, wrong


def upper_half(mask):
    """A mask without its lower rows, which hold half of its pixels or a little less."""
    rows = mask.sum(axis=1).cumsum()
    return mask & (rows <= rows[-1] / 2)[:, None]


def score_columns(prediction, truth):
    """The wrong formula that averages over columns, the empty ones being right."""
    union = (prediction | truth).sum(0)
    return np.where(union > 0, (prediction & truth).sum(0) / union.clip(1), 1).mean()
