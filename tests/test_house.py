"""The house: who may import whom, where the compiler's options stand, and a cache that is never stale and never in the way."""

import ast
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from numba import config

import fastconv

PACKAGE = pathlib.Path(fastconv.__file__).parent
ROOT = pathlib.Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# From the ground up.  A module imports from lower floors only, or from its own package (kernels, nn).  What stands on no floor is
# an application: it may import anything, and nothing on a floor may import it.
FLOORS = (
    {"interpreter", "limits", "cook_toom", "dft", "linking"},
    {"threads", "archive"},
    {"jit"},
    {"geometry", "arrays", "simd"},
    {"scratch"},
    {"tasks"},
    {"reference", "kernels", "padding"},
    {"strips", "prepared"},
    {"tiles"},
    {"work"},
    {"programs"},
    {"algorithm", "bands", "correlation", "depthwise", "planes"},
    {"engine", "fourier", "winograd"},
    {"plan"},
    {"calls"},
    {"passes"},
    {"ops"},
    {"grad", "ladder", "pooled"},
    {"nn"},
    {"torch"},
)
APPLICATIONS = len(FLOORS)


def floor_of(module):
    return next((n for n, floor in enumerate(FLOORS) if module.split(".")[0] in floor), APPLICATIONS)


def imports_of(module, everywhere=True):
    """Return the package's modules that a module imports; without ``everywhere`` only those that its own import loads."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    if module == "__init__":
        package = []
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree)) if everywhere else tree.body
    found = set()
    for node in nodes:
        names = []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += (node.module or "").split(".") if node.module else []
            if not node.level:
                if base[0] != "fastconv":
                    continue
                base = base[1:]
            names = [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.removeprefix("fastconv.") for alias in node.names if alias.name.startswith("fastconv.")]
        for name in names:
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            if name and name != module:
                found.add(name)
    return found


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__init__"])
def test_imports_point_down(module):
    own = module.split(".")[0]
    for other in imports_of(module):
        if other.split(".")[0] == own:
            continue
        floors = floor_of(module), floor_of(other)
        assert floors[0] > floors[1] or min(floors) == APPLICATIONS, f"{module} imports {other}"
    for name in ("jit", "geometry", "reference", "plan", "passes", "ops", "nn"):
        assert name in MODULES  # the floors name what exists


def test_nothing_imports_in_a_circle():
    """Among the imports that run when a module is loaded."""
    graph = {name: imports_of(name, everywhere=False) for name in MODULES if name != "__init__"}
    while graph:
        free = [name for name, others in graph.items() if not others & set(graph)]
        assert free, f"in a circle: {sorted(graph)}"
        for name in free:
            del graph[name]


def test_the_reference_imports_nothing_that_it_checks():
    assert imports_of("reference") == {"jit"}


def test_kernels_know_arrays_and_numbers_only():
    for module in MODULES:
        if module.startswith("kernels."):
            below = {name for name in MODULES if floor_of(name) <= floor_of("kernels")}
            assert imports_of(module) <= below
            assert not any(name.endswith("Geometry") for name in identifiers(module)), module


def identifiers(module):
    """Return every name, attribute and keyword that a module's code (not its comments) uses."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.keyword, ast.arg)) and node.arg:
            yield node.arg
        elif isinstance(node, ast.alias):
            yield node.name.rpartition(".")[2]


COMPILERS = {
    "njit",
    "vectorize",
    "guvectorize",
    "generated_jit",
    "cfunc",
    "stencil",
    "jit_module",
    "jitclass",
    "register_jitable",
}
OPTIONS = {"fastmath", "nogil", "error_model", "boundscheck", "nopython", "forceobj"}


def test_options_of_the_compiler_stand_in_one_file():
    users = {module for module in MODULES if (COMPILERS | OPTIONS) & set(identifiers(module))}
    assert users == {"jit"}


def decorators(module):
    functions = (n for n in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(n, ast.FunctionDef))
    return {node.id for function in functions for node in function.decorator_list if isinstance(node, ast.Name)}


