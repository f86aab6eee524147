"""What a report says, in numbers: the JSON beside every page, from which the page is made.

`report.schema.json` beside this file names and explains every key, as a JSON Schema. Numbers of a study are
probabilities from 0 to 1, which are plain frequencies, millimetres in patient coordinates (LPS), or degrees. Nothing
comes from a header that could name a patient: no names, dates or descriptions; paths are cut from issues.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from .. import __version__
from ..crops.extraction import StudyCrops
from ..files import versions
from ..inference.submission import PHANTOM_NOTE, StudyPrediction
from ..labels import (
    CONDITIONS,
    LEVELS,
    N_LEVELS,
    PROBABILITY_COLUMNS,
    VIEWS,
    condition_title,
    level_title,
    target_index,
)
from ..localization import DiscPoints
from ..localization.evaluation import level_labelling_uncertain
from ..metrics.score import SEVERE
from ..studies.study import Study

SCHEMA, SCHEMA_VERSION = "lumbar_utils/report", 2
NOTICE = "Research use only. Not a medical device, not for diagnosis."
PRIOR_WARNING = (
    "Not predicted: the class prior of the training part is shown instead; it knows nothing of this patient."
)
LEVELS_WARNING = "The labelling of the disc levels has low confidence: all five may be off by one."
UNLIKE_WARNING = "The images are unlike those that the network learnt from: its grades deserve less trust."

FLAGS = {
    "fallback": "class prior",
    "unlike": "unlike the training data",
    "levels": "level labelling of low confidence",
    "disc": "disc imputed or of low confidence",
    "view": "view missing",
    "issue": "notes",
}
"""What a study may be flagged for, and how the pages call it. "disc": a level was imputed, or has low confidence;
"issue": anything that was left out or went wrong."""


def describe(
    prediction: StudyPrediction,
    *,
    study: Study | None = None,
    crops: StudyCrops | None = None,
    synthetic: bool = False,
    model: Mapping | None = None,
    private_paths: Sequence[Path | str] = (),
    created: datetime | None = None,
) -> dict:
    """Everything that a report says, ready for JSON; the keys are those of `report.schema.json`.

    Study and crops are given as far as they could be read again; without them `series` and `crops` are empty.
    `synthetic`: the study is a phantom. `model` tells what predicted: name, networks, mirrored, calibrated,
    disc_localizer. `private_paths` are folders whose names are cut from the issues' messages, as a path may hold a
    patient's name; `created` is the time of writing, default now.
    """
    p, discs = prediction.probabilities, prediction.discs
    uncertain = discs is not None and level_labelling_uncertain(discs)
    unlike = (prediction.unlike_training or 0) > 1
    warnings = {
        f"The network was {prediction.notice}.": prediction.synthetic_only,
        f"This study is {PHANTOM_NOTE}.": synthetic,
        PRIOR_WARNING: prediction.fallback,
        LEVELS_WARNING: uncertain,
        UNLIKE_WARNING: unlike,
    }
    flags = {
        "fallback": prediction.fallback,
        "unlike": unlike,
        "levels": uncertain,
        "disc": discs is None or discs.flagged,
        "view": prediction.missing_views,
        "issue": prediction.issues,
    }
    best = p.argmax(axis=1)
    worst = int(p[:, SEVERE].argmax())
    places = [{"level": level, "condition": condition} for condition in CONDITIONS for level in LEVELS]
    issues = dict.fromkeys([*prediction.issues, *(study.issues if study else ())])
    without_folders = partial(without_paths, folders=private_paths)
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "study_id": prediction.study_id,
        "created": (created or datetime.now(UTC)).isoformat(timespec="seconds"),
        "notice": NOTICE,
        "warnings": [text for text, holds in warnings.items() if holds],
        "synthetic": {"weights": bool(prediction.synthetic_only), "study": bool(synthetic)},
        "fallback": bool(prediction.fallback),
        "unlike_training": prediction.unlike_training,
        "summary": {
            "any_severe": float(p[worst, SEVERE]),
            "any_severe_spinal": float(p[:N_LEVELS, SEVERE].max()),
            "worst": places[worst],
            "counts": {name: int((best == k).sum()) for k, name in enumerate(PROBABILITY_COLUMNS)},
            "disc_confidence": None if discs is None else float(discs.confidence.min()),
        },
        "grades": [
            {
                **place,
                "grade": PROBABILITY_COLUMNS[k],
                "probabilities": dict(zip(PROBABILITY_COLUMNS, row, strict=True)),
            }
            for place, k, row in zip(places, best, p.tolist(), strict=True)
        ],
        "discs": None if discs is None else _discs(discs),
        "crops": [] if crops is None else _crops(crops),
        "series": [] if study is None else _series(study),
        "missing_views": list(prediction.missing_views),
        "issues": [issue.rewritten(without_folders).to_json() for issue in issues],
        "flags": [name for name in FLAGS if flags[name]],
        "model": dict(model or {}),
        "versions": {"lumbar_utils": __version__, **versions()},
    }


def without_paths(text: str, folders: Sequence[Path | str]) -> str:
    """The text with the folders before its file names cut off."""
    for folder in sorted({str(folder) for folder in folders}, key=len, reverse=True):
        if len(folder) > 1:
            text = text.replace(folder + os.sep, "")
        if len(folder) > 1 and os.sep in folder:  # a bare word may mean something else in the text
            text = text.replace(folder, "the study's folder")
    return text


def grade_of(report: Mapping, condition: str | int, level: str | int) -> Mapping:
    """The entry of `report["grades"]` for a condition at a level, each by name or index."""
    return report["grades"][target_index(condition, level)]


def target_title(level: str, condition: str) -> str:
    """`"L4/L5 right foraminal narrowing"`."""
    return f"{level_title(level)} {condition_title(condition).lower().replace('neural ', '')}"


def _discs(discs: DiscPoints) -> dict:
    points, confidence = np.round(discs.points, 2).tolist(), np.round(discs.confidence, 4).tolist()
    keys = ("level", "point_lps_mm", "confidence", "flag")
    levels = [dict(zip(keys, row, strict=True)) for row in zip(LEVELS, points, confidence, discs.flags, strict=True)]
    return {"series_id": discs.series_id, "source": discs.source, "levels": levels}


def _crops(crops: StudyCrops) -> list[dict]:
    return [
        {
            "view": view,
            "level": level,
            "covered": round(float(np.mean(crops.covered[view][i])), 4),
            "series_id": source and source.series_id,
            "stack": source and source.stack,
            "instance_numbers": source and list(source.instance_numbers),
            "angle_degrees": source and round(float(source.angle_degrees), 2),
        }
        for view in VIEWS
        for i, (level, source) in enumerate(zip(LEVELS, crops.sources[view], strict=True))
    ]


def _series(study: Study) -> list[dict]:
    return [
        {
            "series_id": series.series_id,
            "view": series.view,
            "slices": series.n_slices,
            "stacks": len(series.stacks),
            "pixel_spacing_mm": np.round(series.stacks[0].geometry.spacing, 4).tolist(),
            "slice_spacing_mm": round(float(step), 3) if np.isfinite(step) else None,
        }
        for series in study.series
        for step in [series.stacks[0].geometry.slice_spacing]
    ]
