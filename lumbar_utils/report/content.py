"""What a report says, in numbers: the JSON beside every page, from which the page is made.

Keys of a report, version 2; `report.schema.json` beside this file is the same as a JSON Schema. Numbers of a study
are probabilities from 0 to 1, millimetres in patient coordinates (LPS), or degrees.

schema, schema_version  `SCHEMA`, `SCHEMA_VERSION`
study_id, created       as text; time of writing, UTC, ISO 8601
notice, warnings        that it is research software; what must be read before the grades (synthetic weights, prior)
synthetic               {"weights", "study"}: trained on phantoms only; the study itself is a phantom
fallback                true when the class prior is used instead of a prediction
summary                 any_severe: the largest probability of "severe" among the 25 targets; any_severe_spinal: that of
                        the canal's five, as in the competition's metric; worst: the target any_severe belongs to;
                        counts: targets by most probable grade; disc_confidence: the least of the five, null where no
                        disc was found
grades                  25 of {level, condition, grade (the most probable), probabilities {normal_mild, moderate,
                        severe}}, in the order of `labels.TARGETS`; plain frequencies (in version 1 with the metric's
                        weights)
discs                   null, or {series_id, source, levels: 5 of {level, point_lps_mm, confidence, flag}}
crops                   15 of {view, level, covered (share of the box), series_id, stack, instance_numbers,
                        angle_degrees}; series_id and what follows are null where no scan shows the level
series                  what was there: {series_id, view, slices, stacks, pixel_spacing_mm, slice_spacing_mm}
missing_views           of which nothing could be used
issues                  records with code, series, file, view and message of what was left out
flags                   of `FLAGS`, what the index filters by
model                   what predicted, as the caller describes it: name, networks, mirrored, calibrated, disc_localizer
versions                of Python and the packages that a result depends on

Nothing comes from a header that could name a patient: no names, dates or descriptions; paths are cut from issues.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import __version__
from ..files import versions
from ..inference.submission import PHANTOM_NOTE, SYNTHETIC_WARNING, StudyPrediction
from ..labels import (
    CONDITIONS,
    LEVELS,
    N_LEVELS,
    PROBABILITY_COLUMNS,
    TARGETS,
    VIEWS,
    condition_title,
    level_title,
    target_index,
)
from ..localization.evaluation import level_labelling_uncertain

if TYPE_CHECKING:
    from ..crops.extraction import StudyCrops
    from ..studies.study import Study

SCHEMA, SCHEMA_VERSION = "lumbar_utils/report", 2
NOTICE = "Research use only. Not a medical device, not for diagnosis."
PRIOR_WARNING = "not predicted: the class prior of the training part is shown instead; it knows nothing of this patient"
LEVELS_WARNING = "the labelling of the disc levels has low confidence: all five may be off by one"

FLAGS = {
    "fallback": "class prior",
    "levels": "level labelling of low confidence",
    "disc": "disc imputed or of low confidence",
    "view": "view missing",
    "issue": "notes",
}
"""What a study may be flagged for, and how the pages call it. "disc": a level was imputed, or has low confidence;
"issue": anything that was left out or went wrong."""
SEVERE = len(PROBABILITY_COLUMNS) - 1


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
    """Everything that a report says, ready for JSON; the keys are listed above.

    Parameters
    ----------
    prediction : StudyPrediction
    study, crops : Study, StudyCrops, optional
        As far as they could be read again; without them `series` and `crops` are empty.
    synthetic : bool
        The study is a phantom.
    model : mapping, optional
        What predicted: name, networks, mirrored, calibrated, disc_localizer.
    private_paths : sequence of path-like
        Folders whose names are cut from the issues' messages: a path may hold a patient's name.
    created : datetime, optional
        Default: now.
    """
    p = prediction.probabilities
    best = p.argmax(axis=1)
    worst = int(p[:, SEVERE].argmax())
    issues = dict.fromkeys([*prediction.issues, *(study.issues if study else ())])
    without_folders = partial(without_paths, folders=private_paths)
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "study_id": prediction.study_id,
        "created": (created or datetime.now(UTC)).isoformat(timespec="seconds"),
        "notice": NOTICE,
        "warnings": _warnings(prediction, synthetic),
        "synthetic": {"weights": bool(prediction.synthetic_only), "study": bool(synthetic)},
        "fallback": bool(prediction.fallback),
        "summary": {
            "any_severe": float(p[worst, SEVERE]),
            "any_severe_spinal": float(p[:N_LEVELS, SEVERE].max()),
            "worst": {"level": LEVELS[worst % N_LEVELS], "condition": CONDITIONS[worst // N_LEVELS]},
            "counts": {name: int((best == k).sum()) for k, name in enumerate(PROBABILITY_COLUMNS)},
            "disc_confidence": float(prediction.discs.confidence.min()) if prediction.discs is not None else None,
        },
        "grades": [
            {
                "level": LEVELS[t % N_LEVELS],
                "condition": CONDITIONS[t // N_LEVELS],
                "grade": PROBABILITY_COLUMNS[best[t]],
                "probabilities": dict(zip(PROBABILITY_COLUMNS, map(float, p[t]), strict=True)),
            }
            for t in range(len(TARGETS))
        ],
        "discs": _discs(prediction),
        "crops": [] if crops is None else _crops(crops),
        "series": [] if study is None else _series(study),
        "missing_views": list(prediction.missing_views),
        "issues": [issue.rewritten(without_folders).to_json() for issue in issues],
        "flags": _flags(prediction),
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


def _warnings(prediction: StudyPrediction, synthetic: bool) -> list[str]:
    found = [f"The network was {SYNTHETIC_WARNING}."] if prediction.synthetic_only else []
    found += [f"This study is {PHANTOM_NOTE}."] if synthetic else []
    found += [_sentence(PRIOR_WARNING)] if prediction.fallback else []
    uncertain = prediction.discs is not None and level_labelling_uncertain(prediction.discs)
    return found + ([_sentence(LEVELS_WARNING)] if uncertain else [])


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _flags(prediction: StudyPrediction) -> list[str]:
    discs = prediction.discs
    held = {
        "fallback": prediction.fallback,
        "levels": discs is not None and level_labelling_uncertain(discs),
        "disc": discs is None or discs.flagged,
        "view": bool(prediction.missing_views),
        "issue": bool(prediction.issues),
    }
    return [name for name in FLAGS if held[name]]


def _discs(prediction: StudyPrediction) -> dict | None:
    discs = prediction.discs
    if discs is None:
        return None
    levels = [
        {
            "level": level,
            "point_lps_mm": [round(float(x), 2) for x in discs.points[i]],
            "confidence": round(float(discs.confidence[i]), 4),
            "flag": discs.flags[i],
        }
        for i, level in enumerate(LEVELS)
    ]
    return {"series_id": discs.series_id, "source": discs.source, "levels": levels}


def _crops(crops: StudyCrops) -> list[dict]:
    rows = []
    for view in VIEWS:
        for i, level in enumerate(LEVELS):
            source = crops.sources[view][i]
            rows.append(
                {
                    "view": view,
                    "level": level,
                    "covered": round(float(np.mean(crops.covered[view][i])), 4),
                    "series_id": source and source.series_id,
                    "stack": source and source.stack,
                    "instance_numbers": source and list(source.instance_numbers),
                    "angle_degrees": source and round(float(source.angle_degrees), 2),
                }
            )
    return rows


def _series(study: Study) -> list[dict]:
    rows = []
    for series in study.series:
        geometry = series.stacks[0].geometry
        step = geometry.slice_spacing
        rows.append(
            {
                "series_id": series.series_id,
                "view": series.view,
                "slices": series.n_slices,
                "stacks": len(series.stacks),
                "pixel_spacing_mm": [round(float(s), 4) for s in geometry.spacing],
                "slice_spacing_mm": round(float(step), 3) if np.isfinite(step) else None,
            }
        )
    return rows
