"""`DiscLocalizer`: from a study or a series to its five canal points, and its weights on disk.

The networks' member_predictions become one chain, each of whose points carries a confidence that was fitted on held-out
scans. Where the names of the chain are in doubt, all five say so, and the points can still be used.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from scipy import special

from ..errors import DataError
from ..labels import SAGITTAL_T1, SAGITTAL_T2
from .decoding import ANCHORS, SUPPORTED, Chain, ChainPrior, decode_chain
from .member_predictions import MemberPrediction, agreement, ask, consensus
from .network import LocalizerConfig, SliceUNet
from .points import LOW_CONFIDENCE, DiscPoints, write_atomically
from .preprocessing import LocalizationError, SagittalVolume, series_volumes

if TYPE_CHECKING:
    from ..dicom.series import Series
    from ..studies.study import Study

logger = logging.getLogger(__name__)

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
_SHIPPED = Path(__file__).resolve().parent.parent / "weights"
SHIPPED_WEIGHTS, SHIPPED_NOTE = _SHIPPED / "localizer.safetensors", _SHIPPED / "localizer.json"
LOW_CONFIDENCE_BELOW = 0.8
"""Points of less confidence are marked."""
FIRST_LEAD = 0.15
"""By so much must the mean confidence on a later series, or stack, exceed that on the first, which shows most."""
T1_WEIGHT = 0.5
"""Of points on T1 beside those on T2: people mark the canal on T2, and between the two scans a patient may move."""
SAME_DISC_MM = 12.0
"""Points nearer along the spine are on one disc; discs are 25 to 45 mm apart. Chains are compared in their median."""
MAX_UNANCHORED = 0.75
"""No chain without the sacrum is surer than this, so all its points are marked: what can be fitted on phantoms there is
how well their proportions, which we gave them, tell the levels apart."""
MAX_DISPUTED = 0.75
"""No point on which two series of a study disagree is surer than this, so it is marked, however unsure one of them is:
the surer one may be wrong."""


@dataclass(frozen=True)
class Decoding:
    """What is fitted on held-out scans once the networks are trained; the defaults trust the decoder.

    Parameters
    ----------
    temperature : float
        That of `ChainPrior`.
    slope, dissent, intercept : float
        The confidence of a seen level is the logistic function of `slope * logit(posterior) + intercept`, less
        `dissent` times the share of the member_predictions that would name the chain otherwise. A dissent of 0, as was
        fitted to the shipped networks, means that the posterior tells it already.
    placed : float
        Confidence of a level that its neighbours placed, relative to that.
    unanchored : float
        Confidence of a chain of which no disc at the sacrum is seen, relative to that, `MAX_UNANCHORED` at most.
    """

    temperature: float = 1.0
    slope: float = 1.0
    dissent: float = 0.0
    intercept: float = 0.0
    placed: float = 0.5
    unanchored: float = 0.5

    def confidence(self, chain: Chain) -> np.ndarray:
        """Probability (5,) that each point of a chain lies at its disc."""
        sure = special.expit(
            self.slope * bounded_logit(chain.posterior) - self.dissent * (1 - chain.agreement) + self.intercept
        )
        named = 1.0 if chain.anchored else min(self.unanchored, MAX_UNANCHORED)
        return sure * named * np.where(chain.support < SUPPORTED, self.placed, 1.0)


def bounded_logit(posterior: np.ndarray) -> np.ndarray:
    """Log odds, of probabilities kept away from 0 and 1, where they mean nothing."""
    return special.logit(np.clip(posterior, 1e-4, 1 - 1e-4))


class DiscLocalizer:
    """Finds the five canal points on sagittal series.

    Parameters
    ----------
    networks : SliceUNet or sequence of SliceUNet
        Of one configuration; their evidence is averaged.
    device : torch.device or str, optional
        Default: the CPU, where a series takes a fraction of a second.
    prior : ChainPrior, optional
        What is known of the chain before the image is seen.
    decoding : Decoding, optional
        What was fitted to the networks after their training.
    made : dict, optional
        How the weights were made, for whoever asks; goes into the JSON beside them.
    """

    def __init__(
        self,
        networks: SliceUNet | Sequence[SliceUNet],
        *,
        device: torch.device | str = "cpu",
        prior: ChainPrior | None = None,
        decoding: Decoding | None = None,
        made: dict | None = None,
    ):
        networks = (networks,) if isinstance(networks, SliceUNet) else tuple(networks)
        if not networks or any(network.config != networks[0].config for network in networks):
            raise DataError(f"a localizer needs one or more networks of one configuration, got {len(networks)}")
        self.device = torch.device(device)
        self.networks = tuple(n.to(self.device, memory_format=torch.channels_last).eval() for n in networks)
        self.decoding = decoding or Decoding()
        self.prior = replace(prior or ChainPrior(), temperature=self.decoding.temperature)
        self.made = dict(made or {})
        self.history: list[dict[str, float]] = []
        """Of the training that made it, in this session: member, step, loss, learning_rate, seconds."""
        self.files: tuple[Path, Path] | None = None
        """Tensors and JSON that it was read from; None when it was made in this session."""

    @property
    def config(self) -> LocalizerConfig:
        """The networks' configuration."""
        return self.networks[0].config

    def locate(self, study: Study) -> DiscPoints:
        """Points of a study, from its sagittal T2 and its sagittal T1: of each the series with the largest coverage.

        Where both show the same chain, its points are their mean in the patient, T1 counting `T1_WEIGHT`, as far as
        they lie together. Where they put a level on another disc, or name the chain otherwise, that of the more
        confident series is taken, and is the less sure of itself. While a point on one series is marked, the study's
        other series of that view are asked too. `DiscPoints.series_id` is the series that decided.

        Raises
        ------
        LocalizationError
            When the study has no sagittal series, or no chain of discs is found on any of them.
        """
        candidates = [_widest_first(study.by_view(view)) for view in (SAGITTAL_T2, SAGITTAL_T1)]
        if not any(candidates):
            views = sorted({series.view or "unknown" for series in study.series})
            raise LocalizationError(
                f"study {study.study_id}: no sagittal series to find the discs on, it has {views or 'no series'}"
            )
        results: list[tuple[DiscPoints, float]] = []
        issues: list[str] = []
        for of_view, weight in zip(candidates, (1.0, T1_WEIGHT), strict=True):
            for series in of_view:
                try:
                    results.append((self.locate_series(series), weight))
                except LocalizationError as error:
                    issues.append(str(error))
                    continue
                if not results[-1][0].flagged:
                    break
        if not results:
            raise LocalizationError("; ".join(issues))
        for issue in issues:
            logger.warning("found on another series: %s", issue)
        return _agreed(study.study_id, results)

    def locate_series(self, series: Series) -> DiscPoints:
        """Points found on one sagittal series. Raises `LocalizationError`, naming study and series.

        Of several sagittal stacks, such as the stations of a long spine, the largest one is asked first, and the others
        while a point is marked; one that is clearly more confident counts instead.
        """
        best: tuple[np.ndarray, np.ndarray, tuple[str, ...]] | None = None
        slices = 0
        for volume in series_volumes(series, self.config.pixel_mm):
            slices = max(slices, len(volume.pixels))
            found = self.locate_volume(volume)
            if found is not None and (best is None or found[1].mean() > best[1].mean() + FIRST_LEAD):
                best = found
            if best is not None and not any(best[2]):
                break
        if best is None:
            raise LocalizationError(
                f"study {series.study_id}, series {series.series_id}: no chain of lumbar discs is seen on it "
                f"({slices} slices); look at the images, or give the points in a file"
            )
        points, confidence, flags = best
        return DiscPoints(series.study_id, series.series_id, points, confidence, flags, "localizer")

    def locate_volume(self, volume: SagittalVolume) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]] | None:
        """LPS points (5, 3), confidence (5,) and flags on a prepared volume; None when no chain is found."""
        chain = self.decode(self.ask(volume.pixels), volume.offsets, volume.spacing)
        if chain is None:
            return None
        confidence = self.decoding.confidence(chain)
        return volume.to_world(chain.voxels), confidence, _flags(chain.flags, confidence)

    def ask(self, pixels: np.ndarray) -> list[MemberPrediction]:
        """What the networks say of slices (n, H, W) of about 0..1; see `member_predictions.ask`."""
        return ask(self.networks, pixels, self.device)

    def decode(
        self, member_predictions: Sequence[MemberPrediction], offsets: np.ndarray, spacing: tuple[float, float]
    ) -> Chain | None:
        """The five lumbar levels in voxels of the volume, from member_predictions on it; None when no chain is found.

        `offsets` (n,) are the slices' mm, `spacing` the mm between the volume's rows and columns.
        """
        probability, absent = consensus(member_predictions)
        of_maps = (2 * spacing[0], 2 * spacing[1])
        chain = decode_chain(
            probability, absent, offsets=offsets, spacing=of_maps, chain=self.config.chain, prior=self.prior
        )
        if chain is None:
            return None
        own = self.config.lumbar
        agreed = agreement(member_predictions, chain, own, of_maps, self.prior)
        anchors = [i for i, level in enumerate(self.config.chain) if level in ANCHORS]
        anchored = bool(chain.support[anchors].max() >= SUPPORTED)
        # A map's pixel covers two of the volume's, so the middles of its pixels lie between theirs.
        voxels = chain.voxels[own] * [1, 2, 2] + [0, 0.5, 0.5]
        return Chain(voxels, chain.support[own], chain.posterior[own], chain.flags[own], agreed, anchored)

    def save(self, folder: str | Path) -> Path:
        """Write `model.safetensors` and `config.json` into a folder, atomically; returns the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.write(folder / WEIGHTS_FILE, folder / CONFIG_FILE)
        return folder

    def write(self, weights: Path, note: Path) -> None:
        """Write the tensors and the JSON that belongs to them, each atomically."""
        state = {
            f"{member}.{name}": value.detach().cpu().contiguous()
            for member, network in enumerate(self.networks)
            for name, value in network.state_dict().items()
        }
        written = {"config": asdict(self.config), "decoding": asdict(self.decoding), "made": self.made}
        write_atomically(weights, save(state))
        write_atomically(note, (json.dumps(written, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> DiscLocalizer:
        """Read what `save` wrote. Raises `DataError` when a file is absent, damaged or of another network."""
        folder = Path(folder)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise DataError(f"{folder}: no {name} here; give the folder that `lumbar train localizer` wrote")
        return cls.read(folder / WEIGHTS_FILE, folder / CONFIG_FILE, device=device)

    @classmethod
    def shipped(cls, *, device: torch.device | str = "cpu") -> DiscLocalizer:
        """The localizer that comes with the library, trained on synthetic phantoms alone.

        Raises `DataError` when this copy of the library holds no weights.
        """
        if not cls.shipped_available():
            raise DataError(
                f"this copy of lumbar_utils holds no localizer ({SHIPPED_WEIGHTS} is missing); install it again, "
                "make the weights with `make weights`, or name a folder with weights"
            )
        return cls.read(SHIPPED_WEIGHTS, SHIPPED_NOTE, device=device)

    @classmethod
    def shipped_available(cls) -> bool:
        """Whether the library's own weights are there."""
        return SHIPPED_WEIGHTS.is_file() and SHIPPED_NOTE.is_file()

    @classmethod
    def read(cls, weights: Path, note: Path, *, device: torch.device | str = "cpu") -> DiscLocalizer:
        """The inverse of `write`. Raises `DataError` when a file is damaged or of another network or version."""
        try:
            read = json.loads(note.read_text())
            if "config" not in read:
                raise ValueError(
                    "they were written by an older version of lumbar_utils; train again, or delete the folder to use "
                    "the localizer that ships with the library"
                )
            config = LocalizerConfig.from_dict(read["config"])
            networks = _networks(config, load_file(weights))
            decoding = Decoding(**read["decoding"])
            localizer = cls(networks, device=device, decoding=decoding, made=read["made"])
        except (KeyError, ValueError, TypeError, RuntimeError, OSError, SafetensorError) as error:
            raise DataError(f"{weights.parent}: these are not weights of this localizer: {error}") from error
        localizer.files = (weights, note)
        return localizer


