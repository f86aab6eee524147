"""Kaggle: where it mounts things, what its machines can do, and what is uploaded to it.

For notebooks: `session` completes the attached library, `environment` reports what a run will have, `workspace` finds
data, run folder and weights among the mounts, and copies the submission there. For uploading: `upload` and `wheels`
build what `lumbar kaggle build` writes.
"""

from .environment import EnvironmentReport, Machine, describe_machine, environment_report, session_seconds_left
from .session import prepare_session
from .upload import build_dataset, build_kernels
from .workspace import (
    COMPETITION_SLUG,
    Workspace,
    copy_submission,
    find_competition_folder,
    find_localizer,
    find_weights,
    holds_competition_tables,
    mounted_folders,
    open_workspace,
)

__all__ = [
    "COMPETITION_SLUG",
    "EnvironmentReport",
    "Machine",
    "Workspace",
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
