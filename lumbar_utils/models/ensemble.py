"""Several trained networks as one: a plain list of run folders with weights, in `ensemble.json`.

    {"version": 1, "members": [{"run": "fold_0", "weight": 1.0}, {"run": "fold_1", "weight": 1.0}], "calibration": null}

Members may differ in everything: fold, family, crops. Their folders are given relative to the JSON file and lie below
it, so that the whole can be moved, packed and uploaded; to mix several runs, put the list into the folder above them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PureWindowsPath

import numpy as np

from ..errors import DataError
from ..files import read_json, write_json
from ..metrics.calibration import Calibration
from .classifier import LumbarClassifier
from .run_folder import ENSEMBLE, SHIPPED_CLASSIFIER, WEIGHTS, RunConfig, load_model, shipped_classifier, strict

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Member:
    """A run folder, relative to that of the list and inside it, and its weight: members are averaged in proportion."""

    run: str = "."
    weight: float = 1.0

    def __post_init__(self):
        path = PureWindowsPath(self.run)  # knows both kinds of slashes and drives
        if not self.run or path.anchor or ".." in path.parts:
            raise DataError(f"a member's run must be a folder below its {ENSEMBLE}, given relatively, got {self.run!r}")
        if not (np.isfinite(self.weight) and self.weight > 0):
            raise DataError(f"member {self.run!r}: the weight must be positive, got {self.weight}")


@dataclass(frozen=True)
class Ensemble:
    """One network or several, none twice, whose probabilities are averaged; the average is then calibrated."""

    members: tuple[Member, ...]
    calibration: Calibration | None = None

    def __post_init__(self):
        object.__setattr__(self, "members", tuple(self.members))
        runs = [member.run for member in self.members]
        if not runs or len(set(runs)) != len(runs):
            raise DataError(f"an ensemble needs at least one member and none twice, got {runs}")

    @property
    def weights(self) -> np.ndarray:
        """The members' weights, float64, summing to one."""
        weights = np.array([member.weight for member in self.members], dtype=np.float64)
        return weights / weights.sum()

    def save(self, folder: Path | str) -> Path:
        """Write `ensemble.json` into a folder, atomically; returns the file."""
        path = Path(folder) / ENSEMBLE
        calibration = self.calibration and self.calibration.to_json()
        members = [asdict(member) for member in self.members]
        write_json(path, {"version": FORMAT_VERSION, "members": members, "calibration": calibration})
        return path

    @classmethod
    def load(cls, path: Path | str) -> Ensemble:
        """Read the JSON file, or that in a folder; any other folder is a single run, which is an ensemble of one.

        Raises `DataError` when the file is damaged or of another version, or holds members outside its folder.
        """
        path = Path(path)
        if not path.is_file():
            if not (path / ENSEMBLE).is_file():
                return cls((Member(),))
            if (path / WEIGHTS).is_file():  # a training that replaces one by the other was killed just then
                logger.warning("%s holds both %s and %s; the former is used", path, ENSEMBLE, WEIGHTS)
            path = path / ENSEMBLE
        values = read_json(path)
        if set(values) != {"version", "members", "calibration"}:
            raise DataError(f"{path}: expected the keys version, members and calibration, got {sorted(values)}")
        if values["version"] != FORMAT_VERSION:
            raise DataError(f"{path}: an ensemble of format {values['version']}, this library reads {FORMAT_VERSION}")
        members, calibration = values["members"], values["calibration"]
        if not isinstance(members, list) or not all(isinstance(member, Mapping) for member in members):
            raise DataError(f"{path}: members must be a list of objects with run and weight, got {members!r}")
        try:
            return cls(
                tuple(strict(Member, member, "a member") for member in members),
                None if calibration is None else Calibration.from_json(calibration),
            )
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def folder_of(path: Path | str) -> Path:
    """The folder of an ensemble or a run, given by itself or by its JSON file."""
    return Path(path).parent if Path(path).is_file() else Path(path)


def member_folders(path: Path | str) -> list[Path]:
    """The run folders of an ensemble's members, in their order; `path` as for `Ensemble.load`."""
    return [folder_of(path) / member.run for member in Ensemble.load(path).members]


def check_folds(configs: Sequence[RunConfig]) -> None:
    """Log a warning when networks were trained on different folds: each has seen what another one held out."""
    trained = [config.training for config in configs if config.training]
    folds = {f"{t.get('folds')} by seed {t.get('fold_seed', t.get('seed'))}" for t in trained}
    if len(folds) > 1:
        logger.warning("networks of different folds (%s): do not average them out of fold", ", ".join(sorted(folds)))


def first_member(path: Path | str) -> Path:
    """The run folder of a classifier, of an ensemble its first member's; "shipped" is the one in the library."""
    return member_folders(shipped_classifier() if str(path) == "shipped" else path)[0]


def start_from(model: LumbarClassifier, folder: Path) -> None:
    """Copy the weights of a trained run into a new network, in place.

    Parts of the head that have another shape start anew. Raises `DataError` when the encoders differ.
    """
    given, own = load_model(folder)[0].state_dict(), model.state_dict()
    fits = {name: tensor for name, tensor in given.items() if name in own and own[name].shape == tensor.shape}
    encoders = {name for name in (*own, *given) if name.startswith("encoders.")}
    if lacking := sorted(encoders - set(fits)):
        raise DataError(
            f"{folder}: its encoder is another one than that of this training; {len(lacking)} tensors differ, the "
            f"first is {lacking[0]!r}"
        )
    model.load_state_dict(fits, strict=False)
    if anew := sorted(set(own) - set(fits)):
        logger.info("started from %s but for %d tensors of the head, such as %s", folder, len(anew), anew[0])


def run_of(path: Path | str) -> Path:
    """The run that a classifier belongs to, where its crops and its localizer lie.

    The nearest folder that holds `localizer/`, from the classifier's own to the second above it, then around an
    ensemble's members in their order; where none does, the folder above the classifier, or above the ensemble that it
    is a member of.
    """
    folder = folder_of(path)
    for own in dict.fromkeys((folder, *member_folders(path))):
        for near in (own, own.parent, own.parent.parent):
            if (near / "localizer").is_dir():
                return near
    return folder.parent.parent if (folder.parent / ENSEMBLE).is_file() else folder.parent


def name_of(path: Path | str) -> str:
    """What a classifier is called: the run of a single one or of its folds, the list's folder for several runs."""
    if folder_of(path) == SHIPPED_CLASSIFIER:
        return "shipped"
    runs = {run_of(member).resolve() for member in member_folders(path)}
    return folder_of(path).resolve().name if len(runs) > 1 else run_of(path).resolve().name
