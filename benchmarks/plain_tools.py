"""The same job with the tools that people put together today, for `throughput.py`: same files, same boxes.

Both do less than the library does: a series is one pile of parallel slices here, though an axial one may hold several;
nothing is checked, nothing is smoothed before it is sampled more coarsely, nothing marks what the scan does not cover.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK
import timm_3d
import torch
from scipy import ndimage
from torch import nn

from lumbar_utils.crops.extraction import CropSpec
from lumbar_utils.labels import N_LEVELS, VIEWS


def series_folders(study: Path, views: dict[str, str]) -> dict[str, Path]:
    """One series folder a view, the first that the table lists."""
    folders: dict[str, Path] = {}
    for series_id, view in views.items():
        if view in VIEWS and (study / series_id).is_dir():
            folders.setdefault(view, study / series_id)
    return folders


class PydicomAndScipy:
    """`pydicom.dcmread`, sorted by position, `scipy.ndimage.zoom` of the whole series to the crops' spacing, slices."""

    name = "pydicom + scipy zoom"

    @staticmethod
    def read(folder: Path) -> tuple:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            headers = [pydicom.dcmread(path) for path in folder.glob("*.dcm")]
            row, column = np.reshape(np.array(headers[0].ImageOrientationPatient, float), (2, 3))
            normal = np.cross(row, column)
            headers.sort(key=lambda header: np.array(header.ImagePositionPatient, float) @ normal)
            volume = np.stack([header.pixel_array.astype(np.float32) for header in headers])
        first, last = (np.array(headers[i].ImagePositionPatient, float) for i in (0, -1))
        step = float((last - first) @ normal) / max(len(headers) - 1, 1) or 1.0
        spacing = np.array([step, *map(float, headers[0].PixelSpacing)])
        return volume, first, np.stack([normal, column, row]), spacing

    @staticmethod
    def crop(scan: tuple, view: str, points: np.ndarray, spec: CropSpec) -> np.ndarray:
        volume, origin, axes, spacing = scan
        shape, extent = np.array(spec.shapes[view]), np.array(spec.extents[view])
        wanted = extent / shape  # through-plane, down, across in each of the three views, as slices, rows and columns
        zoomed = ndimage.zoom(volume, spacing / wanted, order=1)
        boxes = np.zeros((N_LEVELS, *shape), dtype=np.float32)
        for level, point in enumerate(points):
            middle = (axes @ (point - origin)) / wanted
            low = np.round(middle - shape / 2).astype(int)
            inside = np.maximum(low, 0), np.minimum(low + shape, zoomed.shape)
            if (inside[1] > inside[0]).all():
                part = zoomed[tuple(slice(a, b) for a, b in zip(*inside, strict=True))]
                target = tuple(slice(a, b) for a, b in zip(inside[0] - low, inside[1] - low, strict=True))
                boxes[level][target] = part
        return boxes


class Itk:
    """SimpleITK: `ImageSeriesReader`, then one linear `Resample` a box."""

    name = "SimpleITK"

    @staticmethod
    def read(folder: Path) -> SimpleITK.Image:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        reader.SetOutputPixelType(SimpleITK.sitkFloat32)
        return reader.Execute()

    @staticmethod
    def crop(image: SimpleITK.Image, view: str, points: np.ndarray, spec: CropSpec) -> np.ndarray:
        shape, extent = np.array(spec.shapes[view]), np.array(spec.extents[view])
        spacing = (extent / shape)[::-1]
        direction = np.array(image.GetDirection()).reshape(3, 3)  # its columns: across, down, through
        boxes = []
        for point in points:
            box = SimpleITK.Image([int(n) for n in shape[::-1]], SimpleITK.sitkFloat32)
            box.SetSpacing(spacing.tolist())
            box.SetDirection(direction.ravel().tolist())
            box.SetOrigin((point - direction @ (spacing * (shape[::-1] - 1) / 2)).tolist())
            boxes.append(SimpleITK.GetArrayFromImage(SimpleITK.Resample(image, box)))
        return np.stack(boxes)


class PlainClassifier(nn.Module):
    """Three 3D ResNet18 of timm-3d as they come, on stacks resampled to at least 8 slices, and one linear layer."""

    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleList(
            timm_3d.create_model("resnet18", in_chans=1, num_classes=0, pretrained=False) for _ in VIEWS
        )
        self.head = nn.Linear(512 * 3 * N_LEVELS, 75)

    def forward(self, images: dict[str, torch.Tensor]) -> torch.Tensor:
        """dict view -> (B, 5, D, H, W) to probabilities (B, 25, 3)."""
        features = []
        for view, encoder in zip(VIEWS, self.encoders, strict=True):
            stacks = images[view].flatten(0, 1)[:, None]
            features.append(encoder(stacks.permute(0, 1, 3, 4, 2)).unflatten(0, (-1, N_LEVELS)).flatten(1))
        return self.head(torch.cat(features, dim=1)).unflatten(1, (25, 3)).softmax(-1)
