"""A whole synthetic cohort on disk, in the competition's folder layout, with the truth beside it.

Study `i` of a cohort is a function of (seed, i) alone: the number of workers, the order of work and an interruption
make no difference to a single byte. A study's files are written first and its record, which holds everything the
tables need, last and at once; so a study with a record is whole, and a second call goes on where the first stopped.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from ..errors import DataError
from ..files import lock_folder, remove_leftovers, write_text
from ..labels import AXIAL_T2, MISSING
from ..notebook_html import progress_bar
from ..parallel import JobFailure, run_jobs
from ..studies.competition import SYNTHETIC_MARK
from . import tables
from .anatomy import Body
from .annotator import StoredSeries, annotate
from .dataset_quirks import StudyPlan, number_slices, sample_study_plan
from .disease import sample_person
from .protocol import PROFILES, Protocol, sample_protocols
from .reader_model import label_person
from .scanner import acquire
from .writer import write_series

logger = logging.getLogger(__name__)

COHORT_VERSION = 3  # raise whenever the same seed gives other bytes
_PRIME = 4294967291
_SERIES_PER_STUDY = 16
_STREAM_IDS, _STREAM_PLAN, _STREAM_PROTOCOL, _STREAM_SCAN, _STREAM_POINTS = 31, 32, 33, 34, 35


@dataclass(frozen=True)
class CohortConfig:
    """What a cohort is determined by. Stored in `truth/cohort.json`."""

    n_studies: int
    seed: int
    profile: str
    test_fraction: float
    randomise: bool
    transfer_syntax: str
    version: int = COHORT_VERSION

    def __post_init__(self):
        if self.profile not in PROFILES:
            raise DataError(f"unknown profile {self.profile!r}, expected one of {PROFILES}")
        if self.n_studies < 1:
            raise DataError(f"n_studies must be at least 1, got {self.n_studies}")
        if self.seed < 0:
            raise DataError(f"seed must not be negative, got {self.seed}")
        if not 0 <= self.test_fraction < 1:
            raise DataError(f"test_fraction must be in [0, 1), got {self.test_fraction}")

    @property
    def n_train(self) -> int:
        """Studies 0 .. n_train - 1 are the training part; at least one."""
        return max(1, self.n_studies - round(self.n_studies * self.test_fraction))

    def part(self, index: int) -> str:
        """`"train"` or `"test"`."""
        return "train" if index < self.n_train else "test"

    def study_id(self, index: int) -> str:
        """An id as the competition has them, up to ten digits, never the same twice."""
        return str(self._scatter(index, 0))

    def series_id(self, index: int, number: int) -> str:
        """Id of a study's `number`-th series."""
        return str(self._scatter(index * _SERIES_PER_STUDY + number, 1))

    def _scatter(self, value: int, kind: int) -> int:
        factor, shift = map(int, np.random.default_rng([self.seed, kind, _STREAM_IDS]).integers(1, _PRIME, 2))
        return ((value + 1) * factor + shift) % _PRIME


def generate_cohort(
    out: Path | str,
    *,
    n_studies: int,
    seed: int,
    profile: str = "demo",
    test_fraction: float = 0.2,
    n_jobs: int = 2,
    progress: bool = True,
    randomise: bool = False,
    transfer_syntax: str = "explicit",
    overwrite: bool = False,
) -> dict:
    """Make a cohort of synthetic studies, or finish one that was begun, or find it finished.

    Parameters
    ----------
    out : path-like
        Folder to make. It gets the competition's tables and image folders, `SYNTHETIC.md`, and `truth/`.
    n_studies : int
        Training and test studies together.
    seed : int
        Same seed, same bytes, on machines whose numpy computes alike.
    profile : str
        "demo": few slices, small matrices. "rsna": as many and as large as the competition's.
    test_fraction : float
        Share of studies in the test part, whose labels lie only in `truth/labels.csv`.
    n_jobs : int
        Worker processes, see `parallel.run_jobs`; 1 works in this process.
    randomise : bool
        People, contrasts and artefacts far beyond reality, for training a localizer that must work on real scans.
    transfer_syntax : str
        A key of `writer.TRANSFER_SYNTAXES`; with the default a few series are RLE-compressed, as in reality.
    overwrite : bool
        Replace a cohort made with other settings instead of refusing.

    Returns
    -------
    dict
        root (Path), n_train, n_test, n_series, n_files, seconds, reused (True: it was there already).

    Raises
    ------
    DataError
        For settings out of range, when `out` holds something else or a cohort made with other settings, when another
        process is making one there, and when a study cannot be made, say because the disk is full.
    """
    config = CohortConfig(n_studies, int(seed), profile, float(test_fraction), randomise, transfer_syntax)
    root = Path(out)
    started = time.perf_counter()
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is not a folder: choose another one")
    root.mkdir(parents=True, exist_ok=True)
    with lock_folder(root) as held:
        if held is False:
            raise DataError(f"{root}: another process is making a cohort there; wait for its end")
        summary = _claim(root, config, overwrite=overwrite)
        reused = summary is not None
        if reused:
            logger.info("reusing the finished cohort in %s (%d studies, seed %d)", root, n_studies, seed)
        else:
            summary = _generate(root, config, n_jobs=n_jobs, progress=progress)
    return {"root": root, **summary, "seconds": time.perf_counter() - started, "reused": reused}


