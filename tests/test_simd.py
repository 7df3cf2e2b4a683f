"""The register tiles against their Python twins, at every vector width, and as machine code for machines that are not here."""

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
def run_outer(vectors, table, step, scalars, offsets, scalar_step, count, places, out, start, add, valid):
    simd.outer_tile(
        vectors, 2, table, 1, step, scalars, offsets, scalar_step, 3, count, places, out, start, 1, add, valid
    )


@kernel
def run_pointwise(vectors, table, step, scalars, offsets, scalar_step, count, places, out, start, add, valid):
    simd.pointwise_tile(
        vectors, 2, table, 1, step, scalars, offsets, scalar_step, 3, count, places, out, start, 1, add, valid
    )


@kernel
def run_transpose(source, source_step, target, target_step):
    simd.transpose_tile(source, 1, source_step, target, 2, target_step)


TILES = {"outer": (run_outer, simd._twin(splat=True)), "pointwise": (run_pointwise, simd._twin(splat=False))}


def check_tile(name, dtype):
    """Compare a tile with its twin for every number of lanes; margins hold NaN and must neither be used nor written."""
    run, twin = TILES[name]
    rng = np.random.default_rng(0)
    n = simd.lanes(np.dtype(dtype).itemsize)
    width, count, scalar_step = simd.VECTORS * n, 5, width_step(name, n)
    for valid in range(1, width + 1):
        whole = -(-valid // n) * n
        pitch = width + 3
        vectors = rng.integers(-4, 5, 2 + 4 * count * pitch + width).astype(dtype)
        scalars = rng.integers(-4, 5, 400 + 6 * width + 4 * count * scalar_step).astype(dtype)
        table, offsets = np.array([99999, 0, count * pitch, 7]), np.array([99999, 3, 0, 60])
        places = np.concatenate([rng.integers(0, 300, simd.ROWS), 1 + np.arange(simd.ROWS) * pitch])
        start = rng.integers(-4, 5, 1 + width).astype(dtype)
        for add in (0, 1):
            out = np.full(1 + simd.ROWS * pitch, np.nan, dtype)
            if add:
                for m in range(simd.ROWS):
                    out[places[simd.ROWS + m] :][:whole] = m
            expected = out.copy()
            arguments = (pitch, scalars, offsets, scalar_step, count, places)
            run(vectors, table, *arguments, out, start, add, valid)
            twin(
                vectors,
                2,
                table,
                1,
                pitch,
                scalars,
                offsets,
                scalar_step,
                3,
                count,
                places,
                expected,
                start,
                1,
                add,
                valid,
            )
            np.testing.assert_array_equal(out, expected)
            assert np.isfinite(out[places[simd.ROWS] :][:valid]).all()
            if not add:
                assert np.isnan(out[places[simd.ROWS] + valid])


def width_step(name, n):
    return 3 if name == "outer" else n


def check_transpose(dtype):
    n = simd.lanes(np.dtype(dtype).itemsize)
    source = np.arange(1 + n * (n + 2), dtype=dtype)
    target = np.full(2 + n * (n + 1), np.nan, dtype)
    run_transpose(source, n + 2, target, n + 1)
    square = source[1:].reshape(n, n + 2)[:, :n]
    np.testing.assert_array_equal(target[2:].reshape(n, n + 1)[:, :n], square.T)
    assert np.isnan(target[:2]).all()
    assert np.isnan(target[2:].reshape(n, n + 1)[:, n]).all()


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
    function, _ = simd._private_function(module, "tile", 13)
    function.linkage = ""
    simd._write_tile(function, types.float32, vectors, True)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    parsed = llvm.parse_assembly(str(module))
    target = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3)
    assembly = target.emit_assembly(parsed)
    products = [line for line in assembly.splitlines() if instruction in line and re.search(register, line)]
    assert len(products) == simd.ROWS * vectors
    # The innermost loop: from the label before the first product to the branch after the last.
    lines = assembly.splitlines()
    at = [i for i, line in enumerate(lines) if line in products]
    stores = [line for line in lines[at[0] : at[-1]] if re.search(rf"(vmov\w+\s+%?{register}.*\(%rsp|str\s+q)", line)]
    assert not stores
    assert len(target.emit_object(llvm.parse_assembly(str(module)))) > 0
