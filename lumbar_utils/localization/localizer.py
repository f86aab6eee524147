"""`DiscLocalizer`: from a study or a series to its five canal points, and its weights on disk.

The networks' heat maps become one chain, each of whose points carries a confidence that was fitted on held-out scans.
Where the whole chain may lie a level too high or too low all five are marked, and the points can still be used.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy import special
from torch import nn

from .. import __version__
from ..devices import check_finite
from ..dicom.series import Series
from ..errors import DataError
from ..files import atomically, write_table
from ..labels import SAGITTAL_T1, SAGITTAL_T2
from ..studies.study import Study
from .decoding import OBSERVED, Chain, ChainPrior, decode_chain
from .heat_maps import HeatMaps, predict_heat_maps
from .network import LocalizerConfig, SliceUNet
from .points import FIRST_LEAD, DiscPoints, fuse_series, with_low_confidence
from .preprocessing import LocalizationError, SagittalVolume, series_volumes
from .samples import LocalizerSample

logger = logging.getLogger(__name__)

WEIGHTS_FILE, CONFIG_FILE, HISTORY_FILE = "model.safetensors", "config.json", "history.csv"
SHIPPED = Path(__file__).resolve().parent.parent / "weights" / "shipped_localizer"
"""Not just `localizer`, the name of a run's own, which is looked for in all data sets that are attached on Kaggle."""
TRAINING_DATA = {"synthetic": "synthetic phantoms", "competition": "the competition's points"}
T1_WEIGHT = 0.5
"""Of points on T1 beside those on T2: people mark the canal on T2, and between the two scans a patient may move."""
MAX_UNANCHORED = 0.75
"""Highest confidence on a chain without the sacrum, so all its points are marked: what can be fitted on phantoms there
is how well their proportions, which we gave them, tell the levels apart."""


@dataclass(frozen=True)
class LocalizerCalibration:
    """What is fitted on held-out scans once the networks are trained; the defaults trust the decoder."""

    temperature: float = 1.0  # that of `ChainPrior`
    slope: float = 1.0  # of an observed level the confidence is expit(slope * logit(posterior) + intercept)
    intercept: float = 0.0
    imputed: float = 0.5  # confidence of a level that is imputed from its neighbours, relative to that
    unanchored: float = 0.5  # and of a chain without a disc at the sacrum, `MAX_UNANCHORED` at most

    def confidence(self, chain: Chain) -> np.ndarray:
        """Probability (5,) that each point of a chain lies at its disc."""
        observed = special.expit(self.slope * clipped_logit(chain.posterior) + self.intercept)
        labelled = 1.0 if chain.anchored else min(self.unanchored, MAX_UNANCHORED)
        return observed * labelled * np.where(chain.mass < OBSERVED, self.imputed, 1.0)


def clipped_logit(probability: np.ndarray) -> np.ndarray:
    """Log odds, of probabilities kept away from 0 and 1, where they mean nothing."""
    return special.logit(np.clip(probability, 1e-4, 1 - 1e-4))


