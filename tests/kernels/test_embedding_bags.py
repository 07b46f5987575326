"""recopt::embedding_bags: the layout, the torch path, the kernel in Triton's interpreter and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from embedding_bags_reference import check_stops_the_device, operands, reference
from hypothesis import given, settings
from hypothesis import strategies as st

import recopt.kernels.embedding_bags.plain
from recopt.hosts import fx_operators
from recopt.kernels.embedding_bags import bytes_moved, embedding_bags, flops, hinted
from recopt.kernels.embedding_bags.config import Config
from recopt.kernels.embedding_bags.ids import compile_program, resolved
from recopt.kernels.embedding_bags.launch import choose_config, embedding_bags_triton
from recopt.kernels.embedding_bags.layout import EmbeddingBagsError, parse_layout
from recopt.kernels.embedding_bags.operands import Operands
from recopt.kernels.embedding_bags.plain import embedding_bags_torch
from recopt.kernels.embedding_bags.plan import supports
from recopt.kernels.embedding_bags.small import small, straight

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LAYOUTS = """x0
x0; x1; row t0[i0:0+1]
row t0[i0:3+1]
row t0[i0:3+4]
row t0[i0:0+1]; row t0[i0:1+1 + 3]; row t0[i0:2+2]; row t1[i0:4+1]
row t0[i0:0+1 % 5]; row t0[i0:1+1 % 7 + 2]; row t0[i0:2+1 + 1]
row t0[i0:0+3] * w0:2
sum t0[i0:0+3] div 1.0 0.0 hot; row t1[i0:3+1] cold
row t0[i0:0+3] pad 4; x0
sum t1[i0:4+5]
sum t0[i0:2+6] * w0:1 pad 3
sum t2[i0:0+4] * w0:0
mean t1[i0:4+5]
mean t0[i0:0+5] pad 2
mean t0[i0:0+5] * w0:3
sum t0[i0:0+5] * w0:3 pad 1 div 1e-09 0.0
sum t0[i0:0+5] * w0:3 div -inf 1e-08
sum t0[i0:0+5] div 0 0
max t0[i0:0+5]
max t0[i0:0+5] pad 1
max t2[i0:0+5] * w0:0 pad 1
sum t0[i0@o0]
mean t0[i0@o0]
max t0[i0@o0]
sum t0[i0@o0+1] * w0 pad 3 div 1.0 0.0
max t0[i0@o0+1] * w0 pad 3
mean t2[i0@o0]; sum t1[i1:0+3]
sum t0[i0:1+6<o0]
mean t0[i0:1+6<o0] pad 5
sum t0[i0:1+6<o0] * w0:1 div 0.0 1e-09
max t0[i0:1+6<o0]
sum t0[i0:1+3 % 9 + 2]; row t1[i0:3+1 % 18]
sum t0[i0@o0 % 11]
row t0[i0:0+3 wrap]; sum t0[i0:0+4 wrap] * w0:0 pad 3; row t0[i0:1+1 + -2 wrap]; max t0[i0:0+4 % 7 + -3 wrap] pad 2
row t0[i0:0+1 wrap] + row t1[i0:1+1] + row t1[i0:2+1 wrap]
sum t0[i0@o0 wrap]
sum t0[i0:0+1] + sum t1[i0:1+1] + x0
row t0[i0:0+1] + row t1[i0:1+1] + mean t2[i0:2+4]; x0
row q8 t0[i0:0+2]
sum q8 t1[i0:0+5] * w0:0 pad 2; x0
mean q8 t0[i0@o0]
max q8 t0[i0:0+4]
row q4 t0[i0:0+1]
row once t0[i0:0+3]; sum once q8 t1[i0:0+5] * w0:0 pad 2; max once q8 t1[i0:0+2] * w0:0
mean once q8 t0[i0@o0]; sum once t1[i0@o0]
row t0[i0:0+1]; x0 % 1; x1 % 4
row t0[i0:0+1] + row t1[i0:1+1] + x0 % 3
sum t0[i0:0+3] + sum t1[i0:3+3]
mean t0[i0@o0] + x0 % 2; sum t1[i1@o0]
row t0[i0:0+1 inside]; row t0[i0:0+3 inside] * w0:1 pad 4
sum t0[i0:0+5 inside] * w0:0; mean t0[i0:0+5 inside] pad 3; max t0[i0:0+5 inside]; mean t1[i0:0+3 wrap inside]
sum t0[i0:0+1 inside] + row t1[i0:1+1 inside]
sum t0[i0@o0 inside]; mean t0[i0@o0 inside]; max t0[i0@o0 inside]
row wide t2[i0:0+2]; sum wide t2[i0:0+5]; sum wide t2[i0:0+5] * w0:0 pad 1; max wide t2[i0:1+3]
sum wide t2[i0@o0]; mean wide t2[i1:0+3] pad 2
sum t0[i0:0+5] div -inf 0.0 of o0
sum t0[i0:0+5<o1] * w0:1 div 1.0 1e-08 of o0; sum t1[i0:0+4] pad 2 div 1.0 0.0 of o0
sum t0[i0@o0] div -inf 0.5 of o1
row t0[i0:0+2] by 0.5; sum t0[i0:0+5] by -2.0; mean t0[i0:0+5] pad 3 by 0.25
sum t0[i0:0+5] * w0:0 div 1.0 0.0 of o0 by 3.0
sum t0[i0@o0] by 0.5; row t1[i1:0+1 inside] * w0:0 by 2.0
max t0[i0:0+3] pad 1 else -1000000000.0; max t0[i0:1+6<o0] else 2.5; max t0[i0:0+1 inside] else -3.0
max t0[i0@o0] else -4.0
max t0[i0:0+3] pad 1 least -9.0; max t0[i0:0+1] pad 2 least -9.0; max t0[i1@o0] pad 1 least -9.0
sum q4:13 t0[i0:0+4] pad 1; max q4:13 t0[i0:0+2]; row q4:13 t0[i0:0+2] * w0:0; sum q8 t1[i0:2+2]""".splitlines()

# Ids and masks that are computed first: what is left is a layout like those above.
COMPUTED = """row t0[i0:0+1 as i*3+1 % 5]; row t0[i0:1+3 as floordiv(i,3)]; row t0[i0:2+1 as floordiv(i,3) + 1 wrap]
sum t0[i0:0+5 as max(i,4) if lt(4,i)]; mean t0[i0:0+5 if lt(4,i)]; row t1[i0:1+2 if logical_not(eq(i,3))] * w0:1
sum t0[i0:0+5] * w0:1 mask w1:2; row t0[i0:1+2] unmask w1:0; sum t0[i0:2+1] mask w1:5 div 1.0 0.0
max t0[i0:0+5 if lt(4,i)] mask w0:1 else 0.5; max t0[i0:0+5 % 7] mask w0:0 pad 2
max t0[i0:1+6<o0 if lt(4,i)] unmask w0:0; max t0[i0:1+6<o0] mask w0:2; sum t0[i0:1+6<o0 if lt(4,i)]
sum t0[i0@o0 as mod(i,4) if eq(mod(i,2),0)] * w0 mask w1; mean t0[i0@o0] unmask w1; max t0[i0@o0] mask w1
mean t0[i0:0+5 as where(lt(i,6),i,truncdiv(i,2))] mask w1:1 pad 2
sum t0[i0:0+5 as truncdiv(i,4)*-4+i]; sum t0[i0:1+5]; sum t1[i1:0+5 % 7] div 2.0 0.5; sum t0[i0:0+5] div 2.0 0.5
max t0[i0:0+5] pad 2; max t1[i0:0+5 if logical_not(eq(2,i)) % 9]; max t1[i0:0+5] pad 3
row t0[i0:0+1 as bitwise_xor(int64(i),1) % 9]; row t0[i0:3+1 as shift_right(abs(i),1)]""".splitlines()


def _close(out: torch.Tensor, exact: torch.Tensor, o: Operands) -> None:
    tolerance = {}
    if o.scales:  # sums of up to five values of 255 * scale, near 1000 before they cancel: half an ulp each
        tolerance = {"rtol": 1e-5, "atol": 2e-4}
    if any(t.dtype == torch.float16 for t in o.tables):
        # A pooled half is rounded to a half before it meets the others, once for its sum and once for a quotient.
        tolerance = {"rtol": 2e-3, "atol": 2e-3}
    torch.testing.assert_close(out, exact, equal_nan=True, **tolerance)


@pytest.mark.parametrize("ids", [torch.int64, torch.int32])
@pytest.mark.parametrize("text", [*LAYOUTS, *COMPUTED])
def test_torch_path_agrees_with_float64(text: str, ids: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for rows, dim in ((5, 7), (1, 16)):
        o = operands(text, rows, dim, ids=ids)
        exact = reference(o, text)
        _close(embedding_bags_torch(*o, text), exact, o)
        with monkeypatch.context() as patch:  # the way of large requests
            patch.setattr(recopt.kernels.embedding_bags.plain, "small", lambda text: None)
            _close(embedding_bags_torch(*o, text), exact, o)
        wide = [[x[None] for x in xs] for xs in (o.ids, o.offsets, o.weights)]
        dense = [x if x.shape[0] != rows else x[None] for x in o.dense]
        function = small(text, 2)
        if function is not None and (spread := function(o.tables, *wide, dense)) is not None:
            _close(spread[0], exact, o)
        kinds = ("tables", "ids", "offsets", "weights", "dense")
        given = {f"{kind}[{n}]": x for kind, xs in zip(kinds, o, strict=False) for n, x in enumerate(xs)}
        shapes = tuple((name, (None, *x.shape[1:])) for name, x in given.items() if x.dim() > 1)
        alone = straight(text, tuple(given), 1, False, shapes)
        if alone is not None and (found := alone(*given.values())) is not None:
            _close(found, exact, o)


def test_a_small_request_is_the_shortest_line_of_calls() -> None:
    assert small("max t0[i0@o0]") is None and small("sum t0[i0@o0]", 2) is None  # flat ids
    rows, ids = torch.rand(9, 16), torch.arange(-600, 600).view(-1, 2) % 9
    rows[3] = torch.inf
    function = small("row t0[i0:0+2 if logical_not(eq(i,3))]")
    assert function is not None
    shown = torch.where((ids == 3)[..., None], 0, rows[ids]).flatten(1)
    assert torch.equal(function([rows], [ids], (), (), ()), shown)  # cleared bit by bit
    assert torch.equal(function([rows.double()], [ids], (), (), ()), shown.double())
    bag = small("sum t0[i0:0+2] pad 3")
    assert bag is not None and bag([rows], [ids.repeat(9, 1)], (), (), ()) is None  # which embedding_bag adds up faster
    wide = small("row t0[i0:0+2 as mod(i*4294967299,9)]")  # a number that 32 bits do not hold stays one
    assert wide is not None and torch.equal(wide([rows], [ids], (), (), ()), rows[ids * 4294967299 % 9].flatten(1))
    with pytest.raises(IndexError):
        embedding_bags_torch([rows], [ids + 1], [], [], [], [], "row t0[i0:0+2]")


def test_what_is_computed_first_is_computed_once() -> None:
    first = resolved("row t0[i0:3+1 as i+1 if lt(0,i)]; row t1[i0:1+1 as i+1 if lt(0,i)]; max t0[i0:0+2] mask w0:1")
    assert first is not None
    assert first.text == "row t0[i1:2+1] * w1:2; row t1[i1:0+1] * w1:0; max t0[i0:0+2] mask w0:1"
    for wrong in ("i+", "open(i)", "i.shape", "i**2", "i+1.5"):
        with pytest.raises(EmbeddingBagsError, match="no id program"):
            compile_program(wrong)


@pytest.mark.parametrize("text", LAYOUTS)
def test_text_of_a_layout_is_the_layout(text: str) -> None:
    layout = parse_layout(text)
    assert parse_layout(str(layout)) == layout


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no term"),
        ("rows t0[i0:0+1]", "no term"),
        ("row t0[i0:0+1] pad 0 * w0:0", "no term"),
        ("sum t0[i0]", "no term"),
        ("sum t0[i0:0+0]", "a bag of no columns"),
        ("sum t0[i0:0+2 % 0]", "a remainder of zero"),
        ("row t0[i0@o0]", "single rows have no bags"),
        ("row t0[i0:0+2<o0]", "single rows have no bags"),
        ("max t0[i0:0+2] div 1 0", "only a sum is divided"),
        ("sum t0[i0:0+2] div 1e-e 0", "no numbers after div"),
        ("sum t0[i0@o0] * w0:1", "weights of flat ids have no columns"),
        ("max t0[i0:0+2] by 2", "under no factor"),
        ("sum t0[i0:0+2] else 2", "a sum of no ids is 0"),
        ("row wide q8 t0[i0:0+1]", "float32 anyway"),
        ("row q8:3 t0[i0:0+1]", "say their width themselves"),
        ("row q8 t0[i0:0+1]; row t0[i0:1+1]", "stored in two ways"),
    ],
)
def test_text_that_is_no_layout(text: str, reason: str) -> None:
    with pytest.raises(EmbeddingBagsError, match=reason):
        parse_layout(text)


TABLE, IDS = torch.randn(9, 4), torch.zeros(3, 6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("text", "lists", "reason"),
    [
        ("row t1[i0:0+1]", ([TABLE], [IDS], [], [], [], []), "names 2 tables, 1 are given"),
        ("row t0[i0:6+1]", ([TABLE], [IDS], [], [], [], []), "ids of shape"),
        ("sum t0[i0@o0]", ([TABLE], [IDS], [torch.zeros(3)], [], [], []), "flat"),
        ("row t0[i0:0+1]", ([TABLE.int()], [IDS], [], [], [], []), "not stored so"),
        ("row q8 t0[i0:0+1]", ([TABLE], [IDS], [], [], [], [torch.ones(9, 2)]), "not stored so"),
        ("row q8 t0[i0:0+1]", ([TABLE.char()], [IDS], [], [], [], [torch.ones(8, 2)]), "scales are"),
        ("row t0[i0:0+1]; x0", ([TABLE], [IDS], [], [], [torch.ones(2, 4)], []), "dense of shape"),
        ("row t0[i0:0+1] + x0", ([TABLE], [IDS], [], [], [torch.ones(1, 4)], []), "dense of shape"),
        ("row t0[i0:0+2] + x0", ([TABLE], [IDS], [], [], [torch.ones(3, 4)], []), "cannot add up"),
        ("sum t0[i0:0+2] * w0:3", ([TABLE], [IDS], [], [torch.ones(3, 4)], [], []), "weights of shape"),
        ("sum t0[i0:0+2<o0]", ([TABLE], [IDS], [torch.ones(4, dtype=torch.int64)], [], [], []), "lengths of shape"),
    ],
)
def test_operands_that_do_not_fit(text: str, lists: tuple[list[torch.Tensor], ...], reason: str) -> None:
    # On a CPU a call looks at its operands only where torch refuses them; writing the node always does.
    if reason not in ("flat", "not stored so", "scales are"):
        with pytest.raises(EmbeddingBagsError, match=reason):
            embedding_bags(*lists, text)
    with pytest.raises(EmbeddingBagsError, match=reason):
        torch.ops.recopt.embedding_bags.default(*([t.to("meta") for t in ts] for ts in lists), text)


@pytest.mark.parametrize("bad", [-1, 9, 1 << 40])
@pytest.mark.parametrize(
    "text",
    [
        "row t0[i0:0+1]",
        "row t0[i0:0+3]",
        "row t0[i0:0+3] pad 1",
        "sum t0[i0:0+3]",
        "mean t0[i0:0+3] pad 1",
        "max t0[i0:0+3] * w0:0",
        "row q8 t1[i0:0+1]",
        "sum q8 t1[i0:0+3] pad 1",
        "sum t0[i0:0+3<o0]",
    ],
)
def test_an_id_that_its_table_does_not_hold(text: str, bad: int) -> None:
    ids = IDS.clone()
    o = ([TABLE, TABLE.char()], [ids], [torch.tensor([1, 1, 3])], [torch.ones(3, 3)], [], [torch.ones(9, 2)])
    embedding_bags(*o, text)
    ids[2, 0] = bad
    with pytest.raises((IndexError, RuntimeError)):
        embedding_bags(*o, text)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("text", ["sum t0[i0:0+3] pad 1", "mean t0[i0:0+3] pad 1", "sum t0[i0:0+3] * w0:0 pad 1"])
def test_a_pad_that_is_not_finite_is_left_out(text: str, value: float) -> None:
    o = operands(text)
    o.tables[0][1] = value
    o.ids[0][:, 1] = 1
    expected = o._replace(tables=[o.tables[0].nan_to_num(0.0, 0.0)])
    torch.testing.assert_close(embedding_bags(*o, text), reference(expected, text))


def test_ids_that_lengths_cut_off_are_not_read() -> None:
    ids = torch.tensor([[1, 99], [2, 3]])
    out = embedding_bags([TABLE], [ids], [torch.tensor([1, 2])], [], [], [], "sum t0[i0:0+2<o0]")
    torch.testing.assert_close(out, torch.stack([TABLE[1], TABLE[2] + TABLE[3]]))


def test_rows_may_be_padded() -> None:
    padded = torch.randn(9, 128)[:, :100]
    torch.testing.assert_close(
        embedding_bags([padded], [IDS], [], [], [], [], "sum t0[i0:0+6]"), padded[:1] * 6 + 0 * padded[:3]
    )


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("text", ["sum t0[i0@o0]; x0", "mean t0[i0:0+3]; row t0[i0:1+1]", "max t0[i0:0+3] pad 2"])
def test_batches_of_none_and_one(text: str, rows: int) -> None:
    o = operands(text, rows)
    o = o._replace(ids=[i[:rows] for i in o.ids])
    out = embedding_bags(*o, text)
    assert out.shape[0] == rows
    if rows:
        torch.testing.assert_close(out, reference(o, text))


def test_operator_is_one_node_of_an_exported_program() -> None:
    text = "x0; row t0[i0:0+2]; sum t1[i0:2+4<o0] * w0:1"
    o = operands(text, dim=8)

    class Model(torch.nn.Module):
        def forward(self, ids: torch.Tensor, n: torch.Tensor, w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.recopt.embedding_bags.default(o.tables, [ids], [n], [w], [x], [], text)

    inputs = (o.ids[0], o.offsets[0], o.weights[0], o.dense[0])
    batch = torch.export.Dim("batch")
    program = torch.export.export(Model(), inputs, dynamic_shapes=({0: batch},) * 4)
    calls = [n.target for n in program.graph.nodes if n.op == "call_function"]
    assert calls == [torch.ops.recopt.embedding_bags.default]
    larger = operands(text, 9, 8)._replace(tables=o.tables)
    out = program.module()(larger.ids[0], larger.offsets[0], larger.weights[0], larger.dense[0])
    torch.testing.assert_close(out, reference(larger, text))


@pytest.mark.parametrize("text", ["x0", "x0; sum t0[i0@o0+1]; row q8 t1[i1:0+1]", "row t0[i0:0+1] + row t1[i0:1+1]"])
def test_registration(text: str) -> None:
    torch.library.opcheck(fx_operators.torch.ops.recopt.embedding_bags.default, (*map(list, operands(text)), text))


def test_cost_counts_what_is_read() -> None:
    table, ids = torch.ones(10, 4), torch.tensor([[1, 1, 2], [2, 2, 2]])
    assert flops("sum t0[i0:0+3] * w0:0", [table], [ids]) == 6 * 4 * 2
    read = 6 * 8 + 6 * 16 + 2 * 4 * 4
    assert bytes_moved("sum t0[i0:0+3]", [table], [ids]) == read
    assert bytes_moved("sum t0[i0:0+3]", [table], [ids], unique=True) == read - 4 * 16


def test_hints_say_whether_ids_repeat() -> None:
    ids = torch.arange(300).reshape(2, 150).repeat(1, 2)
    ids[:, 150:] %= 3
    text = "sum t0[i0:0+150]; mean t0[i0:150+150]; sum t0[i0:0+63]; sum t0[i1@o0]; x0"
    assert hinted(text, [ids, ids[0]]) == (
        "sum t0[i0:0+150] cold; sum t0[i0:150+150] div 1.0 0.0 hot; sum t0[i0:0+63]; sum t0[i1@o0]; x0"
    )
    assert parse_layout("sum t0[i0:0+9] hot; sum t0[i0:0+9] hot; x0; sum t0[i0:0+9]").hint == "hot"
    assert parse_layout("sum t0[i0:0+9] hot; sum t0[i0:0+9] cold").hint == ""


@st.composite
def layouts(draw: st.DrawFn) -> str:
    """A layout of one to four pieces."""
    pieces, offsets, weights = [], 0, 0
    for piece in range(draw(st.integers(1, 4))):
        ragged = draw(st.booleans()) and piece < 2
        pool = draw(st.sampled_from(["sum", "mean", "max"] + ["row"] * (not ragged)))
        text = f"{pool} t{draw(st.integers(0, 2))}[i{piece}"
        if ragged:
            text += f"@o{offsets}" + "+1" * draw(st.booleans())
            offsets += 1
        else:
            text += f":{draw(st.integers(0, 3))}+{draw(st.integers(1, 5))}"
            if pool != "row" and draw(st.booleans()):
                text += f"<o{offsets}"
                offsets += 1
        text += draw(st.sampled_from(["", " % 9", " % 7 + 3", " + 2"])) + "]"
        if draw(st.booleans()):
            text += f" * w{weights}" + ("" if ragged else f":{draw(st.integers(0, 3))}")
            weights += 1
        text += draw(st.sampled_from(["", " pad 2", " pad 4"]))
        text += draw(st.sampled_from(["", " div 1.0 0.0", " div 0.5 1e-09"])) if pool in ("sum", "mean") else ""
        pieces.append(text)
    return "; ".join(pieces)


@settings(max_examples=60, deadline=None)
@given(layouts(), st.integers(1, 9), st.integers(1, 20), st.integers(0, 1 << 30))
def test_drawn_layouts_agree_with_float64(text: str, rows: int, dim: int, seed: int) -> None:
    o = operands(text, rows, dim, seed)
    _close(embedding_bags(*o, text), reference(o, text), o)


def test_kernel_in_the_interpreter() -> None:
    """Every layout above, with small and large tiles: see embedding_bags_interpreted.py."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parents[1]), *sys.path]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    script = str(here / "embedding_bags_interpreted.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "layouts agree" in done.stdout


