"""External test sets: prepared like test, in no split, scored and told of as what they are."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionseg.config import load_config, override, read_yaml
from lesionseg.data import external_sets
from lesionseg.data.dataset import SPLITS, load_split
from lesionseg.data.external import fill_external
from lesionseg.data.external_sets import ExternalSet, read_sets, write_sets
from lesionseg.data.manifest import read_manifest
from lesionseg.data.phantom import ELSEWHERE, draw_phantom
from lesionseg.data.preprocessing import preprocess
from lesionseg.data.raw import fill_raw
from lesionseg.errors import ConfigError, DataError, MissingFileError
from lesionseg.report.external import ExternalScores, answer_elsewhere, in_plain_words
from lesionseg.results.evaluation import Comparison, Interval, ModelScores
from lesionseg.results.layout import RUNS, Results
from lesionseg.results.vocabulary import METRICS
from tests.raw_data import phantoms
from tests.trained_results import compare_one, write_evaluation

PARAMS = Path(__file__).parents[1] / "params.yaml"
SMALL = phantoms(num_train=12, num_test=4)


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> Path:
    """A folder `data` with the splits of a phantom project."""
    data_dir = tmp_path_factory.mktemp("splits") / "data"
    config = config_of(data_dir.parent)
    fill_raw(data_dir / "raw", config.download)
    options = config.preprocess
    preprocess(
        data_dir / "raw",
        data_dir / "processed",
        source="phantom",
        image_size=options.image_size,
        val_fraction=options.val_fraction,
        seed=options.seed,
        near_duplicate_distance=options.near_duplicate_distance,
    )
    return data_dir


def config_of(folder: Path, **external):
    """A small project's parameters with external test sets: their folders by name."""
    sets = [{"name": name, "source": "folder", "folder": str(at)} for name, at in external.items()]
    path = folder / "params.yaml"
    path.write_text(override(read_yaml(PARAMS), {**SMALL, "external": sets}))
    return load_config(path)


