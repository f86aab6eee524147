"""A report per study, to be opened in any browser: one HTML file without anything beside it, the same as JSON, and an
index over many studies.

    folder = ReportFolder("reports")
    folder.add_all(sources, predictor.predict_studies(sources), predictor.spec)
    folder.finish()

`content` says what is in a report and documents its JSON, `pictures` makes its images, `page` the HTML from
`templates/` and `assets/`, `folder` the files.
"""

from .content import NOTICE, describe
from .folder import ReportFolder
from .page import index_page, study_page

__all__ = ["NOTICE", "ReportFolder", "describe", "index_page", "study_page"]
