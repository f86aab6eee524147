"""A training's state on disk, so that a killed run continues: safetensors only, nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..files import atomically

logger = logging.getLogger(__name__)

FILE = "checkpoint.safetensors"
PARTS = ("average", "model", "optimizer")


@dataclass(frozen=True, eq=False)
class SavedState:
    """A checkpoint in memory: the `state` that was saved with it, and the tensors of its `PARTS`."""

    state: dict
    parts: Mapping[str, Mapping[str, torch.Tensor]]

    def load_into(self, average: torch.nn.Module, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the tensors into the three objects that they were saved from."""
        average.load_state_dict(self.parts["average"])
        model.load_state_dict(self.parts["model"])
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in self.parts["optimizer"].items():
            index, _, key = name.partition(".")
            parameter = parameters[int(index)]
            if tensor.shape == parameter.shape:
                # The fused optimiser walks through memory: moments must lie in it as their (channels-last) weights do.
                tensor = torch.empty_like(parameter).copy_(tensor)
            moments.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


class Checkpoint:
    """The checkpoint of one run folder.

    Parameters
    ----------
    folder : Path
    run : mapping
        JSON-ready description of the run (configuration, studies). A checkpoint of another run is not used.
    """

    def __init__(self, folder: Path, run: Mapping):
        self.path = Path(folder) / FILE
        self.fingerprint = hashlib.sha256(json.dumps(run, sort_keys=True, default=str).encode()).hexdigest()

    def save(
        self,
        average: torch.nn.Module,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        state: Mapping,
    ) -> None:
        """Write everything atomically; `state` is JSON. Raises `DataError` on a full disk, the last one is kept."""
        tensors = {f"average.{k}": v for k, v in average.state_dict().items()}
        tensors |= {f"model.{k}": v for k, v in model.state_dict().items()}
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in values.items()}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        metadata = {"fingerprint": self.fingerprint, "state": json.dumps(state)}
        for half in self.path.parent.glob(f".{self.path.name}.*"):  # of a run that was killed while it wrote this
            half.unlink(missing_ok=True)
        atomically(self.path, lambda temporary: save_file(tensors, temporary, metadata=metadata))

    def read(self) -> SavedState | None:
        """What was saved last; None when there is nothing of this run. What cannot be read is logged."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("fingerprint") != self.fingerprint:
                    logger.warning("%s belongs to another configuration or other studies: starting anew", self.path)
                    return None
                parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in PARTS}
                for name in file.keys():  # noqa: SIM118  (not a dict)
                    part, _, rest = name.partition(".")
                    parts[part][rest] = file.get_tensor(name)
            return SavedState(json.loads(metadata["state"]), parts)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            logger.warning("%s cannot be read (%s): starting anew", self.path, error)
            return None

    def remove(self) -> None:
        """Delete the checkpoint of a finished run."""
        self.path.unlink(missing_ok=True)
