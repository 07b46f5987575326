"""recopt::embedding_bags of long bags: the kernel in CUDA C++, and few long bags in parts."""

from __future__ import annotations

import ctypes
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from embedding_bags_reference import check_stops_the_device, operands, reference

from recopt.kernels.embedding_bags import embedding_bags
from recopt.kernels.embedding_bags import staged as embedding_bags_staged
from recopt.kernels.embedding_bags.config import Staged
from recopt.kernels.embedding_bags.launch import embedding_bags_triton
from recopt.kernels.embedding_bags.layout import parse_layout
from recopt.kernels.embedding_bags.operands import Operands
from recopt.kernels.embedding_bags.plain import embedding_bags_torch
from recopt.kernels.embedding_bags.split import in_parts
from recopt.kernels.embedding_bags.staged import Launch, eligible, staged

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LONG = [
    "sum t0[i0:0+5000]",
    "sum t0[i0:0+5000 % 7] * w0:3 pad 2; row t1[i0:9+2]; mean t1[i0:0+5000]; x0",
    "max t0[i0:2+4000]; sum t1[i0:0+3000] div 1.0 1e-08",
    "sum t0[i0@o0]",
    "sum t0[i0@o0+1] * w0 pad 2; mean t1[i1@o1]",
]


def long_operands(text: str, rows: int) -> Operands:
    """Operands for long bags: tables of 11 rows and more, flat ids of one long bag and short ones."""
    o = operands(text, rows, 16)
    if "@" not in text:
        return o._replace(tables=[t.float() for t in o.tables])
    count = 5000 * rows
    ids = [torch.randint(0, 11, (count,)) for _ in o.ids]
    cuts = [torch.arange(len(b)) * 3 for b in o.offsets]
    if rows > 1:
        cuts = [c.index_fill(0, torch.tensor([len(c) - 1]), count) if "+1" in text and n == 0 else c
                for n, c in enumerate(cuts)]  # fmt: skip
    else:
        cuts = [torch.tensor([0, count])[: len(c)] for c in cuts]
    return o._replace(ids=ids, offsets=cuts, weights=[torch.rand(count) for _ in o.weights])


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("text", LONG)
def test_long_bags_in_parts_agree_with_float64(text: str, rows: int) -> None:
    o = long_operands(text, rows)
    ran: list[str] = []

    def run(o: Operands, text: str) -> torch.Tensor:
        ran.append(text)
        return embedding_bags_torch(*o, text)

    out = in_parts(text, o, rows, run)
    assert out is not None
    assert ran
    # Sums of up to 15000 values near 1, added in float32: partial sums near 120.
    torch.testing.assert_close(out, reference(o, text), rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("sum t0[i0:0+2000]", 1),
        ("sum t0[i0:0+5000]", 65),
        ("mean t0[i0:0+5000] pad 1", 1),
        ("max t0[i0:0+5000] pad 1", 1),
        ("sum t0[i0:0+5000<o0]", 1),
        ("sum t0[i0:0+5000] * w0:0 div 1.0 0.0", 1),
        ("sum t0[i0:0+5000] + x0", 1),
        ("mean t0[i0@o0] pad 1", 1),
        ("max t0[i0@o0]", 1),
        ("sum t0[i0@o0]; x0", 1),
        ("sum t2[i0:0+5000]", 1),  # of half precision
    ],
)
def test_bags_that_stay_whole(text: str, rows: int) -> None:
    o = operands(text, rows, 16)
    if "@" in text:
        o = o._replace(ids=[torch.zeros(5000, dtype=torch.int64)], offsets=[torch.zeros(1, dtype=torch.int64)])
    assert in_parts(text, o, rows, lambda o, text: torch.zeros(0)) is None


