"""The teacher: which files teach, what they say together, and what cannot teach."""

import math
from pathlib import Path

import pytest
import torch

from lesionseg.config import load_config, override, read_yaml
from lesionseg.errors import ConfigError, DataError, MissingFileError
from lesionseg.files import sha256
from lesionseg.models.segmenter import build_segmenter, load_model, save_model
from lesionseg.tracking import run_tags
from lesionseg.training.distillation import Teacher, find_models, load_teacher
from stages.train import make_teacher, training_facts

pytestmark = pytest.mark.usefixtures("one_thread")

PARAMS = Path(__file__).parents[1] / "params.yaml"


class Constant(torch.nn.Module):
    """Says the same everywhere, with a probability given as odds."""

    def __init__(self, odds: float) -> None:
        super().__init__()
        self.logit = torch.nn.Parameter(torch.tensor(math.log(odds)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logit.expand(len(images), 1, *images.shape[2:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encoder_state):
    """Two models of different decoders for images of 64 pixels, and a file that is none."""
    folder = tmp_path_factory.mktemp("teachers")
    for seed, (name, decoder) in enumerate({"b": "bilinear", "a": "pyramid"}.items()):
        model = build_segmenter(
            encoder_state=encoder_state, decoder=decoder, dropout=0.1, frozen=True, seed=seed
        )
        path = folder / f"{name}.pt"
        save_model(path, state=model.state_dict(), decoder=decoder, image_size=64, frozen=True)
    (folder / "notes.txt").write_text("seeds 0 and 1")
    return folder


def message_of(error: type[Exception], function, *arguments, **settings) -> str:
    with pytest.raises(error) as caught:
        function(*arguments, **settings)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_two_teachers_say_the_mean_of_their_probabilities():
    probabilities = Teacher([Constant(1), Constant(3)])(torch.rand(2, 3, 4, 4))
    assert probabilities.shape == (2, 1, 4, 4)
    # (1/2 + 3/4) / 2; the sigmoid of their mean logit would be 0.634.
    assert probabilities.unique().tolist() == pytest.approx([0.625])


def test_a_teacher_never_learns():
    teacher = Teacher([Constant(1), torch.nn.BatchNorm2d(3)])
    assert not any(module.training for module in teacher.models.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not Teacher([Constant(1)])(torch.rand(1, 3, 4, 4)).requires_grad


def test_a_file_teaches_alone_and_a_folder_by_all_its_models_by_name(folder):
    assert find_models(folder / "b.pt") == [folder / "b.pt"]
    assert find_models(folder) == [folder / "a.pt", folder / "b.pt"]


def test_models_of_other_decoders_teach_together(folder):
    files = find_models(folder)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        each = [load_model(path, stage="any")[0](images).sigmoid() for path in files]
    assert (each[0] - each[1]).abs().max() > 0.01
    torch.testing.assert_close(
        load_teacher(files, image_size=64)(images), (each[0] + each[1]) / 2, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("name", ["away", "away/model.pt", "empty"])
def test_a_teacher_that_is_not_there_is_answered_in_one_line(tmp_path, name):
    (tmp_path / "empty").mkdir()
    assert message_of(MissingFileError, find_models, tmp_path / name) == (
        f"params.yaml: train: teacher is {tmp_path / name}, which is neither a file nor a folder "
        "with a *.pt in it. Copy a model.pt there, or write another path"
    )


def test_a_teacher_for_another_image_size_names_both(folder):
    path = folder / "b.pt"
    assert message_of(ConfigError, load_teacher, [path], image_size=128) == (
        f"params.yaml: train: teacher: {path} is for images of 64 pixels, and "
        "preprocess.image_size is 128. Write another path, or that size"
    )


def test_a_file_of_something_else_cannot_teach(folder):
    path = folder / "notes.txt"
    assert message_of(DataError, load_teacher, [path], image_size=64) == (
        f"params.yaml: train: teacher: {path} is no model.pt of this program. "
        "Remove it from there, or write another path"
    )


@pytest.fixture
def configure(tmp_path, monkeypatch):
    """A project's config with another teacher; DVC's workspace is not the repository."""
    workspace, repository = tmp_path / "workspace", tmp_path / "repository"
    (workspace / "data/processed/train").mkdir(parents=True)
    (workspace / "data/processed/train/index.csv").write_text("id\n")
    repository.mkdir()
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("DVC_ROOT", str(repository))

    def configure(teacher: str | Path):
        values = {
            "preprocess.image_size": 64,
            "train.teacher": str(teacher),
            "train.distillation": 0.5 if teacher else 0.0,
        }
        path = Path("params.yaml")
        path.write_text(override(read_yaml(PARAMS), values))
        return load_config(path)

    return configure


def test_a_relative_path_starts_at_the_repository(configure, folder, tmp_path):
    (tmp_path / "repository/teachers").symlink_to(folder)
    for path in ("teachers", folder):
        assert len(make_teacher(configure(path)).models) == 2
    assert make_teacher(configure("")) is None


def test_the_teachers_hashes_are_among_a_training_s_facts_and_tags(configure, folder):
    settings = {"device": torch.device("cpu"), "precision": torch.float32}
    alone = training_facts(configure(""), **settings)
    taught = training_facts(configure(folder), **settings)
    hashes = f"{sha256(folder / 'a.pt')} {sha256(folder / 'b.pt')}"
    assert taught == {**alone, "teacher_sha256": hashes}
    others = ("commit", "dvc_stage", "dvc_experiment", "training_key", "model_sha256")
    record = dict.fromkeys(others, "") | {"params": {}, "versions": {}}
    assert run_tags(record | taught)["teacher_sha256"] == hashes
    assert "teacher_sha256" not in run_tags(record | alone)
