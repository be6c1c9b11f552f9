"""Rules for the project itself: import directions, sizes, public names, builds, the release.

Sources are read with ``ast`` and distributions with ``zipfile``; where a file can be checked, nothing relies on the
running package.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import re
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import RunPython

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "watershed_mw"
SOURCES = sorted((ROOT / PACKAGE).rglob("*.py"))
TYPES = sorted((ROOT / PACKAGE).rglob("*.pxd"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Read from setup.py, the one place that lists what may be compiled.
HOT_PATH: tuple[str, ...] = ast.literal_eval(
    re.search(r"^MODULES = (\(.*?\))$", (ROOT / "setup.py").read_text(), re.MULTILINE | re.DOTALL)[1]  # type: ignore[index]
)
# What C has and compiled modules call; nothing that runs.
DECLARATIONS = {"_native.system_calls"}

# What each child of the package may import of the others: from the protocol, which knows nothing of sockets, to the
# doors, which know all of it. A folder counts as one.
MAY_IMPORT: dict[str, set[str]] = {
    "_cython": set(),
    "_native": set(),
    "errors": set(),
    "core": {"_cython", "errors"},
    "django": {"errors"},
    "runtime": {"errors"},
    "sockets": {"errors"},
    "werkzeug": {"errors"},
    "_implementation": {"core"},
    "connection": {"_cython", "_native", "core", "errors", "runtime", "sockets"},
    "http": {"core", "errors"},
    "options": {"connection", "core", "errors"},
    "relay": {"_cython", "connection", "core", "errors", "runtime", "sockets"},
    "uvicorn": {"_cython", "connection", "core", "errors", "http", "options", "runtime"},
    "watershed": {"connection", "core", "errors", "http", "options", "sockets"},
    "asgi": {"connection", "core", "errors", "http", "options", "runtime", "sockets", "watershed"},
    "client": {"connection", "core", "errors", "options", "watershed"},
    "testing": {"connection", "errors", "options", "watershed"},
    "wsgi": {
        "connection",
        "core",
        "django",
        "errors",
        "http",
        "options",
        "relay",
        "runtime",
        "sockets",
        "watershed",
        "werkzeug",
    },
    "flask": {"connection", "core", "errors", "http", "options", "wsgi"},
    "proxy": {
        "asgi",
        "client",
        "connection",
        "core",
        "errors",
        "http",
        "options",
        "relay",
        "runtime",
        "watershed",
        "wsgi",
    },
    "starlette": {"asgi", "connection", "options"},
    "__init__": {"_implementation", "asgi", "connection", "core", "errors", "options", "watershed", "wsgi"},
    "cli": {"_implementation", "asgi", "client", "connection", "core", "errors", "http", "proxy", "uvicorn"},
    "fastapi": {"asgi", "connection", "options", "starlette"},
    "__main__": {"cli"},
}
CLOCKS_AND_IO = frozenset({
    "_socket", "_thread", "asyncio", "concurrent", "datetime", "fcntl", "http", "io", "multiprocessing",
    "queue", "sched", "select", "selectors", "signal", "socket", "socketserver", "ssl", "subprocess",
    "threading", "time",
})  # fmt: skip


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute name) of everything that a file imports, including in functions and under TYPE_CHECKING."""
    package = [PACKAGE, *path.relative_to(ROOT / PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(), path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])


def _file_of(imported: str) -> Path | None:
    """The package's file that an absolute import names, or None for other packages."""
    first, *parts = imported.split(".")
    while first == PACKAGE:
        place = ROOT / PACKAGE / Path(*parts)
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path in SOURCES:
                return path
        parts.pop()  # it names something in a module
    return None


def _children(folder: Path) -> dict[str, dict[str, str]]:
    """The files and folders of a folder, each with those that it imports, and one place where it does."""
    children: dict[str, dict[str, str]] = {_child(folder, path): {} for path in SOURCES if path.is_relative_to(folder)}
    for path in SOURCES:
        if path.is_relative_to(folder):
            for line, imported in _imports(path):
                target = _file_of(imported)
                if target is not None and target.is_relative_to(folder):
                    children[_child(folder, path)][_child(folder, target)] = f"{_identify(path)}:{line}"
    return {name: {other: at for other, at in found.items() if other != name} for name, found in children.items()}


