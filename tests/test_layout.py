"""The house: links, package contents, import directions, light imports."""

import ast
import re
import subprocess
import sys
import tomllib
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
        "memory",
        "synthetic",
        "frequency",
        "metrics",
        "seasonal_naive",
        "quantiles",
        "scaler",
        "plotting",
    },
    "forecaster": {"array_typing", "memory", "backbone", "scaler", "patching", "quantiles", "checkpoint", "streaming"},
    "checkpoint": {"array_typing", "files", "forecaster"},
    "streaming": {"array_typing", "memory", "scaler", "patching", "quantiles", "forecaster", "checkpoint"},
}
# Backward edges that exist inside a function only, so that a class can offer a convenience.
DEFERRED = {("forecaster", "checkpoint"), ("forecaster", "streaming")}


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
    code = (
        "import sys, time; began = time.perf_counter(); import tsseq; print(time.perf_counter() - began);"
        f"print([m for m in '{heavy}'.split() if m in sys.modules])"
    )
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
        for _ in range(3)
    ]
    assert said[0][1] == "[]"
    assert min(float(seconds) for seconds, _ in said) < 0.3


# Distributions that only an extra brings, and what they are imported as.
OPTIONAL = "lightning sktime skpro sklearn gluonts matplotlib pyarrow huggingface_hub triton jaxtyping beartype".split()


@pytest.mark.slow
def test_base_install_suffices(tmp_path):
    """With every optional package out of reach, and the network too: forecast, sample, list, Python and shell."""
    code = f"""
import socket, sys
for name in {OPTIONAL}:
    sys.modules[name] = None
def offline(*_):
    raise OSError("the network was asked")
socket.socket.connect = socket.getaddrinfo = offline
import pandas, torch, tsseq
from tsseq.cli.__main__ import main
assert tsseq.load("base").forecast(torch.randn(2, 40), 5).mean.shape == (2, 5)
assert len(tsseq.forecast(pandas.Series(range(9)), 4)) == 4
for line in ("forecast airline --horizon 3 --out {tmp_path}/f.csv", "sample tsseq --n 4 --length 64", "list"):
    assert main(line.split()) == 0, line
for needing in ("plot f.png", "out f.parquet"):
    assert main(f"forecast airline --horizon 3 --{{needing}}".split()) == 2, needing
assert main("pretrain {tmp_path}/run --max_steps 1".split()) == 2
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert said.stderr.count("\n") == 3 and all("install tsseq[" in line for line in said.stderr.splitlines())


def test_base_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = {re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]}
    assert base == {"torch", "numpy", "pandas", "scipy", "safetensors", "rich", "jsonargparse"}
    assert all(">=" in requirement and "<" not in requirement for requirement in project["dependencies"])


def test_no_cycles():
    """Of rooms that import each other when they are imported; the package's own front door imports on demand."""
    edges = {}
    for name, file in modules():
        if name != "__init__":
            edges.setdefault(name, set()).update(t for t, top in imports(file) if top and t != name)
    done = set()
    while ready := {name for name, targets in edges.items() if name not in done and targets & edges.keys() <= done}:
        done |= ready
    assert done == edges.keys(), f"in a cycle: {sorted(edges.keys() - done)}"


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
