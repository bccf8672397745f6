"""The house: links, package contents, import directions, light imports."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("kernels", "synthetic", "datasets", "cli")

# What each room may import of the others; a module alone in tsseq/ is a room of its own.
ALLOWED = {
    "kernels": {"array_typing"},
    "mixers": {"array_typing", "kernels"},
    "backbone": {"array_typing", "mixers"},
    "synthetic": {"array_typing", "kernels"},
    "datasets": {
        "array_typing",
        "synthetic",
        "frequency",
        "metrics",
        "seasonal_naive",
        "quantiles",
        "scaler",
        "plotting",
    },
    "forecaster": {"array_typing", "backbone", "scaler", "patching", "quantiles", "checkpoint"},
    "checkpoint": {"array_typing", "forecaster"},
}
# Backward edges that exist inside a function only, so that a class can offer a convenience.
DEFERRED = {("forecaster", "checkpoint")}


def modules() -> list[tuple[str, Path]]:
    files = [*(ROOT / "tsseq").rglob("*.py")]
    for name in LINKED:
        files += (ROOT / name).rglob("*.py")
    found = []
    for file in files:
        parts = file.relative_to(ROOT).parts
        parts = parts[1:] if parts[0] == "tsseq" else parts
        if parts[0] in LINKED and file.relative_to(ROOT).parts[0] == "tsseq":
            continue
        found.append((parts[0].removesuffix(".py"), file))
    return found


def imports(file: Path) -> list[tuple[str, bool]]:
    """Rooms imported, and whether at module level."""
    tree = ast.parse(file.read_text())
    top = {id(node) for node in tree.body}
    rooms = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "tsseq" else [f"tsseq.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        rooms += [(n.split(".")[1], id(node) in top) for n in names if n.startswith("tsseq.")]
    return rooms


def test_links_resolve():
    for name in LINKED:
        link = ROOT / "tsseq" / name
        assert link.is_symlink(), f"tsseq/{name} is not a link: check the repository out with symlinks enabled"
        assert link.resolve() == ROOT / name
        assert (link / "__init__.py").is_file()


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_imports_point_one_way(room):
    found = {
        (target, top) for name, file in modules() if name == room for target, top in imports(file) if target != room
    }
    wrong = [t for t, top in found if t not in ALLOWED[room] or ((room, t) in DEFERRED and top)]
    assert not wrong, f"{room} imports {wrong}"


def test_nothing_imports_the_command_line():
    wrong = [str(f) for name, f in modules() if name != "cli" and any(t == "cli" for t, _ in imports(f))]
    assert not wrong


def test_import_is_light():
    heavy = "torch numpy pandas scipy lightning sktime gluonts matplotlib triton jsonargparse"
    code = f"import sys, tsseq; print([m for m in '{heavy}'.split() if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


@pytest.mark.slow
def test_wheel_equals_tree(tmp_path):
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--wheel",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("tsseq/")}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [Path(f) for f in tracked.split() if (ROOT / f).is_file()]
    tree = {f.as_posix() for f in files if f.parts[0] == "tsseq"}
    tree |= {f"tsseq/{f.as_posix()}" for f in files if f.parts[0] in LINKED}
    assert packed == tree
