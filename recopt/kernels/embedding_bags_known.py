"""Whether tensors are the same ones and where they were: what a plan bound to tables has to ask at each call.

A thousand of them, one by one in Python, take longer than the kernel. A few lines of C ask all of them, 4 us a thousand
where Python takes 80; they are compiled as Triton compiles its launchers, through torch's stable C interface. Where
that cannot be had, Python asks.
"""

from __future__ import annotations

import functools
import subprocess
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = r"""
#include <Python.h>
#include <stdint.h>

int32_t aoti_torch_get_data_ptr(void* tensor, void** address);  // of libtorch's stable interface

// Whether a list or tuple of tensors is what `known` says, int64 each: all objects, what they hold, all addresses.
static PyObject* same(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  Py_buffer known;
  if (count != 2 || !(PyList_Check(args[0]) || PyTuple_Check(args[0]))) {
    PyErr_SetString(PyExc_TypeError, "same(list or tuple of tensors, what is known of them)");
    return NULL;
  }
  if (PyObject_GetBuffer(args[1], &known, PyBUF_SIMPLE) < 0) return NULL;
  Py_ssize_t n = PySequence_Fast_GET_SIZE(args[0]);
  PyObject** tensors = PySequence_Fast_ITEMS(args[0]);
  int64_t* words = (int64_t*)known.buf;
  int alike = known.len == 3 * n * (Py_ssize_t)sizeof(int64_t);
  for (Py_ssize_t i = 0; alike && i < n; i++) {
    // A handle of the interface is the address of a pointer to what a tensor holds.
    void* address = NULL;
    alike = (int64_t)tensors[i] == words[i] && aoti_torch_get_data_ptr(&words[n + i], &address) == 0 &&
            (int64_t)address == words[2 * n + i];
  }
  PyBuffer_Release(&known);
  return PyBool_FromLong(alike);
}

static PyMethodDef METHODS[] = {{"same", (PyCFunction)(void*)same, METH_FASTCALL, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "recopt_known", NULL, -1, METHODS};
PyMODINIT_FUNC PyInit_recopt_known(void) { return PyModule_Create(&MODULE); }
"""


class Known:
    """Tensors as they are now. Holds none of them: whoever keeps this must let go of it with the first that dies."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.objects = list(map(id, tensors))
        self.addresses = list(map(Tensor.data_ptr, tensors))
        self.words = array("q", [*self.objects, *[t._cdata for t in tensors], *self.addresses])

    def same(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors, in the same memory."""
        ask = _compiled()
        if ask is None:
            return self.objects == list(map(id, tensors)) and self.addresses == list(map(Tensor.data_ptr, tensors))
        return ask(tensors if isinstance(tensors, (list, tuple)) else tuple(tensors), self.words)


@functools.cache
def _compiled() -> Callable[[Sequence[Tensor], Any], bool] | None:
    """``same`` in C; None without a compiler, Python's headers or the interface."""
    libraries = str(Path(torch.__file__).parent / "lib")
    try:
        from triton.runtime.build import compile_module_from_src

        module = compile_module_from_src(SOURCE, "recopt_known", [libraries], [], ["torch_cpu"])
    except (ImportError, OSError, RuntimeError, subprocess.CalledProcessError):
        return None
    same: Callable[[Sequence[Tensor], Any], bool] = module.same
    return same
