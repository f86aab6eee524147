"""The shape of the code itself: which module may import which, sizes, names, and clean notebooks."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import publish_notebooks
import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "lumbar_utils"
MODULES = sorted(LIBRARY.rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# One row a package of the method, from the bottom to the top: imports point to rows above, or stay in their row.
LAYERS = (
    ("labels", "errors", "geometry", "notebook_html", "files", "parallel", "devices"),
    ("dicom",),
    ("studies",),
    ("phantom",),
    ("localization",),
    ("crops",),
    ("metrics",),
    ("models",),
    ("training",),
    ("inference",),
    ("evaluation",),
    ("explain",),
    ("viz",),
    ("report",),
    ("kaggle",),
    ("cli", "__main__"),
)
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer}
MAX_ENTRIES = 22
MAX_MODULE = 400
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "manager", "tools", "stuff"}
MAX_NOTEBOOK_BYTES = 3_000_000
MAX_CELL = 30


def part_of(path: Path) -> str:
    """The top-level module or package that a file belongs to, `phantom` for `phantom/body.py`."""
    return path.relative_to(LIBRARY).with_suffix("").parts[0]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_parts(path: Path) -> set[tuple[str, int]]:
    """(top-level module, line) of every import from the library that runs; those under TYPE_CHECKING do not."""
    tree = ast.parse(path.read_text("utf-8"))
    depth = len(path.relative_to(LIBRARY).parts)
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == depth:
                names = [module.split(".")[0]] if module else [alias.name for alias in node.names]
                found.update((name, node.lineno) for name in names)
            elif node.level == 0 and module.split(".")[0] == "lumbar_utils":
                names = module.split(".")[1:2] or [alias.name for alias in node.names]
                found.update((name, node.lineno) for name in names)
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("lumbar_utils."):
                    found.add((alias.name.split(".")[1], node.lineno))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent != LIBRARY or p.name != "__init__.py"], ids=relative)
def test_imports_point_up_the_layers_only(path):
    own = part_of(path)
    assert own in LAYER_OF, f"{own} is new: give it its place in LAYERS of {Path(__file__).name}"
    for name, line in imported_parts(path):
        if name in LAYER_OF:  # other names are functions or constants of lumbar_utils/__init__.py, `__version__`
            assert LAYER_OF[name] <= LAYER_OF[own], f"{relative(path)}:{line} imports {name}, which stands below {own}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_modules_are_short_named_after_the_domain_and_explained(path):
    text = path.read_text("utf-8")
    assert text.count("\n") <= MAX_MODULE, f"{relative(path)} is longer than {MAX_MODULE} lines: split it"
    assert path.stem not in EMPTY_NAMES, f"{relative(path)}: name it after what it holds"
    assert ast.get_docstring(ast.parse(text)), f"{relative(path)} has no docstring"
    own_bar = "import tqdm" in text and path.stem != "notebook_html"
    assert not own_bar, f"{relative(path)}: `progress_bar`, of which a saved notebook keeps the end, in place of tqdm"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_only_evaluation_reads_the_oracle(path):
    if part_of(path) in ("phantom", "evaluation"):
        return
    text = path.read_text("utf-8")
    named = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    files = [value for value in named if isinstance(value, str) and re.fullmatch(r"(.*/)?(oracle|latents)\.csv", value)]
    assert not files, f"{relative(path)} names {files[0]}, which only evaluation may read"


def test_importing_the_library_starts_nothing():
    """Neither torch nor pandas, no handlers on the logger, and nothing printed; also for every public module."""
    code = (
        "import sys, logging, lumbar_utils, lumbar_utils.cli\n"
        "assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules), 'heavy import'\n"
        "[getattr(lumbar_utils, name) for name in lumbar_utils.__all__]\n"
        "assert not logging.getLogger().handlers and not logging.getLogger('lumbar_utils').handlers, 'logging set up'\n"
        "torch = sys.modules.get('torch')\n"
        "assert torch is None or not torch.cuda.is_initialized(), 'CUDA started'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def modules_by_name() -> dict[str, Path]:
    """`phantom.cohort` -> its file, `phantom` -> its `__init__.py`."""
    names = {".".join(path.relative_to(LIBRARY).with_suffix("").parts): path for path in MODULES}
    return {name.removesuffix(".__init__"): path for name, path in names.items() if name != "__init__"}


def imported_modules(name: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of the library that a module imports when it runs, at its top or inside a function."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) + 1 - node.level] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                found.add(whole if whole in modules else ".".join(base))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text("utf-8")))
    return found & set(modules) - {name}


def test_no_module_imports_itself_by_way_of_others():
    modules = modules_by_name()
    order = TopologicalSorter({name: imported_modules(name, path, modules) for name, path in modules.items()})
    order.prepare()  # raises CycleError, which names the cycle


def test_the_library_shows_few_entries_and_each_stands_in_the_readme():
    entries = {path.name for path in LIBRARY.iterdir() if path.name != "__pycache__"}
    shown = entries - {"__init__.py", "__main__.py", "py.typed", "weights"}
    assert len(shown) <= MAX_ENTRIES, f"{len(shown)} entries in lumbar_utils/, at most {MAX_ENTRIES}: {sorted(shown)}"
    tree = (ROOT / "README.md").read_text("utf-8").split("```text\nlumbar_utils/\n")[1].split("```")[0]
    named = [line.split()[0].rstrip("/") for line in tree.splitlines()]
    assert sorted(named) == sorted(entries - {"__init__.py", "__main__.py", "py.typed"})
    packages = [name for row in LAYERS for name in row if (LIBRARY / name).is_dir()]
    assert [name for name in named if name in packages] == packages, "the tree stands in the order of LAYERS"


@pytest.mark.parametrize("package", ["lumbar_utils", "lumbar_utils.localization"])
def test_names_that_are_loaded_on_first_use_are_the_ones_that_checkers_see(package):
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text("utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    seen = {alias.name: node.module for node in guarded.body for alias in node.names}
    packages = {name for name, home in seen.items() if home is None}
    assert {name: home for name, home in seen.items() if home} == module._HOME
    assert packages == set(getattr(module, "_PACKAGES", ()))
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_dir_lists_attributes_only():
    library = importlib.import_module("lumbar_utils")
    assert set(dir(library)) == {*library.__all__, "__version__"}
    assert all(hasattr(library, name) for name in dir(library))


@pytest.mark.slow
def test_a_type_checker_sees_the_public_names(tmp_path):
    """mypy knows every public name with its type, and reports one that is not there."""
    pytest.importorskip("mypy")
    library = importlib.import_module("lumbar_utils")
    names = [*library.__all__, "viz.show_crops", "localization.locate_studies"]
    lines = ["import lumbar_utils as lu", *(f"reveal_type(lu.{name})" for name in names), "lu.no_such_name"]
    (tmp_path / "user.py").write_text("\n".join(lines))
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--ignore-missing-imports"]
    command += ["--cache-dir", str(tmp_path / "cache"), str(tmp_path / "user.py")]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    types = {int(line.split(":")[1]): line for line in said if "Revealed type" in line}
    unknown = [name for number, name in enumerate(names, 2) if re.search(r'"(Any|\.\.\.)"|\*Any', types[number])]
    assert not unknown, f"mypy knows nothing of {unknown}"
    assert any('no attribute "no_such_name"' in line for line in said)


def test_third_party_imports_are_declared():
    """Whatever the library imports stands in setup.py."""
    declared = (ROOT / "setup.py").read_text("utf-8").lower()
    package = {"sklearn": "scikit-learn", "cv2": "albumentations", "timm_3d": "timm-3d", "gdcm": "python-gdcm"}
    package |= {"openjpeg": "pylibjpeg-openjpeg", "IPython": "ipykernel", "PIL": "pillow"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in {n.split(".")[0] for n in names} - set(sys.stdlib_module_names) - {"lumbar_utils"}:
                wanted = f'"{package.get(name, name)}'.lower()
                assert wanted in declared, (
                    f"{relative(path)}:{node.lineno} imports {name}, which setup.py does not name"
                )


def test_the_readmes_pictures_and_files_are_there():
    text = (ROOT / "README.md").read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    absent = [link for link in links if not (ROOT / link).exists()]
    assert len(links) > 10 and not absent, f"the README points to {absent}"


def test_the_names_in_the_readmes_python_are_there():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    names = set(re.findall(r"\blu(?:\.\w+)+", "\n".join(blocks)))
    assert {"lu.load_study", "lu.viz.browse", "lu.Predictor"} <= names
    for name in sorted(names):
        found = importlib.import_module("lumbar_utils")
        for part in name.removeprefix("lu.").split("."):
            assert hasattr(found, part), f"the README calls {name}, which is not there"
            found = getattr(found, part)


def cells_of(path: Path, kind: str = "code") -> list[dict]:
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def test_there_are_six_notebooks():
    names = ["01_eda", "02_localization", "03_roi_extraction", "04_train_classifier", "05_kaggle_inference"]
    assert [path.stem for path in NOTEBOOKS] == [*names, "06_error_analysis"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
def test_notebooks_are_clean(path):
    text = path.read_text("utf-8")
    assert len(text.encode()) < MAX_NOTEBOOK_BYTES, "too large: fewer or smaller figures"
    assert not json.loads(text)["metadata"].get("widgets"), "widget state is stored"
    local = re.search(r"/(?:home|root|Users|work|tmp)/[\w./-]*", text)
    assert local is None, f"a path of somebody's machine: {local[0]}"
    assert publish_notebooks.problem_of(text) == ""
    tagged = [cell for cell in cells_of(path) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1, "exactly one code cell is tagged `parameters`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
def test_notebooks_are_short_cells_between_prose(path):
    for cell in cells_of(path):
        lines = source(cell).strip().count("\n") + 1
        assert lines <= MAX_CELL, f"a cell of {lines} lines, at most {MAX_CELL}: {source(cell)[:60]!r}"
        assert not re.search(r"^\s*class ", source(cell), re.M), "a class: it belongs into the library"
    assert len(cells_of(path, "markdown")) >= 0.5 * len(cells_of(path)), "more prose between the cells"
    assert "oracle.csv" not in "".join(map(source, cells_of(path))), "the oracle is read by evaluation code only"
