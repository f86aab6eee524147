"""The six notebooks, executed once at smoke size the way `make run` executes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import publish_notebooks
import pytest

from lumbar_utils.labels import PROBABILITY_COLUMNS, row_ids

ROOT = Path(__file__).resolve().parent.parent
NAMES = [path.stem for path in sorted((ROOT / "notebooks").glob("0*.ipynb"))]


def run_notebooks(*arguments, cwd=ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / "run_notebooks.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks") / "a run"
    done = run_notebooks("--smoke", "--run", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


@pytest.mark.slow
def test_all_notebooks_run_and_leave_a_complete_submission(smoke_run):
    folder, _ = smoke_run
    for name in NAMES:
        book = json.loads((folder / "notebooks" / f"{name}.ipynb").read_text("utf-8"))
        code = [cell for cell in book["cells"] if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
        assert all(cell["execution_count"] for cell in code), f"{name} was not executed to its end"
        assert publish_notebooks.lost_in_a_copy(book) == "", name
    test_table = pd.read_csv(folder / "cohort" / "test_series_descriptions.csv", dtype=str)
    submission = pd.read_csv(folder / "submission.csv", dtype={"row_id": str})
    assert list(submission.columns) == ["row_id", *PROBABILITY_COLUMNS]
    assert set(submission["row_id"]) == set(row_ids(test_table["study_id"].unique()))
    values = submission[list(PROBABILITY_COLUMNS)].to_numpy()
    assert np.isfinite(values).all() and (values >= 0).all()
    np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-6)
    for name in ("model.safetensors", "config.json"):
        assert (folder / "localizer" / name).is_file() and (folder / "classifier" / name).is_file()
    assert not (folder / "localizer" / "history.csv").exists()  # phantoms teach the shipped localizer nothing new
    assert (folder / "classifier" / "oof.csv").is_file()
    assert len(list((folder / "figures").glob("*.png"))) >= len(NAMES)


@pytest.mark.slow
def test_on_a_competition_folder_the_localizer_is_fine_tuned(smoke_run, tmp_path):
    """The same studies without the mark that they are synthetic, and without their truth."""
    data = tmp_path / "competition"
    data.mkdir()
    for path in (smoke_run[0] / "cohort").iterdir():
        if path.name not in ("SYNTHETIC.md", "truth"):
            (data / path.name).symlink_to(path, target_is_directory=path.is_dir())
    done = run_notebooks("--smoke", "--data", data, "--run", tmp_path / "run", "--only", "02")
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads((tmp_path / "run" / "localizer" / "config.json").read_text())
    assert made["config"]["trained_on"] == "synthetic, competition"
    assert made["made"]["studies"] and made["made"]["before"]["data"].startswith("synthetic phantoms only")
    assert (tmp_path / "run" / "localizer" / "history.csv").is_file()


@pytest.mark.slow
def test_the_last_lines_say_where_to_look_and_how_good_it_was(smoke_run):
    folder, text = smoke_run
    ending = text[text.index("Done in") :]
    for word in ("notebooks", "submission.csv", "uniform", "weighted prior", "this run", "oracle"):
        assert word in ending
    assert str(folder) in ending


@pytest.mark.slow
def test_a_second_run_executes_nothing_again(smoke_run):
    folder, _ = smoke_run
    done = run_notebooks("--smoke", "--run", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not executed again") == len(NAMES)
    assert "not made again" in done.stdout


def test_parameters_are_set_only_where_the_notebook_names_them():
    import nbformat
    from run_notebooks import inject_parameters

    book = nbformat.v4.new_notebook()
    book.cells = [
        nbformat.v4.new_code_cell("import os"),
        nbformat.v4.new_code_cell('DATA = None  # a folder\nRUN: str = "runs/demo"', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print(DATA)"),
    ]
    inject_parameters(book, {"DATA": "/a folder/with 'quotes'", "RUN": "r", "SMOKE": True})
    assert len(book.cells) == 4
    values = {}
    exec(book.cells[2].source, values)
    assert values["DATA"] == "/a folder/with 'quotes'" and values["RUN"] == "r" and "SMOKE" not in values


def outputs(*shown: dict, prose: str = "") -> str:
    """A notebook with these outputs, as JSON."""
    import nbformat

    cell = nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output(**output) for output in shown])
    return nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(prose), cell]))


WIDGET = {"output_type": "display_data", "data": {publish_notebooks.WIDGET: {}, "text/plain": "  0%|   | 0/2"}}
BAR = {"output_type": "stream", "name": "stderr", "text": "studies:   0%|   | 0/2\rstudies:  50%|#  | 1/2"}


@pytest.mark.parametrize(
    ("text", "issue"),
    [
        (outputs(prose="![a](../images/a.png)"), "a picture by its link"),
        (outputs(prose='<img alt="a" src="a.png">'), "a picture by its link"),
        (outputs(prose="![a](attachment:a.png) [next](02.ipynb) <img src='data:image/png;base64,AA'>"), ""),
        (outputs({"output_type": "display_data", "data": {"text/html": "<img src='a.png'>"}}), "a picture by its link"),
        (outputs(WIDGET), "a widget"),
        (outputs(BAR), "frozen at 50 %"),
        (outputs(BAR | {"text": BAR["text"] + "\rstudies: 100%|## | 2/2\n"}), ""),
    ],
)
def test_what_a_saved_notebook_would_lose_is_not_published(text, issue):
    found = publish_notebooks.problem_of(text)
    assert issue in found and bool(issue) == bool(found)


def test_a_saved_notebook_keeps_the_end_of_its_progress_bars_and_a_published_one_none(cohort):
    import nbclient
    import nbformat

    source = f"import lumbar_utils as lu\nlu.studies.series_table(lu.find_studies({str(cohort)!r}, part='test'));"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(book, timeout=120).execute()
    assert publish_notebooks.lost_in_a_copy(book) == ""
    (shown,) = book.cells[0].outputs
    assert shown.data["text/plain"].startswith("studies: 2/2 study in 00:")
    assert not publish_notebooks.without_traces(book).cells[0].outputs


def test_other_shipped_weights_execute_the_notebooks_again(tmp_path, monkeypatch):
    import run_notebooks as runner

    weights = tmp_path / "lumbar_utils" / "weights" / "shipped_localizer" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    (tmp_path / "requirements.txt").touch()
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    seen = set()
    for content in (b"before", b"after", b"before"):
        weights.write_bytes(content)
        seen.add(runner.fingerprint_of_inputs(tmp_path, {}))
    assert len(seen) == 2


def test_a_folder_that_is_no_competition_folder_is_refused(tmp_path):
    done = run_notebooks("--data", tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and str(tmp_path) in done.stderr
