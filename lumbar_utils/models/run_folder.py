"""The folder of a classifier run: what is in it, written so that a run in it can be used at any moment.

model.safetensors   the averaged weights, and in the file's metadata all that is needed to use them
config.json         the same metadata, to be read: network, training, crops, class prior
history.csv         one row an epoch
oof.csv             predictions for the held-out studies, in submission form
manifest.json       versions, device, timing, studies, scores beside their references
typicality.safetensors      by `fit_typicality`: which studies are unlike the training data

A finished run is written to `.new/` and moved from there, its weights first; `ensemble.json` goes before weights.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..crops.extraction import CropSpec
from ..devices import check_finite
from ..errors import DataError
from ..files import atomically, read_json, write_json
from ..labels import N_SEVERITIES, N_TARGETS
from .classifier import ClassifierConfig, LumbarClassifier

CONFIG, WEIGHTS, HISTORY, OOF, MANIFEST = "config.json", "model.safetensors", "history.csv", "oof.csv", "manifest.json"
ENSEMBLE = "ensemble.json"
NEW = ".new"
LEFTOVERS = {"classifier": (ENSEMBLE,), "folds": (WEIGHTS, CONFIG, HISTORY)}
"""What a folder may hold of a run of the other kind, by the `kind` in the manifest of the one that is moved there."""
FORMAT_VERSION = 1
SHIPPED_CLASSIFIER = Path(__file__).resolve().parent.parent / "weights" / "shipped_classifier"
MADE = "made.json"
"""How the weights that ship were made, and what was measured on patients with them."""
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class RunConfig:
    """What is stored with a run's weights.

    `prior` (25, 3) is the weighted class prior of the training part, used for a study that cannot be predicted;
    `training` the `TrainConfig` as JSON, for the record.
    """

    classifier: ClassifierConfig
    crops: CropSpec
    prior: np.ndarray
    training: dict
    synthetic_only: bool

    def to_json(self) -> dict:
        return {
            "version": FORMAT_VERSION,
            "classifier": self.classifier.to_json(),
            "crops": self.crops.to_json(),
            "prior": np.asarray(self.prior).round(9).tolist(),
            "training": self.training,
            "synthetic_only": self.synthetic_only,
        }

    @classmethod
    def load(cls, folder: Path) -> RunConfig:
        """Read it; raises `DataError` when the weights are absent, damaged or of another version."""
        path = folder / WEIGHTS
        if not folder.is_dir():
            raise DataError(f"{folder}: no such run folder; train a classifier, or give the folder with {WEIGHTS}")
        if not path.is_file():
            raise DataError(f"{path}: the run has no weights; was its training cut off? Run it again")
        try:
            with safe_open(path, framework="pt") as file:
                stored = (file.metadata() or {}).get("config")
            values = json.loads(stored) if stored else read_json(folder / CONFIG)  # where version 0.1 had it
        except (SafetensorError, ValueError, OSError) as error:
            raise DataError(f"{path}: these weights cannot be used ({error})") from error
        expected = {"version", *(f.name for f in fields(cls))}
        if set(values) != expected:
            raise DataError(f"{path}: expected the keys {sorted(expected)}, got {sorted(values)}")
        if values["version"] != FORMAT_VERSION:
            raise DataError(f"{path}: a run of format {values['version']}, this library reads {FORMAT_VERSION}")
        prior = np.asarray(values["prior"], dtype=np.float64)
        if prior.shape != (N_TARGETS, N_SEVERITIES):
            raise DataError(f"{path}: prior must have shape {(N_TARGETS, N_SEVERITIES)}, got {prior.shape}")
        return cls(
            classifier=strict(ClassifierConfig, values["classifier"], path),
            crops=CropSpec.from_json(values["crops"]),
            prior=prior,
            training=values["training"],
            synthetic_only=bool(values["synthetic_only"]),
        )


def strict(cls: type[T], values: Mapping[str, Any], where: Path | str = "configuration") -> T:
    """Build a dataclass from JSON values; unknown keys and values that it refuses raise `DataError` naming them."""
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise DataError(f"{where}: unknown keys {unknown} for {cls.__name__}; known are {sorted(known)}")
    arguments = {}
    for name, value in values.items():
        nested: Any = known[name].default_factory
        if is_dataclass(nested):
            if not isinstance(value, Mapping):
                raise DataError(f"{where}: {name} must be an object with fields of {nested.__name__}, got {value!r}")
            value = strict(nested, value, f"{where}: {name}")
        elif not _fits(value, known[name].default):
            wanted = type(known[name].default).__name__
            raise DataError(f"{where}: {name} must be of type {wanted}, got {value!r}")
        arguments[name] = value
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}") from error


def _fits(value: Any, default: Any) -> bool:
    """Whether a JSON value has the type of `default`; a default of None or none at all says nothing."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return not isinstance(default, int | str) or isinstance(value, type(default))