@gpu
@needs_gpu
@pytest.mark.parametrize("text", LONG)
def test_gpu_long_bags_agree_with_float64(text: str) -> None:
    for rows in (1, 3):
        o = long_operands(text, rows)
        out = embedding_bags(*([t.cuda() for t in ts] for ts in o), text).cpu()
        torch.testing.assert_close(out, reference(o, text), rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("sum t0[i0:0+5]; mean t1[i1:2+3]; sum t0[i0:0+5] div 1.0 1e-08", True),
        ("sum t0[i0:0+5]; row t1[i1:0+1]; sum t5[i1:0+5]", True),
        ("sum t0[i0:0+5]; row t1[i1:0+2]", False),
        ("sum t0[i0:0+5] + sum t1[i1:0+5]", False),
        ("sum t0[i0:0+5]; x0", True),
        ("sum t3[i0:0+5]; x0; sum t3[i0:1+5]", True),  # a result of float32 either way
        ("sum t0[i0:0+5]; x1", False),  # rows of 24 bytes
        ("sum t0[i0:0+5]; x2", False),  # of another type than the result
        ("sum t0[i0:0+5]; x0 % 2", False),
        ("x0", False),
        ("sum t0[i0:0+5] pad 1", False),
        ("sum t0[i0:0+5] * w0:0", False),
        ("sum t0[i0:0+5 % 3]", False),
        ("sum t0[i0:0+5<o0]", False),
        ("sum t0[i0@o0]", False),
        ("max t0[i0:0+5]", False),
        ("sum t2[i0:0+5]", False),  # rows of 24 bytes
        ("sum t0[i0:0+5]; sum t3[i0:0+5]", False),  # of two types
        ("sum t0[i0:0+5]; sum t0[i2:0+5]", False),  # ids of two types
        ("sum t4[i0:0+5]", False),  # rows at odd addresses
        ("sum q8 t6[i0:0+5]; row q8 t6[i0:1+1]", True),
        ("sum q8 t6[i0:0+5]; sum t0[i0:0+5]", False),
        ("sum q4 t6[i0:0+5]", False),
    ],
)
def test_layouts_that_the_kernel_of_staged_ids_knows(text: str, known: bool) -> None:
    tables = [torch.ones(9, 8), torch.ones(9, 16), torch.ones(9, 6), torch.ones(9, 8).half(), torch.ones(9, 9)[:, 1:],
              torch.ones(9, 4), torch.ones(9, 32, dtype=torch.uint8)]  # fmt: skip
    ids = [torch.zeros(4, 6, dtype=torch.int64)] * 2 + [torch.zeros(4, 6, dtype=torch.int32)]
    bounds = [torch.zeros(4, dtype=torch.int64)]
    dense = [torch.ones(4, 8), torch.ones(4, 6), torch.ones(4, 8).half()]
    o = Operands(tables, ids, bounds, [torch.ones(4, 6)], dense, [torch.ones(9, 2)])
    assert eligible(parse_layout(text), o) == known


def test_records_of_staged_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of wide rows, narrow rows whole; dense columns last; columns, ids and counts; None without a compiler."""
    options: list[str] = []
    monkeypatch.setattr(embedding_bags_staged, "_compile", lambda device, given: options.extend(given) or len)
    tables, ids = [torch.ones(9, 128), torch.ones(7, 48)[:, :32]], torch.zeros(4, 240, dtype=torch.int64)
    layout = parse_layout("x0; sum t0[i0:5+150]; mean t1[i0:155+80]")
    o = Operands(tables, [ids[:, 3:]], [], [], [torch.ones(4, 60)[:, :24]], [])
    launch = staged(layout, o, Staged(4, 2, 256, 8, True))
    assert launch is not None
    assert (launch.units, launch.singles) == (3, 3)
    one, mean = torch.tensor([1.0, 1 / 80]).view(torch.int32).tolist()
    first = 240 << 32
    assert launch.records.tolist() == [
        [tables[0].data_ptr(), 9, 512, 16, 0, 0, first | 5, 150, 24, one, 0],
        [tables[0].data_ptr(), 9, 512, 16, 1, 0, first | 5, 150, 24, one, 0],
        [tables[1].data_ptr(), 7, 192, 8, 0, 0, first | 155, 80, 152, mean, 0],
        [0, 0, 240, 2, 0, 1, 0, 1, 0, 0, 0],
        [0, 0, 240, 2, 1, 1, 0, 1, 0, 0, 0],
        [0, 0, 240, 2, 2, 1, 0, 1, 0, 0, 0],
    ]
    expected = "WAYS=24 SINGLES=0 COPIES=3 TAIL=1 CHUNKS=5 DIRECT=0 OWN=2 TYPE=0 OUT=0"
    assert {f"-D{option}" for option in expected.split()} <= set(options)
    assert staged(layout, o, Staged(flat=True)) is None  # there are bags
    few, many = (Operands([tables[1]], [ids[:1].expand(n, -1)], [], [], [], []) for n in (1 << 14, 1 << 15))
    flat = staged(parse_layout("row t0[i0:0+1]; row t0[i0:1+1]"), few, Staged(flat=True))
    assert flat is not None and flat.flat == 8 and {"-DEVEN=1", "-DBEGIN=0", "-DNEXT=1"} <= set(options)
    assert staged(parse_layout("row t0[i0:0+1]; row t0[i0:1+1]"), many, Staged(flat=True)) is None
    monkeypatch.setattr(embedding_bags_staged, "_compile", lambda device, given: None)
    assert staged(layout, o, Staged()) is None


def test_programs_of_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 warps make 8 bags or 128 single rows of one unit; where there are only such, each warp 32 of its own, or each
    thread one of the parts of one."""
    programs: list[int] = []

    def launched(config: Any, *_: object) -> int:
        programs.append(config._obj.grid[0])
        return 0

    driver = SimpleNamespace(cuLaunchKernelEx=launched)
    monkeypatch.setattr(embedding_bags_staged, "driver", lambda: driver)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, raising=False)
    shapes = (3, 0, 33), (3, 2, 33), (3, 2, 129), (0, 1000, 1), (0, 3, 65), (0, 3, 65, 8)
    for units, singles, rows, *flat in shapes:
        launch = Launch(SimpleNamespace(func=0), torch.zeros(1), units, singles, 4, 2, False, *flat)
        launch(torch.empty(rows, 16), torch.zeros(1))
    assert programs == [3 * 5, 3 * 5 + 2, 3 * 17 + 2 * 2, 250, 3, -(-3 * 65 * 8 // 128)]


def test_addresses_of_a_few_tensors_are_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bytes] = []

    def launched(config: object, func: object, arguments: Any, _: object) -> int:
        given.append(ctypes.string_at(ctypes.cast(arguments, ctypes.POINTER(ctypes.c_void_p))[0], 56))
        return 0

    monkeypatch.setattr(embedding_bags_staged, "driver", lambda: SimpleNamespace(cuLaunchKernelEx=launched))
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, raising=False)
    launch = Launch(SimpleNamespace(func=0), torch.zeros(1), 3, 0, warps=4, bags=2, early=False)
    launch(torch.empty(33, 16), b"16 bytes for two")
    assert given[0].startswith(launch.records.data_ptr().to_bytes(8, "little")) and given[0][40:] == b"16 bytes for two"


