"""The register tiles against their Python twins, at every vector width, and as machine code for machines that are not here."""

import itertools
import os
import re
import subprocess
import sys

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from numba import config, types

from fastconv import simd
from fastconv.jit import kernel

compiled = pytest.mark.skipif(bool(config.DISABLE_JIT), reason="without the JIT the twins are all there is")


@kernel
def run_outer(vectors, offsets, count, scalars, rows, out, targets, tiles, start, add, valid):
    simd.outer_tile(vectors, 2, offsets, 1, count, scalars, 3, rows, 4, out, 5, targets, 6, tiles, start, 1, add, valid)


@kernel
def run_pointwise(vectors, offsets, count, scalars, rows, out, targets, tiles, start, add, valid):
    simd.pointwise_tile(
        vectors, 2, offsets, 1, count, scalars, 3, rows, 4, out, 5, targets, 6, tiles, start, 1, add, valid
    )


@kernel
def run_transpose(*arguments):
    simd.transpose_tile(*arguments)


@kernel
def run_scatter(*arguments):
    simd.scatter_tile(*arguments)


@kernel
def run_gather(*arguments):
    simd.gather_tile(*arguments)


@kernel
def run_copy_tile(*arguments):
    simd.copy_tile(*arguments)


@kernel
def run_copy(*arguments):
    simd.copy(*arguments)


@kernel
def run_clear(*arguments):
    simd.clear(*arguments)


TILES = {"outer": (run_outer, simd._twin(splat=True)), "pointwise": (run_pointwise, simd._twin(splat=False))}


