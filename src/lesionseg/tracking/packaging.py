"""A registered model's folder: what MLflow serves, and what a server needs for it."""

import base64
import io
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image, ImageDraw

import lesionseg
from lesionseg.inference.threshold import DEFAULT_THRESHOLD

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

# What serving imports, less than training does. A test compares this with the imports.
REQUIREMENTS = ("mlflow", "torch", "torchvision", "numpy", "pandas", "pillow", "tqdm")
MODEL_FILE = "data/model.pt"  # where `mlflow.pyfunc.save_model` puts it


def save(target: Path, model_path: Path, described: "Model", *, threshold: float) -> None:
    """Write the folder that MLflow serves.

    The package is included: the server needs `REQUIREMENTS` but not this project, and a version
    keeps the code it was registered with.
    """
    import mlflow.pyfunc

    mlflow.pyfunc.save_model(
        target,
        loader_module="lesionseg.tracking.served",
        data_path=str(model_path),
        code_paths=[str(Path(lesionseg.__file__).parent)],
        mlflow_model=described,
        pip_requirements=_pin_requirements(),
        signature=_make_signature(),
        input_example=_make_example(),
        model_config={"threshold": threshold},
    )


def read_threshold(described: "Model") -> float:
    """The threshold that `save` was given, or the default for a model from elsewhere."""
    served = described.flavors.get("python_function", {})
    return float(served.get("config", {}).get("threshold", DEFAULT_THRESHOLD))


def _make_signature() -> "ModelSignature":
    """The inputs and outputs.

    `array` has any type for MLflow, whose check of nested lists takes a minute for a photograph;
    `ServedModel` checks it in milliseconds. Both columns are optional so that `ServedModel` checks
    them too: if one is missing, MLflow answers 500, as if the server were at fault.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.string, "image", required=False),
                ColSpec(AnyType(), "array", required=False),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.string, "mask"),
                ColSpec(DataType.string, "probability"),
                ColSpec(DataType.long, "height"),
                ColSpec(DataType.long, "width"),
                ColSpec(DataType.double, "lesion_fraction"),
            ]
        ),
    )


def _make_example() -> pd.DataFrame:
    """A request as a table with one row: a drawn lesion, 96 by 128 pixels, as a JPEG."""
    drawn = Image.new("RGB", (128, 96), (222, 184, 165))
    ImageDraw.Draw(drawn).ellipse((40, 24, 88, 72), fill=(96, 60, 48))
    stream = io.BytesIO()
    drawn.save(stream, format="JPEG", quality=90)
    return pd.DataFrame({"image": [base64.b64encode(stream.getvalue()).decode("ascii")]})


def _pin_requirements() -> list[str]:
    """`REQUIREMENTS` at the installed versions, without a build's name such as `+cpu`.

    MLflow is given these because it would otherwise load the model in another process to find out.
    """
    versions = {name: metadata.version(name).partition("+")[0] for name in REQUIREMENTS}
    return [f"{name}=={version}" for name, version in versions.items()]