def _child(folder: Path, path: Path) -> str:
    return path.relative_to(folder).parts[0].removesuffix(".py")


def _floors(children: dict[str, dict[str, str]]) -> list[set[str]]:
    """Layers of children, each importing only from earlier layers; a cycle is never placed."""
    floors: list[set[str]] = []
    placed: set[str] = set()
    while floor := {name for name, found in children.items() if name not in placed and found.keys() <= placed}:
        floors.append(floor)
        placed |= floor
    return floors


def _identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(_children(ROOT / PACKAGE)))
def test_a_folder_imports_only_what_it_may(name: str) -> None:
    found = _children(ROOT / PACKAGE)[name]
    assert {other: at for other, at in found.items() if other not in MAY_IMPORT[name]} == {}
    assert MAY_IMPORT[name] <= found.keys(), "MAY_IMPORT allows what nobody needs"


@pytest.mark.parametrize("folder", sorted({path.parent for path in SOURCES}), ids=_identify)
def test_imports_form_no_cycle(folder: Path) -> None:
    children = _children(folder)
    placed = set().union(*_floors(children))
    assert {name: found for name, found in children.items() if name not in placed} == {}


def test_the_package_has_few_modules_on_few_import_levels() -> None:
    children = _children(ROOT / PACKAGE)
    assert len(children) <= 30
    assert len(_floors(children)) <= 9


@pytest.mark.parametrize("path", [p for p in SOURCES if (ROOT / PACKAGE / "core") in p.parents], ids=_identify)
def test_core_imports_the_standard_library_without_io_clock_or_threads(path: Path) -> None:
    for line, imported in _imports(path):
        top = imported.partition(".")[0]
        # cython is the compiler's own name: a no-op where it is not installed.
        assert top in (PACKAGE, "cython") or top in sys.stdlib_module_names, f"{path.name}:{line}: {imported}"
        assert top not in CLOCKS_AND_IO, f"{path.name}:{line}: {imported}"


def test_core_runs_without_cython_and_imports_no_io_module(run_python: RunPython) -> None:
    loaded = run_python(
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0].lower() == 'cython': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "import types\n"
        # the package's own __init__ loads the doors; an empty stand-in leaves the core alone
        "package = types.ModuleType('watershed_mw'); package.__path__ = ['watershed_mw']\n"
        "sys.modules['watershed_mw'] = package\n"
        "import watershed_mw._implementation, watershed_mw.core.protocol, watershed_mw.core.handshake.negotiation\n"
        "print(*sys.modules)",
        WATERSHED_MW_PURE="1",
    ).split()
    assert not {"socket", "asyncio", "threading", "select", "selectors", "ssl"} & set(loaded)


