"""The classifier: per disc three stacks, each through its own encoder, joined into 25 targets x 3 classes.

`ClassifierConfig.source()` is the baseline that the method starts from: three 3D ResNet18 and one linear layer over
everything. Encoders are 3D or 2.5D (`encoders`), heads `unified` or `per_level` (`heads`). With `split_sides`, the
`per_level` head reads every side with the same weights: axial T2 and sagittal T1 are cut at the mid-line and the left
part is mirrored, so that the encoder always sees one side, lateral to medial. One study is then ten half-discs to train
on instead of five discs, and left and right cannot be confused.

Slices go on the encoders' last axis. A missing view has a learned embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np
import torch
from torch import nn

from ..crops.extraction import LATERAL_AXIS
from ..devices import Compute
from ..errors import DataError
from ..labels import AXIAL_T2, N_LEVELS, N_SEVERITIES, N_TARGETS, SAGITTAL_T1, VIEWS
from ..metrics.score import uniform
from .encoders import FAMILIES, SLICE_POOLINGS, build_encoder
from .heads import PerLevelHead, Readout, UnifiedHead
from .inputs import StudyInput, batch_of, mirror_images, mirror_probabilities

HEADS = ("per_level", "unified")
SPLIT_VIEWS = (AXIAL_T2, SAGITTAL_T1)
"""Views that show both sides of the body well enough to be cut at the mid-line; sagittal T2 is used for the canal."""
ENCODER_OF_VIEW = {"none": (0, 1, 2), "sagittal": (0, 1, 0), "all": (0, 0, 0)}
"""Which encoder reads which of `labels.VIEWS`, by `share_encoder`."""


@dataclass(frozen=True)
class ClassifierConfig:
    """The network's design; saved as JSON with the weights.

    Parameters
    ----------
    encoder : str
        A timm-3d model for `3d`, a timm model for the others; `resnet18` is the baseline's. In 3D,
        ResNets, DenseNets and `efficientnet_b0` to `b7` read 8 slices, ConvNeXts need 32.
    family : {"3d", "2.5d", "2d"}
        `2.5d` runs a 2D network over every slice with its two neighbours as channels, `2d` over the whole stack with
        its slices as channels.
    slice_pooling : {"average", "attention", "recurrent"}
        How the slices become one. For `3d` these are the positions that the network leaves along the slices: one
        of 8 with the original strides, where every pooling is the average; see `keep_slices`.
    keep_slices : bool
        Stages 2 to 4 of a 3D ResNet do not stride along the slices. The stem and its pooling have their own strides.
    share_encoder : {"none", "sagittal", "all"}
        Which views are read by one encoder: each has its own, T2 and T1 share theirs, or all three.
    head : {"per_level", "unified"}
    split_sides : bool
        Only for `per_level`, see the module's text.
    axial_overlap : float
        How far an axial half reaches over the mid-line, as a fraction of the box, up to 1/2: 12 mm of 70 hold the
        whole canal, and at 1/2 either side is seen with the other one behind it.
    width : int
        Width of the `per_level` head.
    dropout : float
        On the concatenated features.
    view_dropout : float
        Probability, in training, that a study's view is replaced by its missing-view embedding; one of those that are
        there stays.
    auxiliary : bool
        One small head per view, which is trained to predict from that view alone.
    stem_depth_stride, pool_depth_stride : int
        Strides along the slices in the first convolution and the first pooling, 1 or 2; 3D ResNets only.
    pretrained : str, optional
        Local file with 2D weights of the encoder (inflated for `3d`, which takes 3D ones too) under timm's names,
        safetensors or a torch state dict; all three views start from it.
    """

    encoder: str = "resnet18"
    family: str = "3d"
    slice_pooling: str = "average"
    keep_slices: bool = False
    share_encoder: str = "none"
    head: str = "per_level"
    split_sides: bool = True
    axial_overlap: float = 1 / 6
    width: int = 256
    dropout: float = 0.2
    view_dropout: float = 0.1
    auxiliary: bool = True
    stem_depth_stride: int = 2
    pool_depth_stride: int = 2
    pretrained: str | None = None

    def __post_init__(self):
        known_values = {"family": FAMILIES, "slice_pooling": SLICE_POOLINGS, "share_encoder": tuple(ENCODER_OF_VIEW)}
        for name, known in (known_values | {"head": HEADS}).items():
            if getattr(self, name) not in known:
                raise DataError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        for name in ("stem_depth_stride", "pool_depth_stride"):
            if getattr(self, name) not in (1, 2):
                raise DataError(f"{name} must be 1 or 2, got {getattr(self, name)}")
        if self.family != "3d" and (self.keep_slices or (self.stem_depth_stride, self.pool_depth_stride) != (2, 2)):
            raise DataError(
                "keep_slices, stem_depth_stride and pool_depth_stride are for family '3d'; "
                f"{self.family!r} keeps every slice anyway"
            )
        if not 0 <= self.axial_overlap <= 0.5:
            raise DataError(f"axial_overlap must lie in [0, 1/2], got {self.axial_overlap}")
        for name in ("dropout", "view_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise DataError(f"{name} must lie in [0, 1), got {getattr(self, name)}")

    @classmethod
    def source(cls) -> ClassifierConfig:
        """The baseline of every table: 3D ResNet18, one linear layer, nothing else."""
        return cls(head="unified", split_sides=False, dropout=0.0, view_dropout=0.0, auxiliary=False)

    @property
    def sides(self) -> bool:
        """Whether views are cut at the mid-line."""
        return self.split_sides and self.head == "per_level"

    def to_json(self) -> dict:
        """A JSON-ready dictionary."""
        return asdict(self)


class LumbarClassifier(nn.Module):
    """Three encoders and a head.

    Parameters
    ----------
    config : ClassifierConfig
    prior : array_like, shape (25, 3), optional
        Class probabilities that the untrained network predicts: biases start at their logarithm.

    Raises
    ------
    DataError
        When the encoder is unknown or cannot read such crops, or its weights file is absent or does not fit.
    """

    def __init__(self, config: ClassifierConfig | None = None, prior: np.ndarray | None = None):
        super().__init__()
        self.config = config = config or ClassifierConfig()
        options = {name: getattr(config, name) for name in ("family", "slice_pooling", "keep_slices", "pretrained")}
        strides = (config.stem_depth_stride, config.pool_depth_stride)
        n_encoders = 1 + max(ENCODER_OF_VIEW[config.share_encoder])
        encoders = [build_encoder(config.encoder, depth_strides=strides, **options) for _ in range(n_encoders)]
        self.encoders = nn.ModuleList(encoders)
        features = int(self.encoders[0].num_features)
        self.missing_view_embeddings = nn.Parameter(torch.zeros(len(VIEWS), features))
        if config.head == "per_level":
            self.head = PerLevelHead(features, sided=config.sides, width=config.width, dropout=config.dropout)
        else:
            self.head = UnifiedHead(features, dropout=config.dropout)
        own_heads = VIEWS if config.auxiliary else ()
        self.auxiliary = nn.ModuleList([Readout(features, self._sides(view)) for view in own_heads])
        prior = uniform() if prior is None else np.asarray(prior)
        bias = torch.as_tensor(np.log(np.clip(prior, 1e-6, 1)), dtype=torch.float32)
        self.bias = nn.Parameter(bias.clone())
        self.auxiliary_bias = nn.Parameter(bias.expand(len(self.auxiliary), -1, -1).clone())
        self.typicality: nn.Module | None = None  # see `typicality`, which sets it

    def forward(self, images: Mapping[str, torch.Tensor], present: torch.Tensor) -> dict:
        """A dict with `logits` (B, 25, 3) and `aux`, a dict view -> (B, 25, 3), empty without auxiliary heads; of a
        network that has a `typicality` also `unlike` (B,), how unlike its training data the studies are.

        `images` are tensors (B, 5, D, H, W) by view, as made by `inputs.study_input`; `present`, bool (B, 3) or
        (B, 3, 5), says which view, in the order of `labels.VIEWS`, is there, for the study or for each level.
        """
        present = present if present.ndim == 3 else present[..., None].expand(-1, -1, N_LEVELS)
        if self.training and self.config.view_dropout:
            present = self._drop_views(present)
        features = self.encode(images, present)
        logits = self.head(features).float() + self.bias
        aux = {
            view: self.auxiliary[i](features[i]).float() + self.auxiliary_bias[i]
            for i, view in enumerate(VIEWS[: len(self.auxiliary)])
        }
        unlike = {} if self.typicality is None else {"unlike": self.typicality(features, present)}
        return {"logits": logits, "aux": aux, **unlike}

    def encode(self, images: Mapping[str, torch.Tensor], present: torch.Tensor) -> list[torch.Tensor]:
        """Features of each view, (B, 5, sides, F); `present` (B, 3, 5)."""
        return [self._encode(i, images[view], present[:, i]) for i, view in enumerate(VIEWS)]

    def _sides(self, view: str) -> int:
        return 2 if self.config.sides and view in SPLIT_VIEWS else 1

    def _encode(self, i: int, image: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Features of one view, (B, 5, sides, F); a crop that is not there gets the missing-view embedding."""
        view = VIEWS[i]
        if image.shape[1] != N_LEVELS or image.ndim != 5:
            raise DataError(f"{view}: crops must have shape (B, {N_LEVELS}, D, H, W), got {tuple(image.shape)}")
        sides = self._sides(view)
        result = self.missing_view_embeddings[i].expand(*present.shape, sides, -1)
        if not bool(present.any()):
            return result
        stacks = image[present]
        if sides == 2:
            overlap = self.config.axial_overlap if view == AXIAL_T2 else 0.0
            stacks = torch.stack(split_sides(stacks, view, overlap), dim=1).flatten(0, 1)
        encoder = self.encoders[ENCODER_OF_VIEW[self.config.share_encoder][i]]
        encoded = self._read(encoder, stacks.permute(0, 2, 3, 1)[:, None], view)
        result = result.to(encoded.dtype).clone()
        result[present] = encoded.reshape(-1, sides, encoded.shape[-1])
        return result

    def _read(self, encoder: nn.Module, stacks: torch.Tensor, view: str) -> torch.Tensor:
        try:
            return encoder(stacks)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:
            # Networks halve their input until nothing is left of it, or insist on one size, with messages of their own.
            height, width, depth = stacks.shape[2:]
            raise DataError(
                f"{view}: the {self.config.family} encoder {self.config.encoder!r} failed on {depth} slices of "
                f"{height} x {width} pixels ({error}); if it needs larger crops, change `CropSpec` or take resnet18"
            ) from error

    def _drop_views(self, present: torch.Tensor) -> torch.Tensor:
        # Drawn on the CPU so that a seed means the same on every device.
        kept = (torch.rand(present.shape[:2]) >= self.config.view_dropout).to(present.device)[..., None] & present
        nothing = ~kept.flatten(1).any(dim=1)
        # A study that has lost all views keeps one of them.
        draw = torch.rand(present.shape[:2]).to(present.device) + present.any(dim=-1)
        one = nn.functional.one_hot(draw.argmax(dim=1), len(VIEWS)).bool()[..., None] & present
        return torch.where(nothing[:, None, None], one, kept)