@gpu
@needs_gpu
@pytest.mark.parametrize(
    "config", [Staged(), Staged(1, 1, 128, 1, True, 2, 3, True), Staged(2, 8, 512, 1, bags=2, flat=True)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gpu_staged_ids_agree_with_float64(dtype: torch.dtype, config: Staged) -> None:
    """Bags shorter than a quad and longer than what is held at once, single rows and dense columns; ids that repeat,
    read by whole rows, and not."""
    # Of bags that are all short the end is read at once.
    counts = (1, 3, 32, 65, 150, 333) if config.warps > 1 else (1, 1, 3, 17, 32, 63)
    item, text = dtype.itemsize, "; ".join(f"{('sum', 'mean')[n % 2]} t{n}[i{n % 2}:{n}+{c}]" for n, c in
                                           enumerate(counts))  # fmt: skip
    single = "row t4[i1:9+1]; row t0[i0:7+1]; mean t1[i1:0+1]"
    tables = [torch.randn(1000 + n, 40 * 16, device="cuda").to(dtype) for n in range(6)]
    tables = [t[:, 16 : 16 + (32 << n) // item] for n, t in enumerate(tables)]  # 32 to 512 bytes, and one of 16
    tables[5] = tables[5][:, : 16 // item]
    for table in tables:
        table[3] = -0.0
    texts = f"{text}; row t4[i1:9+1]", f"x0; {single}; x1", single
    cases = itertools.product((torch.int64, torch.int32), (1, 7, 781), texts)
    for kind, rows, text in cases:
        ids = [torch.randint(1000, (rows, 345), device="cuda", dtype=kind) for _ in range(2)]
        ids[0] = ids[0][:, 1:].remainder(7) if rows == 7 else ids[0][:, 1:]
        ids[1][:, ::2] = 3
        dense = [torch.randn(rows, n, device="cuda").to(dtype)[:, 16:] for n in (64, 400)]
        o = Operands(tables, ids, [], [], dense, [])
        way = config._replace(flat=config.flat and text == single)
        assert staged(parse_layout(text), o, way) is not None
        poison = torch.full((rows, 4096), float("nan"), device="cuda")
        del poison
        out = embedding_bags_triton(o, text, way)
        exact = []
        for t in parse_layout(text).terms:
            if t.pool == "dense":
                exact.append(dense[t.source].double())
                continue
            rows_read = tables[t.source].double()[ids[t.ids][:, t.first : t.first + t.count].long()]
            exact.append(rows_read[:, 0] if t.count == 1 else rows_read.sum(1) / (t.count if t.div else 1))
        assert out.dtype == dtype
        if text in texts[1:]:  # as they are, signs of zeros too
            assert torch.equal(out.view(torch.uint8), torch.cat(exact, 1).to(dtype).view(torch.uint8))
        # Sums of up to 333 values near 1: each addition rounds a partial sum near 18.
        tolerance = {"rtol": 1.3e-6, "atol": 1e-4} if dtype == torch.float32 else {}
        torch.testing.assert_close(out, torch.cat(exact, 1).to(dtype), **tolerance)


@gpu
@needs_gpu
@pytest.mark.parametrize("config", [Staged(), Staged(1, 1, 64, 1, True, 2, 3), Staged(8, 2, 512, 1, bags=2, flat=True)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("widest", [32, 64, 256])
def test_gpu_staged_quantised_rows_agree_with_float64(widest: int, dtype: torch.dtype, config: Staged) -> None:
    """Rows of 16 to 256 bytes that lie apart, with the least and the largest values of their type."""
    counts = (1, 3, 32, 65, 150) if config.warps > 1 else (1, 20, 3, 17, 32)
    text = (
        "; ".join(f"{('sum', 'mean')[n % 2]} q8 t{n}[i0:{n}+{c}]" for n, c in enumerate(counts)) + "; row q8 t4[i0:9+1]"
    )
    low = torch.iinfo(dtype).min
    tables = [torch.randint(low, low + 256, (1000 + n, 40 * 16), device="cuda").to(dtype) for n in range(5)]
    tables = [t[:, 16 : 16 + min(widest, 16 << n)] for n, t in enumerate(tables)]
    scales = [torch.randn(len(t), 2, device="cuda") * torch.tensor([0.01, 1.0], device="cuda") for t in tables]
    scales = [s.half() if dtype == torch.int8 else s for s in scales]
    alike = "row q8 t4[i0:9+1]; row q8 t4[i0:7+1]"
    texts = text, alike, f"{alike}; row q8 t4[i0:8+1]"
    for rows, text in itertools.product((1, 7, 781), texts):
        ids = torch.randint(1000, (rows, 155), device="cuda")
        of = parse_layout(text).quantised
        o = Operands(tables, [ids], [], [], [], [scales[n] for n in of])
        way = config._replace(flat=config.flat and text in texts[1:])
        assert staged(parse_layout(text), o, way) is not None
        poison = torch.full((rows, 1024), float("nan"), device="cuda")
        del poison
        out = embedding_bags_triton(o, text, way)
        exact = []
        for t in parse_layout(text).lookups:
            i = ids[:, t.first : t.first + t.count]
            scale, bias = scales[t.source][i].double().split(1, -1)
            bag = (tables[t.source][i].double() * scale + bias).sum(1)
            exact.append(bag / t.count if t.div else bag)
        # Sums of up to 150 values up to 10 and more: each addition rounds a partial sum of tens.
        torch.testing.assert_close(out, torch.cat(exact, 1).float(), rtol=1.3e-6, atol=2e-4)


@gpu
@needs_gpu
@pytest.mark.parametrize("bad", [-1, 90, 1 << 40])
@pytest.mark.parametrize("text", ["sum t0[i0:0+70]", "row t0[i0:69+1]"])
def test_gpu_a_staged_id_that_its_table_does_not_hold_stops_the_device(text: str, bad: int) -> None:
    script = (
        "import torch; from recopt.kernels.embedding_bags.launch import embedding_bags_triton as run\n"
        "from recopt.kernels.embedding_bags.config import Staged; from recopt.kernels.embedding_bags import Operands\n"
        "t, i = torch.randn(90, 128).cuda(), torch.zeros(3, 70, dtype=torch.int64).cuda()\n"
        f"way = Staged(flat={bad == 90 and text.startswith('row')})\n"
        f"def call(): run(Operands([t], [i], [], [], [], []), {text!r}, way); torch.cuda.synchronize()\n"
        f"call(); print('in range'); i[2, 69] = {bad}; call()\n"
    )
    check_stops_the_device(script)


@gpu
@needs_gpu
@pytest.mark.parametrize("count", [3, 9])
def test_gpu_staged_ids_in_many_tensors_under_a_graph(count: int) -> None:
    text = "; ".join(["x0", *(f"sum t0[i{n}:0+70]" for n in range(count))])
    table, dense = torch.randn(500, 128, device="cuda"), torch.randn(33, 32, device="cuda")
    ids = [torch.randint(500, (33, 70), device="cuda") for _ in range(count)]
    o = Operands([table], ids, [], [], [dense], [])
    for _ in range(2):
        embedding_bags_triton(o, text, Staged())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = embedding_bags_triton(o, text, Staged())
    ids[1].random_(0, 500)
    out.fill_(float("nan"))
    graph.replay()
    exact = torch.cat([dense.double(), *(table.double()[i].sum(1) for i in ids)], 1)
    torch.testing.assert_close(out, exact.float(), rtol=1e-5, atol=1e-5)
