"""What a plan bound to tensors has to ask at each call: whether they are the same ones and where they were, and what
others look like.

A thousand of them, one by one in Python, take longer than the kernel. A few lines of C ask all of them, 4 us a thousand
where Python takes 80; they are compiled as Triton compiles its launchers, through torch's stable C interface. Where
that cannot be had, Python asks.
"""

from __future__ import annotations

import functools
import subprocess
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = r"""
#include <Python.h>
#include <stdint.h>

// Of libtorch's stable interface; a handle is the address of a pointer to what a tensor holds. Not 0 is an error.
int32_t aoti_torch_get_data_ptr(void* tensor, void** address);
int32_t aoti_torch_get_dim(void* tensor, int64_t* dimensions);
int32_t aoti_torch_get_sizes(void* tensor, int64_t** sizes);
int32_t aoti_torch_get_strides(void* tensor, int64_t** strides);
int32_t aoti_torch_get_dtype(void* tensor, int32_t* dtype);
int32_t aoti_torch_get_device_type(void* tensor, int32_t* type);
int32_t aoti_torch_get_device_index(void* tensor, int32_t* index);

static PyObject* CDATA;  // "_cdata": the attribute that points to what a tensor holds

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
    void* address = NULL;
    alike = (int64_t)tensors[i] == words[i] && aoti_torch_get_data_ptr(&words[n + i], &address) == 0 &&
            (int64_t)address == words[2 * n + i];
  }
  PyBuffer_Release(&known);
  return PyBool_FromLong(alike);
}

// The type, device, sizes and strides of a tensor of one or two dimensions, the first size less `rows`, and its
// address. Whether that could be had.
static int describe_one(PyObject* tensor, int64_t rows, int64_t* words, int64_t* address) {
  PyObject* held = PyObject_GetAttr(tensor, CDATA);
  if (!held) return 0;
  void *content = PyLong_AsVoidPtr(held), *at = NULL, *handle = &content;
  Py_DECREF(held);
  int64_t dimensions = 0, *sizes, *strides;
  int32_t dtype, type, index;
  if (!content || aoti_torch_get_dim(handle, &dimensions) || dimensions < 1 || dimensions > 2) return 0;
  if (aoti_torch_get_sizes(handle, &sizes) || aoti_torch_get_strides(handle, &strides)) return 0;
  if (aoti_torch_get_dtype(handle, &dtype) || aoti_torch_get_device_type(handle, &type)) return 0;
  if (aoti_torch_get_device_index(handle, &index) || aoti_torch_get_data_ptr(handle, &at)) return 0;
  *address = (int64_t)at;
  words[0] = dtype;
  words[1] = (int64_t)type << 32 | (uint32_t)index;
  words[2] = sizes[0] - rows;
  words[3] = strides[0];
  words[4] = dimensions == 2 ? sizes[1] : -1;
  words[5] = dimensions == 2 ? strides[1] : -1;
  return 1;
}

// Of a list of tensors, and int64 each to take off their first sizes: (bytes of the descriptions, bytes of the
// addresses), or None.
static PyObject* describe(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  Py_buffer rows;
  if (count != 2 || !PyList_Check(args[0])) {
    PyErr_SetString(PyExc_TypeError, "describe(list of tensors, rows of each)");
    return NULL;
  }
  if (PyObject_GetBuffer(args[1], &rows, PyBUF_SIMPLE) < 0) return NULL;
  Py_ssize_t n = rows.len / (Py_ssize_t)sizeof(int64_t), i = 0;
  PyObject* words = PyBytes_FromStringAndSize(NULL, 6 * rows.len);
  PyObject* addresses = PyBytes_FromStringAndSize(NULL, rows.len);
  if (words && addresses && n == PyList_GET_SIZE(args[0])) {
    int64_t *word = (int64_t*)PyBytes_AS_STRING(words), *address = (int64_t*)PyBytes_AS_STRING(addresses);
    while (i < n && describe_one(PyList_GET_ITEM(args[0], i), ((int64_t*)rows.buf)[i], word + 6 * i, address + i)) i++;
  }
  PyObject* result = NULL;
  if (!PyErr_Occurred()) result = i == n ? PyTuple_Pack(2, words, addresses) : Py_NewRef(Py_None);
  PyBuffer_Release(&rows);
  Py_XDECREF(words);
  Py_XDECREF(addresses);
  return result;
}

static PyMethodDef METHODS[] = {
    {"same", (PyCFunction)(void*)same, METH_FASTCALL, NULL},
    {"describe", (PyCFunction)(void*)describe, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "recopt_known", NULL, -1, METHODS};
PyMODINIT_FUNC PyInit_recopt_known(void) {
  CDATA = PyUnicode_InternFromString("_cdata");
  return CDATA ? PyModule_Create(&MODULE) : NULL;
}
"""


class Known:
    """Tensors as they are now. Holds none of them: whoever keeps this must let go of it with the first that dies."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.objects = list(map(id, tensors))
        self.addresses = list(map(Tensor.data_ptr, tensors))
        self.words = array("q", [*self.objects, *[t._cdata for t in tensors], *self.addresses])

    def same(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors, in the same memory."""
        asked = _compiled()
        if asked is None:
            return self.objects == list(map(id, tensors)) and self.addresses == list(map(Tensor.data_ptr, tensors))
        alike: bool = asked.same(tensors if isinstance(tensors, (list, tuple)) else tuple(tensors), self.words)
        return alike


def described(tensors: list[Tensor], rows: array[int]) -> tuple[object, bytes]:
    """What a plan assumes of tensors: types, devices, strides and sizes, the first of them less ``rows``, as something
    to be compared; and their addresses as int64."""
    asked = _compiled()
    found: tuple[bytes, bytes] | None = None if asked is None else asked.describe(tensors, rows)
    if found is not None:
        return found
    firsts = [t.shape[:1].numel() - n for t, n in zip(tensors, rows, strict=True)]
    words = [(t.dtype, t.device, n, t.shape[1:], t.stride()) for t, n in zip(tensors, firsts, strict=True)]
    return tuple(words), array("q", map(Tensor.data_ptr, tensors)).tobytes()


@functools.cache
def _compiled() -> Any:
    """The module in C; None without a compiler, Python's headers or the interface."""
    libraries = str(Path(torch.__file__).parent / "lib")
    try:
        from triton.runtime.build import compile_module_from_src

        return compile_module_from_src(SOURCE, "recopt_known", [libraries], [], ["torch_cpu"])
    except (ImportError, OSError, RuntimeError, subprocess.CalledProcessError):
        return None
