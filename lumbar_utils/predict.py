"""From crops or a study to 25 x 3 probabilities; a broken study never stops a run.

A study that cannot be read, located or graded gets the weighted class prior of the training part, with a note of
what went wrong. A network of an ensemble that gives no finite number for a study is left out of that study's mean.
What was missing or replaced stands in the prediction, and `submission.write_submission` logs it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from .classifier import grade
from .crops import CropSpec, StudyCrops, extract_crops
from .datasets import study_input
from .devices import choose_compute
from .ensembles import Ensemble, member_folders, run_of
from .errors import DataError, LumbarError
from .labels import N_SEVERITIES, N_TARGETS, VIEWS
from .localizer import DiscPoints
from .localizer.evaluation import names_doubtful
from .locating import localizer_origin, open_localizer
from .runs import load_model
from .study import Study, StudySource, load_study
from .submission import SYNTHETIC_WARNING, StudyPrediction, write_submission

if TYPE_CHECKING:
    from .localizer import DiscLocalizer

__all__ = ["SYNTHETIC_WARNING", "Predictor", "StudyPrediction", "write_submission"]

logger = logging.getLogger(__name__)

DOUBTFUL_NAMES = "the naming of the disc levels is doubtful: all of them may be off by one"


class Predictor:
    """A trained run, or an ensemble of several, ready to grade.

    Probabilities are the weighted mean of the members', then calibrated where the ensemble says how. All members are
    held on the device at once (a 3D ResNet18 classifier takes 0.4 GB); crops are cut once per specification.

    Parameters
    ----------
    run : path-like
        A run folder written by `train.fit`, a folder with `ensemble.json`, or such a JSON file.
    device, precision : str
        See `devices.choose_compute`.
    localizer : DiscLocalizer, optional
        Finds the discs for `predict_study` and `predict_studies`; default: `localizer/` beside the classifier's folder,
        which is the one that cut its training crops, else the one that ships with the library. Read when it is first
        needed.
    mirror : bool
        Average with the prediction for the mirrored study; twice the time.
    batch_size : int
        Studies at a time.

    Attributes
    ----------
    specs : tuple of CropSpec
        The different crops that the members take; `spec` is the first of them.
    prior : ndarray, shape (25, 3)
        Weighted mean of the members' class priors.
    synthetic_only : bool
        True when any member has seen nothing but synthetic phantoms.

    Raises
    ------
    DataError
        When a member's folder does not hold a finished run.
    """

    def __init__(
        self,
        run: Path | str,
        device: str | None = None,
        *,
        precision: str = "auto",
        localizer: DiscLocalizer | None = None,
        mirror: bool = False,
        batch_size: int = 8,
    ):
        ensemble = Ensemble.load(run)
        loaded = [load_model(folder) for folder in member_folders(run)]
        configs = [config for _, config in loaded]
        self.compute = choose_compute(device or "auto", precision)
        self.models = tuple(model.to(self.compute.device) for model, _ in loaded)
        self.shares, self.calibration = ensemble.shares, ensemble.calibration
        self.specs: tuple[CropSpec, ...] = ()
        for config in configs:  # a specification cannot be hashed
            self.specs += () if config.crops in self.specs else (config.crops,)
        self._spec_of = [self.specs.index(config.crops) for config in configs]
        self.prior = np.tensordot(self.shares, [config.prior for config in configs], axes=1)
        self.synthetic_only = any(config.synthetic_only for config in configs)
        self._localizer, self.mirror, self.batch_size = localizer, mirror, batch_size
        beside = run_of(run) / "localizer"
        self._own_localizer = beside if (beside / "model.safetensors").is_file() else None
        if self.synthetic_only:
            logger.warning("%s: %s", run, SYNTHETIC_WARNING)

    @property
    def spec(self) -> CropSpec:
        """The first of `specs`: the only one unless an ensemble mixes crops."""
        return self.specs[0]

    @property
    def localizer(self) -> DiscLocalizer:
        """The disc finder in use. Raises `DataError` when none was given and the library's own is not installed."""
        if self._localizer is None:
            self._localizer = open_localizer(self._own_localizer)
            logger.info(localizer_origin(self._localizer, self._own_localizer))
        return self._localizer

    def predict_crops(self, crops: Iterable[StudyCrops | Sequence[StudyCrops]]) -> np.ndarray:
        """Grade studies from their crops: float64 (n, 25, 3), rows summing to one; nan where no network is finite.

        A study is given as its crops or, for networks trained on crops of several specifications, as a sequence with
        one of each of `specs`. Read `batch_size` at a time, so a generator keeps memory flat. Raises `DataError` when
        crops of a specification that a network was trained on are not among a study's.
        """
        return self._mean(self._opinions(crops))

    def _opinions(self, crops: Iterable[StudyCrops | Sequence[StudyCrops]]) -> np.ndarray:
        """Every network's probabilities, float64 (n_members, n_studies, 25, 3)."""
        batches, remaining = [], iter(crops)
        while chunk := list(islice(remaining, self.batch_size)):
            inputs = [[study_input(_of_spec(item, spec)) for item in chunk] for spec in self.specs]
            options = {"batch_size": self.batch_size, "mirror": self.mirror}
            members = zip(self.models, self._spec_of, strict=True)
            batches.append(np.stack([grade(model, inputs[i], self.compute, **options) for model, i in members]))
        empty = np.zeros((len(self.models), 0, N_TARGETS, N_SEVERITIES))
        return np.concatenate(batches, axis=1) if batches else empty

    def _mean(self, opinions: np.ndarray) -> np.ndarray:
        """Calibrated weighted mean of those networks' probabilities that are finite, (n_studies, 25, 3)."""
        finite = _finite(opinions)
        shares = self.shares[:, None] * finite
        total = shares.sum(axis=0)
        shares = shares / np.where(total > 0, total, np.nan)
        mean = np.einsum("mn,mntk->ntk", shares, np.where(finite[..., None, None], opinions, 0))
        return mean if self.calibration is None else self.calibration.apply(mean)

    def predict_study(self, study: Study, discs: DiscPoints | None = None) -> StudyPrediction:
        """Locate, crop and grade one study; never raises for what the study is like.

        Parameters
        ----------
        study : Study
        discs : DiscPoints, optional
            Known canal points; default: found by the localizer.
        """
        return next(self._grade_prepared([self._prepare(study, discs)]))

    def predict_studies(self, sources: Iterable[StudySource], *, progress: bool = True) -> Iterator[StudyPrediction]:
        """Read and grade many studies, one after the other in batches, in their order; memory stays flat."""
        waiting: list[_Prepared] = []
        for source in tqdm(sources, desc="predicting", unit="study", disable=not progress):
            waiting.append(self._read(source))
            if len(waiting) == self.batch_size:
                yield from self._grade_prepared(waiting)
                waiting = []
        yield from self._grade_prepared(waiting)

    def prior_prediction(self, study_id: str, *problems: str, discs: DiscPoints | None = None) -> StudyPrediction:
        """What a study gets that cannot be graded: the training part's weighted class prior."""
        for problem in problems:
            logger.warning("study %s: %s; the class prior is used", study_id, problem)
        return StudyPrediction(
            study_id, self.prior, discs, tuple(VIEWS), problems, fallback=True, synthetic_only=self.synthetic_only
        )

    def _read(self, source: StudySource) -> _Prepared:
        try:
            study = load_study(source)
        except Exception as error:  # any failure on one study must not stop the run
            return _Prepared(source.study_id, (f"cannot be read: {_words(error)}",))
        return self._prepare(study, None)

    def _prepare(self, study: Study, discs: DiscPoints | None) -> _Prepared:
        """Everything that can go wrong before the network."""
        problems = tuple(study.problems)
        if discs is None:
            localizer = self.localizer  # not in the try: that there is none is no fault of the study
            try:
                discs = localizer.locate(study)
            except Exception as error:
                return _Prepared(study.study_id, (*problems, f"discs not found: {_words(error)}"))
        if names_doubtful(discs):
            problems = (*problems, DOUBTFUL_NAMES)
        try:
            crops = tuple(extract_crops(study, discs, spec) for spec in self.specs)
        except Exception as error:
            return _Prepared(study.study_id, (*problems, f"no crops: {_words(error)}"), discs)
        found = dict.fromkeys(problem for item in crops for problem in item.problems)
        return _Prepared(study.study_id, (*problems, *found), discs, crops)

    def _grade_prepared(self, prepared: Sequence[_Prepared]) -> Iterator[StudyPrediction]:
        """Grade those that have crops in one batch, the others by the prior; order is kept."""
        try:
            opinions = self._opinions(item.crops for item in prepared if item.gradable)
            graded = zip(self._mean(opinions), (~_finite(opinions)).sum(axis=0), strict=True)
        except Exception as error:
            if len(prepared) > 1:  # one study must not cost its neighbours their grades
                for item in prepared:
                    yield from self._grade_prepared([item])
                return
            item = prepared[0]
            words = f"cannot be graded: {_words(error)}"
            yield self.prior_prediction(item.study_id, *item.problems, words, discs=item.discs)
            return
        for item in prepared:
            problems = item.problems
            if not item.gradable:
                unseen = ("no view shows any disc",) if item.crops else ()
                yield self.prior_prediction(item.study_id, *problems, *unseen, discs=item.discs)
                continue
            probabilities, silent = next(graded)
            if silent == len(self.models):  # half precision can overflow
                words = "the network gave no finite number"
                yield self.prior_prediction(item.study_id, *problems, words, discs=item.discs)
                continue
            if silent:
                words = f"{silent} of {len(self.models)} networks gave no finite number and were left out"
                logger.warning("study %s: %s", item.study_id, words)
                problems = (*problems, words)
            yield StudyPrediction(
                item.study_id, probabilities, item.discs, item.missing, problems, synthetic_only=self.synthetic_only
            )


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A study on its way to the networks; `crops` holds one for each specification, nothing when there are none."""

    study_id: str
    problems: tuple[str, ...]
    discs: DiscPoints | None = None
    crops: tuple[StudyCrops, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Views of which no crop of any specification shows anything."""
        return tuple(view for view in VIEWS if all(view in item.missing for item in self.crops))

    @property
    def gradable(self) -> bool:
        return len(self.missing) < len(VIEWS)


def _of_spec(item: StudyCrops | Sequence[StudyCrops], spec: CropSpec) -> StudyCrops:
    """The study's crops of that specification."""
    given = (item,) if isinstance(item, StudyCrops) else tuple(item)
    for crops in given:
        if crops.spec == spec:
            return crops
    raise DataError(
        f"study {given[0].study_id if given else '?'}: crops of {[crops.spec.to_json() for crops in given]}, "
        f"but a network was trained on {spec.to_json()}"
    )


def _finite(opinions: np.ndarray) -> np.ndarray:
    """Which network has an answer for which study: bool (n_members, n_studies) of (n_members, n_studies, 25, 3)."""
    return np.isfinite(opinions).all(axis=(2, 3))


def _words(error: Exception) -> str:
    """What an error says; its type where it says nothing (or only a key), as foreign errors do."""
    return str(error) if isinstance(error, LumbarError) else f"{type(error).__name__}: {error}"
