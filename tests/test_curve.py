"""The learning curve: its sizes, what the scores say, and the experiments it is made of."""

import itertools
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_pipeline import PARAMS, call, experiments, fake_repository, start, trainings
from scipy.optimize import curve_fit
from scipy.stats import ttest_1samp

from lesionseg.cli import main
from lesionseg.config import read_yaml
from lesionseg.curve.estimates import estimate, estimate_sets, find_crossings
from lesionseg.curve.experiment import plan
from lesionseg.curve.power_law import PowerLaw, fit_power_law, make_guess
from lesionseg.curve.record import Curve, Point, Setting, read_curve, write_curve
from lesionseg.curve.sizes import choose_sizes
from lesionseg.curve.text import curve_text
from lesionseg.errors import ConfigError, DataError, MissingFileError
from lesionseg.results.layout import RUNS

SIZES = (40, 80, 159, 318, 637)
FROZEN, FINETUNED = RUNS


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("lesionseg.curve.power_law.NUM_RESAMPLES", 60)


# Sizes


@pytest.mark.parametrize(
    ("num_train", "expected"),
    [(637, [40, 80, 159, 318, 637]), (100, [12, 25, 50, 100]), (18, [18]), (20, [10, 20])],
)
def test_the_default_sizes_are_halvings_as_long_as_a_few_images_are_left(num_train, expected):
    assert choose_sizes("", num_train=num_train) == expected