def test_modules_are_small() -> None:
    lines = {_identify(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: count for name, count in lines.items() if count > 700} == {}
    assert statistics.median(lines.values()) <= 200


def test_files_of_tests_have_at_most_700_lines() -> None:
    lines = {_identify(path): len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert {name: count for name, count in lines.items() if count > 700} == {}


# Files that use each other's private attributes, and why.
PAIRS = {
    # ASGI's receive is the connection's own, without a second coroutine for each connection that waits.
    "uvicorn/messages.py": {
        *("_push", "_dispatcher", "_next_message", "_check_pull"),
        *("_queue", "_is_over", "_take_turn", "_expect_wakeup"),
    },
    # Parts of a connection that are handed the connection itself, so that the two do not keep each other alive.
    "connection/aio/dispatch.py": {"_core", "_queue", "_push", "_limits", "_handlers", "_emit_end", "_end_emitted"},
    "connection/handlers.py": {"_core", "_error", "_handler_failed", "_push", "_queue", "_trace"},
    "connection/threads/driver.py": {"_handlers"},
    # C calls from one compiled step: anything in between could lose bytes.
    "connection/threads/stream.py": {"_handlers", "_queue_message"},
    # One C call for each connection.
    "connection/broadcast.py": {"_send_prepared"},
    # Other people's objects, which have no other way.
    "flask.py": {"_get_current_object"},
    "runtime/loop_thread.py": {"_get_running_loop"},
    "sockets/tls_views.py": {"_io_refs", "_closed"},
    "wsgi/hijack.py": {"_sock", "_accept", "_drop_events_and_close"},
}  # fmt: skip


def _foreign_private_names(path: Path) -> set[str]:
    """Private attributes of anything but ``self`` that this file does not define itself."""
    nodes = list(ast.walk(ast.parse(path.read_text(), path)))
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    own |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}  # slots
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if ast.unparse(node.value) in ("self", "cls", "super()"):
                own |= {node.attr} if isinstance(node.ctx, ast.Store) else set()
            else:
                found.add(node.attr)
    return found - own


@pytest.mark.parametrize("path", SOURCES, ids=_identify)
def test_no_file_uses_private_attributes_of_another(path: Path) -> None:
    place = path.relative_to(ROOT / PACKAGE).as_posix()
    assert _foreign_private_names(path) == PAIRS.get(place, set())


@pytest.mark.parametrize("path", SOURCES, ids=_identify)
def test_classes_have_at_most_350_lines(path: Path) -> None:
    classes = [node for node in ast.walk(ast.parse(path.read_text(), path)) if isinstance(node, ast.ClassDef)]
    sizes = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in classes}
    assert {name: size for name, size in sizes.items() if size > 350} == {}


def test_the_build_selection_is_small() -> None:
    assert len((ROOT / PACKAGE / "_implementation.py").read_text().splitlines()) <= 40


def test_pxd_files_hold_no_logic() -> None:
    assert {_module_name(path) for path in TYPES} == set(HOT_PATH) | DECLARATIONS
    for path in TYPES:
        assert path.with_suffix(".py").exists() is (_module_name(path) not in DECLARATIONS)
        assert not re.search(r"^\s*(return|if|for|while|inline)\b", path.read_text(), re.MULTILINE), path.name


def test_a_connection_has_no_dictionary() -> None:
    """With a dictionary, each call between its methods would look for an override there first."""
    connection = importlib.import_module(f"{PACKAGE}.connection.aio.connection").AsyncioConnection
    assert connection.__dictoffset__ == 0


def test_uvloop_does_not_treat_a_connection_as_a_buffered_protocol() -> None:
    """With this method uvloop would treat it as one, and read small messages in a more expensive way."""
    connection = importlib.import_module(f"{PACKAGE}.connection.aio.connection").AsyncioConnection
    assert not hasattr(connection, "get_buffer")


def test_public_names() -> None:
    package = importlib.import_module(PACKAGE)
    names = package.__all__
    assert len(names) == len(set(names)) <= 25
    assert [name for name in names if not hasattr(package, name)] == []
    promised = {"Watershed", "WatershedConnection", "WatershedASGI", "WatershedWSGI", "implementation"}
    assert promised <= set(names)


SHOW_IMPLEMENTATION = "import watershed_mw; print(watershed_mw.implementation)"


def test_pure_environment_variable_forces_the_interpreted_build(run_python: RunPython) -> None:
    assert run_python(SHOW_IMPLEMENTATION, WATERSHED_MW_PURE="1").strip() == "interpreted"


def test_extension_modules_are_used_if_built(run_python: RunPython) -> None:
    expected = "compiled" if _compiled_here() else "interpreted"
    assert run_python(SHOW_IMPLEMENTATION, WATERSHED_MW_PURE=None).strip() == expected
    if os.environ.get("WATERSHED_MW_COMPILE") == "required":
        assert expected == "compiled"


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="needs a free-threaded CPython")
def test_extension_modules_enable_the_gil(run_python: RunPython) -> None:
    shown = "import sys, warnings; warnings.simplefilter('ignore'); import watershed_mw; print(sys._is_gil_enabled())"
    assert run_python(shown, PYTHON_GIL=None).strip() == str(bool(_compiled_here()))


