"""What the words of the report mean; their order is the page's."""

from lesionseg.evaluation import strata
from lesionseg.evaluation.metrics import JACCARD_THRESHOLD

SCOPES = {
    "test": "Scored at the size the network sees, the same for all images.",
    "test_own_size": "Scored at each image's own size, as in the challenge.",
}
METRICS = {
    "jaccard": "Shared area over joint area, TP / (TP + FP + FN); also called IoU.",
    "dice": "2 TP / (2 TP + FP + FN), which is 2 jaccard / (1 + jaccard) in each image.",
    "threshold_jaccard": "The jaccard, counted as 0 in an image below 0.65; it punishes failures.",
    "accuracy": "Share of all pixels that are right; high wherever lesions are small.",
    "sensitivity": "Share of the lesion's pixels that were found, TP / (TP + FN).",
    "specificity": "Share of the skin's pixels that were left alone, TN / (TN + FP).",
    "hd95": (
        "How far apart the two outlines are at their 95th percentile, in % of the image's "
        "diagonal; 0 is perfect, lower is better (the only such metric here)."
    ),
    "nsd": (
        "Normalised surface distance: share of both outlines that lies closer to the other one "
        "than the boundary tolerance."
    ),
}
# Other ways to predict, by their name in variants.csv; `single` is the main number.
VARIANTS = {
    "single": "The model that all else on this page is about, from the image as it is.",
    "tta": (
        "Test-time augmentation: the same model, the mean probability over mirrored and turned "
        "views of the image."
    ),
    "ensemble": "The mean probability over the models of all training seeds.",
    "ensemble+tta": "The mean over these models, each from all these views.",
}
LOWER_IS_BETTER = ("hd95",)
POOLED = ("jaccard", "dice", "accuracy", "sensitivity", "specificity")
FAILURE_BELOW = JACCARD_THRESHOLD

# The groups of test images: a label and what they mean, by the column of attributes.csv.
_STRATA_LABELS = {
    "size": "lesion size",
    "border": "image border",
    "contrast_level": "contrast",
    "outline": "true outline",
    "hair": "hair",
    "skin_tone": "skin tone",
}
STRATA = {
    stratum.name: (_STRATA_LABELS.get(stratum.name, stratum.name), stratum.meaning)
    for stratum in strata.STRATA
}
MEASURES = tuple(stratum.measure for stratum in strata.STRATA)
FEW_IMAGES = 10  # a group with fewer is marked: its numbers hang on single images