def _generate(root: Path, config: CohortConfig, *, n_jobs: int, progress: bool) -> dict:
    """Make the studies that are not there yet, and finish the cohort."""
    n_studies = config.n_studies
    note = tables.SYNTHETIC_NOTE.format(n_studies=n_studies, seed=config.seed, profile=config.profile)
    write_text(root / SYNTHETIC_MARK, note)
    (root / "truth" / "parts").mkdir(parents=True, exist_ok=True)
    todo = [index for index in range(n_studies) if not _record_path(root, index).exists()]
    if len(todo) < n_studies:
        logger.info("continuing the cohort in %s: %d of %d studies are there", root, n_studies - len(todo), n_studies)
    for part in ("train", "test"):
        (root / f"{part}_images").mkdir(exist_ok=True)
    with progress_bar(
        total=n_studies, initial=n_studies - len(todo), desc="phantom", unit="study", disable=not progress
    ) as bar:
        tasks = [(root, config, index) for index in todo]
        for done, result in run_jobs(make_study, tasks, n_jobs=n_jobs if len(todo) > 1 else 1):
            if isinstance(result, JobFailure):
                raise DataError(f"study {todo[done]} of the cohort in {root}: {result.reason}")
            bar.update()
    return _finish(root, config)


@threadpool_limits.wrap(limits=1)  # how a matrix product is split among threads can change its last bit
def make_study(root: Path, config: CohortConfig, index: int) -> None:
    """Write all files of one study and then its record."""

    def rng(*stream: int) -> np.random.Generator:
        return np.random.default_rng([config.seed, index, *stream])

    study_id = config.study_id(index)
    folder = root / f"{config.part(index)}_images" / study_id
    if folder.exists():
        shutil.rmtree(folder)
    plan = sample_study_plan(rng(_STREAM_PLAN))
    person = sample_person(index, config.seed, randomise=config.randomise)
    body = Body(person)
    protocols = sample_protocols(
        body, rng(_STREAM_PROTOCOL), config.profile, views=plan.views, randomise=config.randomise
    )
    stored, n_files = [], 0
    for number, (series_plan, protocol) in enumerate(zip(plan.series, protocols, strict=True)):
        protocol = without_levels_above(protocol, body.truth.canal, plan.axial_top_level)
        stacks = acquire(body, protocol, rng(_STREAM_SCAN, number))
        geometries = [geometry for geometry, _ in stacks]
        numbers = number_slices(geometries, series_plan)
        series_id, syntax = config.series_id(index, number), config.transfer_syntax
        n_files += write_series(
            folder / series_id,
            stacks,
            study_id=study_id,
            series_id=series_id,
            header=series_header(protocol, plan) | {"SeriesNumber": number + 1},
            instance_numbers=numbers,
            transfer_syntax=series_plan.transfer_syntax if syntax == "explicit" else syntax,
            uid_root=f"phantom-{config.version}-{config.seed}-{config.profile}",
        )
        stored.append(StoredSeries(series_id, series_plan.view, geometries, numbers))
    points, visible = annotate(stored, body.truth.places, ~plan.unlabelled, rng(_STREAM_POINTS))
    labels = np.where(plan.unlabelled | ~visible, MISSING, label_person(person.degrees, index, config.seed))
    record = {
        "study_id": study_id,
        "part": config.part(index),
        "degrees": person.degrees.tolist(),
        "labels": labels.tolist(),
        "discs": {name: getattr(body.truth, name).tolist() for name in tables.DISC_COLUMNS},
        "series": [(item.series_id, item.view) for item in stored],
        "points": points,
        "n_files": n_files,
    }
    write_text(_record_path(root, index), json.dumps(record))