@pytest.mark.parametrize(("dim", "count", "rows"), [(1, 1, 1), (128, 150, 2048), (13, 3, 100_000), (512, 1, 7)])
def test_every_shape_has_a_choice(dim: int, count: int, rows: int) -> None:
    text = f"sum t0[i0:0+{count}]"
    o = Operands([torch.ones(2, dim)], [torch.zeros(1, count, dtype=torch.int64)], [], [], [], [])
    assert isinstance(choose_config(parse_layout(text), o, rows), Config)


def test_operands_on_several_devices_go_the_plain_way() -> None:
    text = "sum t0[i0:0+3] * w0:0; x0"
    o, layout = operands(text), parse_layout(text)
    assert supports(layout, o)
    for which in ("tables", "ids", "weights", "dense"):
        moved = o._replace(**{which: [t.to("meta") for t in getattr(o, which)]})
        assert not supports(layout, moved), which


def _to(o: Operands, device: str) -> Operands:
    # Clones of columns would lose the strides that the layouts are about.
    return Operands(*([t.to(device) for t in ts] for ts in o))


def _again(t: torch.Tensor, device: str) -> torch.Tensor:
    """A view on another device that lies there as `t` does here, at the same place of its storage."""
    storage = t.as_strided((t.untyped_storage().nbytes() // t.itemsize,), (1,), 0).to(device)
    return storage.as_strided(t.shape, t.stride(), t.storage_offset())


GPU_CONFIGS = [None, Config(1, 8, 4, 8, 4), Config(4, 16, 16, 128, 32, stages=2)]


@gpu
@needs_gpu
@pytest.mark.parametrize("text", LAYOUTS)
def test_gpu_kernel_agrees_with_float64(text: str) -> None:
    for n, (rows, dim) in enumerate([(781, 31), (1, 64), (33, 128)]):
        o = operands(text, rows, dim, ids=torch.int32 if n % 2 else torch.int64)
        poison = torch.full((rows, 4096), float("nan"), device="cuda")
        del poison
        _close(embedding_bags_triton(_to(o, "cuda"), text, GPU_CONFIGS[n]).cpu(), reference(o, text), o)


@gpu
@needs_gpu
def test_gpu_one_launch_of_everything() -> None:
    # Without lines whose dense tensors have other rows than those of other lines.
    left_out = ("o0", "w0", "q", "x0 %", "x1 %")
    text = "; ".join(line for line in LAYOUTS if not any(part in line for part in left_out))
    o = operands(text, 300, 24)
    _close(embedding_bags(*_to(o, "cuda"), text).cpu(), reference(o, text), o)


@gpu
@needs_gpu
def test_gpu_many_tensors_of_ids() -> None:
    text = "; ".join(f"sum t0[i{n}:0+2]" for n in range(100))
    o = operands(text, 50, 16)
    on_gpu = _to(o, "cuda")
    for _ in range(3):
        torch.testing.assert_close(embedding_bags(*on_gpu, text).cpu(), reference(o, text))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = embedding_bags(*on_gpu, text)
    on_gpu.ids[7].fill_(1)
    o.ids[7].fill_(1)
    out.fill_(float("nan"))
    graph.replay()
    torch.testing.assert_close(out.cpu(), reference(o, text))


@gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int8])
def test_gpu_dense_columns_wherever_they_lie(dtype: torch.dtype) -> None:
    """Read as many at once as their address, their rows and the first column allow: one plan for each address."""
    text = "row t0[i0:0+1] + x0 + x1 % 3; x0; sum t0[i0:0+2] + x1 % 3 + x0 + x0 + x0; " + " + ".join(["x0"] * 6)
    o = operands("row t0[i0:0+1]; sum t0[i0:0+2]", 300, 16)
    held = torch.randn(700, 40).mul(20).to(dtype)
    turned = held.t().contiguous().t()
    for dense in (held[:300, :16], held[1:301, 3:19], held[:300, 4:20], held[:600:2, 2:18], turned[:300, :16]):
        given = o._replace(dense=[dense, held[5:8, :16]])
        # `to` a device would lay out anew what lies between other columns
        there = _to(o, "cuda")._replace(dense=[_again(d, "cuda") for d in given.dense])
        _close(embedding_bags(*there, text).cpu(), reference(given, text), given)


