"""A short training on real dermoscopy and real weights, where they lie beside the checkout."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lesionseg.config import load_config, override, read_yaml
from lesionseg.data.dataset import load_split
from lesionseg.evaluation.metrics import count_pixels, score_images
from lesionseg.evaluation.prediction import predict_split
from stages import download, preprocess
from stages.train import make_training

SHARED = Path(__file__).parents[2] / "shared"
WEIGHTS = SHARED / "weights/mobilenet_v2_imagenet.pth"
NUM_IMAGES = {"train": 300, "test": 100}

pytestmark = pytest.mark.skipif(
    not WEIGHTS.exists(), reason="real images and weights are not beside the checkout (../shared)"
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of part of the real images, ready to train on."""
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
        "train.epochs": 6,
    }
    params = override(read_yaml(Path(__file__).parents[1] / "params.yaml"), values)
    (tmp_path / "params.yaml").write_text(params)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    download.main([])
    preprocess.main([])
    return tmp_path


def test_a_minute_of_fine_tuning_segments_unseen_real_lesions(project):
    config = load_config(Path("params.yaml"))
    cpu = torch.device("cpu")
    training = make_training(config, "train_finetuned", device=cpu, precision=torch.float32)
    history = list(training)
    assert sum(epoch.seconds for epoch in history) < 90
    test = load_split(Path("data/processed"), "test")
    training.model.load_state_dict(training.best["state"])
    probabilities = predict_split(training.model, test, batch_size=32, device=cpu, label="test")
    counts = count_pixels(np.stack(list(probabilities)) > 0.5, test.masks > 0)
    assert score_images(counts)["jaccard"].mean() > 0.78
