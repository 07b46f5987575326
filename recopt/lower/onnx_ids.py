"""The rows that bags read, as ONNX nodes: where ids are functions of other ids, where optional passes gave rows other
places than their ids say, and where a row is read once for all ids that name it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from ..fused import Again, Bag, EmbeddingBags, Reshape, Slice, Stored, View
from ..hosts.base import Value
from ..hosts.onnx import OnnxHost
from ..hosts.types.onnx import element_code
from ..ir import sizes
from ..ir.sizes import product
from .onnx_layout import view
from .onnx_programs import written
from .onnx_writer import Writer

Read = Callable[[View, View, Stored | None], Value]  # rows of a table, as numbers


def alone(bag: Bag) -> bool:
    """Whether ids lose their last dimension of size 1, which a Gather would keep. A column that is cut out of a matrix
    has it, and its rows keep it until they lie beside others: one node for all."""
    cut = len(bag.ids.steps) == 1 and isinstance(bag.ids.steps[0], Slice)
    return bag.pool == "row" and bag.count == 1 and not cut


def ids_of(bag: Bag) -> View:
    """The ids; those of single rows without their last dimension."""
    return flatter(bag.ids) if alone(bag) else bag.ids


def mask_of(bag: Bag) -> View | None:
    """The mask along the dimensions of the ids."""
    return flatter(bag.mask) if bag.mask is not None and alone(bag) else bag.mask


def flatter(item: View) -> View:
    """A view without its last dimension, which has size 1."""
    rows = item.shape[:-1]
    kept = item.steps[:-1] if item.steps and isinstance(item.steps[-1], Reshape) else item.steps
    return View(item.value, rows, (*kept, Reshape(rows)))


def together(spec: EmbeddingBags) -> EmbeddingBags:
    """`spec` with single rows of one table that neighbouring columns of one id matrix name as one bag: one Gather for
    all. Those that add up stay apart, whose sum takes 1.0 to 0.6 of the time of a reduction."""
    pieces: list[tuple[Bag | View | Again, ...]] = []
    for piece in spec.pieces:
        joint = _joint(pieces[-1][0], piece[0]) if pieces and len(pieces[-1]) == len(piece) == 1 else None
        pieces[-1:] = [*pieces[-1:], piece] if joint is None else [(joint,)]
    return replace(spec, pieces=tuple(pieces))


def _joint(a: Bag | View | Again, b: Bag | View | Again) -> Bag | None:
    """Two bags of single rows as one; None where they are of two tables, or not of neighbouring columns."""
    if not isinstance(a, Bag) or not isinstance(b, Bag) or not is_cut(b) or a.parts or a.stacked:
        return None
    first, second = a.ids.steps, b.ids.steps
    if a.pool != "row" or len(first) != 1 or a.ids.value is not b.ids.value:
        return None
    if not isinstance(first[0], Slice) or not isinstance(second[0], Slice) or first[0].stop != second[0].start:
        return None
    whole = a.ids.value.shape
    last = whole is not None and first[0].dim == second[0].dim == len(whole) - 1 and first[0].step == second[0].step
    plainly = Bag(a.table, a.ids, "row", modulus=a.modulus, program=a.program, wraps=a.wraps, of_row=a.of_row,
                  factor=a.factor, shift=a.shift, stored=a.stored)  # fmt: skip
    alike = replace(a, named=None) == plainly
    if not last or not alike or replace(b, named=None) != replace(plainly, ids=b.ids, shift=b.shift):
        return None
    shifts = [s for bag in (a, b) for s in (bag.shift if isinstance(bag.shift, tuple) else (bag.shift,) * bag.count)]
    ids = View(a.ids.value, (*a.ids.shape[:-1], len(shifts)), (replace(first[0], stop=second[0].stop),))
    return replace(a, ids=ids, shift=shifts[0] if len({*shifts}) == 1 else tuple(shifts), named=None)


def single(spec: EmbeddingBags) -> EmbeddingBags:
    """`spec` with columns that lose their dimension at once where a matrix has others too: of one whose columns are all
    read ONNX Runtime makes a Split, whose outputs keep it."""
    read: dict[Value, dict[View, int]] = {}
    for bag in spec.bags:
        if is_cut(bag):
            read.setdefault(bag.ids.value, {})[bag.ids] = bag.ids.steps[0].dim  # type: ignore[union-attr]  # a Slice

    def term(item: Bag | View | Again) -> Bag | View | Again:
        columns = read.get(item.ids.value, {}) if isinstance(item, Bag) and is_cut(item) else {}
        if not isinstance(item, Bag) or not columns:
            return item
        shape = item.ids.value.shape
        if shape is None or shape[columns[item.ids]] == len(columns):
            return item
        return replace(item, ids=replace(item.ids, steps=(*item.ids.steps, Reshape(item.ids.shape))))

    return replace(spec, pieces=tuple(tuple(map(term, piece)) for piece in spec.pieces))


def is_cut(bag: Bag) -> bool:
    return bag.pool == "row" and bag.count == 1 and not alone(bag)


def column(host: Writer | OnnxHost, item: View, name: str) -> Value:
    """The value of a view; a column of a matrix by a Gather of its number, which takes two thirds of a Slice's time."""
    step, *rest = item.steps or (None,)
    if not isinstance(step, Slice) or sizes.add(step.stop, -step.start) != 1 or item.value.shape is None:
        return view(host, item, name)
    before, after = item.value.shape[: step.dim], item.value.shape[step.dim + 1 :]
    if rest not in ([], [Reshape((*before, *after))]):
        return view(host, item, name)
    place = host.share_constant(np.array(step.start if rest else [step.start]), name=f"{name}_column")
    return host.call(
        "Gather", [item.value, place], {"axis": step.dim}, name=name, shape=item.shape, dtype=item.value.dtype
    )


