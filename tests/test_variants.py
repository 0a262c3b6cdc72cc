"""Several views and several models: turned back, averaged, and reported beside the main number."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from lesionseg import cli
from lesionseg.config import override, read_yaml
from lesionseg.evaluation.variants import score_variants, seed_rows, variant_rows
from lesionseg.inference.prediction import NUM_VIEWS, predict_batch
from lesionseg.inference.predictor import Predictor
from lesionseg.results.evaluation import ModelScores
from lesionseg.results.layout import RUNS
from lesionseg.results.vocabulary import METRICS, SCOPES
from stages import evaluate
from tests.report_inputs import write_report_inputs
from tests.trained_results import PARAMS, ROOT, write_run

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 5
# Where the eight symmetries of a square of 5 x 5 pixels move the pixel (0, 1): by hand.
MOVED = {
    1: {(0, 1)},
    2: {(0, 1), (0, 3)},
    4: {(0, 1), (0, 3), (4, 1), (4, 3)},
    8: {(0, 1), (0, 3), (4, 1), (4, 3), (1, 0), (1, 4), (3, 0), (3, 4)},
}


def certain(marks):
    """Logits whose probabilities are 0 and 1."""
    return torch.where(marks, 200.0, -200.0)


def marks_bright_pixels(images):
    """Follows the image however it is turned."""
    return certain(images[:, :1] > 0.5)


def marks_near_the_upper_left_corner(images):
    """The pixel (0, 1), whatever the image shows."""
    marks = torch.zeros(len(images), 1, *images.shape[2:], dtype=torch.bool)
    marks[:, :, 0, 1] = True
    return certain(marks)


@pytest.mark.parametrize("num_views", NUM_VIEWS)
@pytest.mark.parametrize("shape", [(6, 6), (4, 7)])
def test_a_model_that_turns_with_the_image_predicts_the_same_from_all_views(num_views, shape):
    images = torch.rand(3, 3, *shape, generator=torch.Generator().manual_seed(0))
    expected = (images.mean(dim=1) - 0.5).sigmoid()
    probabilities = predict_batch(
        lambda views: views.mean(dim=1, keepdim=True) - 0.5, images, num_views=num_views
    )
    torch.testing.assert_close(probabilities, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("num_views", NUM_VIEWS)
@pytest.mark.parametrize("pixel", sorted(MOVED[8]))
def test_each_view_is_turned_back_to_where_it_came_from(num_views, pixel):
    images = torch.zeros(1, 3, SIDE, SIDE)
    images[:, :, *pixel] = 1
    # A view turned back wrongly would take its share of the mean elsewhere.
    expected = torch.zeros(1, SIDE, SIDE)
    expected[:, *pixel] = 1
    probabilities = predict_batch(marks_bright_pixels, images, num_views=num_views)
    assert torch.equal(probabilities, expected)


@pytest.mark.parametrize("num_views", NUM_VIEWS)
def test_a_mark_beside_a_corner_is_turned_back_to_a_place_of_its_own_from_each_view(num_views):
    images = torch.zeros(1, 3, SIDE, SIDE)
    (mean,) = predict_batch(marks_near_the_upper_left_corner, images, num_views=num_views)
    assert {tuple(place) for place in mean.nonzero().tolist()} == MOVED[num_views]
    assert set(mean[mean > 0].tolist()) == {1 / num_views}


def test_the_views_are_all_different_images():
    seen = []

    def look(images):
        seen.append(images[0, 0].clone())
        return images[:, :1]

    predict_batch(look, torch.arange(27.0).view(1, 3, 3, 3), num_views=8)
    assert len({tuple(view.flatten().tolist()) for view in seen}) == 8
    assert torch.equal(seen[0], torch.arange(9.0).view(3, 3))
    assert torch.equal(seen[1], seen[0].fliplr())
    assert torch.equal(seen[2], seen[0].flipud().fliplr())
    assert torch.equal(seen[3], seen[0].flipud())


def test_the_mean_is_of_probabilities_and_not_of_logits():
    def more_on_the_right(images):  # probabilities 0.5 and 0.75
        return torch.tensor([0.0, np.log(3)]).float().expand(len(images), 1, 1, 2)

    probabilities = predict_batch(more_on_the_right, torch.zeros(1, 3, 1, 2), num_views=2)
    assert probabilities.flatten().tolist() == pytest.approx([0.625, 0.625], abs=1e-6)


def test_one_view_is_the_sigmoid_of_the_logits_to_the_bit():
    model = torch.nn.Conv2d(3, 1, 3, padding=1)
    images = torch.rand(4, 3, 32, 32)
    logits = model(images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(predict_batch(model, images), logits.sigmoid()[:, 0])


def test_the_command_offers_the_numbers_of_views_that_there_are():
    for num_views in NUM_VIEWS:
        arguments = cli._make_parser().parse_args(["predict", "a", "--tta", str(num_views)])
        assert arguments.num_views == num_views


def maps_of(value):
    return [np.full((2, 2), value, np.float32)] * 3


def summarise_mean(maps):
    """A summary whose every number is the mean probability."""
    return ModelScores(**{s: dict.fromkeys(METRICS, float(np.mean(maps))) for s in SCOPES})


def score_fakes(*, num_seeds, num_views):
    """What is scored where seed s predicts s / 10 from one view and s / 10 + 0.05 from more."""
    asked = []

    def predict(seed, views):
        asked.append((seed, views))
        return maps_of(seed / 10 + 0.05 * (views > 1))

    scored = score_variants(
        maps_of(0.1),
        summarise_mean(maps_of(0.1)),
        seeds=range(1, 1 + num_seeds),
        num_views=num_views,
        predict=predict,
        score=summarise_mean,
    )
    return scored, asked


@pytest.mark.parametrize(
    ("num_seeds", "num_views", "expected"),
    [
        (1, 1, {"single": (1, 1, 0.1)}),
        (1, 8, {"single": (1, 1, 0.1), "tta": (1, 8, 0.15)}),
        (3, 1, {"single": (1, 1, 0.1), "ensemble": (3, 1, 0.2)}),
        (
            3,
            4,
            {
                "single": (1, 1, 0.1),
                "tta": (1, 4, 0.15),
                "ensemble": (3, 1, 0.2),
                "ensemble+tta": (3, 4, 0.25),
            },
        ),
    ],
)
def test_each_variant_has_a_row_for_each_run_and_scope_where_it_is_asked_for(
    num_seeds, num_views, expected
):
    scored, _ = score_fakes(num_seeds=num_seeds, num_views=num_views)
    rows = variant_rows({"a": scored, "b": scored})
    keys = [(row["run"], row["variant"], row["scope"]) for row in rows]
    assert keys == [(run, name, scope) for run in "ab" for name in expected for scope in SCOPES]
    for row in rows:
        num_models, views, mean = expected[row["variant"]]
        assert (row["num_models"], row["num_views"]) == (num_models, views)
        assert [row[metric] for metric in METRICS] == pytest.approx([mean] * len(METRICS))
    columns = ["run", "variant", "scope", "num_models", "num_views", *METRICS]
    assert all(list(row) == columns for row in rows)


def test_seeds_are_scored_one_by_one_from_one_view():
    scored, _ = score_fakes(num_seeds=3, num_views=8)
    rows = seed_rows({"a": scored})
    assert [(row["seed"], row["scope"]) for row in rows] == [
        (seed, scope) for seed in (1, 2, 3) for scope in SCOPES
    ]
    assert [row["jaccard"] for row in rows] == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3])


def test_no_model_predicts_twice_from_the_same_number_of_views():
    _, asked = score_fakes(num_seeds=3, num_views=8)
    assert asked == [(2, 1), (3, 1), (1, 8), (2, 8), (3, 8)]
    assert score_fakes(num_seeds=1, num_views=1)[1] == []


def run_stage(project, monkeypatch, **values):
    """What the stage evaluate has written, by name."""
    names = {"num_seeds": "train.num_seeds", "tta_views": "evaluate.tta_views"}
    values = {names[key]: value for key, value in values.items()}
    # A threshold among the probabilities of a model that nobody trained.
    predictor = Predictor.load(project / "results" / RUNS[0] / "model.pt", device="cpu")
    images = np.load(project / "data/processed/test/images.npy")
    values["evaluate.threshold"] = float(np.median(predictor.forward(images)))
    values |= {"evaluate.num_resamples": 100, **PARAMS}
    (project / "params.yaml").write_text(override(read_yaml(ROOT / "params.yaml"), values))
    monkeypatch.chdir(project)
    monkeypatch.setattr(evaluate, "complete_evaluation", lambda *_, **__: None)  # no MLflow
    evaluate.main([])
    folder = project / "results/evaluate"
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def project(tmp_path, encoder_state):
    """Data and two models of each run, which the stage can evaluate."""
    write_report_inputs(tmp_path, ids=tuple("abcd"))
    for seed in (0, 1):
        for run in RUNS:
            folder = run if seed == 0 else f"{run}/seeds/{seed}"
            write_run(tmp_path, folder, val=0.8, encoder_state=encoder_state, seed=seed)
    return tmp_path


def test_the_stage_writes_the_variants_and_leaves_the_main_files_as_they_are(project, monkeypatch):
    off = run_stage(project, monkeypatch, num_seeds=1, tta_views=1)
    table = pd.read_csv("results/evaluate/variants.csv")
    assert table["variant"].unique().tolist() == ["single"]
    assert len(table) == len(RUNS) * len(SCOPES)

    on = run_stage(project, monkeypatch, num_seeds=2, tta_views=2)
    assert set(on) == set(off)
    changed = {name for name in off if on[name] != off[name]}
    assert changed == {"variants.csv", "seeds.csv", "comparison.json"}
    comparison, before = (json.loads(files["comparison.json"]) for files in (on, off))
    assert comparison.pop("seeds") is not None
    assert before.pop("seeds") is None
    assert comparison == before

    table = pd.read_csv("results/evaluate/variants.csv")
    assert len(table) == len(RUNS) * len(SCOPES) * 4
    for run in RUNS:
        means = json.loads(on[f"{run}.json"])
        for scope in SCOPES:
            variants = table[(table["run"] == run) & (table["scope"] == scope)]
            variants = variants.set_index("variant")
            assert list(variants.index) == ["single", "tta", "ensemble", "ensemble+tta"]
            assert variants["num_models"].tolist() == [1, 1, 2, 2]
            assert variants["num_views"].tolist() == [1, 2, 1, 2]
            single = {metric: variants.loc["single", metric] for metric in METRICS}
            assert single == {metric: means[scope][metric] for metric in METRICS}
            assert variants["jaccard"][:3].nunique() == 3
