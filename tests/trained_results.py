"""A small results/ as the stages leave it, for tests of what comes after training."""

from pathlib import Path

from lesionseg.config import load_config, read_yaml
from lesionseg.files import sha256
from lesionseg.models.segmenter import build_segmenter, save_model
from lesionseg.results.evaluation import TABLES, Compared, Comparison, Limits
from lesionseg.results.layout import RUNS, Results, TrainingFiles
from lesionseg.results.training import BestEpoch, TrainingRecord, history_table
from lesionseg.results.vocabulary import METRICS

ROOT = Path(__file__).parents[1]
IMAGE_SIZE = 64
# What these trainings have other than the project's params.yaml: few losses and views among it.
PARAMS = {
    **{
        f"{section}.{key}": 0.0
        for section in ("loss", "augment")
        for key, value in read_yaml(ROOT / "params.yaml")[section].items()
        if not isinstance(value, str)
    },
    "preprocess.image_size": IMAGE_SIZE,
    "train.epochs": 3,
    "train.device": "cpu",
    "model.decoder": "transposed",
    "loss.bce": 1.0,
    "augment.horizontal_flip": 0.5,
    "augment.padding": "border",
}
# Of each group: images, then jaccard and failure rate of both models.
STRATA = {
    ("all", "all"): (20, 0.71, 0.2, 0.72, 0.1),
    ("size", "small"): (10, 0.61, 0.3, 0.62, 0.25),
    ("size", "large"): (10, 0.81, 0.1, 0.82, 0.05),
    ("skin_tone", "light"): (17, 0.71, 0.1, 0.72, 0.1),
    ("skin_tone", "brown"): (3, 0.51, 0.1, 0.52, 0.1),
}


def save_random_model(path, encoder_state, *, decoder, image_size=IMAGE_SIZE):
    """A model's file whose decoder's weights were drawn, and learnt nothing."""
    network = build_segmenter(
        encoder_state=encoder_state, decoder=decoder, dropout=0.1, frozen=False, seed=0
    )
    state = network.state_dict()
    save_model(path, state=state, decoder=decoder, image_size=image_size, frozen=False)
    return path


def write_run(root, path, *, val, encoder_state, seed=0):
    """A model that nobody trained, with the numbers of a training; the model's hash.

    `path` is a run's name, or for a further seed `<run>/seeds/<seed>`.
    """
    files = TrainingFiles(root / "results" / path)
    run = path.partition("/")[0]
    network = build_segmenter(
        encoder_state=encoder_state, decoder="transposed", dropout=0.0, frozen=False, seed=seed
    )
    save_model(
        files.model,
        state=network.state_dict(),
        decoder="transposed",
        image_size=IMAGE_SIZE,
        frozen=run == "train_frozen",
    )
    scores = {"loss": 0.4, "jaccard": val, "dice": 0.8, "accuracy": 0.6}
    scores |= {"sensitivity": 0.7, "specificity": 0.9}
    BestEpoch(best_epoch=2, train={"loss": 0.5}, val=scores).write(files)
    epoch = {"train_loss": 0.5, **{f"val_{name}": value for name, value in scores.items()}}
    rows = [{"epoch": number, **epoch, "lr": 0.002, "encoder_lr": 0.001} for number in (1, 2, 3)]
    history_table(run).write(files.history, rows)
    record = TrainingRecord(
        run=run,
        model_sha256=sha256(files.model),
        commit="abc123",
        dvc_stage=run,
        dvc_experiment="",
        data_sha256="da7a" * 16,
        device="cpu",
        precision="float32",
        training_key=f"{run}-{seed}",
        seconds=10.0,
        images_per_second=30.0,
        num_images=100,
        num_parameters=3258353,
        num_trained_parameters=3258353,
        versions={"python": "3.11"},
        params=make_params(run, seed=seed),
    )
    record.write(files)
    return record.model_sha256


def make_params(run, *, seed):
    """What the pipeline records of such a training."""
    return load_config(ROOT / "params.yaml").training_params(run, seed=seed) | PARAMS


def compare_one(**changes):
    """One metric of two models that hardly differ."""
    values = {
        "train_frozen": 0.71,
        "train_frozen_interval": (0.7, 0.73),
        "train_finetuned": 0.72,
        "train_finetuned_interval": (0.71, 0.74),
        "difference": 0.01,
        "interval": (0.0, 0.02),
        "wilcoxon_p": 0.5,
        "rank_biserial": 0.1,
        "wins": 11,
        "ties": 0,
        "losses": 9,
    }
    return Compared(**values | changes)


def write_evaluation(root, *, threshold=0.5):
    """Scores of the models that lie in results/ now."""
    results = Results(root / "results")
    score = compare_one()
    models = {run: results.training(run).model for run in RUNS}
    Comparison(
        num_images=20,
        confidence=0.95,
        num_resamples=1000,
        threshold=threshold,
        surface_tolerance=1.0,
        limits=Limits(perfect_own_size=0.98, pixel_larger=0.93, pixel_smaller=0.93),
        models={run: sha256(path) if path.exists() else "-" for run, path in models.items()},
        test=dict.fromkeys(METRICS, score),
        test_own_size=dict.fromkeys(METRICS, score),
        seeds=None,
    ).write(results.evaluation)
    TABLES["strata"].write(
        results.evaluation.table("strata"),
        [
            {
                "stratum": stratum,
                "group": group,
                "num_images": num_images,
                "train_frozen_jaccard": frozen,
                "train_frozen_failure_rate": frozen_failures,
                "train_finetuned_jaccard": finetuned,
                "train_finetuned_failure_rate": failures,
                "difference": finetuned - frozen,
                "difference_low": None,
                "difference_high": None,
            }
            for (stratum, group), (
                num_images,
                frozen,
                frozen_failures,
                finetuned,
                failures,
            ) in STRATA.items()
        ],
    )
