"""Make the networks of the 25 points that ship with the library: phantoms, training, measurement.

    python tools/make_targets.py                           lumbar_utils/weights/shipped_targets
    python tools/make_targets.py --out /tmp/try --bodies 40 --steps 100      a quick try

Bodies are scanned around the spine and cut into crops in memory; each network has a process and a core. No real scan
is read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import joblib
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from lumbar_utils import __version__
from lumbar_utils.crops.extraction import LATERAL_AXIS, CropSpec, extract_crops
from lumbar_utils.crops.synthetic_crops import scan_person
from lumbar_utils.crops.target_points import HEADS, SHIPPED_TARGETS, TargetConfig, find_points, with_position
from lumbar_utils.devices import choose_compute, running_average, warmup_cosine
from lumbar_utils.files import atomically, versions
from lumbar_utils.labels import MIRRORED_CONDITIONS, N_LEVELS
from lumbar_utils.localization import Augmentation
from lumbar_utils.localization.augmentation import _change_intensity
from lumbar_utils.localization.network import SliceUNet
from lumbar_utils.localization.points import chain_tangents, forward_directions
from lumbar_utils.localization.training import localizer_loss
from lumbar_utils.phantom.anatomy import Body
from lumbar_utils.phantom.cohort import COHORT_VERSION
from lumbar_utils.phantom.disease import sample_person

POINT_SD_MM = (3.0, 2.0, 2.5)  # of crops' centres around the canal, LPS: what the localizer leaves to correct
MAX_ASIDE_MM = 18.0  # how far beside the canal they may be, as its points are on sagittal slices of a scoliotic spine
INTENSITY = Augmentation(log_gamma=0.3, blur=0.2, noise=0.04, cut_outs=0.15, bias=0.3)
BATCH, LEARNING_RATE = 8, 3e-3
_STREAM = 61


def main() -> int:
    args = _arguments()
    began = time.monotonic()
    numbers = np.arange(args.bodies + args.held_out)
    with joblib.Parallel(n_jobs=args.jobs) as jobs:
        parts = jobs(joblib.delayed(scan_body)(index, args.seed) for index in numbers)
    print(f"{len(numbers)} bodies in {time.monotonic() - began:.0f} s", flush=True)
    known, unseen = (
        {view: [np.concatenate(x) for x in zip(*(p[view] for p in some), strict=True)] for view in HEADS}
        for some in (parts[: args.bodies], parts[args.bodies :])
    )
    del parts
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    networks = [SliceUNet(TargetConfig(view)) for view in HEADS]
    # Threads, as they share the crops; nearly all of the time is spent in torch.
    networks = joblib.Parallel(n_jobs=args.jobs, prefer="threads")(
        joblib.delayed(train)(network, *known[network.config.view], steps=args.steps, seed=args.seed)
        for network in networks
    )
    measured = {network.config.view: measure(network, *unseen[network.config.view]) for network in networks}
    command = f"python tools/make_targets.py --bodies {args.bodies} --steps {args.steps} --seed {args.seed}"
    made = {
        "command": f"{command} --held-out {args.held_out}",
        "data": "synthetic phantoms only; no scan of a person was used",
        "phantom_version": COHORT_VERSION,
        "seconds": round(time.monotonic() - began),
        "median_mm_on_crops_of_held_out_bodies": measured,
        "versions": {"lumbar_utils": __version__, **versions()},
    }
    save(Path(args.out), networks, mean_offsets(numbers[: args.bodies], args.seed), made)
    print(json.dumps(made, indent=1))
    return 0


def save(out: Path, networks: list[SliceUNet], offsets: np.ndarray, made: dict) -> None:
    """Write weights in half precision, and beside them what the networks are and how they were made."""
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "networks": [asdict(network.config) for network in networks],
        "offsets_mm": np.round(offsets, 2).tolist(),
        "made": made,
    }
    (out / "config.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    state = nn.ModuleDict({network.config.view: network for network in networks}).state_dict()
    state = {name: (v.half() if v.is_floating_point() else v).contiguous() for name, v in state.items()}
    atomically(out / "model.safetensors", lambda path: save_file(state, path))


def body_of(index: int, seed: int) -> Body:
    """The same person for the same number: of four one is randomised, and one has a scoliosis of up to 50 degrees."""
    person = sample_person(int(index), 1000 * (seed + 1) + 7, randomise=index % 4 == 1)
    if index % 4 == 3:
        rng = np.random.default_rng([seed, index, _STREAM])
        degrees = rng.uniform(-50, 50)
        person = replace(person, scoliosis_degrees=degrees, rotation_degrees=degrees * rng.uniform(0.2, 0.9))
    return Body(person)


def scan_body(index: int, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each view crops (n, D, H, W) and the true voxels of its points on them (n, heads, 3)."""
    body, rng = body_of(index, seed), np.random.default_rng([seed, index, _STREAM])
    study, discs = scan_person(body, rng, tuple(HEADS))
    aside = rng.uniform(-MAX_ASIDE_MM, MAX_ASIDE_MM) if rng.random() < 0.3 else 0.0
    points = body.truth.canal + rng.normal(0, POINT_SD_MM, (N_LEVELS, 3)) + np.array([aside, 0, 0])
    crops = extract_crops(study, replace(discs, points=points))
    made = {}
    for view, heads in HEADS.items():
        seen = np.flatnonzero(crops.covered[view].any(axis=(1, 2, 3)))
        truth = [crops.grid(view, level).world_to_voxel(body.truth.places[list(heads), level]) for level in seen]
        made[view] = crops.images[view][seen], np.reshape(truth, (len(seen), len(heads), 3))
    return made


