"""Imports go down the list of rooms that docs/architecture.md prints, and never in a circle."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

import cftjax

PACKAGE = Path(cftjax.__file__).parent
DOCUMENT = (PACKAGE.parent / "docs" / "architecture.md").read_text()


def rooms(document):
    """The lines of the list from the commands down, each with the modules and folders that it names.

    Names end where two spaces begin the description; one that ends in a slash is a folder, with everything in it that
    has no name of its own.
    """
    listed = re.search(r"^## Rooms\n.*?```\ncftjax/\n(.*?)```", document, re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("  ") for line in listed[1].splitlines()]
    return [re.split(r" {2,}", line)[0].split() for line in lines if not line.startswith(" ")]


def files(package):
    """Module -> file; not the package itself, which only hands names on."""
    paths = {path.relative_to(package).with_suffix("").as_posix(): path for path in package.rglob("*.py")}
    return {name.removesuffix("/__init__"): path for name, path in paths.items() if name != "__init__"}


def imports(path, modules):
    """Modules of ours that a file imports, at its top or anywhere else in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            choices = [[alias.name] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from a import b` is of the module a.b where there is one, else of a.
            choices = [[f"{node.module}.{alias.name}", node.module] for alias in node.names]
        else:
            continue
        for names in choices:
            ours = [name.removeprefix("cftjax.").replace(".", "/") for name in names]
            yield from [name for name in ours if name in modules][:1]


def line_of(module, listed):
    """Which line of the list a module belongs to; None for none."""
    places = {name: number for number, names in enumerate(listed) for name in names}
    folders = [f"{parent}/" for parent in Path(module).parents]
    return next((places[name] for name in (module, f"{module}/", *folders) if name in places), None)


def upward(package, listed):
    """Imports that go up the list, and modules that stand in none of its lines, in words."""
    modules = files(package)
    lines = {module: line_of(module, listed) for module in modules}
    homeless = [f"{module} stands in no line" for module, line in lines.items() if line is None]
    pairs = [(module, target) for module, path in modules.items() for target in imports(path, modules)]
    return homeless or [f"{module} imports {target}" for module, target in pairs if lines[target] < lines[module]]


def circle(package):
    """Modules that import each other in a circle; empty where there is none."""
    modules = files(package)
    graph = {module: set(imports(path, modules)) - {module} for module, path in modules.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_every_import_goes_down_the_list_of_rooms():
    assert upward(PACKAGE, rooms(DOCUMENT)) == []


def test_no_files_import_each_other_in_a_circle():
    assert circle(PACKAGE) == []


def test_every_name_of_the_list_is_a_file_or_a_folder():
    names = [name for line in rooms(DOCUMENT) for name in line]
    assert len(names) == len(set(names)) > 20
    for name in names:
        assert (PACKAGE / name).is_dir() if name.endswith("/") else (PACKAGE / f"{name}.py").is_file(), name


def test_commands_are_imported_by_nothing():
    modules, commands = files(PACKAGE), rooms(DOCUMENT)[0]
    assert {"train", "finetune", "sweep", "predict", "evaluate", "export"} <= set(commands)
    assert [name for path in modules.values() for name in imports(path, modules) if name in commands] == []


def test_runtime_knows_no_images_and_no_metrics():
    modules = files(PACKAGE)
    used = {name for module, path in modules.items() if module.startswith("runtime") for name in imports(path, modules)}
    assert {name for name in used if not name.startswith("runtime")} <= {"config", "extras", "text", "types"}


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("config.py", "from cftjax.data import digits", "config imports data/digits"),
        (
            "data/reading/sheets.py",
            "def read():\n    import cftjax.data.digits",
            "data/reading/sheets imports data/digits",
        ),
        ("data/digits.py", "from cftjax.train import main", "data/digits imports train"),
        ("new.py", "", "new stands in no line"),
    ],
)
def test_an_import_that_goes_up_is_found(tmp_path, file, line, message):
    listed = rooms(
        "## Rooms\n```\ncftjax/\n  train          command\n  data/          sources\n"
        "                 and more\n  data/reading/  files\n  config\n```\n"
    )
    assert listed == [["train"], ["data/"], ["data/reading/"], ["config"]]
    package = tmp_path / "cftjax"
    for name in ("__init__", "train", "config", "data/__init__", "data/digits", "data/reading/files"):
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("from cftjax.data.digits import draw" if name == "train" else "")
    assert upward(package, listed) == []
    (package / file).write_text(line)
    assert upward(package, listed) == [message]


def test_a_circle_is_found(tmp_path):
    for name, line in (("a", "from cftjax import b"), ("b", "import cftjax.c"), ("c", "from cftjax.a import x")):
        (tmp_path / f"{name}.py").write_text(line)
    assert set(circle(tmp_path)) == {"a", "b", "c"}