def test_no_extension_module_declares_free_threading() -> None:
    """Before one does, the tests of the core and of connections must pass on a free-threaded CPython."""
    assert not re.search(r"freethreading_compatible\W+True", (ROOT / "setup.py").read_text())


def test_version_is_the_newest_of_the_changelog() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+[^\]]*)\]", changes, re.MULTILINE)
    assert versions[0] == PROJECT["version"]
    assert versions[0] == importlib.metadata.version("watershed-mw")
    assert versions[0] == importlib.import_module(PACKAGE).__version__


def test_there_is_one_required_dependency() -> None:
    assert [re.match(r"[\w-]+", need)[0] for need in PROJECT["dependencies"]] == ["h11"]  # type: ignore[index]


# -- distributions: an sdist, and the wheels that come of it with a compiler, without one, and by wish --


def _compiled_here() -> set[str]:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    found = {path.relative_to(ROOT / PACKAGE).as_posix() for path in (ROOT / PACKAGE).rglob(f"*{suffix}")}
    expected = {name.replace(".", "/") + suffix for name in HOT_PATH}
    assert found in (set(), expected), f"all of the extension modules or none, not {found}"
    return found


def _build(kind: str, source: Path, out: Path, **environment: str) -> tuple[Path, str]:
    """Build one distribution offline; return its path and the build's output."""
    # Without optimisation: what is in a wheel does not depend on it, and it takes a fraction of the time.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WATERSHED_MW_")}
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(out), str(source)],
        env=clean | {"CFLAGS": "-O0"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout
    (built,) = out.iterdir()
    return built, done.stdout


@pytest.fixture(scope="module")
def unpacked_sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built, _ = _build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))
    target = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(built) as archive:
        archive.extractall(target, filter="data")
    (top,) = target.iterdir()
    return top


def _wheel_names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def _expected_sources() -> set[str]:
    return {_identify(path) for path in SOURCES} | {f"{PACKAGE}/py.typed"}


@pytest.mark.programs
@pytest.mark.timeout(120)
def test_sdist_holds_everything_for_a_build_and_nothing_built(unpacked_sdist: Path) -> None:
    names = {str(path.relative_to(unpacked_sdist)) for path in unpacked_sdist.rglob("*") if path.is_file()}
    typed = {_identify(path) for path in TYPES}
    needed = {"pyproject.toml", "setup.py", "README.md", "LICENSE", "CHANGELOG.md", "tests/test_project.py"}
    assert names >= _expected_sources() | typed | needed
    unwanted = re.compile(r"\.(so|pyd|c|o|pyc)$|(^|/)(node_modules|build|\.venv[^/]*)/")
    written = {"benchmarks/echo.c", "benchmarks/load.c"}  # by hand, not translated
    assert {name for name in names if unwanted.search(name)} == written


@pytest.mark.programs
@pytest.mark.timeout(300)
def test_wheel_holds_the_package_and_its_extension_modules(unpacked_sdist: Path, tmp_path: Path) -> None:
    wheel, _ = _build("wheel", unpacked_sdist, tmp_path)
    names = _wheel_names(wheel)
    extensions = {name for name in names if name.endswith((".so", ".pyd"))}
    assert names - extensions == _expected_sources()
    assert {name.removeprefix(f"{PACKAGE}/") for name in extensions} == _compiled_here()


@pytest.mark.programs
@pytest.mark.timeout(120)
def test_wheel_without_a_compiler_is_complete_and_says_so(unpacked_sdist: Path, tmp_path: Path) -> None:
    wheel, said = _build("wheel", unpacked_sdist, tmp_path, CC="false")
    assert _wheel_names(wheel) == _expected_sources()
    if _compiled_here():
        assert said.count("the interpreted code will run") == 1


@pytest.mark.programs
@pytest.mark.timeout(120)
def test_pure_wheel_is_for_every_platform(unpacked_sdist: Path, tmp_path: Path) -> None:
    wheel, _ = _build("wheel", unpacked_sdist, tmp_path, WATERSHED_MW_PURE="1")
    assert wheel.name == f"watershed_mw-{PROJECT['version']}-py3-none-any.whl"
    assert _wheel_names(wheel) == _expected_sources()
