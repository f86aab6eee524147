"""From crops or a study to 25 x 3 probabilities and to `submission.csv`; a broken study never stops a run.

A study that cannot be read, located or graded gets the weighted class prior of the training part, with a note of
what went wrong. Everything that was missing or replaced goes into a log beside the submission.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from .classifier import grade
from .crops import StudyCrops, extract_crops
from .datasets import study_input
from .devices import choose_compute
from .errors import DataError, LumbarError
from .labels import CONDITIONS, LEVELS, N_LEVELS, N_SEVERITIES, N_TARGETS, PROBABILITY_COLUMNS, VIEWS, split_row_id
from .localizer import DiscPoints
from .localizer.evaluation import names_doubtful
from .locating import localizer_origin, open_localizer
from .metrics import EPSILON, prediction_table
from .runs import load_model, write_table
from .study import Study, StudySource, load_study

if TYPE_CHECKING:
    from .localizer import DiscLocalizer

logger = logging.getLogger(__name__)

DOUBTFUL_NAMES = "the naming of the disc levels is doubtful: all of them may be off by one"
SYNTHETIC_WARNING = "trained on synthetic phantoms only: these grades mean nothing for patients"


@dataclass(frozen=True, eq=False)
class StudyPrediction:
    """The grades of one study.

    Attributes
    ----------
    study_id : str
    probabilities : ndarray of float64, shape (25, 3)
        In the order of `labels.TARGETS` and `labels.SEVERITIES`; rows sum to one.
    discs : DiscPoints or None
        Where the discs were found; None when they were not.
    missing_views : tuple of str
        Views of which nothing could be used; the network's learned stand-in took their place.
    problems : tuple of str
        What went wrong or was left out, in words.
    fallback : bool
        True when the class prior stands in for a prediction.
    synthetic_only : bool
        True when the network has seen nothing but synthetic phantoms.
    """

    study_id: str
    probabilities: np.ndarray
    discs: DiscPoints | None = None
    missing_views: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    fallback: bool = False
    synthetic_only: bool = False

    def __post_init__(self):
        p = np.asarray(self.probabilities, dtype=np.float64)
        if p.shape != (N_TARGETS, N_SEVERITIES) or not np.isfinite(p).all() or (p < 0).any():
            raise DataError(
                f"study {self.study_id}: probabilities must be finite, not negative and of shape "
                f"({N_TARGETS}, {N_SEVERITIES}), got shape {p.shape}"
            )
        if not np.allclose(p.sum(axis=-1), 1, atol=1e-6):
            raise DataError(f"study {self.study_id}: probabilities must sum to one, got {p.sum(axis=-1)}")
        object.__setattr__(self, "probabilities", p)

    def table(self) -> pd.DataFrame:
        """Probability of moderate or severe, conditions by levels."""
        worse = 1 - self.probabilities[:, 0].reshape(len(CONDITIONS), N_LEVELS)
        return pd.DataFrame(worse, index=list(CONDITIONS), columns=list(LEVELS))

    def _repr_html_(self) -> str:
        notes = [SYNTHETIC_WARNING] if self.synthetic_only else []
        notes += ["class prior instead of a prediction"] if self.fallback else []
        notes += [f"missing: {view}" for view in self.missing_views] + list(self.problems)
        listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
        table = self.table().style.format("{:.2f}").background_gradient(cmap="OrRd", vmin=0, vmax=1).to_html()
        return f"<b>study {escape(self.study_id)}</b>, probability of moderate or severe{table}<ul>{listed}</ul>"


class Predictor:
    """A trained run, ready to grade.

    Parameters
    ----------
    run_folder : path-like
        Written by `train.fit`.
    device, precision : str
        See `devices.choose_compute`.
    localizer : DiscLocalizer, optional
        Finds the discs for `predict_study` and `predict_studies`; default: `localizer/` beside the run folder, which is
        the one that cut its training crops, else the one that ships with the library. Read when it is first needed.
    mirror : bool
        Average with the prediction for the mirrored study; twice the time.
    batch_size : int
        Studies at a time.

    Raises
    ------
    DataError
        When the folder does not hold a finished run.
    """

    def __init__(
        self,
        run_folder: Path | str,
        device: str | None = None,
        *,
        precision: str = "auto",
        localizer: DiscLocalizer | None = None,
        mirror: bool = False,
        batch_size: int = 8,
    ):
        model, config = load_model(run_folder)
        self.compute = choose_compute(device or "auto", precision)
        self.model = model.to(self.compute.device)
        self.spec, self.prior, self.synthetic_only = config.crops, config.prior, config.synthetic_only
        self._localizer, self.mirror, self.batch_size = localizer, mirror, batch_size
        beside = Path(run_folder).parent / "localizer"
        self._own_localizer = beside if (beside / "model.safetensors").is_file() else None
        if self.synthetic_only:
            logger.warning("%s: %s", run_folder, SYNTHETIC_WARNING)

    @property
    def localizer(self) -> DiscLocalizer:
        """The disc finder in use. Raises `DataError` when none was given and the library's own is not installed."""
        if self._localizer is None:
            self._localizer = open_localizer(self._own_localizer)
            logger.info(localizer_origin(self._localizer, self._own_localizer))
        return self._localizer

    def predict_crops(self, crops: Iterable[StudyCrops]) -> np.ndarray:
        """Grade studies from their crops: float64 (n, 25, 3), rows summing to one.

        Raises `DataError` when crops were cut with another specification than the run was trained on.
        """
        return grade(
            self.model,
            (study_input(self._fitting(item)) for item in crops),
            self.compute,
            batch_size=self.batch_size,
            mirror=self.mirror,
        )

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
        waiting: list[tuple] = []
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

    def _read(self, source: StudySource) -> tuple[str, StudyCrops | None, DiscPoints | None, tuple[str, ...]]:
        try:
            study = load_study(source)
        except Exception as error:  # any failure on one study must not stop the run
            return source.study_id, None, None, (f"cannot be read: {_words(error)}",)
        return self._prepare(study, None)

    def _prepare(
        self, study: Study, discs: DiscPoints | None
    ) -> tuple[str, StudyCrops | None, DiscPoints | None, tuple[str, ...]]:
        """(study id, crops or None, discs or None, problems): everything that can go wrong before the network."""
        problems = tuple(study.problems)
        if discs is None:
            localizer = self.localizer  # not in the try: that there is none is no fault of the study
            try:
                discs = localizer.locate(study)
            except Exception as error:
                return study.study_id, None, None, (*problems, f"discs not found: {_words(error)}")
        if names_doubtful(discs):
            problems = (*problems, DOUBTFUL_NAMES)
        try:
            crops = extract_crops(study, discs, self.spec)
        except Exception as error:
            return study.study_id, None, discs, (*problems, f"no crops: {_words(error)}")
        return study.study_id, crops, discs, (*problems, *crops.problems)

    def _grade_prepared(self, prepared: Sequence[tuple]) -> Iterator[StudyPrediction]:
        """Grade those that have crops in one batch, the others by the prior; order is kept."""
        good = [item[1] for item in prepared if item[1] is not None and len(item[1].missing) < len(VIEWS)]
        try:
            graded = iter(self.predict_crops(good))
        except Exception as error:
            if len(prepared) > 1:  # one study must not cost its neighbours their grades
                for item in prepared:
                    yield from self._grade_prepared([item])
                return
            study_id, _, discs, problems = prepared[0]
            yield self.prior_prediction(study_id, *problems, f"cannot be graded: {_words(error)}", discs=discs)
            return
        for study_id, crops, discs, problems in prepared:
            if crops is None or len(crops.missing) == len(VIEWS):
                unseen = () if crops is None else ("no view shows any disc",)
                yield self.prior_prediction(study_id, *problems, *unseen, discs=discs)
                continue
            probabilities = next(graded)
            if not np.isfinite(probabilities).all():  # half precision can overflow
                yield self.prior_prediction(study_id, *problems, "the network gave no finite number", discs=discs)
                continue
            yield StudyPrediction(
                study_id, probabilities, discs, crops.missing, problems, synthetic_only=self.synthetic_only
            )

    def _fitting(self, crops: StudyCrops) -> StudyCrops:
        if crops.spec != self.spec:
            raise DataError(
                f"study {crops.study_id}: crops of {crops.spec.to_json()}, the run was trained on {self.spec.to_json()}"
            )
        return crops


