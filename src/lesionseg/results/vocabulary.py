"""The vocabulary of the results: scopes, metrics, ways to predict, groups of images.

Files, tables and pages have them in this order. Nothing here needs torch, and no training depends
on it.
"""

from dataclasses import dataclass

from lesionseg.metrics import JACCARD_THRESHOLD
from lesionseg.results.layout import FINETUNED, FROZEN

RUN_LABELS = {FROZEN: "frozen", FINETUNED: "fine-tuned"}  # names for readers

FAILURE_BELOW = JACCARD_THRESHOLD  # a mask with a lower jaccard has failed
FEW_IMAGES = 10  # the numbers of a smaller group depend on single images


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score of one image.

    Attributes:
        label: For a table's heading.
        meaning: One or two sentences for the reader of the report.
        lower_is_better: Whether 0 is perfect; otherwise 1 is.
        decimals: Meaningful digits after the decimal point.
    """

    label: str
    meaning: str
    lower_is_better: bool = False
    decimals: int = 3


METRICS = {
    "jaccard": Metric(
        label="jaccard",
        meaning="Shared area over joint area, TP / (TP + FP + FN); also called IoU.",
    ),
    "dice": Metric(
        label="dice",
        meaning="2 TP / (2 TP + FP + FN), which is 2 jaccard / (1 + jaccard) in each image.",
    ),
    "threshold_jaccard": Metric(
        label="threshold jaccard",
        meaning="The jaccard, counted as 0 in an image below 0.65; it punishes failures.",
    ),
    "accuracy": Metric(
        label="accuracy",
        meaning="Share of all pixels that are right; high wherever lesions are small.",
    ),
    "sensitivity": Metric(
        label="sensitivity",
        meaning="Share of the lesion's pixels that were found, TP / (TP + FN).",
    ),
    "specificity": Metric(
        label="specificity",
        meaning="Share of the skin's pixels that were left alone, TN / (TN + FP).",
    ),
    "hd95": Metric(
        label="hd95",
        meaning="How far apart the two outlines are at their 95th percentile, in % of the image's "
        "diagonal; 0 is perfect, lower is better.",
        lower_is_better=True,
        decimals=2,
    ),
    "nsd": Metric(
        label="nsd",
        meaning="Normalised surface distance: share of both outlines that lies closer to the other "
        "one than the boundary tolerance.",
    ),
}
# Scores whose pixels can be added up over images.
POOLED = ("jaccard", "dice", "accuracy", "sensitivity", "specificity")

# Where a mask is scored.
SCOPES = {
    "test": "Scored at the size the network sees, the same for all images.",
    "test_own_size": "Scored at each image's own size, as the ISIC challenges do.",
}
SCOPE_LABELS = {"test": "test", "test_own_size": "test, own size"}

# Ways to predict, by their name in variants.csv; `single` is the main number.
VARIANTS = {
    "single": "The model that all else on this page is about, from the image as it is.",
    "tta": "Test-time augmentation: the same model, the mean probability over mirrored and turned "
    "views of the image.",
    "ensemble": "The mean probability over the models of all training seeds.",
    "ensemble+tta": "The mean over these models, each from all these views.",
}

UNKNOWN = "unknown"  # the group of an image for which a measure is undefined
WHY_UNKNOWN = (
    "The measure says nothing about these images: the mask is empty, no skin is left around the "
    "lesion, or the skin's colour is bluish, as no skin is."
)


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """A way to group images by one measure; a value at a limit belongs to the lower group.

    Attributes:
        name: Column of the table of images.
        label: For a heading.
        measure: Key of `evaluation.strata.measure_image`.
        limits: Limits between the groups, in the groups' order: rising or falling.
        groups: One more than limits, and `UNKNOWN` last if the measure can be NaN.
        meaning: One line for the reader of the report.
    """

    name: str
    label: str
    measure: str
    limits: tuple[float, ...]
    groups: tuple[str, ...]
    meaning: str


_STRATA = (
    Stratum(
        name="size",
        label="lesion size",
        measure="lesion_fraction",
        limits=(0.13, 0.30),  # the terciles of ISIC 2016's training images are 0.130 and 0.306
        groups=("small", "medium", "large"),
        meaning="Share of the image that is lesion: small up to 13 %, large above 30 %.",
    ),
    Stratum(
        name="border",
        label="image border",
        measure="border_fraction",
        limits=(0.0,),  # 16 % of the training images touch
        groups=("free", "touching"),
        meaning="Touching: the lesion reaches the outermost 3 of the image's 256 pixels.",
    ),
    Stratum(
        name="contrast_level",
        label="contrast",
        measure="contrast",
        limits=(16.0, 25.0),  # the training images' terciles are 16.1 and 25.6
        groups=("low", "medium", "high", UNKNOWN),
        meaning="Colour difference (CIEDE2000) of lesion and skin around it: low up to 16, "
        "high above 25.",
    ),
    Stratum(
        name="outline",
        label="true outline",
        measure="outline_roughness",
        # Masks of ISIC come from different tools: the training images have two peaks, at 0.08 and
        # 0.42, and hardly anything between 0.2 and 0.3.
        limits=(0.25,),
        groups=("smooth", "rough", UNKNOWN),
        meaning="Outline of the true mask. Rough: smoothing it changes more than a quarter as many "
        "pixels as the outline has. Masks drawn with different tools differ in this.",
    ),
    Stratum(
        name="hair",
        label="hair",
        measure="hair_fraction",
        # Chosen by eye on training images: stray detections below, hairy skin above.
        limits=(0.002, 0.01),
        groups=("little", "some", "much", UNKNOWN),
        meaning="Share of the skin around the lesion under dark hair: little up to 0.2 %, "
        "much above 1 %.",
    ),
    Stratum(
        name="skin_tone",
        label="skin tone",
        measure="ita",
        limits=(55.0, 41.0, 28.0, 10.0, -30.0),  # Del Bino & Bernerd 2013, doi:10.1111/bjd.12529
        groups=("very light", "light", "intermediate", "tan", "brown", "dark", UNKNOWN),
        meaning="Individual typology angle of the skin: very light above 55°, light above 41°, "
        "intermediate above 28°, tan above 10°, brown above -30°. Of uncalibrated photographs: "
        "it says as much about camera and light as about skin.",
    ),
)

STRATA = {stratum.name: stratum for stratum in _STRATA}
