"""Kaggle: where it mounts things, what its machines can do, and what is uploaded to it.

`mounts` finds data and hands in the submission, `machine` says what there is to compute with and how long a session
still lasts, `session` makes the attached library complete (its wheels, child processes), `dataset`, `wheels` and
`kernels` build what `lumbar kaggle build` leaves to upload.
"""

from .dataset import build_dataset
from .environment import EnvironmentReport, environment_report
from .kernels import build_kernels
from .machine import Machine, available_cores, describe_machine, session_seconds_left
from .mounts import (
    COMPETITION_SLUG,
    KAGGLE_INPUT,
    KAGGLE_WORKING,
    copy_submission,
    find_competition_folder,
    holds_competition_tables,
    mounted_folders,
)
from .session import prepare_session
from .workspace import Workspace, find_localizer, find_weights, open_workspace

__all__ = [
    "COMPETITION_SLUG",
    "KAGGLE_INPUT",
    "KAGGLE_WORKING",
    "EnvironmentReport",
    "Machine",
    "Workspace",
    "available_cores",
    "build_dataset",
    "build_kernels",
    "copy_submission",
    "describe_machine",
    "environment_report",
    "find_competition_folder",
    "find_localizer",
    "find_weights",
    "holds_competition_tables",
    "mounted_folders",
    "open_workspace",
    "prepare_session",
    "session_seconds_left",
]
