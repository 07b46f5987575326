"""One call of C for a call of `replay.Replay`: it compares the inputs with those captured, writes their addresses into
the kernels' parameters and launches.

What a tensor is like comes from the table of functions that torch exports for DLPack, without a call of Python. The
entry points of the driver come as addresses, so that neither headers nor libraries of CUDA are needed.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, ClassVar

import torch

from .cpu_math import built

SOURCE = r"""
#include <Python.h>
#include <stdint.h>
typedef int64_t i64;

typedef struct {  // DLTensor
  void* data; int32_t device_type, device, ndim; uint8_t code, bits; uint16_t lanes;
  const i64 *shape, *strides; uint64_t offset;
} Seen;
typedef struct { i64 type, ndim, bytes, pointed, held; const i64 *shape, *strides; } Input;
typedef struct { i64 start, end; } Range;
typedef struct { i64 input, offset; i64* place; } Word;
typedef struct { void *handle, *params; i64 words; } Node;
typedef struct {
  int (*describe)(void*, Seen*);
  int (*stream_of)(int, int32_t, void**);
  int (*context_of)(void**);
  int (*record)(void*, void*);
  int (*wait)(void*, void*, unsigned);
  int (*copy)(uint64_t, uint64_t, size_t, void*);
  int (*set)(void*, void*, void*);
  int (*start)(void*, void*);
  void *tensor, *parameter;
  PyObject *is_neg, *is_conj;
  void *exec, *context, *event, *stream;
  i64 used, device_type, device, inputs, nodes, outputs;
  Input* input; Node* node; Word* word; i64* address; Range* output;
} Plan;

// Whether a method of a tensor says no.
static int denies(PyObject* method, PyObject* given) {
  PyObject* answer = PyObject_CallOneArg(method, given);
  const int no = answer == Py_False;
  Py_XDECREF(answer);
  if (!answer) PyErr_Clear();
  return no;
}

// Whether a tensor is as captured; its address.
static int alike(const Plan* plan, const Input* want, PyObject* given, i64* address) {
  Seen seen;
  if (Py_TYPE(given) != plan->tensor && Py_TYPE(given) != plan->parameter) return 0;
  if (plan->describe(given, &seen)) return PyErr_Clear(), 0;
  const i64 type = seen.code | seen.bits << 8 | (i64)seen.lanes << 16;
  if (type != want->type || seen.ndim != want->ndim || seen.device_type != plan->device_type ||
      seen.device != plan->device)
    return 0;
  // DLPack has no words for values that change sign where they are read; 5 are complex types
  if (!denies(plan->is_neg, given) || (seen.code == 5 && !denies(plan->is_conj, given))) return 0;
  for (i64 n = 0; n < want->ndim; n++) {
    if (seen.shape[n] != want->shape[n]) return 0;
    if (want->bytes && want->shape[n] > 1 && seen.strides[n] != want->strides[n]) return 0;
  }
  *address = (i64)seen.data + (i64)seen.offset;
  return 1;
}

// Whether kernels may read an input where it lies: as aligned as those captured, not in an output, which they write.
static int readable(const Plan* plan, i64 address) {
  for (i64 n = 0; n < plan->outputs; n++)
    if (address >= plan->output[n].start && address < plan->output[n].end) return 0;
  return address % @ALIGNED@ == 0;
}

// The current stream waits for the one of the last call, on which buffers and outputs may still be in use.
static int ordered(Plan* plan) {
  void* stream = NULL;
  int status = plan->stream_of((int)plan->device_type, (int32_t)plan->device, &stream);
  if (!status && plan->used && stream != plan->stream) {
    status = plan->record(plan->event, plan->stream);
    if (!status) status = plan->wait(stream, plan->event, 0);
  }
  plan->stream = stream;
  plan->used = 1;
  return status;
}

static int launched(Plan* plan, const char** doing) {
  const Word* word = plan->word;
  for (i64 n = 0; n < plan->nodes; n++) {
    const Node* node = plan->node + n;
    int status, changed = 0;
    for (i64 k = 0; k < node->words; k++, word++) {
      const i64 value = plan->address[word->input] + word->offset;
      changed |= *word->place != value;
      *word->place = value;
    }
    if (changed && (status = plan->set(plan->exec, node->handle, node->params))) {
      *word[-1].place = 0;  // so that the next call sets it again
      return *doing = "pointing a kernel at an input", status;
    }
  }
  return *doing = "the launch of a graph", plan->start(plan->exec, plan->stream);
}

