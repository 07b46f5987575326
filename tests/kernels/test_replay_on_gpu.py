"""Replays on a GPU: whole models and operators at fresh inputs, what is copied, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recopt.kernels.launching import cuda_kernel, launch
from recopt.kernels.replay import Replay, _once


def on_gpu(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.cuda() for t in tensors)


def exact(replay: Replay, function: Any, *inputs: Tensor) -> None:
    """A replay gives the bits of a plain call, whatever the captured inputs hold."""
    for n, held in enumerate(replay._held):
        if n not in replay.copied:
            _once(held).fill_(torch.nan if held.is_floating_point() else 0)
    with torch.no_grad():
        torch.testing.assert_close(replay(*inputs), function(*inputs), rtol=0, atol=0, equal_nan=True)


MODELS = ("wdl", "din", "dien", "dlrm")


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 33])
def test_examples_replay_at_fresh_inputs(name: str, batch: int) -> None:
    import importlib

    import recopt

    example = importlib.import_module(f"examples.{name}")
    fast = recopt.optimize(example.model().cuda(), on_gpu(*example.inputs(4, 0)), target="cuda", verify="none")
    replay = fast.replay(*on_gpu(*example.inputs(batch, 0)))
    assert replay.copied == []
    for seed in range(1, 4):
        exact(replay, fast, *on_gpu(*example.inputs(batch, seed)))


class Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v)


class Bags(nn.Module):
    """Tables whose ids come apart."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(100, 16, mode="sum") for _ in range(3))

    def forward(self, a: Tensor, b: Tensor, c: Tensor, dense: Tensor) -> Tensor:
        return torch.cat([dense, *(table(i) for table, i in zip(self.tables, (a, b, c), strict=True))], 1)


OPERATORS: dict[str, tuple[Any, Any]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(512, 256), nn.ReLU()), lambda b: (torch.randn(b, 512),)),
    "gru": (lambda: nn.GRU(64, 128, batch_first=True), lambda b: (torch.randn(b, 20, 64),)),
    "attention": (Attention, lambda b: tuple(torch.randn(b, 2, n, 64) for n in (1, 50, 50))),
    "bags": (Bags, lambda b: (*(torch.randint(0, 100, (b, n)) for n in (1, 7, 1)), torch.randn(b, 5))),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("batch", [1, 300, 2048])
def test_operators_replay_at_fresh_inputs(name: str, batch: int) -> None:
    import recopt

    build, inputs = OPERATORS[name]
    fast = recopt.optimize(build().eval().cuda(), on_gpu(*inputs(4)), target="cuda", verify="none")
    replay = fast.replay(*on_gpu(*inputs(batch)))
    for _ in range(3):
        exact(replay, fast, *on_gpu(*inputs(batch)))


def affine(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return torch.relu(x * 2 + y), (x - y).sum(-1)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(37, 50), (1, 3), (300, 781)])
def test_inputs_of_any_layout(shape: tuple[int, int]) -> None:
    rows, columns = shape
    wide = torch.randn(2 * rows, 3 * columns + 1, device="cuda")
    layouts: list[Any] = [
        lambda t: t[:rows, :columns], lambda t: t[:rows, : 2 * columns : 2], lambda t: t[0, :columns].expand(shape),
        lambda t: t.flatten()[: rows * columns].view(columns, rows).t(), lambda t: t[::2, 1 : columns + 1],
    ]  # fmt: skip
    for layout in layouts:
        replay = Replay(affine, (layout(wide), torch.randn(shape, device="cuda")))
        assert replay.copied == []
        for shift in (0, 1, 8, 9):  # 4, 32 and 36 bytes: some are copied at a call, none is read where it is not
            other = torch.randn(wide.numel() + shift, device="cuda")[shift:].view(wide.shape)
            y = torch.randn(rows * columns + shift, device="cuda")[shift:].view(shape)
            assert y.data_ptr() % 512 == 4 * shift
            exact(replay, affine, layout(other), y)
        x = layout(wide)
        exact(replay, affine, x, x.clone(memory_format=torch.contiguous_format))
    both = Replay(affine, (wide[:rows, :columns],) * 2)
    exact(both, affine, wide[:rows, :columns], wide[rows:, :columns])
    exact(both, affine, wide[:rows, :columns], wide[:rows, :columns])