def test_sizes_may_be_given_in_any_order_and_all_is_the_whole_split():
    assert choose_sizes("all, 160,40", num_train=637) == [40, 160, 637]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("40,638", r"'638' must be a whole number in \[1, 637\], the images of the training split"),
        ("0", "'0' must be"),
        ("4.5", "'4.5' must be"),
        ("-3", "'-3' must be"),
        ("40,", "'' must be"),
        ("9" * 5000, "must be"),
        ("40,80,40", "40 images are listed twice; keep one"),
        ("637,all", "637 images are listed twice"),
    ],
)
def test_a_size_that_cannot_be_is_refused_in_one_line(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        choose_sizes(text, num_train=637)
    assert "\n" not in str(caught.value)


def test_all_images_are_the_default_s_own_training():
    few, every = plan(read_yaml(PARAMS), {"train.num_seeds": 2}, [40, 637], num_train=637)
    assert few.settings == {"train.num_seeds": 2, "train.num_images": 40}
    assert every.settings == {"train.num_seeds": 2, "train.num_images": 0}
    assert (few.name[:-8], every.name[:-8]) == ("curve-40-", "curve-all-")


@pytest.mark.parametrize(
    ("section", "key", "value", "is_another"),
    [("evaluate", "threshold", 0.4, True), ("report", "title", "Another", False)],
)
def test_a_trial_is_another_one_when_a_score_can_be(section, key, value, is_another):
    content = read_yaml(PARAMS)
    before = plan(content, {}, [40], num_train=637)[0].name
    content[section][key] = value
    assert (plan(content, {}, [40], num_train=637)[0].name != before) == is_another


# Means, intervals, crossings


def test_the_interval_is_that_of_student_s_t():
    values = np.array([0.81, 0.80, 0.84, 0.79, 0.83])
    found = estimate(values, confidence=0.9)
    expected = ttest_1samp(values, 0).confidence_interval(0.9)
    assert found.mean == pytest.approx(values.mean())
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert found.values == values.tolist()


@pytest.mark.parametrize(("lowest", "low"), [(0, 0.0), (-1, -1.0)])
def test_an_interval_has_no_scores_that_cannot_be(lowest, low):
    assert estimate(np.array([0.1, 0.9]), confidence=0.95, lowest=lowest).interval == (low, 1)


def test_one_seed_has_no_interval():
    assert estimate(np.array([0.8]), confidence=0.95).interval is None


def table(jaccards, *, name="test"):
    """Rows of scores: jaccards by run, for each seed a list by size."""
    return pd.DataFrame(
        {"set": name, "run": run, "num_images": size, "seed": seed, "jaccard": value}
        for run, seeds in jaccards.items()
        for seed, values in enumerate(seeds)
        for size, value in zip((10, 20, 40), values, strict=False)
    )


def test_differences_are_taken_within_each_seed_and_sets_are_kept_apart():
    near = table({FROZEN: [[0.5, 0.6], [0.7, 0.8]], FINETUNED: [[0.51, 0.59], [0.73, 0.85]]})
    far = table({FROZEN: [[0.1, 0.2], [0.1, 0.2]], FINETUNED: [[0.1, 0.2], [0.1, 0.2]]}, name="a")
    shuffled = pd.concat([near.sample(frac=1, random_state=0), far])
    first, second = estimate_sets(shuffled, num_images={"test": 30, "a": 20}, confidence=0.95)
    assert (first.name, first.num_images, second.name, second.num_images) == ("test", 30, "a", 20)
    small, large = first.points
    assert (small.num_images, large.num_images) == (10, 20)
    assert small.difference.values == pytest.approx([0.01, 0.03])
    assert large.difference.values == pytest.approx([-0.01, 0.05])
    assert (small.num_better, large.num_better) == (2, 1)
    assert small.train_frozen.mean == pytest.approx(0.6)
    assert large.train_finetuned.mean == pytest.approx(0.72)
    assert [point.difference.mean for point in second.points] == [0, 0]
    assert first.guess is second.guess is None  # from two sizes


def points_of(*differences, sizes=SIZES):
    """Points with these differences, one list over the seeds for each size."""
    return [
        Point(
            num_images=size,
            train_frozen=estimate(np.zeros(len(values)), confidence=0.95),
            train_finetuned=estimate(np.array(values), confidence=0.95),
            difference=estimate(np.array(values), confidence=0.95, lowest=-1),
            num_better=sum(value > 0 for value in values),
        )
        for size, values in zip(sizes, differences, strict=False)
    ]


def test_curves_cross_where_the_mean_difference_changes_its_sign():
    [crossing] = find_crossings(
        points_of([-0.03, -0.031], [-0.01, 0.008], [0.002, 0.001], [0.009, 0.01])
    )
    assert crossing.between == (80, 159)
    # -0.001 at 80 and 0.0015 at 159: two fifths of the way, on the logarithm.
    assert crossing.num_images == pytest.approx(80 * (159 / 80) ** 0.4)
    assert crossing.better_after == FINETUNED
    assert crossing.num_seeds == 1
    assert crossing.surely_between == (40, 318)


def test_a_crossing_is_sure_only_with_sure_differences_on_both_sides_of_it():
    [crossing] = find_crossings(points_of([-0.03, 0.02], [0.01, 0.011]))
    assert crossing.surely_between is None


def test_each_of_several_crossings_has_its_own_stretch():
    sure = ([-0.03, -0.031], [0.02, 0.021], [0.001, -0.0005], [-0.02, -0.021])
    first, second = find_crossings(points_of(*sure))
    assert (first.better_after, first.surely_between) == (FINETUNED, (40, 80))
    assert (second.better_after, second.surely_between) == (FROZEN, (80, 318))


@pytest.mark.parametrize(
    "differences", [[[0.1], [0.2]], [[0.1], [0.0], [0.2]], [[0.0], [0.0]], [[-0.1]]]
)
def test_without_a_change_of_sign_nothing_crosses(differences):
    assert find_crossings(points_of(*differences)) == []


def test_a_difference_of_0_is_passed_over():
    [crossing] = find_crossings(points_of([-0.1], [0.0], [0.1]))
    assert crossing.between == (40, 159)


# The guess


@pytest.mark.parametrize("law", [PowerLaw(0.13, 0.35, 0.45), PowerLaw(0.0, 0.6, 0.2)])
def test_a_law_is_found_again(law):
    sizes = np.array(SIZES, dtype=float)
    found = fit_power_law(sizes, np.array([law.error(size) for size in sizes]))
    assert (found.a, found.c) == pytest.approx((law.a, law.c), abs=2e-3)
    assert found.error(1274) == pytest.approx(law.error(1274), abs=1e-5)


def test_the_fit_is_as_good_as_a_search_for_all_three_numbers():
    sizes, rng = np.array(SIZES, dtype=float), np.random.default_rng(0)
    weights = np.arange(1, 6) / 5

    def loss(error, errors):
        return float((weights * (error - errors) ** 2).sum())

    for _ in range(10):
        errors = 0.13 + 0.35 * sizes**-0.45 + rng.normal(0, 0.003, 5)
        (a, b, c), _ = curve_fit(
            lambda x, a, b, c: a + b * x**-c,
            sizes / sizes[-1],
            errors,
            p0=[0.1, 0.02, 0.5],
            sigma=weights**-0.5,
            bounds=([0, 0, 0.01], [1, 1, 2]),
        )
        known = a + b * (sizes / sizes[-1]) ** -c
        found = fit_power_law(sizes, errors)
        own = np.array([found.error(size) for size in sizes])
        assert loss(own, errors) <= loss(known, errors) * 1.001 + 1e-12


def test_more_labels_are_never_guessed_to_be_worse():
    rising = fit_power_law(np.array([10.0, 20, 40]), np.array([0.1, 0.2, 0.3]))
    assert rising.error(80) <= rising.error(40)


def draw_jaccards(rng, *, num_seeds):
    """Seeds of both models around two laws, the noise of both shared in part."""
    sizes, noise = np.array(SIZES, dtype=float), np.array([8, 6, 4, 3, 2]) * 1e-3
    shared = rng.normal(0, noise, (num_seeds, 5))
    return sizes, {
        FROZEN: 1 - (0.14 + 0.3 * sizes**-0.45) + shared,
        FINETUNED: 1 - (0.12 + 0.45 * sizes**-0.45) + shared + rng.normal(0, noise, (num_seeds, 5)),
    }


def test_the_intervals_of_a_guess_hold_the_truth_about_as_often_as_they_say():
    rng, held = np.random.default_rng(0), []
    truths = {
        FROZEN: 1 - (0.14 + 0.3 * 1274**-0.45),
        FINETUNED: 1 - (0.12 + 0.45 * 1274**-0.45),
    }
    for _ in range(60):
        guess = make_guess(*draw_jaccards(rng, num_seeds=4), confidence=0.9)
        assert guess.num_images == 1274
        for run, truth in truths.items():
            low, high = guess.at(run).jaccard.interval
            held.append(low <= truth <= high)
        low, high = guess.difference.interval
        held.append(low <= truths[FINETUNED] - truths[FROZEN] <= high)
    assert 0.85 <= np.mean(held) <= 0.99


def test_a_guess_says_what_it_would_have_been_without_the_last_size():
    sizes, jaccards = draw_jaccards(np.random.default_rng(0), num_seeds=3)
    guess = make_guess(sizes, jaccards, confidence=0.95)
    for run in RUNS:
        law = fit_power_law(sizes[:-1], 1 - jaccards[run][:, :-1].mean(axis=0))
        assert guess.at(run).checked == pytest.approx(1 - law.error(637))
    three = make_guess(sizes[:3], {r: j[:, :3] for r, j in jaccards.items()}, confidence=0.95)
    assert three.num_images == 318
    assert three.train_frozen.checked is None


def test_the_interval_of_a_guess_has_no_scores_that_cannot_be():
    rng = np.random.default_rng(0)
    jaccards = {run: rng.uniform(0, 1, (2, 5)) for run in RUNS}
    guess = make_guess(np.array(SIZES, dtype=float), jaccards, confidence=0.95)
    for run in RUNS:
        low, high = guess.at(run).jaccard.interval
        assert 0 <= low <= guess.at(run).jaccard.value <= high <= 1
    assert guess.difference.interval[0] >= -1


def test_one_seed_gives_a_guess_without_an_interval_and_two_sizes_give_none():
    sizes, jaccards = draw_jaccards(np.random.default_rng(0), num_seeds=1)
    guess = make_guess(sizes, jaccards, confidence=0.95)
    assert guess.difference.interval is guess.train_frozen.gain.interval is None
    two = {run: values[:, :2] for run, values in jaccards.items()}
    assert make_guess(sizes[:2], two, confidence=0.95) is None


# The file, and the words


def make_curve(*, num_seeds=3, sets=("test",), seed=0):
    rng, rows = np.random.default_rng(seed), []
    for name in sets:
        sizes, jaccards = draw_jaccards(rng, num_seeds=num_seeds)
        rows += [
            {"set": name, "run": run, "num_images": int(size), "seed": s, "jaccard": float(value)}
            for run in RUNS
            for s, values in enumerate(jaccards[run])
            for size, value in zip(sizes, values, strict=True)
        ]
    setting = Setting(
        source="isic2016",
        image_size=128,
        epochs=30,
        num_steps=1200,
        num_train=637,
        num_val=112,
        device="cpu",
        precision="float32",
    )
    return Curve(
        commit="0123456789",
        seeds=list(range(num_seeds)),
        confidence=0.95,
        setting=setting,
        changed={"train.epochs": 30},
        sets=estimate_sets(
            pd.DataFrame(rows), num_images=dict.fromkeys(sets, 305), confidence=0.95
        ),
    )


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_a_curve_comes_back_from_its_file(tmp_path, num_seeds):
    curve = make_curve(num_seeds=num_seeds, sets=("test", "abroad"))
    write_curve(tmp_path / "curve.json", curve)
    assert read_curve(tmp_path / "curve.json") == curve


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "curve.json is no learning curve"),
        ("[]", "curve.json is no learning curve"),
        ('{"format": 1}', "no learning curve: commit: Field required"),
        (None, "curve.json has format 2, this program reads 1"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "curve.json"
    with pytest.raises(MissingFileError, match=r"is missing\. Run: lesionseg curve$"):
        read_curve(path)
    write_curve(path, make_curve())
    path.write_text(text or path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(DataError, match=rf"{message}.*\. Run: lesionseg curve$") as caught:
        read_curve(path)
    assert "\n" not in str(caught.value)


def test_the_text_has_every_number_of_the_curve_and_says_what_is_a_guess():
    curve = make_curve(sets=("test", "abroad"))
    text = curve_text(curve)
    for one in curve.sets:
        for point in one.points:
            low, high = point.train_frozen.interval
            row = (
                f"| {point.num_images} | {point.train_frozen.mean:.3f} ({low:.3f} to {high:.3f}) |"
            )
            assert row in text
        guessed = one.guess.train_finetuned.jaccard.value
        assert re.search(rf"A guess for 1274 images, .* fine-tuned {guessed:.3f} \(", text)
    assert "**test: 305 images**" in text
    assert "**abroad, external: 305 images**" in text
    assert "1200 steps" in text
    assert "112 further labelled images (val)" in text
    assert "train.epochs=30" in text


def test_each_size_is_said_to_be_better_or_not_shown_once():
    for seed in range(5):
        curve = make_curve(seed=seed)
        points = curve.sets[0].points
        text = curve_text(curve)
        shown = [p.num_images for p in points if p.difference.interval[0] > 0]
        sentences = re.findall(
            r"(Fine-tuned is better|Frozen is better|With) ?(?:with )?([\d, and]+)", text
        )
        named = {start: list(map(int, re.findall(r"\d+", sizes))) for start, sizes in sentences}
        assert named.get("Fine-tuned is better", []) == shown
        assert sorted(itertools.chain(*named.values())) == [p.num_images for p in points]


def test_one_seed_shows_nothing():
    text = curve_text(make_curve(num_seeds=1))
    assert "With one seed nothing is known of chance" in text
    assert " to " not in text.partition("| 40 |")[2].partition("\n")[0]


# The experiments


CURVE = ("curve", "--sizes", "25,all", "--seeds", "2")


def write_index(folder):
    """What `dvc repro preprocess` leaves, as far as the curve looks at it before its trials."""
    path = folder / "data/processed/train/index.csv"
    path.parent.mkdir(parents=True)
    path.write_text("id\n" + "".join(f"{number}\n" for number in range(100)))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A repository with a curve of two sizes, and what it printed."""
    folder = fake_repository(tmp_path_factory.mktemp("measured") / "project")
    write_index(folder)
    process = start(folder, *CURVE, "--jobs", "2")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return folder, output


def test_each_size_is_an_experiment_on_the_same_data(measured):
    folder, _ = measured
    ran = [line.split()[0] for line in (folder.parent / "runs.txt").read_text().splitlines()]
    assert [ran.count(stage) for stage in ("preprocess", "external", "evaluate")] == [1, 1, 2]
    assert sorted(name[:-9] for name in experiments(folder)) == ["curve-25", "curve-all"]


def test_the_table_has_each_set_model_size_and_seed(measured):
    folder, _ = measured
    rows = pd.read_csv(folder / "results/curve/curve.csv")
    assert list(rows) == ["set", "run", "num_images", "seed", "jaccard", "jaccard_own_size"]
    keys = {tuple(row) for row in rows[["set", "run", "num_images", "seed"]].to_numpy()}
    expected = itertools.product(("test", "abroad"), RUNS, (25, 100), (0, 1))
    assert keys == set(expected)
    assert len(rows) == len(keys)
    rows = rows.set_index(["set", "run", "num_images", "seed"])["jaccard"]
    dropout = read_yaml(PARAMS)["model"]["dropout"]
    assert rows["test", FROZEN, 25, 1] == pytest.approx(0.9 - dropout - 0.01 - 1 / 25)
    assert rows["abroad", FINETUNED, 25, 0] == pytest.approx(0.8 - dropout - 2 / 25)


def test_the_record_says_how_the_models_were_trained(measured):
    folder, output = measured
    curve = read_curve(folder / "results/curve/curve.json")
    assert [one.name for one in curve.sets] == ["test", "abroad"]
    assert curve.seeds == [0, 1]
    assert (curve.setting.num_train, curve.setting.num_val) == (100, 20)
    assert curve.setting.num_steps == 30 * 7  # 100 images in batches of 16
    assert curve.commit == call(folder, "git", "rev-parse", "HEAD").strip()
    assert [point.num_images for point in curve.sets[1].points] == [25, 100]
    assert curve.sets[0].points[0].difference.values == pytest.approx([-1 / 25, -1 / 25])
    page = Path("results/curve/curve.html")
    assert output == f"{curve_text(curve)}\nOpen the page: {page}\n"
    assert (folder / page).is_file()
    assert (folder / page.with_suffix(".svg")).is_file()


def test_what_is_done_is_not_done_again_and_what_is_new_is(measured, tmp_path):
    original, output = measured
    folder = tmp_path / "project"
    shutil.copytree(original, folder, symlinks=True)
    process = start(folder, *CURVE)
    again, errors = process.communicate()
    assert process.returncode == 0, errors
    assert trainings(folder) == []
    assert again == output
    process = start(folder, "curve", "--sizes", "25,50,all", "--seeds", "2")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    dropout = read_yaml(PARAMS)["model"]["dropout"]
    assert trainings(folder) == [f"{run} {dropout}" for run in sorted(RUNS)]
    curve = read_curve(folder / "results/curve/curve.json")
    assert [point.num_images for point in curve.sets[0].points] == [25, 50, 100]
    assert curve.sets[0].guess.num_images == 200


def test_a_size_whose_external_scores_the_cache_has_lost_is_run_again(measured, tmp_path):
    original, output = measured
    folder = tmp_path / "project"
    shutil.copytree(original, folder, symlinks=True)
    for path in (folder / ".dvc/cache/files/md5").rglob("*.dir"):
        if "abroad" in path.read_text():
            path.chmod(0o644)
            path.unlink()
    process = start(folder, *CURVE)
    again, errors = process.communicate()
    assert process.returncode == 0, errors
    assert errors.count(" s (train.num_seeds=2 train.num_images=") == 2
    assert again == output


def test_data_that_are_not_those_of_the_experiments_are_told_of(measured, tmp_path):
    original, _ = measured
    folder = tmp_path / "project"
    shutil.copytree(original, folder, symlinks=True)
    with (folder / "data/processed/train/index.csv").open("a") as stream:
        stream.write("100\n")
    process = start(folder, *CURVE)
    output, errors = process.communicate()
    assert (process.returncode, output) == (1, "")
    assert errors.splitlines()[-1] == (
        "error: data/processed/train has 101 images, and with params.yaml as it is now it has 100. "
        "Run: dvc repro preprocess, then the same command again"
    )


def test_a_size_that_fails_is_named_and_leaves_the_last_curve(measured, tmp_path):
    original, _ = measured
    folder = tmp_path / "project"
    shutil.copytree(original, folder, symlinks=True)
    process = start(folder, "curve", "--sizes", "50", "--seeds", "1", "--set", "model.dropout=0.6")
    output, errors = process.communicate()
    assert process.returncode == 1
    assert re.search(r"FAILED curve-50-.*\n +so much dropout.*\n +its log: ", output)
    assert errors.endswith("The same command retries only these\n")
    kept, before = (one / "results/curve/curve.json" for one in (folder, original))
    assert kept.read_bytes() == before.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "train.num_images=40"], "train.num_images is what varies. Give .* --sizes"),
        (["--set", "train.num_seeds=2"], "train.num_seeds is given twice"),
        (["--set", "train.cross_validate=true", "--sizes", "40"], "cross_validate is true"),
        (["--sizes", "101"], r"'101' must be a whole number in \[1, 100\]"),
        ([], "data/processed/train/index.csv is missing. Run: dvc repro preprocess"),
    ],
)
def test_a_mistake_is_refused_before_anything_runs(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(PARAMS, "params.yaml")
    Path("dvc.yaml").touch()
    if arguments:
        write_index(tmp_path)
    assert main(["curve", *arguments, "--dry-run"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"error: .*{message}.*\n", err), err


def test_a_dry_run_prints_the_sizes_that_would_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(PARAMS, "params.yaml")
    Path("dvc.yaml").touch()
    write_index(tmp_path)
    assert main(["curve", "--dry-run", "--set", "train.epochs=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        f"train.epochs=2 train.num_seeds=5 train.num_images={number}" for number in (12, 25, 50, 0)
    ]
