"""`DiscLocalizer`: from a study or a series to its five canal points, and its weights on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch.nn import functional

from ..devices import cpu_has_bfloat16
from ..errors import DataError
from ..labels import N_LEVELS, SAGITTAL_T1, SAGITTAL_T2
from .decoding import SUPPORTED, ChainPrior, decode_chain
from .images import LocalizationError, SagittalVolume, series_volume
from .network import LocalizerConfig, SliceUNet, log_probability, with_neighbours
from .points import DiscPoints, write_atomically

if TYPE_CHECKING:
    from ..dicom import Series
    from ..study import Study

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
SLICES_AT_ONCE = 24
"""Bounds the memory that one series takes; real series have up to 38 slices."""
SURE = 0.6
"""A chain whose least confident level reaches this is not compared with other series."""
T2_LEAD = 0.15
"""By so much must the mean confidence on a later series exceed the first one's, since points on T2 are more exact."""
PLACED_CONFIDENCE = 0.5
"""A point that its neighbours placed is within 5 mm about half as often as a seen one."""


class DiscLocalizer:
    """Finds the five canal points on sagittal series.

    Parameters
    ----------
    network : SliceUNet
    device : torch.device or str, optional
        Default: the CPU, where a series takes a fraction of a second.
    prior : ChainPrior, optional
        What is known of the chain before the image is seen.
    """

    def __init__(self, network: SliceUNet, *, device: torch.device | str = "cpu", prior: ChainPrior | None = None):
        self.device = torch.device(device)
        self.network = network.to(self.device, memory_format=torch.channels_last).eval()
        self.prior = prior or ChainPrior()
        self.history: list[dict[str, float]] = []
        """Of the training that made it, in this session: step, loss, learning_rate, seconds."""

    @property
    def config(self) -> LocalizerConfig:
        """The network's configuration."""
        return self.network.config

    def locate(self, study: Study) -> DiscPoints:
        """Points of a study: on its sagittal T2 (the series with the largest coverage), on T1 when there is no T2.

        When the chain on one series is doubtful, the study's other sagittal series are asked too and the most
        confident answer is taken; `DiscPoints.series_id` says which series it is.

        Raises
        ------
        LocalizationError
            When the study has no sagittal series, or no chain of discs is found on any of them.
        """
        candidates = [*_widest_first(study.by_view(SAGITTAL_T2)), *_widest_first(study.by_view(SAGITTAL_T1))]
        if not candidates:
            views = sorted({series.view or "unknown" for series in study.series})
            raise LocalizationError(
                f"study {study.study_id}: no sagittal series to find the discs on, it has {views or 'no series'}"
            )
        results: list[DiscPoints] = []
        problems: list[str] = []
        for series in candidates:
            try:
                found = self.locate_series(series)
            except LocalizationError as error:
                problems.append(str(error))
                continue
            results.append(found)
            if not found.flagged and found.confidence.min() >= SURE:
                break
        if not results:
            raise LocalizationError("; ".join(problems))
        scores = [result.confidence.mean() - (T2_LEAD if i else 0.0) for i, result in enumerate(results)]
        best = results[int(np.argmax(scores))]
        return DiscPoints(study.study_id, best.series_id, best.points, best.confidence, best.flags, best.source)

    def locate_series(self, series: Series) -> DiscPoints:
        """Points found on one sagittal series. Raises `LocalizationError`, naming study and series."""
        volume = series_volume(series, self.config.pixel_mm)
        found = self.locate_volume(volume)
        if found is None:
            raise LocalizationError(
                f"study {series.study_id}, series {series.series_id}: no chain of lumbar discs is seen on it "
                f"({len(volume.pixels)} slices); look at the images, or give the points in a file"
            )
        points, confidence, flags = found
        return DiscPoints(series.study_id, series.series_id, points, confidence, flags, "localizer")

    def locate_volume(self, volume: SagittalVolume) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]] | None:
        """LPS points (5, 3), confidence (5,) and flags on a prepared volume; None when no chain is found."""
        probability, absent = self.probability(volume.pixels)
        rows, columns = volume.spacing
        chain = decode_chain(
            probability, absent, offsets=volume.offsets, spacing=(2 * rows, 2 * columns), prior=self.prior
        )
        if chain is None:
            return None
        # A map's pixel covers two of the volume's, so the middles of its pixels lie between theirs.
        voxels = chain.voxels * [1, 2, 2] + [0, 0.5, 0.5]
        confidence = np.clip(chain.posterior * np.where(chain.support < SUPPORTED, PLACED_CONFIDENCE, 1.0), 0, 1)
        return volume.to_world(voxels), confidence, chain.flags

    def probability(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slices (n, H, W) of about 0..1 to each level's probability (n, 5, H/2, W/2) and "not in view" (5,)."""
        height, width = pixels.shape[1:]
        multiple = self.config.multiple
        tensor = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
        tensor = functional.pad(tensor, (0, -width % multiple, 0, -height % multiple))
        slices = with_neighbours(tensor, self.config.neighbours)
        half = self.device.type == "cuda" or (self.device.type == "cpu" and cpu_has_bfloat16())
        dtype = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        logits = []
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=half):
            for part in slices.split(SLICES_AT_ONCE):
                part = part.to(self.device).contiguous(memory_format=torch.channels_last)
                logits.append(self.network(part).float().cpu())
        stacked = torch.cat(logits)[:, :, : (height + 1) // 2, : (width + 1) // 2]
        voxels, absent = log_probability(stacked)
        return voxels.exp().double().numpy(), absent.exp().double().numpy().reshape(N_LEVELS)

    def save(self, folder: str | Path) -> Path:
        """Write `model.safetensors` and `config.json` into a folder, atomically; returns the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        write_atomically(folder / WEIGHTS_FILE, save(state))
        write_atomically(folder / CONFIG_FILE, (self.config.to_json() + "\n").encode())
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> DiscLocalizer:
        """Read what `save` wrote. Raises `DataError` when a file is absent, damaged or of another network."""
        folder = Path(folder)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise DataError(f"{folder}: no {name} here; give the folder that `lumbar train localizer` wrote")
        try:
            config = LocalizerConfig.from_json((folder / CONFIG_FILE).read_text())
            network = SliceUNet(config)
            network.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (ValueError, TypeError, RuntimeError, OSError, SafetensorError) as error:
            raise DataError(f"{folder}: these are not weights of this localizer: {error}") from error
        return cls(network, device=device)


def _widest_first(series: tuple[Series, ...]) -> list[Series]:
    """Sort series by the width that their largest stack covers from left to right, then by slices."""

    def coverage(item: Series) -> tuple[float, int]:
        if not item.stacks:
            return (0.0, 0)
        geometry = item.stacks[0].geometry
        return (round(float(np.ptp(geometry.offsets)) / 10), len(geometry))

    return sorted(series, key=coverage, reverse=True)