@pytest.mark.gpu
def test_replays_in_turns_on_streams_and_after_inputs_are_gone() -> None:
    def longer(x: Tensor, y: Tensor) -> Tensor:
        for _ in range(12):
            x = torch.tanh(x @ x.t()) @ y
        return x

    inputs = [torch.randn(64, 64, device="cuda") for _ in range(2)]
    replays = [(Replay(f, inputs), f) for f in (affine, longer, affine)]
    stream = torch.cuda.Stream()
    for n in range(24):
        replay, function = replays[n % 3]
        with torch.cuda.stream(stream if n % 4 > 1 else torch.cuda.current_stream()):
            exact(replay, function, torch.randn(64, 64, device="cuda"), torch.randn(64, 64, device="cuda"))
        torch.cuda.synchronize()


@pytest.mark.gpu
def test_a_state_goes_from_call_to_call() -> None:
    def step(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(3):
            h = torch.tanh(x + h.flip(0))  # other elements than are written at the same time
        return h, h.flip(0).clone()

    state = torch.randn(4096, 9, device="cuda")
    replay, expected = Replay(step, (torch.randn_like(state), state)), state
    assert replay.copied == []
    for n in range(6):
        x = torch.randn_like(state)
        expected = step(x, expected)[n % 2]
        state = replay(x, state)[n % 2]
        torch.testing.assert_close(state, expected, rtol=0, atol=0)


@pytest.mark.gpu
def test_what_cannot_be_pointed_is_copied() -> None:
    x = torch.randn(50, 8, device="cuda")
    table = torch.zeros(1, dtype=torch.int64, device="cuda")
    assert Replay(lambda x: (x, x + 1), (x,)).copied == [0]  # returned as it is
    assert Replay(lambda x, y: x * (y > 9), (x, torch.zeros_like(x))).copied == [1]  # zeros give the same
    for function in (lambda x, n: x[n], lambda x, n: (x.t() @ x, n + 1), lambda x, n: torch.cat([x, x[n]])):
        replay = Replay(function, (x, table))
        exact(replay, function, torch.randn(50, 8, device="cuda"), table + 3)


THROUGH_A_TABLE = """
extern "C" __global__ void through(const long long* table, const float* z, float* out) {
  out[threadIdx.x] = reinterpret_cast<const float*>(table[0])[threadIdx.x] + z[threadIdx.x];
}
"""


@pytest.mark.gpu
def test_an_address_in_memory_is_found_out() -> None:
    kernel, tables = cuda_kernel(0, THROUGH_A_TABLE, "through"), dict[int, Tensor]()

    def function(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        if x.data_ptr() not in tables:  # in the warm-up
            tables[x.data_ptr()] = torch.tensor([x.data_ptr()], device="cuda")
        out = torch.empty_like(z)
        launch(kernel, (1, 1, 1), (37, 1, 1), [tables[x.data_ptr()], z, out])
        return out, x * 2 + z

    def inputs() -> list[Tensor]:
        return [torch.randn(37, device="cuda") for _ in range(2)]

    replay = Replay(function, inputs())
    assert replay.copied == [0]
    tables.clear()  # as a cache forgets
    others = [torch.zeros(1, dtype=torch.int64, device="cuda") for _ in range(64)]
    for _ in others[:3]:
        exact(replay, lambda x, z: (x + z, x * 2 + z), *inputs())


@pytest.mark.gpu
def test_calls_and_inputs_that_are_refused() -> None:
    x = torch.randn(50, 8, device="cuda")
    with pytest.raises(ValueError, match="random"):
        Replay(lambda x: x + torch.rand_like(x), (x,))
    with pytest.raises(ValueError, match="writes into input 1"):
        Replay(lambda x, y: y.add_(x), (x, x.clone()))
    with pytest.raises(ValueError, match="input 1 lies on cpu"):
        Replay(lambda x, y: x, (x, x.cpu()))
    replay = Replay(lambda x, y: x + y, (x, x.clone()))
    for other, text in (
        (x[:49], r"input 1 is torch.float32 \(49, 8\), torch.float32 \(50, 8\) was captured"),
        (x.double(), "input 1 is torch.float64"), (x.cpu(), "input 1 lies on cpu"),
        (x.t().contiguous().t(), "input 1 has strides"), (3, "input 1 is of int"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            replay(x, other)
    with pytest.raises(ValueError, match="1 inputs, 2 were captured"):
        replay(x)
    exact(replay, lambda x, y: x + y, x, x)
