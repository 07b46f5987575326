"""C that kernels share on a CPU: vectors, the functions that a text may call, and how it is compiled.

A module is compiled once for each source, as Triton compiles its launchers, for the vectors that torch finds the
processor to have; where that cannot be had torch's operators do the work.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from .cuda_math import PLAIN

# Numbers of a vector, rows whose sums of two vectors fill the registers, and what the compiler is told.
MACHINES = {
    "AVX512": (16, 12, "avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512"),
    "AVX2": (8, 6, "avx2,fma"),
}

COMMON = r"""
#include <Python.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#pragma GCC optimize("no-trapping-math,no-math-errno")
#pragma GCC target("@TARGET@")

#define VECTOR @VECTOR@
#define BLOCK @BLOCK@
#define ALIGNED(n) (((n) + 15) / 16 * 16)
#define INLINE static inline __attribute__((always_inline))
#define __device__ static inline
#define __forceinline__ __attribute__((always_inline))
#define __int_as_float(bits) as_float(bits)
typedef float Vector __attribute__((vector_size(4 * VECTOR), aligned(4)));
typedef int64_t i64;

INLINE float as_float(int32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// e^x to 2 units in the last place; below -87 and above 88 what it is there.
INLINE float exponential(float x) {
  const float shift = 12582912.0f;  // 1.5 * 2^23: a sum with it is rounded to a whole number
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float n = (x * 1.44269504f + shift) - shift;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  return p * as_float((int32_t)((uint32_t)((int32_t)n + 127) << 23));
}
INLINE float f_exp(float x) { return expf(x); }
INLINE float f_sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }
INLINE float f_tanh(float x) {
  const float s = x * x, e = exponential(-2.0f * fabsf(x));
  float p = 62.0f / 2835 + s * (-1382.0f / 155925);
  p = x * (1.0f + s * (-1.0f / 3 + s * (2.0f / 15 + s * (-17.0f / 315 + s * p))));
  const float y = copysignf((1.0f - e) / (1.0f + e), x);
  return fabsf(x) < 0.35f ? p : y;
}
@PLAIN@
"""

# The end of a source that has a `Call` and `rows_of` it, which says whether memory for them could be had.
MODULE = r"""
// run(the words of a Call, first, end): its rows from `first` to before `end`.
static PyObject* run(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  Call call;
  i64 words[sizeof(Call) / 8] = {0};
  if (count != 3 || !PyList_Check(args[0])) return PyErr_SetString(PyExc_TypeError, "run(words, first, end)"), NULL;
  const i64 first = PyLong_AsLongLong(args[1]), end = PyLong_AsLongLong(args[2]);
  for (i64 n = 0; n < PyList_GET_SIZE(args[0]) && n < (i64)sizeof(Call) / 8; n++)
    words[n] = PyLong_AsLongLong(PyList_GET_ITEM(args[0], n));
  if (PyErr_Occurred()) return NULL;
  memcpy(&call, words, sizeof(call));
  int done;
  Py_BEGIN_ALLOW_THREADS
  done = rows_of(&call, first, end);
  Py_END_ALLOW_THREADS
  return done ? Py_NewRef(Py_None) : PyErr_NoMemory();
}

static PyMethodDef METHODS[] = {
    @METHODS@
    {"run", (PyCFunction)(void*)run, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "@NAME@", NULL, -1, METHODS};
PyMODINIT_FUNC PyInit_@NAME@(void) { return PyModule_Create(&MODULE); }
"""


def compiled(name: str, source: str, texts: Mapping[str, object]) -> Any:
    """The module ``name`` in C, whose ``@MARKS@`` are replaced by ``texts``, COMMON and MODULE; None where
    the processor or the compiler cannot be had."""
    machine = MACHINES.get(torch.backends.cpu.get_cpu_capability())
    if machine is None:
        return None
    vector, block, target = machine
    known = {"TARGET": target, "VECTOR": vector, "BLOCK": block, "PLAIN": PLAIN, "NAME": name, "METHODS": "", **texts}
    source = source.replace("@COMMON@", COMMON).replace("@MODULE@", MODULE)
    return built(name, re.sub("@([A-Z]+)@", lambda m: str(known[m[1]]), source))


def built(name: str, source: str) -> Any:
    """The module ``name`` of a source in C; None where there is no compiler."""
    try:
        from triton.runtime.build import compile_module_from_src

        return compile_module_from_src(source, name, [], [], [])
    except (ImportError, OSError, RuntimeError, subprocess.CalledProcessError):
        return None


def run_rows(module: Any, call: list[int], rows: int, block: int) -> None:
    """Run the rows of a call, which is its words, `block` or more of them a thread of torch's."""
    threads = min(torch.get_num_threads(), rows // block)
    if threads < 2:
        module.run(call, 0, rows)
        return
    share = -(-rows // (threads * block)) * block
    with ThreadPoolExecutor(threads) as pool:  # a pool that lasts would not outlive a fork
        list(pool.map(lambda n: module.run(call, n, min(n + share, rows)), range(0, rows, share)))