def shipped_classifier() -> Path:
    """The folder of the classifier that ships with the library, trained on synthetic phantoms alone.

    Raises `DataError` when this copy of the library holds none.
    """
    if not SHIPPED_CLASSIFIER.is_dir():
        raise DataError(f"this copy of the library has no {SHIPPED_CLASSIFIER.name}: train a classifier")
    return SHIPPED_CLASSIFIER


def measured_on_patients(folder: Path) -> str:
    """What was measured on patients with the classifier in a folder, to be read after a semicolon; "" if nothing."""
    measured = read_json(folder / MADE).get("measured_on_patients") if (folder / MADE).is_file() else None
    if not measured:
        return ""
    areas = ", ".join(f"{value:.2f} ({name})" for name, value in measured["auc_severe"].items())
    return (
        f"measured on {measured['patients']} patients, one view alone, the area under the ROC curve for severe grades "
        f"is {areas}; research use, not for diagnosis"
    )


def save_run(folder: Path, model: torch.nn.Module, config: RunConfig) -> None:
    """Write weights and configuration; matrices as float16, which halves the file."""
    path, values = folder / WEIGHTS, config.to_json()
    tensors = {}
    for name, tensor in model.state_dict().items():
        dtype = torch.float16 if _stored_half(tensor) else None
        tensors[name] = tensor.detach().to("cpu", dtype).contiguous().clone()
    check_finite(tensors, path)
    atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"config": json.dumps(values)}))
    write_json(folder / CONFIG, values)


def publish(folder: Path) -> None:
    """Move a finished run from `.new/` to its place; ended by a kill, the next call goes on where that was."""
    new = folder / NEW
    if not (new / MANIFEST).is_file():  # which is written, and moved, last
        return
    leftovers = LEFTOVERS[read_json(new / MANIFEST)["kind"]]
    for name in (WEIGHTS, ENSEMBLE, CONFIG, HISTORY, OOF):
        if (new / name).is_file():
            os.replace(new / name, folder / name)
    for name in leftovers:
        (folder / name).unlink(missing_ok=True)
    os.replace(new / MANIFEST, folder / MANIFEST)
    shutil.rmtree(new, ignore_errors=True)


@torch.no_grad()
def round_weights(model: T) -> T:
    """Round a model's weights in place, as `save_run` does on disk; returns the model."""
    for tensor in model.state_dict().values():
        if _stored_half(tensor):
            tensor.copy_(tensor.half())
    return model


def _stored_half(tensor: torch.Tensor) -> bool:
    return tensor.ndim >= 2 and tensor.is_floating_point()


def load_model(folder: Path | str) -> tuple[LumbarClassifier, RunConfig]:
    """The network of a run with its weights, on the CPU in evaluation mode, and the run's configuration."""
    config = RunConfig.load(Path(folder))
    path = Path(folder) / WEIGHTS
    # The weights replace whatever the encoder started from, so its file need not be there any more.
    model = LumbarClassifier(replace(config.classifier, pretrained=None), config.prior)
    try:
        state = load_file(path)
        check_finite(state, path)
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except (SafetensorError, RuntimeError, OSError) as error:
        raise DataError(f"{path}: these weights cannot be used ({str(error).splitlines()[0]})") from error
    return model.eval(), config
