"""Rules of the tree: names, the direction of imports, no pickle; and what an installation brings."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata, resources
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("codec", "kernels", "bitstream")
FOLDERS = (*PACKAGES, "tests", "bench", "scripts")
SOURCES = sorted([*(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")), ROOT / "setup.py"])


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, relative ones resolved."""
    return imports_in(path, ROOT)


def imports_in(path: Path, root: Path) -> Iterator[str]:
    """As `imports`, of a file below another root."""
    package = ["vbc", *path.relative_to(root).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_sources_are_found() -> None:
    assert {p.relative_to(ROOT).parts[0] for p in SOURCES} >= {*PACKAGES, "tests", "setup.py"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_import_rules(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        first = name.split(".")[0]
        assert first not in PACKAGES, f"{name}: import it as vbc.{name}"
        assert first not in ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"), name
        if folder == "bitstream":
            assert first not in ("torch", "triton"), name
        if folder in ("bitstream", "kernels") and first == "vbc":
            assert name.split(".")[1] == folder, f"{folder} imports nothing of ours, but here {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_pickle_behind_a_loader(path: Path) -> None:
    for name, call in calls(path):
        arguments = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if name == "torch.load":
            assert arguments.get("weights_only") == "True", f"line {call.lineno}"
        if name in ("np.load", "numpy.load"):
            assert arguments.get("allow_pickle", "False") == "False", f"line {call.lineno}"


def test_the_rules_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    bad = tmp_path / "bitstream" / "bad.py"
    bad.parent.mkdir()
    lines = (
        "import codec",
        "from kernels import conv",
        "import torch",
        "import pickle",
        "from ..codec import api",
    )
    for line in lines:
        bad.write_text(line)
        with pytest.raises(AssertionError):
            test_import_rules(bad)
    bad.write_text("torch.load('x')")
    with pytest.raises(AssertionError):
        test_no_pickle_behind_a_loader(bad)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("vbc.codec", ("torch", "numpy", "PIL", "typer")),
        ("vbc.codec.cli", ("torch", "numpy", "PIL", "rich", "constriction", "triton", "safetensors")),
        ("vbc.codec.api", ("torch", "numpy", "PIL", "constriction")),
        ("vbc.codec.incremental", ("torch", "numpy", "PIL", "constriction")),
        ("vbc.codec.flow.decode_plan", ("torch", "numpy", "PIL", "constriction")),
        ("vbc.codec.settings", ("torch", "numpy", "PIL", "constriction")),
        ("vbc.bitstream.geometry", ("torch", "numpy")),
        ("vbc.codec.files.image_io", ("torch",)),
        ("vbc.bitstream.container", ("torch",)),
        ("vbc.bitstream.ans", ("torch",)),
    ],
)
def test_light_modules_load_nothing_heavy(module: str, heavy: tuple[str, ...]) -> None:
    assert python(f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


def test_every_public_name_is_there() -> None:
    import vbc.codec

    for name in vbc.codec.__all__:
        assert getattr(vbc.codec, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_like_it"):
        vbc.codec.nothing_like_it  # noqa: B018


def test_distribution() -> None:
    import vbc.codec

    distribution = metadata.distribution("vbc-codec")
    assert distribution.version == vbc.codec.__version__
    assert (distribution.read_text("top_level.txt") or "").split() == ["vbc"]
    (command,) = distribution.entry_points.select(group="console_scripts")
    assert (command.name, command.value) == ("codec", "vbc.codec.cli:main")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_typed(package: str) -> None:
    assert (resources.files(f"vbc.{package}") / "py.typed").is_file()


WEIGHTS = ROOT / "codec" / "weights"
MOST_BYTES = 8_000_000


def test_weights_are_shipped() -> None:
    """Every set is in the index with the hashes that it has, none is in the folder without, all are small."""
    from vbc.codec.model import installed, load_model
    from vbc.codec.settings import TUNES

    index = installed()
    assert index == json.loads((WEIGHTS / "index.json").read_text())
    assert {entry["file"] for entry in index} == {path.name for path in WEIGHTS.glob("*.safetensors")}
    assert len({tuple(sorted(entry.items())) for entry in index}) == len(index) > 0
    for entry in index:
        assert set(entry) == {"file", "model", "tables", "tune"}
        model = load_model(WEIGHTS / entry["file"])
        assert (model.hash.hex(), model.tables.digest.hex()) == (entry["model"], entry["tables"])
    for path in WEIGHTS.rglob("*.safetensors"):
        assert path.stat().st_size <= MOST_BYTES, path
    for tune in TUNES:
        newest = [entry["model"] for entry in index if entry["tune"] == tune][-1]
        assert load_model(tune=tune).hash.hex() == newest, "the newest is the last"


def test_weights_are_installed_with_the_package() -> None:
    folder = resources.files("vbc.codec") / "weights"
    assert {p.name for p in folder.iterdir() if p.is_file()} >= {"index.json"}


# walls

OURS = {".".join(("vbc", *p.relative_to(ROOT).with_suffix("").parts)): p for p in SOURCES}
ROOMS = ("lossy", "exact", "nets", "entropy")
"""Rooms of the codec that know nothing of files and of the pipeline."""
ABOVE = (
    "pipeline",
    "api",
    "files",
    "jobs",
    "cli",
    "incremental",
    "flow",
)


def modules_of(name: str) -> Iterator[str]:
    """Our modules that importing a full name loads: its packages, and itself where it is a module."""
    parts = name.split(".")
    for n in range(2, len(parts) + 1):
        module = ".".join(parts[:n])
        if module in OURS:
            yield module
        elif f"{module}.__init__" in OURS:
            yield f"{module}.__init__"


def reachable(start: str) -> set[str]:
    """All our modules that a module imports, at any place of it and directly or not, itself among them."""
    found, waiting = set(), [start]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += [m for name in imports(OURS[module]) for m in modules_of(name)]
    return found


def test_coding_imports_nothing_of_training() -> None:
    """Whatever a function of the Python interface may ever import."""
    for start in ("vbc.codec.api", "vbc.codec.pillow", "vbc.codec.incremental"):
        found = reachable(start)
        assert {"vbc.codec.pipeline", "vbc.codec.exact.groups", "vbc.kernels.rans"} <= found
        assert not [m for m in found if m.startswith(("vbc.codec.train.", *RESEARCH))]
    assert "vbc.codec.train.stages" in reachable("vbc.codec.cli"), "the command alone can train"


CODING = """
import sys
import numpy as np
from vbc.codec import IncrementalReader, api
picture = np.arange(60 * 50 * 3).reshape(60, 50, 3).astype(np.uint8)
for options in ({}, {"lossless": True}, {"lossless": True, "levels": 0, "effort": 2}):
    data = api.encode(picture, **options)
    api.decode(data)
    api.decode_image(data, "cpu", region=(3, 4, 5, 6))
    api.verify(data)
    reader = IncrementalReader()
    reader.feed(data)
    reader.picture()
unwanted = ("vbc.codec.train", "vbc.kernels.research", "vbc.codec.research")
print([name for name in sys.modules if name.startswith(unwanted)])
"""


def test_coding_loads_nothing_of_training() -> None:
    assert python(CODING).strip() == "[]"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_know_nothing_of_what_uses_them(room: str) -> None:
    paths = sorted((ROOT / "codec" / room).glob("*.py"))
    assert len(paths) > 1
    for path in paths:
        for name in imports(path):
            used = name.removeprefix("vbc.codec.").split(".")[0] if name.startswith("vbc.codec.") else ""
            assert used not in (*ABOVE, "train"), f"{path.name} imports {name}"


RESEARCH = ("vbc.kernels.research", "vbc.codec.research")
"""Kernels and systems that no codec needs."""
RESEARCHERS = ("vbc.tests.", "vbc.bench.", "vbc.codec.study_cli", "vbc.codec.research.")
"""Who may import them."""
WING_IMPORTS = (
    "vbc.kernels.",
    "vbc.bitstream.",
    "vbc.codec.research",
    "vbc.codec.train.checkpoint",
    "vbc.codec.train.precision",
    "vbc.codec.train.progress",
    "vbc.codec.train.training_tiles",
    "vbc.codec.files.image_io",
)
"""All of ours that the research wing may import."""
OF_THE_CODEC = {
    "photo_renderer": (
        "vbc.codec.flow.encode_levels",
        "vbc.codec.lossy.",
        "vbc.codec.model",
        "vbc.codec.pixels.colour",
        "vbc.codec.train.lossy_net",
    )
}
"""What systems that are about the codec itself may import besides."""


def test_only_the_study_command_tests_and_benchmarks_use_research() -> None:
    for module, path in OURS.items():
        if not module.startswith((*RESEARCHERS, "vbc.kernels.research.")):
            assert not [name for name in imports(path) if name.startswith(RESEARCH)], path


def test_the_research_wing_imports_only_what_it_may() -> None:
    """And no system imports another; parts import none."""
    wing = ROOT / "codec" / "research"
    paths = sorted(wing.rglob("*.py"))
    assert len(paths) > 1
    for path in paths:
        own = path.relative_to(wing).parts[:2]
        allowed = (*WING_IMPORTS, *OF_THE_CODEC.get(own[-1], ()))
        for name in imports(path):
            if name != "vbc.codec":  # its public functions, as a rival
                assert not name.startswith("vbc.") or name.startswith(allowed), f"{path}: {name}"
            if name.startswith("vbc.codec.research.systems."):
                assert own == tuple(name.split(".")[3:5]), f"{path}: {name}"


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("from vbc.codec import pipeline", "room"),
        ("from vbc.codec.files.image_io import Picture", "room"),
        ("from ..train import export", "room"),
        ("from vbc.codec.train import export", "training"),
        ("def f():\n    import vbc.codec.train.export", "training"),
        ("import vbc.kernels.research.glimpse", "research"),
        ("from ...kernels.research import glimpse", "research"),
        ("def f():\n    from vbc.codec.research import run", "research"),
        ("from vbc.codec import pipeline", "wing"),
        ("from vbc.codec.research.systems import vae", "wing"),
    ],
)
def test_the_walls_can_fail(line: str, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule notices a line that breaks it."""
    room = {"wing": "research/parts"}.get(rule, "exact")
    bad = tmp_path / "codec" / room / "groups.py"
    bad.parent.mkdir(parents=True)
    bad.write_text(line + "\n")
    (bad.parent / "other.py").write_text("")
    monkeypatch.setitem(OURS, "vbc.codec.exact.groups", bad)
    real = imports
    monkeypatch.setattr(
        sys.modules[__name__],
        "imports",
        lambda path: imports_in(path, tmp_path) if tmp_path in path.parents else real(path),
    )
    if rule in ("room", "wing"):
        monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    rules: dict[str, Callable[[], None]] = {
        "room": lambda: test_rooms_know_nothing_of_what_uses_them("exact"),
        "training": test_coding_imports_nothing_of_training,
        "research": test_only_the_study_command_tests_and_benchmarks_use_research,
        "wing": test_the_research_wing_imports_only_what_it_may,
    }
    with pytest.raises(AssertionError):
        rules[rule]()


FORK = """
import os, signal, sys, warnings
import torch
from vbc.codec import api, example
warnings.simplefilter("ignore")  # of forking with threads, which is what this is about
torch.set_num_threads(2)
image = example.make_example(200, 160)
data = api.encode(image, lossless=True)
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(0 if (api.decode_image(data, "cpu").numpy().transpose(1, 2, 0) == image).all() else 1)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_wait_for_its_parents_threads() -> None:
    assert python(FORK) == "0\n"