def given(spec: EmbeddingBags) -> dict[Bag, View]:
    """The ids that each bag computes its own from: all columns of a matrix at once where bags read most of them and
    compute alike, as a model does that hashes first and takes columns then."""
    groups: dict[tuple[Value, str, int], list[Bag]] = {}
    for bag in spec.bags:
        if bag.program or bag.live or bag.modulus:
            groups.setdefault((bag.ids.value, bag.program, bag.modulus), []).append(bag)
    found = {bag: ids_of(bag) for bag in spec.bags}
    for (value, _, _), bags in groups.items():
        read = dict.fromkeys(bag.ids for bag in bags)
        whole = 0.0 if value.shape is None else sizes.nominal(product(value.shape))
        if (
            value.shape is not None
            and len(read) > 1
            and 2 * sum(sizes.nominal(product(v.shape)) for v in read) >= whole
        ):
            found |= dict.fromkeys(bags, View(value, value.shape))
    return found


def computed(
    host: Writer | OnnxHost, spec: EmbeddingBags, values: Mapping[View | Again, Value]
) -> tuple[EmbeddingBags, dict[View | Again, Value]]:
    """`spec` over ids that nodes compute, under masks that are made of them, and the values that it reads then."""
    starts, found = given(spec), dict(values)
    made: dict[Value, dict[str, Value]] = {}

    def run(text: str, ids: Value) -> Value:
        return program(host, text, ids, spec.name, made.setdefault(ids, {}))

    def term(bag: Bag) -> Bag:
        if not (bag.program or bag.live or bag.modulus):
            return bag
        ids, flat = found[starts[bag]], alone(bag)

        def laid(value: Value) -> Value:
            """What is computed of all columns, of those that the bag reads."""
            if starts[bag] == ids_of(bag):
                return value
            item = View(value, bag.ids.shape, bag.ids.steps)
            return column(host, flatter(item) if flat else item, spec.name)

        def held(value: Value) -> View:
            """A view along the ids that stands for a value."""
            item = View(value, bag.ids.shape, (Reshape(bag.ids.shape),) if flat else bag.ids.steps)
            found[flatter(item) if flat else item] = value
            return item

        new = replace(bag, ids=held(laid(_hashed(run, bag, ids))), program="", modulus=0, live="")
        if not bag.live:
            return new
        live, own = laid(run(bag.live, ids)), mask_of(bag)
        if own is not None:
            other = found[own]
            if bag.unmask:
                other = host.call("Not", [other], name=spec.name, shape=other.shape, dtype="bool")
            live = host.call("And", [other, live], name=spec.name, shape=live.shape, dtype="bool")
        return replace(new, mask=held(live), unmask=False)

    pieces = tuple(tuple(term(t) if isinstance(t, Bag) else t for t in piece) for piece in spec.pieces)
    return replace(spec, pieces=pieces), found


def _hashed(run: Callable[[str, Value], Value], bag: Bag, ids: Value) -> Value:
    """The ids before they are shifted."""
    x = run(bag.program, ids) if bag.program else ids
    if not bag.modulus:
        return x
    wide = bag.modulus > np.iinfo(x.dtype or "int64").max
    return run(f"mod({'int64(i)' if wide else 'i'},{bag.modulus})", x)


