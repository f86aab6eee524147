"""Crops of many studies on disk: built in parallel, resumable, one file a study and a manifest."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..errors import DataError
from ..files import file_name, write_json
from ..localization import DiscPoints
from ..parallel import JobFailure, run_jobs
from ..studies.study import StudySource, load_study
from .extraction import FORMAT_VERSION, CropSpec, StudyCrops, extract_crops

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class CropCache:
    """A folder of crops, one file a study, with a manifest that says how they were made.

    Attributes
    ----------
    folder : Path
    spec : CropSpec
    study_ids : tuple of str
        Studies that have crops, in the order in which they were asked for.
    failures : dict study_id -> str
        Studies that could not be cropped, and why.
    """

    folder: Path
    spec: CropSpec
    study_ids: tuple[str, ...]
    failures: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path | str) -> CropCache:
        """Open what `build_crop_cache` made; raises `DataError` when there is none."""
        folder = Path(folder)
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            spec = CropSpec.from_json(manifest["spec"])
            return cls(folder, spec, tuple(manifest["study_ids"]), manifest["failures"])
        except FileNotFoundError:
            raise DataError(f"{folder}: no {MANIFEST}, so no crop cache; make one with `lumbar crops`") from None
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{folder / MANIFEST}: not a manifest of crops ({error})") from error

    def __len__(self) -> int:
        return len(self.study_ids)

    def __contains__(self, study_id: str) -> bool:
        return study_id in self.study_ids

    def __getitem__(self, study_id: str) -> StudyCrops:
        return StudyCrops.load(_crop_file(self.folder, study_id))

    def __iter__(self) -> Iterator[StudyCrops]:
        return (self[study_id] for study_id in self.study_ids)

    def digest(self, study_ids: Sequence[str]) -> str:
        """Changes with the content of any of these studies' files; reads their checksums only."""
        content = hashlib.sha256()
        for study_id in study_ids:
            with zipfile.ZipFile(_crop_file(self.folder, study_id)) as archive:
                content.update(repr([(part.filename, part.CRC) for part in archive.infolist()]).encode())
        return content.hexdigest()


def build_crop_cache(
    sources: Sequence[StudySource],
    points: Mapping[str, DiscPoints],
    folder: Path | str,
    *,
    spec: CropSpec | None = None,
    n_jobs: int = 2,
    progress: bool = True,
) -> CropCache:
    """Crop many studies in parallel and keep the result on disk; a second run does only what is missing.

    A study whose file exists, with the same specification and the same points (to 0.01 mm), is left as it is. A
    study that cannot be read or cropped is noted in the manifest and the run goes on.

    Parameters
    ----------
    sources : sequence of StudySource
        From `find_studies`.
    points : mapping study_id -> DiscPoints
    folder : path-like
        Created when absent.
    n_jobs : int
        Worker processes, unless a user's `joblib.parallel_config` says otherwise; see `parallel.run_jobs`. A worker
        reads the study and writes the file, so on a cluster both folders must lie where all machines see them.

    Returns
    -------
    CropCache
    """
    folder, spec = Path(folder), spec or CropSpec()
    folder.mkdir(parents=True, exist_ok=True)
    place = folder.absolute()
    tasks = (
        (source.absolute(), points.get(source.study_id), spec, _crop_file(place, source.study_id)) for source in sources
    )
    outcome = {}
    with tqdm(total=len(sources), desc="crops", unit="study", disable=not progress) as bar:
        for index, state in run_jobs(_crop_to_file, tasks, n_jobs=n_jobs):
            failed = isinstance(state, JobFailure)
            outcome[sources[index].study_id] = f"failed: {state.reason}" if failed else state
            bar.update()
    made = tuple(s.study_id for s in sources if not outcome[s.study_id].startswith("failed"))
    failures = {s.study_id: outcome[s.study_id] for s in sources if outcome[s.study_id].startswith("failed")}
    reused = sum(state == "reused" for state in outcome.values())
    logger.info("crops in %s: %d made, %d reused, %d failed", folder, len(made) - reused, reused, len(failures))
    for study_id, state in failures.items():
        logger.warning("study %s: %s", study_id, state)
    manifest = {"version": FORMAT_VERSION, "spec": spec.to_json(), "study_ids": made, "failures": failures}
    write_json(folder / MANIFEST, manifest)
    return CropCache(folder, spec, made, failures)


def _crop_file(folder: Path, study_id: str) -> Path:
    return folder / f"{file_name(study_id)}.npz"  # whatever the id, the file lies in the folder


def _crop_to_file(source: StudySource, discs: DiscPoints | None, spec: CropSpec, path: Path) -> str:
    if discs is None:
        raise DataError("no disc points")
    if path.exists() and _up_to_date(path, discs, spec):
        return "reused"
    extract_crops(load_study(source), discs, spec).save(path)
    return "made"


def _up_to_date(path: Path, discs: DiscPoints, spec: CropSpec) -> bool:
    try:
        old = StudyCrops.load(path)
    except DataError:
        return False
    return old.spec == spec and np.allclose(old.points.points, discs.points, atol=0.01)
