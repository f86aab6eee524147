"""From crops or a study to 25 x 3 probabilities; a broken study never stops a run.

What is broken is left out (`preprocessing`), and a study of which nothing is left gets the weighted class prior of the
training part, with a record of what went wrong. An ensemble member that gives no finite number for a study is left out
of that study's mean. A `Deadline` makes the run end in time. `run.run_inference` does a whole run, with a resume log,
and writes the submission and its logs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..crops.extraction import CropSpec, StudyCrops
from ..devices import Compute
from ..errors import PRIOR, DataError, Issue
from ..labels import VIEWS
from ..localization import DiscPoints, localizer_origin, open_localizer
from ..metrics.score import metric_frequencies, plain_frequencies
from ..models.ensemble import ENSEMBLE, Ensemble, check_folds, folder_of, member_folders, run_of
from ..models.inputs import study_input
from ..models.run_folder import CONFIG, MADE, WEIGHTS, load_model, measured_on_patients, shipped_classifier
from ..models.typicality import FILE as TYPICALITY
from ..models.typicality import read_typicality
from ..notebook_html import progress_bar
from ..studies.study import Study, StudySource
from .deadline import Deadline, Plan, plans
from .networks import Networks, choose_devices
from .preprocessing import STUDY_SECONDS, PreprocessedStudy, message_of, preprocess_studies, preprocess_study
from .submission import SYNTHETIC_WARNING, StudyPrediction

if TYPE_CHECKING:
    from ..localization import DiscLocalizer
    from ..models.classifier import LumbarClassifier
    from ..models.run_folder import RunConfig

logger = logging.getLogger(__name__)


class Predictor:
    """A trained run, or an ensemble of several, ready to predict.

    Probabilities are the weighted mean of the members', then calibrated where the ensemble says how. As arrays they
    carry the metric's weights 1, 2, 4, also those of members trained without; in a `StudyPrediction` they are plain.
    All members are held on the device at once (a 3D ResNet18 classifier takes 0.4 GB); crops are cut once per
    specification.

    Parameters
    ----------
    run : path-like, optional
        A run folder written by `training.fit`, a folder with `ensemble.json`, or such a JSON file. Default: the
        library's own classifier, where this copy has one.
    device, precision
        See `networks.choose_devices`; on several devices, each holds all members and batches are split over them.
    localizer : DiscLocalizer, optional
        Default: `localizer/` beside the classifier's folder, whose points its training crops were cut around, else the
        one that ships with the library. Read when it is first needed.
    mirror : bool
        Average with the prediction for the mirrored study; twice the time.
    batch_size : int
        Studies at a time, on each device.

    Attributes
    ----------
    specs : tuple of CropSpec
        The different crops that the members take; `spec` is the first of them.
    prior : ndarray, shape (25, 3)
        Weighted mean of the members' class priors, with the metric's weights.
    synthetic_only : bool
        True when any member was trained on synthetic phantoms only.
    measured : str
        What was measured on patients with these weights, "" if nothing.
    lost_device : str
        Which GPU failed on the way, and how; "" while all is well.

    Raises `DataError` when a member's folder does not hold a finished run.
    """

    def __init__(
        self,
        run: Path | str | None = None,
        device: str | Sequence[str] | None = None,
        *,
        precision: str = "auto",
        localizer: DiscLocalizer | None = None,
        mirror: bool = False,
        batch_size: int = 8,
    ):
        run = shipped_classifier() if run is None else run
        ensemble = Ensemble.load(run)
        self._folders = member_folders(run)
        loaded = [_load(folder) for folder in self._folders]
        configs = [config for _, config in loaded]
        check_folds(configs)
        self.networks = Networks([model for model, _ in loaded], choose_devices(device, precision))
        self.weights, self.calibration = ensemble.weights, ensemble.calibration
        self.specs: tuple[CropSpec, ...] = ()
        for config in configs:  # a specification cannot be hashed
            self.specs += () if config.crops in self.specs else (config.crops,)
        self._spec_of = [self.specs.index(config.crops) for config in configs]
        self._plain = [i for i, c in enumerate(configs) if not c.training.get("class_weights", True)]
        self.prior = np.tensordot(self.weights, [config.prior for config in configs], axes=1)
        self.synthetic_only = any(config.synthetic_only for config in configs)
        self.measured = measured_on_patients(folder_of(run))
        self._localizer, self.mirror, self.batch_size = localizer, mirror, batch_size
        beside = run_of(run) / "localizer"
        self._own_localizer = beside if (beside / "model.safetensors").is_file() else None
        self._run, self.lost_device = Path(run), ""
        if self.synthetic_only and not self.measured:
            logger.warning("%s: %s", run, SYNTHETIC_WARNING)

    @property
    def _about(self) -> dict:
        """What every prediction tells of the networks."""
        return {"synthetic_only": self.synthetic_only, "measured": self.measured}

    @property
    def models(self) -> tuple:
        """The networks on the first device."""
        return self.networks.models

    @property
    def compute(self) -> Compute:
        """The first device; `networks.computes` names all."""
        return self.networks.computes[0]

    @property
    def plan(self) -> Plan:
        """Everything: all networks, mirrored studies too where `mirror` says so."""
        return plans(self.weights, self.mirror)[0]

    @property
    def spec(self) -> CropSpec:
        """The first of `specs`: the only one unless an ensemble mixes crops."""
        return self.specs[0]

    @property
    def localizer(self) -> DiscLocalizer:
        """The localizer in use. Raises `DataError` when none was given and the library's own is not installed."""
        if self._localizer is None:
            self._localizer = open_localizer(self._own_localizer)
            logger.info(localizer_origin(self._localizer, self._own_localizer))
        return self._localizer

    def digest(self) -> str:
        """Changes with the weights of any network or of the localizer, their configurations, the options, and the
        ensemble's weights: what a prediction depends on beside the study and the code."""
        digest = hashlib.sha256()
        names = (CONFIG, WEIGHTS, TYPICALITY)
        for path in [
            self._run,
            self._run / ENSEMBLE,
            self._run / MADE,
            *(f / name for f in self._folders for name in names),
        ]:
            digest.update(path.read_bytes() if path.is_file() else b"-")
        localizer = self.localizer
        digest.update(repr((type(localizer).__name__, getattr(localizer, "config", ""))).encode())
        digest.update(repr(getattr(localizer, "calibration", "")).encode())
        for network in getattr(localizer, "networks", ()):
            for name, tensor in network.state_dict().items():
                digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        digest.update(json.dumps([self.mirror, str(self.compute.dtype)]).encode())
        return digest.hexdigest()

    def predict_crops(self, crops: Iterable[StudyCrops | Sequence[StudyCrops]]) -> np.ndarray:
        """Predict studies from their crops: float64 (n, 25, 3), rows summing to one; nan where no network is finite.

        As the metric wants them, with its weights 1, 2, 4; `metrics.plain_frequencies` takes these out.

        A study is given as its crops or, for networks trained on crops of several specifications, as a sequence with
        one of each of `specs`. Read `batch_size` at a time, so a generator keeps memory flat. Raises `DataError` when
        crops of a specification that a network was trained on are not among a study's.
        """
        return self._mean(self._by_member(crops, self.plan)[0])

    @property
    def window(self) -> int:
        """Studies that all devices take together at a time."""
        return self.batch_size * len(self.networks.computes)

    def _by_member(self, crops: Iterable[StudyCrops | Sequence[StudyCrops]], plan: Plan) -> tuple:
        """Every network's probabilities, float64 (n_members, n_studies, 25, 3), nan of those that were not used, and
        how unlike their training data they find each study, (n_studies,): the mean of those that can tell, else nan."""
        batches, remaining = [self.networks.predict((), self._spec_of, plan, 1)], iter(crops)
        unlike = [self.networks.unlike]
        while chunk := list(islice(remaining, self.window)):
            inputs = [[study_input(_of_spec(item, spec)) for item in chunk] for spec in self.specs]
            batches.append(self.networks.predict(inputs, self._spec_of, plan, self.batch_size))
            unlike.append(self.networks.unlike)
        by_member = np.concatenate(batches, axis=1)
        by_member[self._plain] = metric_frequencies(by_member[self._plain])
        return by_member, np.ma.masked_invalid(np.concatenate(unlike, axis=1)).mean(axis=0).filled(np.nan)

    def _mean(self, by_member: np.ndarray) -> np.ndarray:
        """Calibrated weighted mean of those members' probabilities that are finite, (n_studies, 25, 3)."""
        finite = _finite(by_member)
        weights = self.weights[:, None] * finite
        total = weights.sum(axis=0)
        weights = weights / np.where(total > 0, total, np.nan)
        mean = np.einsum("mn,mntk->ntk", weights, np.where(finite[..., None, None], by_member, 0))
        return mean if self.calibration is None else self.calibration.apply(mean)

    def predict_study(self, study: Study, discs: DiscPoints | None = None) -> StudyPrediction:
        """Locate (unless points are given), crop and predict one study; never raises for what the study is like."""
        localizer = self.localizer if discs is None else None
        return self._predict([preprocess_study(study, localizer, self.specs, discs)], self.plan)[0]

    def predict_studies(
        self,
        sources: Iterable[StudySource],
        *,
        discs: Mapping[str, DiscPoints] | None = None,
        n_jobs: int | None = None,
        deadline: Deadline | None = None,
        study_seconds: float | None = STUDY_SECONDS,
        progress: bool = True,
    ) -> Iterator[StudyPrediction]:
        """Read and predict many studies in batches, in their order; memory stays flat. `discs` are known discs by study
        id, those of other studies are located.

        `n_jobs` processes read, locate and crop while this one predicts; default as the user's `joblib.parallel_config`
        says, which may name any backend, such as dask, else all is done here, one study after the other. With a
        `deadline` it predicts with less, and in the end not at all, rather than late. A study that takes longer than
        `study_seconds` is given up; see `preprocessing` for what can be interrupted. Raises `DataError` when there is
        no localizer. One that cannot be sent to other processes is used in this one.
        """
        options = {} if deadline is None else {"time_left": deadline.left}
        options |= {"discs": discs or {}, "n_jobs": n_jobs, "window": self.window, "study_seconds": study_seconds}
        windows = preprocess_studies(sources, self.localizer, self.specs, **options)
        total = len(sources) if hasattr(sources, "__len__") else None
        with progress_bar(total=total, desc="predicting", unit="study", disable=not progress) as bar:
            while True:
                started = time.perf_counter()
                batch = next(windows, None)
                if batch is None:
                    return
                waited = time.perf_counter() - started
                predictions = self._predict_in_time(batch, waited, deadline)
                bar.update(len(batch))
                yield from predictions

    def _predict_in_time(
        self, batch: Sequence[PreprocessedStudy], waited: float, deadline: Deadline | None
    ) -> list[StudyPrediction]:
        """Predict a batch by the deadline's plan, or by the prior when there is no time for it."""
        if deadline is None:
            return self._predict(batch, self.plan)
        if any(issue.code == "out_of_time" for item in batch for issue in item.issues):
            deadline.give_up()
        plan = deadline.decide(sum(item.usable for item in batch))
        started = time.perf_counter()
        predictions = [self._out_of_time(item) for item in batch] if plan is None else self._predict(batch, plan)
        deadline.observe(len(batch), waited, time.perf_counter() - started, self.networks.seconds)
        return predictions

    def prior_prediction(self, study_id: str, *issues: Issue, discs: DiscPoints | None = None) -> StudyPrediction:
        """What a study gets that cannot be predicted: the training part's weighted class prior."""
        late = any(issue.code == "out_of_time" for issue in issues)  # the run as a whole reports that, once
        level = logging.DEBUG if late else logging.WARNING
        logger.log(level, "study %s: %s; the class prior is used", study_id, "; ".join(map(str, issues)))
        options = {"issues": issues, "fallback": True, **self._about}
        return StudyPrediction(study_id, plain_frequencies(self.prior), discs, tuple(VIEWS), **options)

    def _out_of_time(self, item: PreprocessedStudy) -> StudyPrediction:
        late = Issue("out_of_time", "not predicted: the run's time was over", item.study_id)
        reasons = item.issues if any(issue.used == PRIOR for issue in item.issues) else (*item.issues, late)
        return self.prior_prediction(item.study_id, *reasons, discs=item.discs)

    def _predict(self, batch: Sequence[PreprocessedStudy], plan: Plan) -> list[StudyPrediction]:
        """Predict those that have crops in one batch, the others by the prior; order is kept."""
        try:
            by_member, unlike = self._by_member((item.crops for item in batch if item.usable), plan)
            not_finite = (~_finite(by_member[list(plan.members)])).sum(axis=0)
            results = zip(self._mean(by_member), not_finite, unlike, strict=True)
        except Exception as error:
            if len(batch) > 1:  # one study must not cost its neighbours their predictions
                return [prediction for item in batch for prediction in self._predict([item], plan)]
            if self._moves_to_cpu(batch[0], plan, error):
                return self._predict(batch, plan)
            issue = Issue("not_predicted", f"cannot be predicted: {message_of(error)}", batch[0].study_id)
            return [self.prior_prediction(batch[0].study_id, *batch[0].issues, issue, discs=batch[0].discs)]
        return [self._prediction(item, plan, *(next(results) if item.usable else (None, 0, np.nan))) for item in batch]

    def _prediction(
        self, item: PreprocessedStudy, plan: Plan, probabilities: np.ndarray | None, not_finite: int, unlike: float
    ) -> StudyPrediction:
        study_id, issues, total = item.study_id, list(item.issues), len(plan.members)
        if probabilities is None:
            issues += [Issue("nothing_shown", "no view shows any disc", study_id)] if item.crops else []
        elif not_finite == total:  # half precision can overflow
            issues.append(Issue("not_predicted", "the network gave no finite number", study_id))
        if probabilities is None or not_finite == total:
            return self.prior_prediction(study_id, *issues, discs=item.discs)
        if not_finite:
            text = f"{not_finite} of {total} networks gave no finite number and were left out"
            logger.warning("study %s: %s", study_id, text)
            issues.append(Issue("network_not_finite", text, study_id))
        if unlike > 1:
            text = f"the images are unlike those that the network learnt from, {unlike:.1f} times as far as the limit"
            logger.warning("study %s: %s", study_id, text)
            issues.append(Issue("unlike_training", text, study_id))
        options = {"issues": tuple(issues), "unlike_training": float(unlike) if np.isfinite(unlike) else None}
        options |= self._about
        return StudyPrediction(study_id, plain_frequencies(probabilities), item.discs, item.missing, **options)

    def _moves_to_cpu(self, item: PreprocessedStudy, plan: Plan, error: Exception) -> bool:
        """Whether a study that failed on a GPU can be predicted on the CPU; the GPU is then not used any more."""
        given = self.networks
        if all(compute.device.type == "cpu" for compute in given.computes):
            return False
        try:  # read again, since nothing can be copied from a GPU that has failed
            self.networks = Networks([_load(folder)[0] for folder in self._folders], choose_devices("cpu"))
            self._by_member([item.crops], plan)
        except Exception:
            self.networks = given
            return False
        self.lost_device = f"{given.computes[0].device} failed ({message_of(error)})"
        logger.warning("%s; continuing with the CPU", self.lost_device)
        return True


def _load(folder: Path) -> tuple[LumbarClassifier, RunConfig]:
    """A member's network, which can tell how unlike its training data a study is where its run says how."""
    model, config = load_model(folder)
    model.typicality = read_typicality(folder)
    return model, config


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


def _finite(by_member: np.ndarray) -> np.ndarray:
    """Which member has a finite prediction for which study: (m, n) of (m, n, 25, 3)."""
    return np.isfinite(by_member).all(axis=(2, 3))