def test_every_file_with_compiled_code_is_part_of_the_key(tmp_path):
    """`jit.source_hash` covers each file that uses a decorator of jit.py, or gives kernels a function of its own."""
    users = [
        module
        for module in MODULES
        if {name for name in decorators(module) if name.endswith("kernel")}
        | ({"task", "shared", "intrinsic"} & decorators(module))
    ]
    assert {"geometry", "reference", "kernels.loops"} <= set(users)
    shutil.copytree(PACKAGE, tmp_path / "fastconv", ignore=shutil.ignore_patterns("__pycache__"))
    program = f"""
        from pathlib import Path
        from fastconv.jit import source_hash
        for name in {[str(MODULES[module].relative_to(PACKAGE)) for module in users]!r}:
            source_hash.cache_clear()
            before = source_hash()
            path = Path("fastconv", name)
            path.write_text(path.read_text() + "# edited")
            source_hash.cache_clear()
            assert source_hash() != before, name
    """
    run(program, tmp_path)


def test_the_top_level_holds_what_was_agreed():
    if not (ROOT / ".git").exists():
        return  # an unpacked archive: what lies beside it is not the project's
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    entries = {line.split("/")[0] for line in listed.stdout.splitlines()}
    agreed = {"fastconv", "tests", "asv_benchmarks", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"}
    assert {entry for entry in entries if not entry.startswith(".")} <= agreed


# ---------------------------------------------------------------------------------------------------------------------
# The cache of compiled kernels
# ---------------------------------------------------------------------------------------------------------------------

COMPILED = pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is cached without the compiler")

PROBE = """
    '''Two small kernels: one calls a shared function of geometry, the other a kernel of another file.'''
    from ..geometry import gather_range
    from ..jit import kernel
    from .loops import total_of

    @kernel
    def first_output(p):
        return gather_range(p, 3, 9, 2, 1, 1)[0]

    @kernel
    def twice(array):
        return 2 * total_of(array)
"""

CALL = """
    import numpy as np
    from fastconv.kernels.probe import first_output, twice
    print(first_output(7), twice(np.arange(4.0)))
    hits = [sum(f.stats.cache_hits.values()) for f in (first_output, twice)]
    print("from the cache" if hits == [1, 1] else "compiled" if hits == [0, 0] else hits)
"""


def dedent(text):
    lines = text.strip("\n").splitlines()
    return "\n".join(line[len(lines[0]) - len(lines[0].lstrip()) :] for line in lines) + "\n"


def run(program, folder, cache=None, **more):
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    environment |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "error"}
    if cache is not None:
        environment["NUMBA_CACHE_DIR"] = str(cache)
    environment |= more
    done = subprocess.run(
        [sys.executable, "-c", dedent(program)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def copy(tmp_path):
    """A copy of the package that may be edited, with the probe among its kernels."""
    shutil.copytree(PACKAGE, tmp_path / "fastconv", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "fastconv/kernels/probe.py").write_text(dedent(PROBE))
    return tmp_path


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))


@COMPILED
def test_an_edit_never_meets_a_stale_kernel(copy):
    """Not even where the edited function stands in another file than the kernel that was cached."""
    cache = copy / "cache"
    assert run(CALL, copy, cache) == ["3 12.0", "compiled"]
    assert run(CALL, copy, cache) == ["3 12.0", "from the cache"]
    edit(
        copy / "fastconv/geometry.py",
        "return max(0, ceil_div(p + left - d * (f - 1), s)), ",
        "return 100 + max(0, ceil_div(p + left - d * (f - 1), s)), ",
    )
    assert run(CALL, copy, cache) == ["103 12.0", "compiled"]
    path = copy / "fastconv/kernels/loops.py"
    start = path.read_text().index("def total_of")
    body = path.read_text()[start:]
    edit(path, body, body.replace("total += columns[j]", "total += columns[j] + 1", 1))
    assert run(CALL, copy, cache) == ["103 20.0", "compiled"]
    assert run(CALL, copy, cache) == ["103 20.0", "from the cache"]


LINKED = """
    from ..jit import kernel, linked_kernel, parallel_kernel, prange

    @linked_kernel
    def total(array):
        total = 0.0
        for k in range(array.size):
            total += array[k]
        return total

    @linked_kernel
    def mean(array):
        return total(array) / array.size

    @kernel
    def twice(array):
        return 2 * mean(array)

    @parallel_kernel
    def means(array, out):
        for k in prange(out.size):
            out[k] = mean(array) + total(array)
"""

