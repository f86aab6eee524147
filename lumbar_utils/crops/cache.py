"""Crops of many studies on disk: built in parallel, resumable, one file a study and a manifest.

A file is named by the study and by how it was cut, so that crops of one size never take the place of another's, and
what a folder holds is what its manifest says, whenever a run that makes others is cut off.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..files import file_name, read_json, remove_leftovers, write_json
from ..localization import DiscPoints
from ..notebook_html import progress_bar
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
        Studies that could not be cropped, and the reason.
    """

    folder: Path
    spec: CropSpec
    study_ids: tuple[str, ...]
    failures: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path | str) -> CropCache:
        """Open what `build_crop_cache` made; raises `DataError` when there is none."""
        path = Path(folder) / MANIFEST
        if not path.exists():
            raise DataError(f"{folder}: no {MANIFEST}, so no crop cache; make one with `lumbar crops`")
        manifest = read_json(path)
        try:
            spec = CropSpec.from_json(manifest["spec"])
            return cls(path.parent, spec, tuple(manifest["study_ids"]), dict(manifest["failures"]))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a manifest of crops ({error})") from error

    def __len__(self) -> int:
        return len(self.study_ids)

    def __contains__(self, study_id: str) -> bool:
        return study_id in self.study_ids

    def __getitem__(self, study_id: str) -> StudyCrops:
        path = crop_file(self.folder, study_id, self.spec)
        try:
            crops = StudyCrops.load(path)
        except DataError as error:
            raise DataError(f"study {study_id}: {error}") from error
        if (crops.study_id, crops.spec) != (study_id, self.spec):
            raise DataError(f"study {study_id}: {path} holds crops of study {crops.study_id}, or of another size")
        return crops

    def __iter__(self) -> Iterator[StudyCrops]:
        return (self[study_id] for study_id in self.study_ids)

    def digest(self, study_ids: Sequence[str]) -> str:
        """Changes with the content of any of these studies' files; reads their checksums only."""
        content = hashlib.sha256()
        for study_id in study_ids:
            path = crop_file(self.folder, study_id, self.spec)
            try:
                with zipfile.ZipFile(path) as archive:
                    content.update(repr([(part.filename, part.CRC) for part in archive.infolist()]).encode())
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(
                    f"study {study_id}: {path} cannot be read ({error}); make it with `lumbar crops`"
                ) from error
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

    A study whose file exists, with the same specification and the same points (to 0.01 mm), is not cropped again. A
    study that cannot be read or cropped is listed in the manifest with the reason, and the run goes on. Crops of
    another specification in the folder stay, and are found again when they are asked for.

    Parameters
    ----------
    sources : sequence of StudySource
        From `find_studies`.
    points : mapping study_id -> DiscPoints
    folder : path-like
        Created when absent.
    n_jobs : int
        Worker processes, unless an active `joblib.parallel_config` sets it; see `parallel.run_jobs`. A worker reads
        the study and writes the file, so on a cluster all machines must see both folders under the same path.

    Returns
    -------
    CropCache

    Raises
    ------
    OutputError
        When a file cannot be written, as on a full disk. The manifest stays as it was.
    """
    folder, spec = Path(folder), spec or CropSpec()
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    target = folder.absolute()
    tasks = ((s.absolute(), points.get(s.study_id), spec, crop_file(target, s.study_id, spec)) for s in sources)
    results: dict[str, bool | JobFailure] = {}
    with progress_bar(total=len(sources), desc="crops", unit="study", disable=not progress) as bar:
        for index, result in run_jobs(_crop_to_file, tasks, n_jobs=n_jobs):
            results[sources[index].study_id] = result
            bar.update()
    in_order = [(source.study_id, results[source.study_id]) for source in sources]
    failures = {study_id: result.reason for study_id, result in in_order if isinstance(result, JobFailure)}
    study_ids = tuple(study_id for study_id, _ in in_order if study_id not in failures)
    made = sum(results[study_id] for study_id in study_ids)
    logger.info("crops in %s: %d made, %d reused, %d failed", folder, made, len(study_ids) - made, len(failures))
    for study_id, reason in failures.items():
        logger.warning("study %s could not be cropped: %s", study_id, reason)
    manifest = {"version": FORMAT_VERSION, "spec": spec.to_json(), "study_ids": study_ids, "failures": failures}
    write_json(folder / MANIFEST, manifest)
    return CropCache(folder, spec, study_ids, failures)


def crop_file(folder: Path, study_id: str, spec: CropSpec) -> Path:
    """Where a study's crops lie; whatever the id, in the folder."""
    how = json.dumps([FORMAT_VERSION, spec.to_json()], sort_keys=True)
    return folder / f"{file_name(study_id)}-{hashlib.sha256(how.encode()).hexdigest()[:8]}.npz"


def _crop_to_file(source: StudySource, discs: DiscPoints | None, spec: CropSpec, path: Path) -> bool:
    """Whether the file was made, rather than reused."""
    if discs is None:
        raise DataError("no disc points")
    if _is_current(path, discs, spec):
        return False
    extract_crops(load_study(source), discs, spec).save(path)
    return True


def _is_current(path: Path, discs: DiscPoints, spec: CropSpec) -> bool:
    try:
        old = StudyCrops.load(path)
    except DataError:
        return False
    return old.spec == spec and np.allclose(old.points.points, discs.points, atol=0.01)