class DiscLocalizer:
    """Finds the five canal points on sagittal series.

    Parameters
    ----------
    networks : SliceUNet or sequence of SliceUNet
        Of one configuration; their heat maps are averaged.
    device : torch.device or str, optional
        Default: the CPU, where a series takes a fraction of a second.
    calibration : LocalizerCalibration, optional
        What was fitted to the networks after their training.
    made : dict, optional
        How the weights were made; goes into the JSON beside them.
    """

    def __init__(
        self,
        networks: SliceUNet | Sequence[SliceUNet],
        *,
        device: torch.device | str = "cpu",
        calibration: LocalizerCalibration | None = None,
        made: dict | None = None,
    ):
        networks = (networks,) if isinstance(networks, SliceUNet) else tuple(networks)
        if not networks or any(network.config != networks[0].config for network in networks):
            raise DataError(f"a localizer needs one or more networks of one configuration, got {len(networks)}")
        self.device = torch.device(device)
        self.networks = tuple(n.to(self.device, memory_format=torch.channels_last).eval() for n in networks)
        self._calibration = calibration or LocalizerCalibration()
        self.made = dict(made or {})
        self.history: list[dict[str, float]] = []
        """Of the training that made it, in this session: member, step, loss, learning_rate, seconds."""
        self.folder: Path | None = None
        """That it was read from; None when it was made in this session."""

    @property
    def calibration(self) -> LocalizerCalibration:
        """How its heat maps become confidences; a localizer that gets another one is no longer that of its folder."""
        return self._calibration

    @calibration.setter
    def calibration(self, value: LocalizerCalibration) -> None:
        self._calibration, self.folder = value, None

    @property
    def config(self) -> LocalizerConfig:
        """The networks' configuration."""
        return self.networks[0].config

    def locate(self, study: Study) -> DiscPoints:
        """Points of a study, from its sagittal T2 and its sagittal T1: of each the best suited series.

        Where both show the same chain, its points are their mean in the patient, T1 counting `T1_WEIGHT`, as far as
        they lie together. Where they put a level on another disc, or label the chain otherwise, that of the more
        confident series is taken, with less confidence; see `fuse_series`. While a point on one series is marked,
        the study's other series of that view are located too.

        Raises
        ------
        LocalizationError
            When the study has no sagittal series, or no chain of discs is found on any of them.
        """
        results: list[tuple[DiscPoints, float]] = []
        issues: list[str] = []
        for view, weight in ((SAGITTAL_T2, 1.0), (SAGITTAL_T1, T1_WEIGHT)):
            for series in study.by_view(view):
                try:
                    found = self.locate_series(series)
                except LocalizationError as error:
                    issues.append(str(error))
                    continue
                results.append((found, weight))
                if not found.flagged:
                    break
        if not results:
            views = sorted({series.view or "unknown" for series in study.series}) or "no series"
            none = f"study {study.study_id}: no sagittal series to find the discs on, it has {views}"
            raise LocalizationError("; ".join(issues) or none)
        for issue in issues:
            logger.warning("located on another series instead: %s", issue)
        return fuse_series(study.study_id, results)

    def locate_series(self, series: Series) -> DiscPoints:
        """Points found on one sagittal series. Raises `LocalizationError`, naming study and series.

        Of several sagittal stacks, such as the stations of a long spine, the largest one is located first, and the
        others while a point is marked; one with clearly higher confidence is taken instead.
        """
        best: DiscPoints | None = None
        slices = 0
        for volume in series_volumes(series, self.config.pixel_mm):
            slices = max(slices, len(volume.pixels))
            found = self.locate_volume(volume, series.study_id, series.series_id)
            if found is not None and (best is None or found.confidence.mean() > best.confidence.mean() + FIRST_LEAD):
                best = found
            if best is not None and not best.flagged:
                break
        if best is None:
            raise LocalizationError(
                f"study {series.study_id}, series {series.series_id}: no chain of lumbar discs is seen on it "
                f"({slices} slices); look at the images, or give the points in a file"
            )
        return best

    def locate_volume(self, volume: SagittalVolume, study_id: str, series_id: str) -> DiscPoints | None:
        """Points found on a preprocessed stack of a series; None when no chain is found."""
        chain = self.decode(self.predict_heat_maps(volume))
        if chain is None:
            return None
        confidence = self.calibration.confidence(chain)
        points, flags = volume.to_world(chain.voxels), with_low_confidence(chain.flags, confidence)
        return DiscPoints(study_id, series_id, points, confidence, flags, "localizer")

    def predict_heat_maps(self, volume: SagittalVolume | LocalizerSample) -> HeatMaps:
        """The networks' mean prediction; see `heat_maps.predict_heat_maps`."""
        return predict_heat_maps(self.networks, volume, self.device)

    def decode(self, maps: HeatMaps) -> Chain | None:
        """The five lumbar levels in voxels of the preprocessed volume; None when no chain is found."""
        chain = decode_chain(maps, self.config.chain, ChainPrior(temperature=self.calibration.temperature))
        if chain is None:
            return None
        own = self.config.lumbar
        # A map's pixel covers two of the volume's, so the middles of its pixels lie between theirs.
        voxels = chain.voxels[own] * [1, 2, 2] + [0, 0.5, 0.5]
        return replace(
            chain, voxels=voxels, mass=chain.mass[own], posterior=chain.posterior[own], flags=chain.flags[own]
        )

    def save(self, folder: str | Path) -> Path:
        """Write `model.safetensors`, `config.json` and, when just trained, `history.csv` into a folder; returns it.

        Matrices are stored as float16, which moves points by up to 0.2 mm. On a full disk all files stay as they were.
        """
        folder = Path(folder)
        state = {}
        for name, value in nn.ModuleList(self.networks).state_dict().items():  # names begin with the network's number
            dtype = torch.float16 if value.ndim >= 2 else value.dtype
            state[name] = value.detach().to("cpu", dtype).contiguous()
        check_finite(state, folder / WEIGHTS_FILE)
        about = {"config": asdict(self.config), "calibration": asdict(self.calibration), "made": self.made}

        def both(file: Path) -> None:
            file.write_text(json.dumps(about, indent=1), encoding="utf-8")
            atomically(folder / WEIGHTS_FILE, lambda tensors: save_file(state, tensors))

        atomically(folder / CONFIG_FILE, both)
        if self.history:
            write_table(folder / HISTORY_FILE, pd.DataFrame(self.history))
        logger.info("localizer: saved to %s", folder)
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> DiscLocalizer:
        """Read what `save` wrote. Raises `DataError` when a file is absent, damaged or of another network."""
        folder = Path(folder)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise DataError(f"{folder}: no {name} here; give the folder that `lumbar train localizer` wrote")
        try:
            read = json.loads((folder / CONFIG_FILE).read_text())
            if not {"config", "calibration", "made"} <= set(read):
                raise ValueError(
                    "they were written by an older version of lumbar_utils; train again, or delete the folder to use "
                    "the localizer that ships with the library"
                )
            config = LocalizerConfig(**read["config"])
            state = load_file(folder / WEIGHTS_FILE)
            check_finite(state, folder / WEIGHTS_FILE)
            networks = [SliceUNet(config) for _ in {name.partition(".")[0] for name in state}]
            nn.ModuleList(networks).load_state_dict(state)
            calibration = LocalizerCalibration(**read["calibration"])
            localizer = cls(networks, device=device, calibration=calibration, made=read["made"])
        except (KeyError, ValueError, TypeError, RuntimeError, OSError, SafetensorError) as error:
            raise DataError(f"{folder}: these are not weights of this localizer: {error}") from error
        localizer.folder = folder
        return localizer

    @classmethod
    def shipped(cls, *, device: torch.device | str = "cpu") -> DiscLocalizer:
        """The localizer that comes with the library, trained on synthetic phantoms alone.

        Raises `DataError` when this copy of the library holds no weights.
        """
        if not all((SHIPPED / name).is_file() for name in (WEIGHTS_FILE, CONFIG_FILE)):
            raise DataError(
                f"this copy of lumbar_utils holds no localizer (none in {SHIPPED}); install it again, make the weights "
                "with `make weights`, or name a folder with weights"
            )
        return cls.load(SHIPPED, device=device)

    def __reduce_ex__(self, protocol):
        """To another process a localizer that was read from a folder goes as its path instead of its tensors."""
        if self.folder is None:
            return super().__reduce_ex__(protocol)
        if self.folder == SHIPPED:  # the other process has a copy of its own, wherever it is installed
            return _opened, (None, str(self.device))
        files = [(self.folder / name).stat() for name in (WEIGHTS_FILE, CONFIG_FILE)]
        changed = tuple((file.st_mtime_ns, file.st_size) for file in files)
        return _opened, (self.folder.absolute(), str(self.device), changed)


@lru_cache(maxsize=1)
def _opened(folder: Path | None, device: str, changed: tuple = ()) -> DiscLocalizer:
    """A localizer that was sent here, read once and again only when its files have changed; None: the shipped one."""
    return open_localizer(folder, device=device)


def open_localizer(folder: Path | str | None = None, *, device: str = "cpu") -> DiscLocalizer:
    """The localizer in a folder; None for the one that ships with the library. Raises `DataError` where there
    is none."""
    return DiscLocalizer.shipped(device=device) if folder is None else DiscLocalizer.load(folder, device=device)


def localizer_origin(localizer: DiscLocalizer, folder: Path | str | None = None) -> str:
    """One line for the user: which localizer was opened from `folder`, and what it was trained on."""
    # Of a fine-tuned one all data in order: "synthetic, competition".
    names = localizer.config.trained_on.split(", ")
    data = ", then ".join(TRAINING_DATA.get(name, name or "unknown data") for name in names)
    where = f"shipped with lumbar_utils {__version__}" if folder is None else str(folder)
    return f"localizer: {where} (trained on {data})"