def _words(error: Exception) -> str:
    """What an error says; its type where it says nothing (or only a key), as foreign errors do."""
    return str(error) if isinstance(error, LumbarError) else f"{type(error).__name__}: {error}"


def write_submission(
    predictions: Iterable[StudyPrediction],
    path: Path | str,
    sample: pd.DataFrame | None = None,
    *,
    fallback: np.ndarray | None = None,
) -> Path:
    """Write `submission.csv` and its log, both atomically.

    Parameters
    ----------
    predictions : iterable of StudyPrediction
    path : path-like
        The log goes beside it, as `<name>_log.csv`: study_id, fallback, missing_views, problems, synthetic_only.
    sample : DataFrame, optional
        The sample submission. Its rows are kept and filled in when it names all predicted studies; rows of studies
        without a prediction get `fallback`. A sample that does not name every study (Kaggle's public one names
        one) gives its column order only. Without a sample: studies as given, targets in `TARGETS` order.
    fallback : ndarray, shape (25, 3), optional
        For rows that the sample names and no prediction covers; default uniform.

    Raises
    ------
    DataError
        When a study is predicted twice or the sample has other columns.
    """
    predictions, path = list(predictions), Path(path)
    ids = [p.study_id for p in predictions]
    if len(set(ids)) != len(ids):
        raise DataError(f"study {next(s for s in ids if ids.count(s) > 1)!r} is predicted more than once")
    values = np.clip([p.probabilities for p in predictions], EPSILON, None).reshape(-1, N_TARGETS, N_SEVERITIES)
    values = values / values.sum(axis=-1, keepdims=True)
    table = prediction_table(ids, values)
    filled: list[str] = []
    if sample is not None:
        table, filled = _in_sample_order(table, sample, ids, fallback)
    write_table(path, table)
    log = pd.DataFrame(
        {
            "study_id": [*ids, *filled],
            "fallback": [*(p.fallback for p in predictions), *(True for _ in filled)],
            "missing_views": [*("; ".join(p.missing_views) for p in predictions), *("; ".join(VIEWS) for _ in filled)],
            "problems": [*("; ".join(p.problems) for p in predictions), *("not predicted" for _ in filled)],
            "synthetic_only": [*(p.synthetic_only for p in predictions), *(False for _ in filled)],
        }
    )
    write_table(path.with_name(f"{path.stem}_log.csv"), log)
    if any(p.synthetic_only for p in predictions):
        logger.warning("%s: %s", path, SYNTHETIC_WARNING)
    return path


def _in_sample_order(
    table: pd.DataFrame, sample: pd.DataFrame, ids: Sequence[str], fallback: np.ndarray | None
) -> tuple[pd.DataFrame, list[str]]:
    if set(sample.columns) != {"row_id", *PROBABILITY_COLUMNS}:
        raise DataError(f"the sample submission has the columns {list(sample.columns)}, expected those of a submission")
    wanted = sample["row_id"].astype(str)
    known = set(table["row_id"])
    if not known <= set(wanted):
        return table[list(sample.columns)], []
    indexed = table.set_index("row_id").reindex(wanted)
    constant = np.full((N_TARGETS, N_SEVERITIES), 1 / N_SEVERITIES) if fallback is None else np.asarray(fallback)
    filled = []
    for row_id in wanted[~wanted.isin(known)]:
        study_id, target = split_row_id(row_id)
        indexed.loc[row_id, list(PROBABILITY_COLUMNS)] = constant[target]
        filled.append(study_id)
    return indexed.reset_index()[list(sample.columns)], list(dict.fromkeys(filled))