def without_levels_above(protocol: Protocol, canal: np.ndarray, level: int) -> Protocol:
    """Drop an axial protocol's slices above `level`, whose canal points are `canal` (5, 3); others stay as they are."""
    if level == 0 or protocol.view != AXIAL_T2:
        return protocol
    border = (canal[level - 1] + canal[level]) / 2
    blocks = []
    for block in protocol.blocks:
        beyond = (block.center - border) @ block.normal + block.offsets
        kept = block.offsets[beyond * np.sign(block.normal[2]) <= 0]
        if len(kept):
            centre = block.center + kept.mean() * block.normal
            blocks.append(replace(block, center=centre, n_slices=len(kept)))
    return replace(protocol, blocks=tuple(blocks))


def series_header(protocol: Protocol, plan: StudyPlan) -> dict[str, str | float]:
    """What the header says about how a series was acquired, by DICOM keyword."""
    sequence = protocol.sequence
    inversion = {"InversionTime": round(sequence.inversion_time)} if sequence.inversion_time > 0 else {}
    return inversion | {
        "SeriesDescription": plan.description(protocol.view, inversion=bool(inversion)),
        "EchoTime": round(sequence.echo_time, 1),
        "RepetitionTime": round(sequence.repetition_time),
        "MagneticFieldStrength": round(sequence.tesla, 2),
        "SliceThickness": round(protocol.thickness_mm, 2),
        "SpacingBetweenSlices": round(protocol.blocks[0].step_mm, 3),
    }


def _claim(root: Path, config: CohortConfig, *, overwrite: bool) -> dict | None:
    """Make `root` ours. Returns the summary when the wanted cohort is there already."""
    for folder in (root, root / "truth", root / "truth" / "parts"):
        remove_leftovers(folder)
    path, wanted = root / "truth" / "cohort.json", asdict(config)
    if path.exists():
        try:
            state = json.loads(path.read_text())
            settings, summary = dict(state["config"]), state["summary"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read ({error}); delete {root} and generate again") from error
        differences = [
            f"{key} is {settings.get(key)!r}, wanted {wanted.get(key)!r}"
            for key in sorted(settings.keys() | wanted.keys())
            if settings.get(key) != wanted.get(key)
        ]
        if not differences:
            return summary
        if not overwrite:
            raise DataError(
                f"{root} holds another cohort ({'; '.join(differences)}): "
                "choose another folder, or delete this one (from Python: overwrite=True)"
            )
        shutil.rmtree(root)
    elif any(not left.is_dir() for left in root.rglob("*")):  # empty folders a full disk can leave
        raise DataError(f"{root} is not empty and was not made by this program: choose another folder")
    write_text(path, json.dumps({"config": wanted, "summary": None}, indent=1) + "\n")
    return None


def _finish(root: Path, config: CohortConfig) -> dict:
    """Put the tables together, mark the cohort as finished, clear the records away."""
    records = [json.loads(_record_path(root, index).read_text()) for index in range(config.n_studies)]
    tables.write_tables(root, records)
    summary = {
        "n_train": config.n_train,
        "n_test": config.n_studies - config.n_train,
        "n_series": sum(len(record["series"]) for record in records),
        "n_files": sum(record["n_files"] for record in records),
    }
    state = {"synthetic": True, "config": asdict(config), "summary": summary}
    write_text(root / "truth" / "cohort.json", json.dumps(state, indent=1) + "\n")
    shutil.rmtree(root / "truth" / "parts")
    return summary


def _record_path(root: Path, index: int) -> Path:
    return root / "truth" / "parts" / f"{index}.json"
