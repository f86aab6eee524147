"""A training's state on disk, so that a killed run continues: safetensors only, nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..devices import check_finite
from ..errors import DataError
from ..files import atomically, lock_folder, remove_leftovers
from .distributed import Processes

logger = logging.getLogger(__name__)

FILE = "checkpoint.safetensors"


@contextmanager
def only_training(folder: Path, processes: Processes | None = None) -> Iterator[None]:
    """Keep other trainings out of a run folder, and remove what a killed one left half written in it.

    Raises `DataError`, in all processes of this training, when another one has the folder.
    """
    processes = processes or Processes()
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder) if processes.first else nullcontext() as held:
        if processes.agree(held) is False:
            raise DataError(f"{folder}: another training is under way there; wait for its end, or name another folder")
        if held:
            remove_leftovers(folder)
        yield


class Checkpoint:
    """The checkpoint of one run folder; one of another `run`, a JSON-ready description, is not used."""

    def __init__(self, folder: Path, run: Mapping):
        self.path = Path(folder) / FILE
        self.fingerprint = hashlib.sha256(json.dumps(run, sort_keys=True, default=str).encode()).hexdigest()

    def save(self, parts: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping) -> None:
        """Write named groups of tensors and a JSON-ready state; on a full disk the last checkpoint is kept."""
        tensors = {
            f"{part}.{name}": tensor.detach().cpu().contiguous()
            for part, group in parts.items()
            for name, tensor in group.items()
        }
        check_finite(tensors, self.path)
        metadata = {"fingerprint": self.fingerprint, "state": json.dumps(state)}
        atomically(self.path, lambda temporary: save_file(tensors, temporary, metadata=metadata))

    def read(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict] | None:
        """The tensors and the state of the last `save`; None without any of this run. What cannot be read is logged."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("fingerprint") != self.fingerprint:
                    logger.warning("%s belongs to another configuration or other studies: starting anew", self.path)
                    return None
                parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
                for key in file.keys():  # noqa: SIM118  (not a dict)
                    part, _, name = key.partition(".")
                    parts[part][name] = file.get_tensor(key)
                check_finite(parts["model"] | parts["average"], self.path)
            return parts, json.loads(metadata["state"])
        except (DataError, SafetensorError, OSError, KeyError, ValueError) as error:
            logger.warning("%s cannot be read (%s): starting anew", self.path, error)
            return None

    def remove(self) -> None:
        """Delete the checkpoint of a finished run."""
        self.path.unlink(missing_ok=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What an optimiser keeps of each parameter, by the parameter's number and its own name: `0.exp_avg`."""
    kept = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(value) for i, values in kept.items() for name, value in values.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        if tensor.shape == parameter.shape:
            # The fused optimiser walks through memory: moments must lie in it as their (channels-last) weights do.
            tensor = torch.empty_like(parameter).copy_(tensor)
        state[int(number)][name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
