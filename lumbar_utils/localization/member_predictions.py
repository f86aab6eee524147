"""Asking the networks, and whether they agree.

Several networks are asked about a scan, each also about the scan's middle slices made smaller and larger: what a disc
is called must not depend on that. Their evidence is averaged. Where some of them would have named the levels
otherwise, the name may deserve less trust: by how much beyond what the average itself says, calibration finds out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from ..devices import cpu_has_bfloat16
from .decoding import PEAK_RADIUS_MM, Chain, ChainPrior
from .network import SliceUNet, log_probability, with_neighbours

SLICES_AT_ONCE = 24
"""Bounds the memory that one series takes; real series have up to 38 slices."""
SCALES = (0.87, 1.15)
SLICES_ASKED_AGAIN = 5


@dataclass(frozen=True, eq=False)
class MemberPrediction:
    """One answer: maps (m, k, h, w) of each level's probability on m slices from `first` on, float32, and (k,) of "not
    in view". A map's pixel covers two by two of the volume's."""

    first: int
    probability: np.ndarray
    absent: np.ndarray


def ask(networks: Sequence[SliceUNet], pixels: np.ndarray, device: torch.device) -> list[MemberPrediction]:
    """What each network says of slices (n, H, W) of about 0..1, of all of them first, then of scaled ones.

    Levels are those of the networks' `config.chain`; h and w are H and W halved and rounded up.
    """
    _, height, width = pixels.shape
    slices = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
    slices = functional.pad(slices, (0, width % 2, 0, height % 2))
    seen = with_neighbours(slices, networks[0].config.neighbours)
    member_predictions = [MemberPrediction(0, *_answer(network, seen, device)) for network in networks]
    shape = member_predictions[0].probability.shape[2:]
    first = _fullest(sum(member_prediction.probability.sum(axis=(1, 2, 3)) for member_prediction in member_predictions))
    around = seen[first : first + SLICES_ASKED_AGAIN]
    for scale in SCALES:
        size = [2 * max(1, round(side * scale / 2)) for side in slices.shape[1:]]
        scaled = functional.interpolate(around, size=size, mode="bilinear", antialias=scale < 1)
        for network in networks:
            part, absent = _answer(network, scaled, device)
            back = functional.interpolate(torch.from_numpy(part), size=shape, mode="bilinear").numpy()
            mass = np.maximum(back.sum(axis=(0, 2, 3)), 1e-12)
            member_predictions.append(MemberPrediction(first, back * ((1 - absent) / mass)[:, None, None], absent))
    return member_predictions


def consensus(member_predictions: Sequence[MemberPrediction]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of member_predictions, of which the first covers all slices: maps (n, k, h, w) and "not in view" (k,)."""
    total = np.zeros_like(member_predictions[0].probability)
    for member_prediction in member_predictions:
        total[member_prediction.first : member_prediction.first + len(member_prediction.probability)] += (
            member_prediction.probability
        )
    return total / len(member_predictions), np.mean(
        [member_prediction.absent for member_prediction in member_predictions], axis=0
    )


def agreement(
    member_predictions: Sequence[MemberPrediction],
    chain: Chain,
    lumbar: slice,
    spacing: tuple[float, float],
    prior: ChainPrior,
) -> float:
    """Share of the member_predictions that would not rather call every disc by its upper or its lower neighbour's name.

    Parameters
    ----------
    chain : Chain
        Decoded from the consensus, all k levels, in pixels of the maps.
    lumbar : slice
        The five levels among them.
    spacing : (float, float)
        mm between rows and columns of the maps.
    """
    rows, columns = (
        np.arange(size) * step for size, step in zip(member_predictions[0].probability.shape[2:], spacing, strict=True)
    )
    disks = [
        np.hypot(rows[:, None] - row * spacing[0], columns - column * spacing[1]) <= PEAK_RADIUS_MM
        for _, row, column in chain.voxels
    ]
    levels = np.arange(len(chain.voxels))
    agreeing = 0
    for member_prediction in member_predictions:
        flat = member_prediction.probability.sum(axis=0)
        evidence = np.log(np.array([flat[:, disk].sum(axis=1) for disk in disks]) + prior.missing)  # (place, level)
        votes = []
        for shift in (0, -1, 1):
            named = levels[lumbar]
            at = named + shift
            named, at = named[(at >= 0) & (at < len(levels))], at[(at >= 0) & (at < len(levels))]
            votes.append(evidence[at, named].mean())
        agreeing += int(np.argmax(votes) == 0)
    return agreeing / len(member_predictions)


def _answer(network: SliceUNet, seen: torch.Tensor, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """One network about slices with their neighbours (n, channels, H, W), H and W even."""
    height, width = seen.shape[2:]
    multiple = network.config.multiple
    # Two multiples at least: the last stage must not get an image of one or two columns, see `thin_layers._widened`.
    beside = max(-width % multiple, 2 * multiple - width)
    padded = functional.pad(seen, (0, beside, 0, -height % multiple))
    half = device.type == "cuda" or (device.type == "cpu" and cpu_has_bfloat16())
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    logits = []
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=half):
        for part in padded.split(SLICES_AT_ONCE):
            part = part.to(device).contiguous(memory_format=torch.channels_last)
            logits.append(network(part).float().cpu())
    voxels, absent = log_probability(torch.cat(logits)[:, :, : height // 2, : width // 2])
    return voxels.exp().numpy(), absent.exp().numpy().reshape(len(network.config.chain))


def _fullest(mass: np.ndarray) -> int:
    """First of the neighbouring slices, as many as are asked again, that hold the most mass (n,)."""
    sums = np.convolve(mass, np.ones(min(SLICES_ASKED_AGAIN, len(mass))), mode="valid")
    return int(sums.argmax())