def check_tile(name, dtype):
    """Compare a tile with its twin for every number of lanes; margins hold NaN and must neither be used nor written."""
    run, twin = TILES[name]
    rng = np.random.default_rng(0)
    n = simd.lanes(np.dtype(dtype).itemsize)
    width, tiles = simd.VECTORS * n, 2
    pitch = width + 3
    cases = [*itertools.product(range(1, width + 1), (0, 1, 4, 5), (0, 1))]
    cases += itertools.product((1, n, width), (simd.TERMS, 2 * simd.TERMS + 3), (0, 1))
    for valid, count, add in cases:
        whole = -(-valid // n) * n
        vectors = np.full(2 + count * whole + 1, np.nan, dtype)
        vectors[2 : 2 + count * whole] = rng.integers(-4, 5, count * whole)
        scalars = rng.integers(-4, 5, 3 + 400 + width).astype(dtype)
        offsets = np.concatenate([[99999], rng.integers(0, 200, count)])
        rows = np.concatenate([[99999] * 4, rng.integers(0, 200, tiles * simd.ROWS)])
        targets = np.concatenate([[99999] * 6, rng.permutation(tiles * simd.ROWS) * pitch])
        start = rng.integers(-4, 5, 1 + width).astype(dtype)
        out = np.full(5 + tiles * simd.ROWS * pitch, np.nan, dtype)
        if add:
            for target in targets[6:]:
                out[5 + target :][:valid] = target
        expected = out.copy()
        arguments = (vectors, offsets, count, scalars, rows)
        run(*arguments, out, targets, tiles, start, add, valid)
        twin(vectors, 2, offsets, 1, count, scalars, 3, rows, 4, expected, 5, targets, 6, tiles, start, 1, add, valid)
        np.testing.assert_array_equal(out, expected)
        for target in targets[6:]:
            assert np.isfinite(out[5 + target :][:valid]).all()
            assert np.isnan(out[5 + target + valid : 5 + target + pitch]).all()


def test_rows_may_repeat():
    """The last tile of a sum is filled up with copies of its last row, which are added once."""
    width = simd.VECTORS * simd.lanes(8)
    zeros, result = np.zeros(6 + simd.ROWS, np.int64), np.ones(5 + width)
    run_outer(np.full(2 + 3 * width, 2.0), zeros, 3, np.ones(4), zeros, result, zeros, 1, np.zeros(1 + width), 1, width)
    np.testing.assert_array_equal(result[5:], 7)


def check_transpose(dtype):
    """Compare with NumPy; margins stay as they are."""
    n = simd.lanes(np.dtype(dtype).itemsize)
    squares, step = 3, 4 * n + 1
    rng = np.random.default_rng(0)
    table = np.concatenate([[99999], rng.permutation(2 * n * squares)[: n * squares]])
    for name, run in (("plain", run_transpose), ("scatter", run_scatter), ("gather", run_gather)):
        source = rng.integers(0, 100, 1 + 2 * n * squares * step).astype(dtype)
        target = np.full(2 + 2 * n * squares * step, np.nan, dtype)
        expected, twin = target.copy(), target.copy()
        grid, into = source[1:].reshape(-1, step), expected[2:].reshape(-1, step)
        if name == "plain":
            into[: n * squares, :n] = grid[:n, : n * squares].T
        elif name == "scatter":
            into[table[1:], :n] = grid[:n, : n * squares].T
        else:
            into[:n, : n * squares] = grid[table[1:], :n].T
        run(source, 1, step, target, 2, step, table, 1, squares)
        simd._transpose_twin(name)(source, 1, step, twin, 2, step, table, 1, squares)
        np.testing.assert_array_equal(target, expected, err_msg=name)
        np.testing.assert_array_equal(twin, expected, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_copy(dtype):
    n = simd.lanes(np.dtype(dtype).itemsize)
    source = np.arange(200 * n, dtype=dtype)
    for vectors in range(1, simd.VECTORS + 1):
        results = np.full((2, 100 * n), np.nan, dtype)
        for run, target in zip((run_copy_tile, simd._copy_tile_twin), results, strict=True):
            run(source, 3, 5 * n + 1, target, 7, 6 * n, 4, vectors)
        np.testing.assert_array_equal(*results)
        assert np.isnan(results).sum() == 2 * (100 * n - 4 * vectors * n)
    for count in (0, 1, n, 3 * n + 1):
        results = np.full((2, 100 * n), np.nan, dtype)
        for run, target in zip((run_copy, simd._copy_twin), results, strict=True):
            run(source, 3, target, 7, count)
        np.testing.assert_array_equal(*results)
        assert np.isnan(results).sum() == 2 * (100 * n - count)
        for run, target in zip((run_clear, simd._clear_twin), results, strict=True):
            run(target, 50, 50 + count)
        np.testing.assert_array_equal(*results)
        np.testing.assert_array_equal(results[:, 50 : 50 + count], 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", TILES)
def test_tile_equals_twin(name, dtype):
    check_tile(name, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transpose(dtype):
    check_transpose(dtype)


@compiled
@pytest.mark.parametrize("vector_bytes", [16, 64])
def test_other_widths(vector_bytes):
    """LLVM splits vectors that are wider than this machine's: slow, but the same code path."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np, test_simd as t\n"
        "import fastconv\n"
        "[t.check_tile(name, dtype) for name in t.TILES for dtype in (np.float32, np.float64)]\n"
        "[t.check_transpose(dtype) for dtype in (np.float32, np.float64)]\n"
        "x, w = np.arange(2*5*7*6.).reshape(2, 5, 7, 6) % 7, np.arange(9*5*9.).reshape(9, 5, 3, 3) % 5\n"
        "g = np.arange(2*9*4*3.).reshape(2, 9, 4, 3) % 6\n"
        "for a, b in zip(*(fastconv.conv2d_backward(g, x, w, 2, 1, algorithm=a) for a in ('direct', 'reference'))):\n"
        "    np.testing.assert_array_equal(a, b)\n"
        "np.testing.assert_array_equal(*(fastconv.conv2d(x, w, None, 2, 1, algorithm=a) for a in ('direct', 'reference')))\n"
        "print(t.simd.VECTORS * t.simd.lanes(4))\n"
    )
    environment = {**os.environ, "FASTCONV_VECTOR_BYTES": str(vector_bytes)}
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", script, here], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= vector_bytes // 4


MACHINES = {
    # triple, CPU, features, bytes of a vector, vectors in a row, instruction, register
    "AVX-512": ("x86_64-unknown-linux-gnu", "skylake-avx512", "", 64, 4, "vfmadd231ps", "zmm"),
    "AVX2": ("x86_64-unknown-linux-gnu", "haswell", "", 32, 2, "vfmadd231ps", "ymm"),
    "NEON": ("aarch64-unknown-linux-gnu", "generic", "+neon", 16, 4, "fmla", r"v\d+\.4s"),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_machine_code(machine, monkeypatch):
    """The outer tile assembles for each kind of machine, with all accumulators in registers: none is spilled in the loop."""
    triple, cpu, features, vector_bytes, vectors, instruction, register = MACHINES[machine]
    monkeypatch.setattr(simd, "VECTOR_BYTES", vector_bytes)
    module = ir.Module()
    module.triple = triple
    function, _ = simd._private_function(module, "tile", 11)
    function.linkage = ""
    simd._write_tile(function, types.float32, vectors, True)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    parsed = llvm.parse_assembly(str(module))
    target = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3)
    optimise(parsed, target)
    assembly = target.emit_assembly(parsed)
    products = [line for line in assembly.splitlines() if instruction in line and re.search(register, line)]
    assert len(products) == 3 * simd.ROWS * vectors  # two terms in a turn, and one that may be left
    # The innermost loop: from the first product to the last.
    lines = assembly.splitlines()
    at = [i for i, line in enumerate(lines) if line in products]
    stores = [line for line in lines[at[0] : at[-1]] if re.search(rf"(vmov\w+\s+%?{register}.*\(%rsp|str\s+q)", line)]
    assert not stores
    assert len(target.emit_object(llvm.parse_assembly(str(module)))) > 0


def optimise(module, target):
    """Run LLVM's usual passes, as Numba does."""
    if hasattr(llvm, "create_pass_builder"):
        builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(3))
        builder.getModulePassManager().run(module, builder)
    else:
        manager, builder = llvm.create_module_pass_manager(), llvm.create_pass_manager_builder()
        builder.opt_level = 3
        builder.populate(manager)
        manager.run(module)
