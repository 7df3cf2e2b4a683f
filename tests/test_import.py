"""``import fastconv`` is cheap: it compiles nothing and leaves optional packages alone."""

import subprocess
import sys

import pytest


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_compiles_nothing():
    program = """
import numba
from numba.core import event

with event.install_recorder("numba:compile") as compiled:
    import fastconv
    assert not compiled.buffer, compiled.buffer
    if not numba.config.DISABLE_JIT:  # the recorder does record
        numba.njit(lambda n: n)(1)
        assert compiled.buffer
"""
    run(program)


@pytest.mark.parametrize("enabled", [True, False])
def test_import_leaves_the_collector_as_it_was(enabled):
    assert (
        run(f"import gc; gc.{'enable' if enabled else 'disable'}(); import fastconv; print(gc.isenabled())")
        == f"{enabled}\n"
    )


@pytest.mark.parametrize("package", ["matplotlib", "safetensors", "scipy", "sklearn", "torch", "tqdm"])
def test_import_leaves_optional_packages_alone(package):
    # Numba itself imports a part of SciPy.
    program = "import sys, numba; known = set(sys.modules); import fastconv; print(*set(sys.modules) - known)"
    added = run(program).split()
    assert "fastconv.nn" in added
    assert not [name for name in added if name.partition(".")[0] == package]


def test_import_works_without_optional_packages():
    missing = "matplotlib safetensors scipy sklearn torch tqdm"
    run(f"import sys; sys.modules |= dict.fromkeys({missing.split()!r}); import fastconv, fastconv.cli")


SUBINTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
other = interpreters.create("legacy") if hasattr(interpreters, "new_config") else interpreters.create(isolated=False)
interpreters.run_string(other, "import sys\\ntry: import fastconv\\nexcept ImportError as error: print(error, flush=True)")
"""


def test_a_subinterpreter_is_refused():
    """There the first kernel would hang."""
    assert run(SUBINTERPRETER) == "fastconv runs in the main interpreter only: Numba's kernels hang in others\n"


def test_a_missing_lock_is_refused():
    program = "import sys, numba; sys._is_gil_enabled = lambda: False\n"
    program += "try: import fastconv\nexcept ImportError as error: print(error)"
    assert run(program) == "fastconv needs Python's global lock: set PYTHON_GIL=1\n"
