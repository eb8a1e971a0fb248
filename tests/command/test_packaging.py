"""Rules of the tree: names, the direction of imports, no pickle; and what an installation brings."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("codec", "kernels", "bitstream")
FOLDERS = (*PACKAGES, "tests", "bench", "scripts")
SOURCES = sorted([*(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")), ROOT / "setup.py"])


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, relative ones resolved."""
    package = ["vbc", *path.relative_to(ROOT).parts[:-1]]
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
        ("vbc.codec.cli", ("torch", "numpy", "PIL", "rich", "constriction")),
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


def test_weights_are_shipped() -> None:
    from vbc.codec.model import installed

    weights = [
        p for p in (resources.files("vbc.codec") / "weights").iterdir() if p.name.endswith(".safetensors")
    ]
    assert weights
    assert sum(len(p.read_bytes()) for p in weights) <= 8 << 20
    assert sorted(entry["file"] for entry in installed()) == sorted(p.name for p in weights)


FORK = """
import os, signal, sys, warnings
import torch
from vbc.codec import api, example
warnings.simplefilter("ignore")  # of forking with threads, which is what this is about
torch.set_num_threads(2)
image = example.make_example(300, 260)
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