def mean_offsets(bodies: np.ndarray, seed: int) -> np.ndarray:
    """Where foramina and recesses of ordinary people lie from the canal (4, 5, 3): mm to the left, to the front, down;
    the mean of both sides."""
    found = []
    for index in bodies[bodies % 2 == 0]:
        truth = body_of(index, seed).truth
        tangents = chain_tangents(truth.canal)
        ahead = forward_directions(tangents)
        frames = np.stack([np.cross(ahead, tangents), ahead, tangents], axis=1)
        found.append(np.einsum("clx,ldx->cld", truth.places[1:] - truth.canal, frames))
    mean = np.mean(found, axis=0)
    return (mean + mean[[1, 0, 3, 2]] * [-1, 1, 1]) / 2


def train(network: SliceUNet, images: np.ndarray, voxels: np.ndarray, *, steps: int, seed: int) -> SliceUNet:
    """Train a network on crops (n, D, H, W) with the voxels (n, heads, 3) of its points; the mean of its weights."""
    config, rng = network.config, np.random.default_rng(seed)
    network = network.to(memory_format=torch.channels_last).train()
    average = AveragedModel(network, multi_avg_fn=running_average(0.995), use_buffers=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    compute, losses, began = choose_compute("cpu"), [], time.monotonic()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * warmup_cosine(step / steps, 0.08, 0.02, 0.0)
        chosen = rng.integers(len(images), size=BATCH)
        drawn = [augmented(images[i], voxels[i], config, rng) for i in chosen]
        volume, target = map(torch.stack, zip(*drawn, strict=True))
        absent = (1 - target.sum(dim=(1, 3, 4))).clamp(0, 1)
        with compute.autocast():
            logits = network(with_position(volume, config.neighbours).contiguous(memory_format=torch.channels_last))
        loss = localizer_loss(logits.float().unflatten(0, volume.shape[:2]), target, absent, torch.ones_like(absent))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimiser.step()
        average.update_parameters(network)
        losses.append(float(loss.detach()))
        if step % 100 == 99:
            print(
                f"{config.view}: step {step + 1}, loss {np.mean(losses[-100:]):.3f}, {time.monotonic() - began:.0f} s",
                flush=True,
            )
    return average.module.eval()


def augmented(
    image: np.ndarray, voxels: np.ndarray, config: TargetConfig, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A crop (D, H, W), mirrored, turned, moved, scaled, in other grey values, and its target (D, heads, H/2, W/2)."""
    heads, shape = HEADS[config.view], np.array(image.shape)
    spacing = np.array(CropSpec().extents[config.view]) / shape
    volume, points = torch.from_numpy(image).float(), (voxels - (shape - 1) / 2) * spacing
    if rng.random() < 0.5:
        axis = LATERAL_AXIS[config.view]
        volume, points = volume.flip(axis), points * np.where(np.arange(3) == axis, -1, 1)
        points = points[[heads.index(MIRRORED_CONDITIONS[condition]) for condition in heads]]
    angle, scale = np.radians(rng.normal(0, 6)), np.exp(rng.normal(0, 0.1))
    move = np.eye(3)
    move[0, 0] = np.exp(rng.normal(0, 0.08))
    move[1:, 1:] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = rng.normal(0, (2.5, 2.5, 2.5)) * (1 if rng.random() < 0.85 else 2.5)
    points = points @ move.T + shift
    # grid_sample counts from -1 to 1 over the whole box, the last axis first.
    back, half = np.linalg.inv(move), shape * spacing / 2
    theta = np.concatenate([back / half[:, None] * half, -(back @ shift / half)[:, None]], axis=1)
    theta = theta[::-1, [2, 1, 0, 3]].copy()
    grid = functional.affine_grid(torch.from_numpy(theta).float()[None], [1, 1, *image.shape], align_corners=False)
    both = functional.grid_sample(torch.stack([volume, (volume != 0).float()])[None], grid, align_corners=False)[0]
    covered = (both[1] > 0.5).float()
    volume = _change_intensity(both[0], INTENSITY, rng) * covered
    mass = []
    for axis, (n, step) in enumerate(zip(shape, (1, 2, 2), strict=True)):
        mm = (np.arange(n // step) * step + (step - 1) / 2 - (n - 1) / 2) * spacing[axis]
        away = (mm - points[:, axis, None]) / config.sigma_mm
        mass.append(np.exp(-0.5 * away**2) * step * spacing[axis] / (np.sqrt(2 * np.pi) * config.sigma_mm))
    target = torch.from_numpy(np.einsum("kd,kh,kw->dkhw", *mass)).float() * covered[:, None, ::2, ::2]
    return volume, target / target.sum(dim=(0, 2, 3), keepdim=True).clamp_min(1)


def measure(network: SliceUNet, images: np.ndarray, voxels: np.ndarray) -> dict[str, float]:
    """Median distance in mm, and that through the slices, of each point on crops."""
    extent = CropSpec().extents[network.config.view]
    found = np.concatenate(
        [
            find_points(network, torch.from_numpy(images[i : i + 40]).float(), extent)[0]
            for i in range(0, len(images), 40)
        ]
    )
    error = (found - voxels) * np.array(extent) / images.shape[1:]
    inside = np.all((voxels > 0) & (voxels < np.array(images.shape[1:]) - 1), axis=2)
    return {
        name: [round(float(np.median(np.linalg.norm(e, axis=1))), 2), round(float(np.median(np.abs(e[:, 0]))), 2)]
        for name, e in ((name, error[inside[:, k], k]) for k, name in enumerate(network.config.chain))
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(SHIPPED_TARGETS), help="folder for the weights")
    parser.add_argument("--bodies", type=int, default=800, help="to train on (default %(default)s)")
    parser.add_argument("--held-out", type=int, default=60, help="to measure on (default %(default)s)")
    parser.add_argument("--steps", type=int, default=2400, help="of each network's training (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=min(2, joblib.cpu_count()), help="processes")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