def write_folder(folder: Path, *, num: int, seed: int = 50) -> Path:
    """A user's folder with images and masks that nobody else has."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(num):
        image, mask = draw_phantom(size=80, seed=seed + number)
        Image.fromarray(image).save(folder / f"images/{number}.png")
        Image.fromarray(mask).save(folder / f"masks/{number}.png")
    return folder


def fill(tmp_path: Path, splits: Path, **external: Path) -> Path:
    out_dir = tmp_path / "external"
    fill_external(out_dir, config_of(tmp_path, **external), split_dir=splits / "processed")
    return out_dir


def test_all_images_of_a_folder_without_test_images_become_the_set(tmp_path, splits):
    out_dir = fill(tmp_path, splits, ours=write_folder(tmp_path / "clinic", num=5))
    expected = ExternalSet(name="ours", source="folder", num_images=5, num_dropped=0)
    assert read_sets(out_dir) == [expected]
    split = load_split(external_sets.processed_dir(out_dir, "ours"), "test")
    assert split.ids == ("0", "1", "2", "3", "4")
    assert split.image_size == 64
    rows = read_manifest(external_sets.raw_dir(out_dir, "ours"))
    assert {row.split for row in rows} == {"test"}
    assert {(row.height, row.width) for row in rows} == {(80, 80)}


def test_of_a_folder_with_test_images_only_these_become_the_set(tmp_path, splits, caplog):
    write_folder(tmp_path / "clinic/train", num=3)
    write_folder(tmp_path / "clinic/test", num=2, seed=70)
    with caplog.at_level("INFO"):
        out_dir = fill(tmp_path, splits, ours=tmp_path / "clinic")
    assert [one.num_images for one in read_sets(out_dir)] == [2]
    assert "3 that its source does not name as test are left out" in caplog.text


@pytest.mark.parametrize("split", SPLITS)
def test_an_image_that_is_in_a_split_is_dropped_and_counted(tmp_path, splits, split):
    clinic = write_folder(tmp_path / "clinic", num=2)
    taken = load_split(splits / "processed", split).ids[0]
    row = next(row for row in read_manifest(splits / "raw") if row.id == taken)
    shutil.copy(splits / "raw" / row.image_path, clinic / "images/copy.jpg")
    shutil.copy(splits / "raw" / row.mask_path, clinic / "masks/copy.png")
    with Image.open(splits / "raw" / row.image_path) as image:  # and once more, saved again
        image.save(clinic / "images/again.jpg", quality=60)
    shutil.copy(splits / "raw" / row.mask_path, clinic / "masks/again.png")
    out_dir = fill(tmp_path, splits, ours=clinic)
    assert [(one.num_images, one.num_dropped) for one in read_sets(out_dir)] == [(2, 2)]
    folder = external_sets.processed_dir(out_dir, "ours")
    assert load_split(folder, "test").ids == ("0", "1")
    leaks = (folder / "leaks.csv").read_text().splitlines()[1:]
    assert [line.split(",")[:5] for line in leaks] == [
        ["again", "ours", taken, split, "near"],
        ["copy", "ours", taken, split, "sha256"],
    ]


def test_no_external_image_is_in_any_split(tmp_path, splits):
    params = tmp_path / "params.yaml"
    sets = [{"name": "elsewhere", "source": "phantom", "folder": ""}]
    params.write_text(override(read_yaml(PARAMS), {**SMALL, "external": sets}))
    fill_external(tmp_path / "out", load_config(params), split_dir=splits / "processed")
    own = load_split(external_sets.processed_dir(tmp_path / "out", "elsewhere"), "test")
    assert len(own.ids) == SMALL["download.phantom_num_test"]
    for name in SPLITS:
        split = load_split(splits / "processed", name)
        for image, mask in zip(own.images, own.masks, strict=True):
            assert not (split.images == image).all(axis=(1, 2, 3)).any()
            assert not (split.masks == mask).all(axis=(1, 2)).any()


def test_a_set_that_is_all_in_the_splits_is_refused(tmp_path, splits):
    shutil.copytree(splits / "raw/test", tmp_path / "clinic")
    with pytest.raises(DataError, match="no image of the external test set ours is left"):
        fill(tmp_path, splits, ours=tmp_path / "clinic")
    assert not (tmp_path / "external").exists()


def test_a_mistake_in_a_folder_names_the_set_and_the_stage_of_external(tmp_path, splits):
    clinic = write_folder(tmp_path / "clinic", num=3)
    (clinic / "masks/1.png").unlink()
    with pytest.raises(DataError) as caught:
        fill(tmp_path, splits, ours=clinic)
    message = str(caught.value)
    assert message.startswith("external test set ours: ")
    assert message.endswith("dvc repro -sf external && dvc repro")
    assert len(message.splitlines()) == 1


def test_a_folder_that_is_not_there_is_named(tmp_path, splits):
    with pytest.raises(MissingFileError, match=r"external test set ours: .*nowhere"):
        fill(tmp_path, splits, ours=tmp_path / "nowhere")


def test_phantoms_from_elsewhere_are_darker(tmp_path):
    home = [draw_phantom(size=64, seed=seed)[0].mean() for seed in range(30)]
    elsewhere = [draw_phantom(size=64, seed=seed, clinic=ELSEWHERE)[0].mean() for seed in range(30)]
    assert np.mean(elsewhere) < np.mean(home) - 20


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"ph2": "ph2"}, "must be a list of test sets"),
        (["ph2"], "must be a list of test sets"),
        ([{"name": "a", "source": "ph2"}], "number 1: key folder is missing"),
        ([{"name": "a/b", "source": "ph2", "folder": ""}], "name must be up to 41 letters"),
        ([{"name": "Test", "source": "ph2", "folder": ""}], "Test is the name of a split"),
        ([{"name": "a", "source": "folder", "folder": ""}], "folder of a is empty"),
        ([{"name": "a", "source": "isic", "folder": ""}], "source must be one of isic2017"),
        (
            [{"name": name, "source": "ph2", "folder": ""} for name in ("PH2", "ph2")],
            "PH2 is there twice",
        ),
    ],
)
def test_a_mistake_in_params_is_one_line(tmp_path, content, problem):
    path = tmp_path / "params.yaml"
    path.write_text(override(read_yaml(PARAMS), {"external": content}))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert problem in str(caught.value)
    assert str(caught.value).startswith("params.yaml: external")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", ["", "name,source\na,b\n", "name,source,num_images\na,b,c\n"])
def test_a_damaged_list_of_sets_is_refused(tmp_path, content):
    write_sets(tmp_path, [ExternalSet(name="a", source="b", num_images=1, num_dropped=0)])
    (tmp_path / "sets.csv").write_text(content or "a,b\nc\n")
    with pytest.raises(DataError, match="is no list of external test sets"):
        read_sets(tmp_path)


def test_no_list_of_sets_names_the_stage_to_run(tmp_path):
    with pytest.raises(MissingFileError, match="Run: dvc repro external"):
        read_sets(tmp_path)


def comparison_of(tmp_path: Path, interval: Interval, *, num_images: int = 200) -> Comparison:
    """A comparison whose jaccard has this interval, and the middle of it as difference."""
    (tmp_path / "results/evaluate").mkdir(parents=True, exist_ok=True)
    write_evaluation(tmp_path)
    known = Comparison.read(Results(tmp_path / "results").evaluation)
    result = compare_one(difference=sum(interval) / 2, interval=interval)
    test = {**known.test, "jaccard": result}
    return replace(known, test=test, num_images=num_images)


def external_of(tmp_path: Path, name: str, interval: Interval, **options) -> ExternalScores:
    facts = ExternalSet(name=name, source="folder", num_images=200, num_dropped=0)
    comparison = comparison_of(tmp_path, interval, **options)
    return ExternalScores(facts=facts, comparison=comparison, scores={})


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        ({}, ""),
        ({"ph2": (0.01, 0.03)}, "That is also so on ph2 (+0.020, +0.010 to +0.030)."),
        (
            {"ph2": (-0.01, 0.03)},
            "But that is not so on ph2 (+0.010, -0.010 to +0.030: no difference is shown there).",
        ),
        (
            {"ph2": (0.01, 0.03), "ours": (0.02, 0.04), "theirs": (-0.03, -0.01)},
            "That is also so on ph2 (+0.020, +0.010 to +0.030) and ours (+0.030, +0.020 to "
            "+0.040), but not on theirs (-0.020, -0.030 to -0.010: the frozen encoder is better "
            "there).",
        ),
    ],
)
def test_the_sentence_on_top_says_where_the_answer_holds(tmp_path, sets, sentence):
    home = comparison_of(tmp_path, (0.01, 0.02))
    external = [external_of(tmp_path, name, interval) for name, interval in sets.items()]
    assert answer_elsewhere(home, external) == sentence


def test_the_sentence_says_so_where_a_set_is_tiny(tmp_path):
    home = comparison_of(tmp_path, (0.01, 0.02))
    tiny = external_of(tmp_path, "tiny", (0.01, 0.03), num_images=4)
    assert "only 4 images" in answer_elsewhere(home, [tiny])


@pytest.mark.parametrize(
    ("num_images", "rates", "words"),
    [
        (305, (0.06, 0.05), "of 100 lesions in test images, 95 are outlined well with fine-"),
        (20, (0.25, 0.25), "of 20 lesions in test images, 15 are outlined well, with fine-"),
    ],
)
def test_plain_words_count_lesions(num_images, rates, words):
    scores = {
        run: ModelScores(test={"failure_rate": rate}, test_own_size=dict.fromkeys(METRICS, 0.0))
        for run, rate in zip(RUNS, rates, strict=True)
    }
    assert words in in_plain_words(scores, num_images)
