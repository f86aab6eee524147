"""How unlike its training data a network finds a study, with an alarm that few of the phantoms set off.

The encoders' features of the training studies are taken as normally distributed, in each view: along the main
components with their own variances, in all other directions with one (probabilistic PCA; Tipping and Bishop 1999,
doi 10.1111/1467-9868.00196). A study's distance in a view is the geometric mean, over its levels, of the squared
Mahalanobis distance, so that one odd level counts little; its score is the largest over the views, relative to limits
which the share `FALSE_ALARMS` of unseen phantoms exceed.

This tells other contrasts, noise and wrong views; features do not tell an image from the same one upside down.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..crops.extraction import StudyCrops
from ..devices import Compute, choose_compute
from ..errors import DataError
from ..files import atomically
from ..labels import VIEWS
from .classifier import LumbarClassifier
from .ensemble import member_folders
from .inputs import batch_of, study_input
from .run_folder import WEIGHTS, load_model

logger = logging.getLogger(__name__)

ARRAYS = ("means", "components", "variances", "limits")
FILE = "typicality.safetensors"
FALSE_ALARMS = 0.01
COMPONENTS = 32
MIN_STUDIES = 20
"""To fit, and to set the limit; one in a hundred is known from some hundreds."""
BATCH = 8


class Typicality(nn.Module):
    """Means (3, F), components (3, F, K), variances (3, K + 1), the last of the rest, and limits (3,), by view."""

    def __init__(self, means: torch.Tensor, components: torch.Tensor, variances: torch.Tensor, limits: torch.Tensor):
        super().__init__()
        for name, value in zip(ARRAYS, (means, components, variances, limits), strict=True):
            self.register_buffer(name, value.float(), persistent=False)  # not among the network's own weights

    def distances(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        """Of studies (B, 3) from features (B, 5, sides, F) of each view; 0 of a view that is not there at all."""
        found = []
        for i, own in enumerate(features):
            x = own.float() - self.means[i]
            along = (x @ self.components[i]).square()
            rest = (x.square().sum(-1) - along.sum(-1)).clamp(min=0) / self.variances[i, -1]
            levels = ((along / self.variances[i, :-1]).sum(-1) + rest).mean(-1).clamp(min=1e-6).log()
            there = present[:, i].sum(-1)
            mean = torch.where(present[:, i], levels, 0).sum(-1) / there.clamp(min=1)
            found.append(torch.where(there > 0, mean.exp(), 0))
        return torch.stack(found, dim=1)

    def forward(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        """Scores of studies (B,); above 1 is the alarm."""
        with torch.autocast(present.device.type, enabled=False):
            return (self.distances(features, present) / self.limits).amax(dim=1)


def read_typicality(folder: Path) -> Typicality | None:
    """What `fit_typicality` left in a run's folder; None where it left nothing for these weights.

    Raises `DataError` when the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("weights") != _digest(folder):
                logger.warning("%s belongs to other weights and is not used", path)
                return None
            return Typicality(*(file.get_tensor(name) for name in ARRAYS))
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: cannot be used ({error})") from error


def fit_typicality(
    run: Path | str, crops: Mapping[str, StudyCrops], unseen: Mapping[str, StudyCrops], *, device: str = "auto"
) -> dict[str, np.ndarray]:
    """Fit the score on studies that a run, or each member of an ensemble, was trained on, and set its limit on others.

    It is written into the run's folder, from where `Predictor` reads it. Returns the scores of the unseen studies, by
    member. Raises `DataError` with fewer than `MIN_STUDIES` of either, or with a view that none of them shows.
    """
    if min(len(crops), len(unseen)) < MIN_STUDIES or set(crops) & set(unseen):
        raise DataError(
            f"typicality needs {MIN_STUDIES} training studies and as many others, got {len(crops)} and {len(unseen)}, "
            f"{len(set(crops) & set(unseen))} of them in both"
        )
    compute, scores = choose_compute(device), {}
    for folder in member_folders(run):
        network = load_model(folder)[0].to(compute.device)
        typicality = _fitted(*_features(network, crops, compute))
        features, present = _features(network, unseen, compute)
        typicality.limits.copy_(_limits(typicality.distances(features, present)))
        tensors = {name: value.contiguous() for name, value in typicality.named_buffers()}
        tensors["components"] = tensors["components"].half()
        about = {"weights": _digest(folder), "false_alarms": str(FALSE_ALARMS), "studies": str(len(unseen))}
        atomically(folder / FILE, lambda part, t=tensors, a=about: save_file(t, part, metadata=a))
        scores[folder.name] = typicality(features, present).numpy()
    return scores


def _fitted(features: list[torch.Tensor], present: torch.Tensor) -> Typicality:
    """Without limits yet."""
    means, components, variances = [], [], []
    for i, view in enumerate(VIEWS):
        x = features[i][present[:, i]].flatten(0, 1).double()
        k = min(COMPONENTS, x.shape[1] - 1)
        if len(x) <= k:
            raise DataError(f"too few studies show the {view}: {len(x)} crops, expected more than {k}")
        means.append(x.mean(0))
        values, vectors = torch.linalg.eigh(torch.cov(x.T))
        components.append(vectors[:, -k:])
        rest = values[:-k].mean(0, keepdim=True)
        variances.append(torch.cat([values[-k:], rest]).clamp(min=1e-6 * values[-1]))
    # Rounded as on disk.
    return Typicality(
        torch.stack(means), torch.stack(components).half(), torch.stack(variances), torch.ones(len(VIEWS))
    )


def _limits(distances: torch.Tensor) -> torch.Tensor:
    """Limits (3,) which the share `FALSE_ALARMS` of further studies like these (n, 3) exceed in any view.

    The views are made comparable by what is usual in each; their tails alone would count every view's rarest study. The
    rank is that of split conformal prediction; below 99 studies it is the largest, and the share one in n + 1.
    """
    usual = distances.quantile(0.5, dim=0).clamp(min=1e-6)
    scores = (distances / usual).amax(dim=1).sort().values
    rank = min(len(scores), math.ceil((1 - FALSE_ALARMS) * (len(scores) + 1)))
    return usual * scores[rank - 1]


@torch.inference_mode()
def _features(
    network: LumbarClassifier, crops: Mapping[str, StudyCrops], compute: Compute
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Features (n, 5, sides, F) of each view, on the CPU, and which crops are there, (n, 3, 5)."""
    ids, found, present = list(crops), [], []
    for start in range(0, len(ids), BATCH):
        batch = batch_of(study_input(crops[study_id]) for study_id in ids[start : start + BATCH])
        with compute.autocast():
            images = {view: image.to(compute.device) for view, image in batch["images"].items()}
            found.append([x.cpu().float() for x in network.encode(images, batch["present"].to(compute.device))])
        present.append(batch["present"])
    return [torch.cat(of_view) for of_view in zip(*found, strict=True)], torch.cat(present)


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