// run(address of a Plan, inputs): None once launched; else the number of the first input that is not as captured, -1
// for another number of them; False for another context of CUDA.
static PyObject* run(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  Plan* plan = count == 2 && PyTuple_Check(args[1]) ? PyLong_AsVoidPtr(args[0]) : NULL;
  void* context = NULL;
  int status;
  if (plan == NULL) return PyErr_SetString(PyExc_TypeError, "run(plan, inputs)"), NULL;
  if (PyTuple_GET_SIZE(args[1]) != plan->inputs) return PyLong_FromLong(-1);
  for (i64 n = 0; n < plan->inputs; n++)
    if (!alike(plan, plan->input + n, PyTuple_GET_ITEM(args[1], n), plan->address + n)) return PyLong_FromLongLong(n);
  if (plan->context_of(&context) || context != plan->context) Py_RETURN_FALSE;
  const char* doing = "waiting for another stream";
  status = ordered(plan);
  for (i64 n = 0; !status && n < plan->inputs; n++) {
    const Input* want = plan->input + n;
    if (want->pointed && readable(plan, plan->address[n])) continue;
    doing = "copying an input";
    if (want->bytes) status = plan->copy(want->held, plan->address[n], want->bytes, plan->stream);
    plan->address[n] = want->held;
  }
  if (!status) status = launched(plan, &doing);
  if (status) return PyErr_Format(PyExc_RuntimeError, "%s failed with CUDA's error %d", doing, status);
  Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"run", (PyCFunction)(void*)run, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "recopt_replay", NULL, -1, METHODS};
PyMODINIT_FUNC PyInit_recopt_replay(void) { return PyModule_Create(&MODULE); }
"""

ALIGNED = 32  # bytes: the largest access of a thread, so that what was chosen for aligned addresses stays right


class Input(ctypes.Structure):
    """An input as captured: its type and shape in DLPack's words, the bytes from its first element to its last, whether
    kernels are pointed at it, and where it is copied to otherwise."""

    _fields_: ClassVar = [
        (name, ctypes.c_int64) for name in ("type", "ndim", "bytes", "pointed", "held", "shape", "strides")
    ]


class Range(ctypes.Structure):
    """The addresses of an output's memory."""

    _fields_: ClassVar = [(name, ctypes.c_int64) for name in ("start", "end")]


class Word(ctypes.Structure):
    """A word of a kernel's parameters, at the address `place`: an input's address and an offset."""

    _fields_: ClassVar = [(name, ctypes.c_int64) for name in ("input", "offset", "place")]


class Launch(ctypes.Structure):
    """A kernel: its node in the graph, its NodeParams, and how many of the next words are its own."""

    _fields_: ClassVar = [(name, ctypes.c_int64) for name in ("handle", "params", "words")]


class Plan(ctypes.Structure):
    """What a call needs: entry points, handles, arrays of the above."""

    _fields_: ClassVar = [
        (name, ctypes.c_int64)
        for name in (
            "describe stream_of context_of record wait copy set start tensor parameter is_neg is_conj exec context "
            "event stream used device_type device inputs nodes outputs input node word address output"
        ).split()
    ]


class Seen(ctypes.Structure):
    """DLTensor."""

    _fields_: ClassVar = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int), ("device", ctypes.c_int), ("ndim", ctypes.c_int),
        ("type", ctypes.c_uint32), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
        ("offset", ctypes.c_uint64),
    ]  # fmt: skip


@functools.cache
def module() -> Any:
    """The module in C; None where there is no compiler."""
    return built("recopt_replay", SOURCE.replace("@ALIGNED@", str(ALIGNED)))


@functools.cache
def exchange() -> tuple[int, int] | None:
    """The addresses of two functions of torch: a tensor as a DLTensor, the current stream of a device. None where torch
    has no table of them (before 2.10) or another than version 1."""
    capsule = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return None
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    table = (ctypes.c_uint64 * 7).from_address(pointer(capsule, b"dlpack_exchange_api"))
    return (table[5], table[6]) if table[0] & 0xFFFFFFFF == 1 and table[5] else None


def seen(t: torch.Tensor) -> Seen:
    """A tensor in DLPack's words, as a call in C sees it. Raises RuntimeError for one that DLPack has no words for."""
    functions = exchange()
    assert functions is not None
    result = Seen()
    describe = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(functions[0])
    describe(t, ctypes.addressof(result))
    return result