CALL_LINKED = """
    import numpy as np
    from fastconv import linking
    from fastconv.kernels.linked import mean, means, total, twice
    out = np.zeros(3)
    for call in (lambda: means(np.arange(4.0), out), lambda: print(twice(np.arange(5.0)), out)):
        call()
    names = sorted(name.split("linked")[1][1:].split("B")[0].lstrip("0123456789") for name in linking._linked)
    print(names, [sum(f.stats.cache_hits.values()) for f in (total, mean, twice, means.threaded)])
    for kernel in (mean, total):
        try:
            kernel(np.arange(4.0))
        except TypeError as error:
            print(error)
"""


@COMPILED
@pytest.mark.slow
def test_linked_kernels_come_with_what_calls_them(copy):
    """Also from the cache, where what they came from is gone, and where only a part of the callers is there."""
    (copy / "fastconv/kernels/linked.py").write_text(dedent(LINKED))
    cache = copy / "cache"
    result = ["4.0 [7.5 7.5 7.5]"]
    refused = [f"{name} is for kernels, and cannot be called from Python" for name in ("mean", "total")]
    assert run(CALL_LINKED, copy, cache) == [*result, "['mean', 'total'] [0, 0, 0, 0]", *refused]
    assert run(CALL_LINKED, copy, cache) == [*result, "['mean', 'total'] [0, 0, 1, 1]", *refused]
    for name, hits in {"twice": [0, 1, 0, 1], "mean": [0, 0, 1, 1], "total": [0, 0, 1, 1]}.items():
        for path in cache.rglob(f"linked.{name}-*"):
            path.unlink()
        assert run(CALL_LINKED, copy, cache) == [*result, f"['mean', 'total'] {hits}", *refused], name
    for path in cache.rglob("linked.twice-*"):
        path.unlink()
    found = run(CALL_LINKED, copy, cache)  # now kernels are compiled under the symbols of some that were loaded
    assert found[0] == result[0]
    assert found[1].endswith("[0, 0, 0, 1]")


@COMPILED
def test_callers_hold_no_code_of_linked_kernels(copy):
    (copy / "fastconv/kernels/linked.py").write_text(dedent(LINKED))
    program = """
    import numpy as np
    from fastconv.kernels.linked import mean, twice
    twice(np.arange(4.0))
    [caller] = twice.inspect_llvm().values()
    [callee] = mean.inspect_llvm().values()
    print([(text.count("fdiv"), "declare" in text) for text in (caller, callee)])
    """
    assert run(program, copy, copy / "cache") == ["[(0, True), (1, True)]"]


@COMPILED
@pytest.mark.slow
def test_what_is_in_the_cache_is_loaded_without_the_compiler(copy):
    """Numba would import all that it needs to compile, and with that SciPy, which takes longer than a first call."""
    cache = copy / "cache"
    program = dedent(CALL) + "import sys; print('numba.np.arraymath' in sys.modules)\n"
    assert run(program, copy, cache) == ["3 12.0", "compiled", "True"]
    assert run(program, copy, cache) == ["3 12.0", "from the cache", "False"]
    more = program.replace("np.arange(4.0)", "np.arange(4)")
    assert run(more, copy, cache)[0] == "3 12"  # one from the cache, and then the compiler
    with_threads = dedent(CONVOLVE) + "import sys; print('numba.np.arraymath' in sys.modules)\n"
    assert run(with_threads, copy, cache) == ["288.0", "True"]
    assert run(with_threads, copy, cache) == ["288.0", "False"]


