"""From crops or a study to 25 x 3 probabilities; a broken study never stops a run.

What is broken is left out (`preparing`), and a study of which nothing is left gets the weighted class prior of the
training part, with a record of what went wrong. A network of an ensemble that gives no finite number for a study is
left out of that study's mean. A `TimeGuard` makes the run end in time. `inference.run_inference` does a whole run, with
a resume_log, and writes the submission and its logs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from ..crops.extraction import CropSpec, StudyCrops
from ..devices import Compute
from ..errors import DataError, Issue
from ..labels import VIEWS
from ..localization import DiscPoints, localizer_origin, open_localizer
from ..models.ensemble import ENSEMBLE, Ensemble, member_folders, run_of
from ..models.inputs import study_input
from ..models.run_folder import CONFIG, WEIGHTS, load_model
from ..studies.study import Study, StudySource
from .deadline import Plan, TimeGuard, plans
from .networks import Networks, choose_devices
from .preprocessing import (
    LEVEL_LABELLING_UNCERTAIN,
    STUDY_SECONDS,
    Finder,
    Prepared,
    prepare_studies,
    prepare_study,
    words,
)
from .submission import SYNTHETIC_WARNING, StudyPrediction, write_submission

if TYPE_CHECKING:
    from ..localization import DiscLocalizer

__all__ = ["LEVEL_LABELLING_UNCERTAIN", "SYNTHETIC_WARNING", "Predictor", "StudyPrediction", "write_submission"]

logger = logging.getLogger(__name__)


class Predictor:
    """A trained run, or an ensemble of several, ready to grade.

    Probabilities are the weighted mean of the members', then calibrated where the ensemble says how. All members are
    held on the device at once (a 3D ResNet18 classifier takes 0.4 GB); crops are cut once per specification.

    Parameters
    ----------
    run : path-like
        A run folder written by `train.fit`, a folder with `ensemble.json`, or such a JSON file.
    device : str or sequence of str, optional
        See `grading.choose_devices`; on several, every one holds all members and batches are dealt out over them.
        Default: all usable GPUs, else the CPU.
    precision : str
        See `devices.choose_compute`.
    localizer : DiscLocalizer, optional
        Finds the discs for `predict_study` and `predict_studies`; default: `localizer/` beside the classifier's folder,
        which is the one that cut its training crops, else the one that ships with the library. Read when it is first
        needed.
    mirror : bool
        Average with the prediction for the mirrored study; twice the time.
    batch_size : int
        Studies at a time, on each device.

    Attributes
    ----------
    specs : tuple of CropSpec
        The different crops that the members take; `spec` is the first of them.
    prior : ndarray, shape (25, 3)
        Weighted mean of the members' class priors.
    synthetic_only : bool
        True when any member has seen nothing but synthetic phantoms.
    lost_device : str
        Which GPU failed on the way, and how; "" while all is well.

    Raises
    ------
    DataError
        When a member's folder does not hold a finished run.
    """

    def __init__(
        self,
        run: Path | str,
        device: str | Sequence[str] | None = None,
        *,
        precision: str = "auto",
        localizer: DiscLocalizer | None = None,
        mirror: bool = False,
        batch_size: int = 8,
    ):
        ensemble = Ensemble.load(run)
        self._folders = member_folders(run)
        loaded = [load_model(folder) for folder in self._folders]
        configs = [config for _, config in loaded]
        self.networks = Networks([model for model, _ in loaded], choose_devices(device, precision))
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
        self._run, self.lost_device = Path(run), ""
        if self.synthetic_only:
            logger.warning("%s: %s", run, SYNTHETIC_WARNING)

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
        return plans(self.shares, self.mirror)[0]

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
        for path in [self._run, self._run / ENSEMBLE]:
            digest.update(path.read_bytes() if path.is_file() else b"-")
        for folder in self._folders:
            for name in (CONFIG, WEIGHTS):
                digest.update((folder / name).read_bytes())
        localizer = self.localizer
        digest.update(repr((type(localizer).__name__, getattr(localizer, "config", ""))).encode())
        digest.update(repr((getattr(localizer, "decoding", ""), getattr(localizer, "prior", ""))).encode())
        for network in getattr(localizer, "networks", ()):
            for name, tensor in network.state_dict().items():
                digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        digest.update(json.dumps([self.mirror, str(self.compute.dtype)]).encode())
        return digest.hexdigest()

    def predict_crops(self, crops: Iterable[StudyCrops | Sequence[StudyCrops]]) -> np.ndarray:
        """Grade studies from their crops: float64 (n, 25, 3), rows summing to one; nan where no network is finite.

        A study is given as its crops or, for networks trained on crops of several specifications, as a sequence with
        one of each of `specs`. Read `batch_size` at a time, so a generator keeps memory flat. Raises `DataError` when
        crops of a specification that a network was trained on are not among a study's.
        """
        return self._mean(self._member_predictions(crops, self.plan))

    @property
    def window(self) -> int:
        """Studies that all devices take together at a time."""
        return self.batch_size * len(self.networks.computes)

    def _member_predictions(self, crops: Iterable[StudyCrops | Sequence[StudyCrops]], plan: Plan) -> np.ndarray:
        """Every network's probabilities, float64 (n_members, n_studies, 25, 3); nan of those that were not asked."""
        batches, remaining = [self.networks.member_predictions((), self._spec_of, plan, 1)], iter(crops)
        while chunk := list(islice(remaining, self.window)):
            inputs = [[study_input(_of_spec(item, spec)) for item in chunk] for spec in self.specs]
            batches.append(self.networks.member_predictions(inputs, self._spec_of, plan, self.batch_size))
        return np.concatenate(batches, axis=1)

    def _mean(self, member_predictions: np.ndarray) -> np.ndarray:
        """Calibrated weighted mean of those networks' probabilities that are finite, (n_studies, 25, 3)."""
        finite = _finite(member_predictions)
        shares = self.shares[:, None] * finite
        total = shares.sum(axis=0)
        shares = shares / np.where(total > 0, total, np.nan)
        mean = np.einsum("mn,mntk->ntk", shares, np.where(finite[..., None, None], member_predictions, 0))
        return mean if self.calibration is None else self.calibration.apply(mean)

    def predict_study(self, study: Study, discs: DiscPoints | None = None) -> StudyPrediction:
        """Locate, crop and grade one study; never raises for what the study is like.

        Parameters
        ----------
        study : Study
        discs : DiscPoints, optional
            Known canal points; default: found by the localizer.
        """
        prepared = prepare_study(study, Finder(self.localizer) if discs is None else None, self.specs, discs)
        return next(self._grade_prepared([prepared], self.plan))

    def predict_studies(
        self,
        sources: Iterable[StudySource],
        *,
        n_jobs: int | None = None,
        guard: TimeGuard | None = None,
        study_seconds: float | None = STUDY_SECONDS,
        progress: bool = True,
    ) -> Iterator[StudyPrediction]:
        """Read and grade many studies in batches, in their order; memory stays flat.

        Parameters
        ----------
        sources : iterable of StudySource
        n_jobs : int, optional
            Processes that read, locate and crop while this one grades. Default: as the user's `joblib.parallel_config`
            says, which may name any backend, such as dask; else all is done here, one study after the other.
        guard : TimeGuard, optional
            Grades with less, and in the end not at all, rather than late; default: no limit.
        study_seconds : float, optional
            A study that takes longer is given up; see `preparing` for what can be interrupted.

        Raises `DataError` when there is no localizer. One that cannot be sent to other processes is used in this one.
        """
        localizer = Finder(self.localizer)  # that there is none is no fault of a study
        windows = prepare_studies(
            sources,
            localizer,
            self.specs,
            n_jobs=n_jobs,
            window=self.window,
            study_seconds=study_seconds,
            time_left=guard and guard.left,
        )
        total = len(sources) if hasattr(sources, "__len__") else None
        with tqdm(total=total, desc="predicting", unit="study", disable=not progress) as bar:
            while True:
                started = time.perf_counter()
                prepared = next(windows, None)
                if prepared is None:
                    return
                waited = time.perf_counter() - started
                for prediction in self._grade_in_time(prepared, waited, guard):
                    bar.update()
                    yield prediction

    def _grade_in_time(
        self, prepared: Sequence[Prepared], waited: float, guard: TimeGuard | None
    ) -> list[StudyPrediction]:
        """Grade a batch by the guard's plan, or by the prior when there is no time for it."""
        if guard is None:
            return list(self._grade_prepared(prepared, self.plan))
        if any(record.code == "out_of_time" for item in prepared for record in item.issues):
            guard.give_up()
        plan = guard.decide(sum(item.gradable for item in prepared))
        started = time.perf_counter()
        if plan is None:
            graded = [self._out_of_time(item) for item in prepared]
        else:
            graded = list(self._grade_prepared(prepared, plan))
        guard.observe(len(prepared), waited, time.perf_counter() - started, self.networks.seconds)
        return graded

    def prior_prediction(self, study_id: str, *issues: Issue | str, discs: DiscPoints | None = None) -> StudyPrediction:
        """What a study gets that cannot be graded: the training part's weighted class prior."""
        records = tuple(p if isinstance(p, Issue) else Issue("note", p, study_id) for p in issues)
        late = any(record.code == "out_of_time" for record in records)  # the run as a whole says that, once
        said = "; ".join(map(str, records))
        logger.log(logging.DEBUG if late else logging.WARNING, "study %s: %s; the class prior is used", study_id, said)
        return StudyPrediction(
            study_id,
            self.prior,
            discs,
            tuple(VIEWS),
            fallback=True,
            synthetic_only=self.synthetic_only,
            records=records,
        )

    def _out_of_time(self, item: Prepared) -> StudyPrediction:
        late = (
            ()
            if any(record.used.endswith("prior") for record in item.issues)
            else (Issue("out_of_time", "not graded: the run's time was over", item.study_id),)
        )
        return self.prior_prediction(item.study_id, *item.issues, *late, discs=item.discs)

    def _grade_prepared(self, prepared: Sequence[Prepared], plan: Plan) -> Iterator[StudyPrediction]:
        """Grade those that have crops in one batch, the others by the prior; order is kept."""
        try:
            member_predictions = self._member_predictions((item.crops for item in prepared if item.gradable), plan)
            silence = (~_finite(member_predictions[list(plan.members)])).sum(axis=0)
            graded = zip(self._mean(member_predictions), silence, strict=True)
        except Exception as error:
            if len(prepared) > 1:  # one study must not cost its neighbours their grades
                for item in prepared:
                    yield from self._grade_prepared([item], plan)
                return
            item = prepared[0]
            if self._moves_to_cpu(item, plan, error):
                yield from self._grade_prepared(prepared, plan)
                return
            issue = Issue("not_graded", f"cannot be graded: {words(error)}", item.study_id)
            yield self.prior_prediction(item.study_id, *item.issues, issue, discs=item.discs)
            return
        for item in prepared:
            study_id, issues = item.study_id, item.issues
            if not item.gradable:
                unseen = (Issue("nothing_shown", "no view shows any disc", study_id),) if item.crops else ()
                yield self.prior_prediction(study_id, *issues, *unseen, discs=item.discs)
                continue
            probabilities, silent = next(graded)
            if silent == len(plan.members):  # half precision can overflow
                issue = Issue("not_graded", "the network gave no finite number", study_id)
                yield self.prior_prediction(study_id, *issues, issue, discs=item.discs)
                continue
            if silent:
                text = f"{silent} of {len(plan.members)} networks gave no finite number and were left out"
                logger.warning("study %s: %s", study_id, text)
                issues = (*issues, Issue("network_not_finite", text, study_id))
            yield StudyPrediction(
                study_id,
                probabilities,
                item.discs,
                item.missing,
                synthetic_only=self.synthetic_only,
                records=issues,
            )

    def _moves_to_cpu(self, item: Prepared, plan: Plan, error: Exception) -> bool:
        """Whether a study that failed on a GPU can be graded on the CPU; the GPU is then to blame, and used no more."""
        given = self.networks
        if all(compute.device.type == "cpu" for compute in given.computes):
            return False
        try:  # read again, since nothing can be copied from a GPU that has failed
            self.networks = Networks([load_model(folder)[0] for folder in self._folders], choose_devices("cpu"))
            self._member_predictions([item.crops], plan)
        except Exception:
            self.networks = given
            return False
        self.lost_device = f"{given.computes[0].device} failed ({words(error)})"
        logger.warning("%s; going on with the CPU", self.lost_device)
        return True


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


def _finite(member_predictions: np.ndarray) -> np.ndarray:
    """Which network has an answer for which study: bool (n_members, n_studies) of (n_members, n_studies, 25, 3)."""
    return np.isfinite(member_predictions).all(axis=(2, 3))