@gpu
@needs_gpu
def test_gpu_graph_replays_with_other_ids() -> None:
    text = "x0; sum t0[i0:0+20]; row t1[i0:3+1]"
    o = operands(text, 256, 32)
    on_gpu = _to(o, "cuda")
    embedding_bags(*on_gpu, text)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = embedding_bags(*on_gpu, text)
    for seed in range(3):
        o = operands(text, 256, 32, seed)._replace(tables=o.tables)
        on_gpu.ids[0].copy_(o.ids[0])
        on_gpu.dense[0].copy_(o.dense[0])
        out.fill_(float("nan"))
        graph.replay()
        torch.testing.assert_close(out.cpu(), reference(o, text))


@gpu
@needs_gpu
@pytest.mark.parametrize("bad", [-1, 9])
@pytest.mark.parametrize(
    "text", ["row t0[i0:0+1]", "sum t0[i0:0+6]", "sum t0[i0:0+6] pad 1", "row t0[i0:0+1] + row t0[i0:1+1]"]
)
def test_gpu_an_id_that_its_table_does_not_hold_stops_the_device(text: str, bad: int) -> None:
    script = (
        "import torch; from recopt.kernels.embedding_bags import embedding_bags\n"
        "t, i = torch.randn(9, 4).cuda(), torch.zeros(3, 6, dtype=torch.int64).cuda()\n"
        f"embedding_bags([t], [i], [], [], [], [], {text!r}); torch.cuda.synchronize(); print('in range')\n"
        f"i[2, 0] = {bad}; embedding_bags([t], [i], [], [], [], [], {text!r}); torch.cuda.synchronize()\n"
    )
    check_stops_the_device(script)