def _flags(flags: tuple[str, ...], confidence: np.ndarray) -> tuple[str, ...]:
    """Mark levels that may be wrong; all five when the chain as a whole may bear the names of its neighbours."""
    doubtful = confidence < LOW_CONFIDENCE_BELOW
    if np.median(confidence) < LOW_CONFIDENCE_BELOW:
        doubtful[:] = True
    return tuple(
        ", ".join(word for word in (flag, LOW_CONFIDENCE if doubt else "") if word)
        for flag, doubt in zip(flags, doubtful, strict=True)
    )


def _agreed(study_id: str, results: Sequence[tuple[DiscPoints, float]]) -> DiscPoints:
    """One chain from those found on a study's series, each with its weight; the first one has a lead."""
    found = [chain for chain, _ in results]
    places = np.array([chain.points for chain in found])  # (series, level, 3)
    sure = np.array([chain.confidence for chain in found])  # (series, level), as what follows
    shown = np.array([[not _placement(flag) for flag in chain.flags] for chain in found])
    decides = int(np.argmax(sure.mean(axis=1) - np.where(np.arange(len(found)) > 0, FIRST_LEAD, 0.0)))
    best = found[decides]
    down = best.points[-1] - best.points[0]
    down /= np.linalg.norm(down)
    alike = np.abs(np.median((places - best.points) @ down, axis=1)) < SAME_DISC_MM
    # Where the deciding series' neighbours had to place a level that another one shows, that one says where it is.
    told = alike[:, None] & (shown | ~(alike[:, None] & shown).any(axis=0))
    by = np.where(told[decides], decides, np.argmax(np.where(told, sure, -1.0), axis=0))
    apart = places - places[by, np.arange(len(by))]
    together = told & (np.linalg.norm(apart, axis=2) < SAME_DISC_MM)
    share = together * np.array([weight for _, weight in results])[:, None] * (sure + 1e-3)
    points = (share[..., None] * places).sum(axis=0) / share.sum(axis=0)[:, None]
    confidence = np.where(together, sure, 0.0).max(axis=0)
    # Places on other discs, and chains with other names, exclude each other: what they claim is lost to this one.
    elsewhere = np.where(told & (np.abs(apart @ down) >= SAME_DISC_MM), sure, 0.0).sum(axis=0)
    confidence *= (confidence + 1e-9) / (confidence + elsewhere + 1e-9)
    confidence[elsewhere > 0] = np.minimum(confidence[elsewhere > 0], MAX_DISPUTED)
    claims = sure.mean(axis=1)
    confidence *= claims[alike].sum() / max(claims.sum(), 1e-9)
    if not alike.all():
        confidence = np.minimum(confidence, MAX_DISPUTED)
    seen = (together & shown).any(axis=0)
    placed = tuple("" if shows else _placement(flag) for shows, flag in zip(seen, best.flags, strict=True))
    return DiscPoints(study_id, best.series_id, points, confidence, _flags(placed, confidence), best.source)


def _placement(flag: str) -> str:
    """A flag's words on how the point came about, without the doubt."""
    return ", ".join(word for word in flag.split(", ") if word not in ("", LOW_CONFIDENCE))


def _networks(config: LocalizerConfig, state: dict[str, torch.Tensor]) -> list[SliceUNet]:
    """Networks from tensors whose names begin with the number of their network."""
    members: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        member, _, own = name.partition(".")
        members.setdefault(int(member), {})[own] = value
    networks = []
    for _, own in sorted(members.items()):
        networks.append(SliceUNet(config))
        networks[-1].load_state_dict(own)
    return networks


def _widest_first(series: tuple[Series, ...]) -> list[Series]:
    """Sort series by the width that their largest stack covers from left to right, then by slices."""

    def coverage(item: Series) -> tuple[float, int]:
        if not item.stacks:
            return (0.0, 0)
        geometry = item.stacks[0].geometry
        return (round(float(np.ptp(geometry.offsets)) / 10), len(geometry))

    return sorted(series, key=coverage, reverse=True)