@torch.inference_mode()
def predict_probabilities(
    model: LumbarClassifier,
    inputs: Iterable[StudyInput],
    compute: Compute,
    *,
    batch_size: int = 8,
    mirror: bool = False,
    unlike: np.ndarray | None = None,
) -> np.ndarray:
    """Class probabilities of studies, float64 (n, 25, 3), rows summing to one.

    The model must lie on the device of `compute`; `mirror` averages with the predictions of the mirrored studies. A
    model that has a `typicality` fills `unlike` (n,).
    """
    model.eval()
    results, remaining, done = [], iter(inputs), 0
    while chunk := list(islice(remaining, batch_size)):
        batch = batch_of(chunk)
        images = {view: image.to(compute.device) for view, image in batch["images"].items()}
        present = batch["present"].to(compute.device)
        with compute.autocast():
            output = model(images, present)
            logits = [output["logits"]]
            if mirror:
                logits.append(mirror_probabilities(model(mirror_images(images), present)["logits"]))
        # float64 on the CPU: Apple's GPUs have none.
        p = torch.stack(logits).cpu().double().softmax(-1).mean(0)
        results.append(p.numpy())
        if unlike is not None and "unlike" in output:
            unlike[done : done + len(chunk)] = output["unlike"].cpu()
        done += len(chunk)
    return np.concatenate(results) if results else np.zeros((0, N_TARGETS, N_SEVERITIES))


def split_sides(stacks: torch.Tensor, view: str, overlap: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut crops (N, D, H, W) at the mid-line into the patient's right and left, both running lateral to medial; each
    reaches over it by `overlap`, a fraction of the length."""
    axis = LATERAL_AXIS[view] - 3
    length = stacks.shape[axis]
    half = min(length, int(np.ceil(length * (0.5 + overlap) - 1e-9)))
    return stacks.narrow(axis, 0, half), stacks.narrow(axis, length - half, half).flip(axis)
