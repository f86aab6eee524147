"""Which localizer is used: opening one, where it comes from, and sending it to worker processes by its files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .. import __version__
from .localizer import SHIPPED_WEIGHTS, DiscLocalizer

logger = logging.getLogger(__name__)

TRAINING_DATA = {"synthetic": "synthetic phantoms", "competition": "the competition's points"}


def open_localizer(folder: Path | str | None = None, *, device: str = "cpu") -> DiscLocalizer:
    """The localizer in a folder; None for the one that ships with the library.

    Raises `DataError` when the folder holds none, or the library was installed without its weights.
    """
    return DiscLocalizer.shipped(device=device) if folder is None else DiscLocalizer.load(folder, device=device)


def localizer_origin(localizer: DiscLocalizer, folder: Path | str | None = None) -> str:
    """One line for the user: which localizer was opened from `folder`, and what it was trained on."""
    # Of a fine-tuned one all data in order: "synthetic, competition".
    names = localizer.config.trained_on.split(", ")
    data = ", then ".join(TRAINING_DATA.get(name, name or "unknown data") for name in names)
    where = f"shipped with lumbar_utils {__version__}" if folder is None else str(folder)
    return f"localizer: {where} (trained on {data})"


def warn_of_studies_learnt_from(localizer: DiscLocalizer, held_out: Sequence[str]) -> None:
    """Log a warning when a localizer was trained on studies that are now held out for validation."""
    seen = set(localizer.made.get("studies", ())) & set(held_out)
    if seen:
        logger.warning(
            "the localizer was trained on %d of the %d held-out studies, so their crops, and the score on them, are "
            "better than they would be on new studies: train it with the same fold and seed, or use the one that "
            "ships with the library",
            len(seen),
            len(held_out),
        )


@dataclass(frozen=True)
class LocalizerFiles:
    """A localizer by its files, to be sent to workers: a few paths instead of its tensors.

    Each process reads the files once, and again only when they have changed. The localizer that ships with the library
    is that of the worker's own copy, wherever it is installed.
    """

    weights: Path | None
    note: Path | None
    device: str
    state: tuple[int, ...] = ()

    @classmethod
    def of(cls, localizer: DiscLocalizer) -> LocalizerFiles | DiscLocalizer:
        """The files that it was read from; the localizer itself where it was made in this session, or is not ours."""
        files = getattr(localizer, "files", None)
        if files is None:
            return localizer
        if files[0] == SHIPPED_WEIGHTS:
            return cls(None, None, str(localizer.device))
        weights, note = (file.absolute() for file in files)
        state = tuple(value for file in (weights, note) for value in (file.stat().st_mtime_ns, file.stat().st_size))
        return cls(weights, note, str(localizer.device), state)

    @lru_cache(maxsize=1)  # noqa: B019
    def open(self) -> DiscLocalizer:
        """The localizer, kept for the next call in this process."""
        if self.weights is None:
            return DiscLocalizer.shipped(device=self.device)
        return DiscLocalizer.read(self.weights, self.note, device=self.device)
