"""From what a report says to HTML that needs nothing beside it.

Every page forbids itself all network access by a Content-Security-Policy, and allows only the one style sheet and
the one script that are written into it, by their hashes. Templates escape everything; an unknown name in one is an
error and not an empty place.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from ..errors import Issue
from ..inference.submission import FREQUENCY_NOTE
from ..labels import CONDITIONS, LEVELS, PROBABILITY_COLUMNS, SEVERITIES, condition_title, level_title
from .content import FLAGS, NOTICE, grade_of, target_title
from .pictures import SCALE_MM

COLUMNS = (0, 2, 1, 4, 3)
"""Conditions in the order of the page: the patient's right before the left, as on the images."""
SEVERITY_WORDS = dict(zip(PROBABILITY_COLUMNS, SEVERITIES, strict=True))
DOTS = dict(zip(PROBABILITY_COLUMNS, ("●○○", "●●○", "●●●"), strict=True))
"""A sign beside each word, so that colour never carries the grade alone."""


def study_page(
    report: Mapping, overview: Mapping | None = None, rows: Sequence[Mapping] = (), *, index: str = ""
) -> str:
    """The page of one study, from what `content.describe` gave and, for pictures, `pictures.overview` and `panels`.

    `index` is the relative address of the index page, "" for none.
    """
    missing, notes = _missing(report)
    return _render("study.html", report=report, overview=overview, rows=rows, index=index, missing=missing, notes=notes)


def index_page(entries: Sequence[Mapping], failures: Mapping[str, str] | None = None) -> str:
    """The page over many studies, the most severe first, those without a prediction last.

    Entries are what `content.describe` gave, or its summary, and `page`: the relative address of the study's page;
    `failures` says by study id why a report could not be written.
    """
    ranked = sorted(entries, key=lambda e: (e["fallback"], -e["summary"]["any_severe"], e["study_id"]))
    return _render("index.html", _asset("index.js"), entries=ranked, failures=dict(failures or {}))


def _missing(report: Mapping) -> tuple[dict[str, str], list[str]]:
    """The views that are missing with the reason, "" where none is known, and the other issues."""
    missing, notes = dict.fromkeys(report["missing_views"], ""), []
    for issue in map(Issue.from_json, report["issues"]):
        if issue.code == "view_missing" and issue.view in missing:
            missing[issue.view] = issue.message.removeprefix("no crops, ")
        else:
            notes.append(str(issue))
    return missing, notes


def _worst_grade(report: Mapping, level: str) -> str:
    """The worst of a level's five most probable grades."""
    return max((grade_of(report, c, level)["grade"] for c in CONDITIONS), key=PROBABILITY_COLUMNS.index)


def percent(p: float) -> str:
    """A probability as a whole percentage that never says 0 or 100 of what is neither."""
    whole = f"{100 * p:.0f}"
    if whole == "0" and p > 0:
        return "<1"
    return ">99" if whole == "100" and p < 1 else whole


@cache
def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text("utf-8")


@cache
def _environment() -> Environment:
    folder = resources.files(__package__).joinpath("templates")
    templates = {item.name: item.read_text("utf-8") for item in folder.iterdir() if item.name.endswith(".html")}
    environment = Environment(
        loader=DictLoader(templates), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "level_title": level_title}
    environment.globals |= {
        "CONDITIONS": [CONDITIONS[c] for c in COLUMNS],
        "DOTS": DOTS,
        "FLAGS": FLAGS,
        "LEVELS": LEVELS,
        "NOTICE": NOTICE,
        "SCALE_MM": SCALE_MM,
        "SEVERITY_KEYS": PROBABILITY_COLUMNS,
        "SEVERITY_WORDS": SEVERITY_WORDS,
        "FREQUENCY_NOTE": FREQUENCY_NOTE,
        "condition_name": lambda name: condition_title(name).replace("Neural ", ""),
        "grade_of": grade_of,
        "target_title": target_title,
        "worst_grade": _worst_grade,
    }
    return environment


def _render(name: str, script: str = "", **values) -> str:
    style = _asset("report.css")
    allowed = _hash(script) if script else "'none'"
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {allowed}"
    values |= {"style": Markup(style), "script": Markup(script)}
    values["policy"] = Markup(f"{policy}; base-uri 'none'; form-action 'none'")
    return _environment().get_template(name).render(**values)


def _hash(text: str) -> str:
    """The source expression of a Content-Security-Policy that allows exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