DAMAGES = {
    "half": lambda content: content[: len(content) // 2],
    "foreign": lambda content: b"something else entirely",
}


@COMPILED
@pytest.mark.parametrize("suffix", [pytest.param("nbi", marks=pytest.mark.slow), "nbc"])
def test_damaged_cache_files_are_survived(copy, suffix):
    cache = copy / "cache"
    assert run(CALL, copy, cache) == ["3 12.0", "compiled"]
    for name, damage in DAMAGES.items():
        files = list(cache.rglob(f"*.{suffix}"))
        assert len(files) >= 2
        for path in files:
            path.write_bytes(damage(path.read_bytes()))
        assert run(CALL, copy, cache) == ["3 12.0", "compiled"], name
    assert run(CALL, copy, cache) == ["3 12.0", "from the cache"]  # each time they were mended


@COMPILED
def test_code_for_another_signature_is_not_run(copy):
    """Two processes that write to the cache at once may leave one's code under the other's name."""
    cache = copy / "cache"
    program = """
    import numpy as np
    from fastconv.kernels.probe import twice
    print(twice(np.arange(4.0)), twice(np.arange(4)))
    """
    assert run(program, copy, cache) == ["12.0 12"]
    first, second = sorted(cache.rglob("probe.twice*.nbc"))
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    assert run(program, copy, cache) == ["12.0 12"]


@COMPILED
def test_folders_that_cannot_be_written_are_survived(copy):
    """Where Numba looks for a folder stands a file: not even an administrator can write there."""
    nowhere = copy / "file"
    nowhere.write_text("")
    for folder in (copy / "fastconv", copy / "fastconv/kernels"):
        (folder / "__pycache__").write_text("")
    homes = {"HOME": str(nowhere), "XDG_CACHE_HOME": str(nowhere / "cache")}
    assert run(CALL, copy, nowhere / "cache", **homes) == ["3 12.0", "compiled"]


@COMPILED
def test_a_folder_that_disappears_is_survived(copy):
    cache = copy / "cache"
    program = (
        CALL
        + """
    import shutil, os
    cache = os.environ["NUMBA_CACHE_DIR"]
    shutil.rmtree(cache)
    open(cache, "w").close()
    print(twice(np.arange(4.0, dtype=np.float32)))
    """
    )
    assert run(program, copy, cache)[-1] == "12.0"


CONVOLVE = """
    import numpy as np
    import fastconv
    x, weight = np.ones((2, 32, 9, 9), np.float32), np.ones((32, 32, 3, 3), np.float32)
    print(fastconv.conv2d(x, weight, algorithm="direct").ravel()[0])
"""


@COMPILED
@pytest.mark.slow
def test_an_edited_tile_is_compiled_again(copy):
    """Though no file that holds a kernel, or its cache's name, has changed."""
    cache = copy / "cache"
    for _ in range(2):
        assert run(CONVOLVE, copy, cache) == ["288.0"]
    with open(copy / "fastconv/simd/words.py", "a") as stream:
        stream.write(
            "_once = Words.multiply_add\nWords.multiply_add = lambda w, a, b, c: _once(w, a, b, _once(w, a, b, c))\n"
        )
    for _ in range(2):
        assert run(CONVOLVE, copy, cache) == ["576.0"]


@COMPILED
@pytest.mark.parametrize("convolve", [False, pytest.param(True, marks=pytest.mark.long)])
def test_eight_processes_fill_one_empty_cache(copy, convolve):
    cache, program = copy / "cache", dedent(CALL + (CONVOLVE if convolve else ""))
    environment = os.environ | {"PYTHONPATH": str(copy), "NUMBA_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], cwd=copy, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    for process in processes:
        out, _ = process.communicate(timeout=300)
        first, _, *rest = out.splitlines()
        assert (process.returncode, first, rest) == (0, "3 12.0", ["288.0"] * convolve)
    assert run(CALL, copy, cache) == ["3 12.0", "from the cache"]


@COMPILED
@pytest.mark.skipif(sys.platform == "win32", reason="no limits of this kind")
@pytest.mark.parametrize("most", [*(pytest.param(n, marks=pytest.mark.slow) for n in (0, 100)), 2000])
def test_a_full_disk_is_survived(copy, most):
    """Files end after some bytes: none can be written, or the index but not the code."""
    cache = copy / "cache"
    full = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))\n"
    assert run(full + dedent(CALL), copy, cache) == ["3 12.0", "compiled"]
    assert run(CALL, copy, cache) == ["3 12.0", "compiled"]
    assert run(CALL, copy, cache) == ["3 12.0", "from the cache"]


@COMPILED
def test_another_cpu_finds_nothing_in_the_cache(copy):
    """As where one home serves machines of several kinds."""
    cache = copy / "cache"
    other = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    assert run(CALL, copy, cache) == ["3 12.0", "compiled"]
    assert run(CALL, copy, cache, **other) == ["3 12.0", "compiled"]
    assert run(CALL, copy, cache) == run(CALL, copy, cache, **other) == ["3 12.0", "from the cache"]


@COMPILED
@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_the_cache_is_private_to_its_owner(copy):
    """Folders that Numba makes can be written by no other."""
    run(CALL, copy, copy / "cache", **{"HOME": str(copy)})
    paths = list((copy / "cache").rglob("*"))
    assert paths
    assert not any(path.stat().st_mode & 0o022 for path in paths)