def program(host: Writer | OnnxHost, text: str, ids: Value, name: str, made: dict[str, Value]) -> Value:
    """An id program as nodes; `made` holds what was computed of the same ids before."""

    def call(op: str, *operands: Value, **attributes: object) -> Value:
        kind = _KINDS.get(op) or operands[-1].dtype
        if op == "Cast":
            kind = "int64" if attributes["to"] == element_code("int64") else "int32"
        return host.call(op, operands, attributes, name=f"{name}_ids", shape=ids.shape, dtype=kind)

    def number(n: int, like: Value) -> Value:
        return host.share_constant(np.array(n, like.dtype or "int64"), name=f"{name}_constant")

    return written(text, ids, call, number, made)  # type: ignore[no-any-return]  # a Value, as `call` gives


_KINDS = dict.fromkeys(("Equal", "Less", "LessOrEqual", "And", "Or", "Xor", "Not"), "bool")


def plain(host: Writer, bag: Bag, name: str, read: Read) -> Bag:
    """`bag` with ids that name its rows themselves: no remap, no parts, not once. An id out of range stays an error,
    and one from the end the row that it was: it is looked up in a table of as many rows as the original's."""
    if bag.remap is not None or bag.parts:
        ids = View(_rows(host, bag, name), bag.ids.shape)
        bag = replace(bag, ids=ids, program="", modulus=0, shift=0, remap=None, parts=())
    return _once(host, bag, name, read) if bag.once else bag


def _rows(host: Writer, bag: Bag, name: str) -> Value:
    shape = bag.ids.shape
    if bag.parts:
        found = [
            _looked_up(host, step, View(_rows(host, part, name), shape), name)
            for part, step in zip(bag.parts, bag.steps, strict=True)
        ]
        total = found[0]
        for value in found[1:]:
            total = host.call("Add", [total, value], name=f"{name}_ids", shape=shape, dtype=total.dtype)
        return total
    ids = row_numbers(host, bag, view(host, bag.ids, f"{name}_ids"), name)
    return ids if bag.remap is None else _looked_up(host, bag.remap, View(ids, shape), name)


def row_numbers(host: Writer | OnnxHost, bag: Bag, ids: Value, name: str) -> Value:
    """The rows that ids name; a Gather counts negative ones from the end by itself."""
    if bag.stacked:  # tables of equal rows and ids, as of the wide and the deep part, are checked once
        return host.derive(("stacked", ids, bag.stacked), lambda: _stacked(host, bag, ids, name))

    def call(op: str, number: object, kind: str) -> Value:
        constant = host.share_constant(np.array(number, kind), name=f"{name}_constant")
        return host.call(op, [ids, constant], name=name, shape=ids.shape, dtype=kind)

    if bag.program:
        ids = program(host, bag.program, ids, name, {})
    kind = ids.dtype or "int64"
    if bag.modulus > np.iinfo(kind).max or np.max(np.abs(bag.shift)) > np.iinfo(kind).max:
        kind = "int64"
        ids = host.call("Cast", [ids], {"to": element_code(kind)}, name=name, shape=ids.shape, dtype=kind)
    if bag.modulus:
        ids = call("Mod", bag.modulus, kind)
    if bag.shift:
        ids = call("Add", bag.shift if isinstance(bag.shift, int) or not alone(bag) else bag.shift[0], kind)
    if bag.of_row:
        zero = host.share_constant(np.array(0, kind), name=f"{name}_constant")
        negative = host.call("Less", [ids, zero], name=name, shape=ids.shape, dtype="bool")
        counted = call("Add", bag.table.shape[0], kind)
        ids = host.call("Where", [negative, counted, ids], name=name, shape=ids.shape, dtype=kind)
    return ids


def _stacked(host: Writer | OnnxHost, bag: Bag, ids: Value, name: str) -> Value:
    """The rows in the table of all; ids that are in none of their own stay so: they are in no table."""
    kind = ids.dtype or "int64"

    def call(op: str, *operands: Value, to: str = kind) -> Value:
        return host.call(op, operands, name=name, shape=ids.shape, dtype=to)

    def constant(numbers: object) -> Value:
        return host.share_constant(np.array(numbers, kind), name=f"{name}_constant")

    starts, ends = constant(bag.stacked[:-1]), constant(bag.stacked[1:])
    last = constant([n - 1 for n in bag.stacked[1:]])
    negative = call("Less", ids, constant(0), to="bool")
    place = call("Add", ids, call("Where", negative, ends, starts))
    outside = call("Or", call("Less", place, starts, to="bool"), call("Less", last, place, to="bool"), to="bool")
    return call("Where", outside, constant(np.iinfo(kind).max), place)


def _looked_up(host: Writer, table: View, ids: View, name: str) -> Value:
    operands = [table.value, ids.value]
    return host.call("Gather", operands, {"axis": 0}, name=f"{name}_ids", shape=ids.shape, dtype=table.value.dtype)


def _once(host: Writer, bag: Bag, name: str, read: Read) -> Bag:
    """The rows of the distinct ids become a table, and places in it the ids. Bags of the same ids share the places."""
    ids = row_numbers(host, bag, view(host, bag.ids, f"{name}_ids"), name)

    def distinct() -> Value:
        wide = ids  # ONNX Runtime has no Unique of int32
        if ids.dtype != "int64":
            wide = host.call("Cast", [ids], {"to": 7}, name=f"{name}_ids", shape=ids.shape, dtype="int64")
        count, size = sizes.symbol(f"{name}:distinct"), product(bag.ids.shape)
        further = (((count,), "int64"), ((size,), "int64"), ((count,), "int64"))
        return host.call("Unique", [wide], name=f"{name}_once", shape=(count,), dtype="int64", further=further)

    once = host.derive(("once", ids), distinct)
    assert once.node is not None and once.shape is not None
    shape = (*once.shape, bag.columns)
    rows = read(bag.table, View(once, once.shape), bag.stored)
    places = once.node.outputs[2]
    if len(bag.ids.shape) > 1:
        like = host.call("Shape", [ids], name=f"{name}_shape", shape=(len(bag.ids.shape),), dtype="int64")
        places = host.call("Reshape", [places, like], name=f"{name}_places", shape=bag.ids.shape, dtype="int64")
    table, ids_now = View(rows, shape), View(places, bag.ids.shape)
    return replace(bag, table=table, ids=ids_now, program="", modulus=0, shift=0, stored=None, once=False)


def stored_rows(
    host: Writer, operands: tuple[Value, Value, Value | None], ids: View, stored: Stored, name: str
) -> Value:
    """Rows [ids.., width] of a table of fewer bits, as float32: DequantizeLinear under a scale of each row that is
    read, and its bias. `operands` are the table, the ids, and the scales [rows, 2]."""
    table, rows, scales = operands
    shape = (*ids.shape, stored.width)
    if scales is None:
        read = host.call("Gather", [table, rows], {"axis": 0}, name=name, shape=shape, dtype="float16")
        return host.call("Cast", [read], {"to": 1}, name=name, shape=shape, dtype="float32")
    count = product(ids.shape)
    flat = rows
    if len(ids.shape) != 1:
        flat = host.call("Reshape", [rows, _ints(host, -1)], name=name, shape=(count,), dtype=rows.dtype)
    codes = host.call("Gather", [table, flat], {"axis": 0}, name=name, shape=None, dtype="uint8")
    if stored.bits == 4:
        codes = _halves(host, codes, stored.width, name)
    pairs = host.call("Gather", [scales, flat], {"axis": 0}, name=name, shape=(count, 2), dtype="float32")
    first = host.share_constant(np.array(0, np.int64), name="ids_first")
    scale = host.call("Gather", [pairs, first], {"axis": 1}, name=name, shape=(count,), dtype="float32")
    bias = host.call("Gather", [pairs, _ints(host, 1)], {"axis": 1}, name=name, shape=(count, 1), dtype="float32")
    wide = (count, stored.width)
    found = host.call("DequantizeLinear", [codes, scale], {"axis": 0}, name=name, shape=wide, dtype="float32")
    found = host.call("Add", [found, bias], name=name, shape=wide, dtype="float32")
    if len(ids.shape) == 1:
        return found
    outer = host.call("Shape", [rows], name=name, shape=(len(ids.shape),), dtype="int64")
    whole = host.call(
        "Concat", [outer, _ints(host, stored.width)], {"axis": 0}, name=name, shape=(len(shape),), dtype="int64"
    )
    return host.call("Reshape", [found, whole], name=name, shape=shape, dtype="float32")


def _halves(host: Writer, codes: Value, width: int, name: str) -> Value:
    """Two numbers of a byte: the low ones are the first half of a row, the high ones the second."""
    four = host.share_constant(np.array([4], np.uint8), name=f"{name}_four")

    def shifted(value: Value, direction: str) -> Value:
        return host.call("BitShift", [value, four], {"direction": direction}, name=name, shape=None, dtype="uint8")

    parts = [shifted(shifted(codes, "LEFT"), "RIGHT"), shifted(codes, "RIGHT")]
    both = host.call("Concat", parts, {"axis": 1}, name=name, shape=None, dtype="uint8")
    if width % 2 == 0:
        return both
    bounds = [_ints(host, n) for n in (0, width, 1)]
    return host.call("Slice", [both, *bounds], name=name, shape=None, dtype="uint8")


def _ints(host: Writer, *numbers: int) -> Value:
    return host.share_constant(np.array(numbers, np.int64), name="ids_size")
