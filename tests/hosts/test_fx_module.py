"""Torch's own bindings, which the callable module uses for speed, do what the exported overloads say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from recopt.errors import GraphError
from recopt.hosts.fx import FxHost

X, W, IMAGE = torch.randn(3, 4), torch.randn(4, 4), torch.randn(3, 4, 5)
IDS = torch.tensor([[0, 1], [3, 2], [1, 1]])
# Optional arguments in every place, since a binding could read one differently.
FORMS: dict[str, Callable[[Tensor], tuple[Any, ...]]] = {
    "softmax": lambda x: (x.softmax(-1, dtype=torch.float64), x.log_softmax(0), torch.argmax(x, -1, keepdim=True)),
    "sums": lambda x: (x.sum(), x.sum(-1, True, dtype=torch.float64), x.mean((0, 1)), x.mean(), x.cumsum(1)),
    "scalars": lambda x: (1 - x, x - 1, torch.add(x, x, alpha=2), torch.sub(x, 3, alpha=2), x**2, 2**x, x / 2),
    "division": lambda x: (torch.div(x, x + 1, rounding_mode="floor"), x // 2, torch.round(x, decimals=2), x % 2),
    "bits": lambda x: (lambda i: (i & 5, i | 5, i ^ 5, i << 2, i >> 1, i ^ i >> 1, 3 & i, i % 7, -i // 3))(
        x.mul(9).long()
    ),
    "numbers of other types": lambda x: (
        x.long() * 0.5,
        x.half() * 0.1,
        (x > 0) + 1,
        x.int() % 3,
        x.sum() * 0.1,
        x + 2**24,
    ),
    "clamps": lambda x: (x.clamp(min=0), x.clamp(max=1), x.clamp(-1, 1), torch.clamp_min(x, 0), torch.maximum(x, -x)),
    "choices": lambda x: (torch.where(x > 0, x, 0.0), torch.where(x >= 0, x, -x), x.masked_fill(x < 0, 2.0)),
    "logic": lambda x: ((x > 0) & (x < 1), torch.logical_or(x > 0, x < -1), ~(x != 0), torch.logical_not(x == 0)),
    "makers": lambda x: (torch.arange(0, 8, 2), torch.full((x.shape[0], 2), 3), torch.full_like(x, 2), x.new_zeros(2)),
    "layouts": lambda x: (x.t(), x.transpose(0, 1), x.unsqueeze(1).squeeze(1), x[:, None].expand(-1, 2, 4)),
    "slices": lambda x: (x[:, 1:3], x[1:], x[:, ::2], x[:, -2:], x[..., 1:2], x[..., 1], x.tril(), x.triu(1)),
    "slices of slices": lambda x: (
        IMAGE[1:, 0, 2:] + IMAGE[..., -1][..., None][:2, 0] + x.sum(),
        IMAGE[:, ::2][:, 1:][:, :, 1].unfold(0, 2, 1) + x.sum(),
        (lambda y: (y[0:].sin(), y[0:][:, 1:].cos(), y[0:][0, 1]))(x[:, 1:] * 1),
        (lambda y: (y[:, 1:].sin(), y[:, 1].cos()))(x[1:]),
    ),
    "gathers": lambda x: (
        x[:, IDS],
        x[IDS[0], IDS[1]],
        IMAGE[:, IDS[0]] + x.sum(),
        IMAGE[IDS[0], :, IDS[1]] + x.sum(),
        x[:, IDS[0].int()],
        IMAGE[:, IMAGE[0] > 0] + x.sum(),
        x[:, torch.tensor(2)],
        W[x.argmax() % 4],
    ),
    "orders": lambda x: (
        *x.sort(1, True),
        *x.topk(2, 1, largest=False),
        *x.max(1, True),
        x.argsort(0),
        x.argmin(1, True),
        x.prod(1),
        x.cumprod(0),
        x.any(1, True),
        (x > 0).all(0),
        x.logsumexp((0, 1), True),
        x.count_nonzero(1),
        x.isclose(x + 1e-9),
        torch.searchsorted(W[0].sort()[0], x, side="right", out_int32=True),
    ),
    "turns": lambda x: (
        x.roll(1, 1),
        x.roll((1, 2), (0, 1)),
        x.rot90(1, (0, 1)),
        x.tile(2, 1),
        x.repeat(1, 2),
        x.repeat_interleave(2, 1),
        torch.einsum("bk,nk->bn", x, W),
        x.flatten(),
        x.unbind(1),
        x.diagonal(1),
        x.narrow(1, 1, 2),
        x.scatter(1, IDS[:1], 2.0),
        F.pixel_shuffle(IMAGE[:, :, None], 2),
        F.channel_shuffle(IMAGE[..., None], 2),
        torch.lerp(x, x + 1, 0.3),
        torch.addcmul(x, x, x, value=2),
        F.group_norm(IMAGE, 2),
        F.rms_norm(x, (4,)),
        F.avg_pool1d(IMAGE, 2, 1, 1),
    ),
    "splits": lambda x: (*x.chunk(2, -1), *x.split([1, 3], -1), *x.split(3, -1)),
    "joins": lambda x: (torch.stack([x, x], 1), torch.cat([x, x], -1), x.gather(0, IDS[:1]), x.index_select(1, IDS[0])),
    "norms": lambda x: (
        F.layer_norm(x, (4,), W[0], W[1]),
        F.prelu(x, W[0]),
        x.rsqrt(),
        x.isnan(),
        x.std(1),
        x.var(1, False, True),
    ),
    "products": lambda x: (x @ W, torch.addmm(W[0], x, W, beta=2, alpha=3), F.linear(x, W, W[0])),
    "batched": lambda x: (torch.baddbmm(x[:, None], x[:, None], W.expand(x.shape[0], 4, 4), beta=0.5),),
    "lookups": lambda x: (F.embedding(IDS, W, padding_idx=0), F.embedding_bag(IDS, W, mode="mean"), x),
    "convolutions": lambda x: (
        F.conv1d(IMAGE, W[:, :, None], W[0], 2, 1),
        F.conv2d(IMAGE[..., None], W[..., None, None]),
        x,
    ),
    "activations": lambda x: (
        F.gelu(x, approximate="tanh"),
        F.elu(x, 0.5),
        F.leaky_relu(x, 0.2),
        F.softplus(x, 2, 5),
        F.hardtanh(x, -2, 2),
        F.silu(x),
        F.mish(x),
        F.hardswish(x),
        F.hardsigmoid(x),
        F.logsigmoid(x),
        F.relu6(x),
    ),
}


class Form(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        return FORMS[self.name](x)


def lambda_module(function: Callable[..., Any]) -> nn.Module:
    module = Form("")
    module.forward = function  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize("name", FORMS)
def test_bindings_are_the_overloads(name: str) -> None:
    module = Form(name)
    program = FxHost.capture(module, (X,)).module()
    for x in (X, torch.randn(2, 4)):
        assert_close(program(x), module(x), equal_nan=True)


@pytest.mark.parametrize("name", ["gathers", "turns"])
def test_a_compiler_takes_the_bindings(name: str) -> None:
    program = FxHost.capture(Form(name), (X,)).module()
    torch._dynamo.reset()
    assert_close(torch.compile(program, backend="eager")(X), program(X), equal_nan=True)


def test_hooks_see_the_calls_of_a_module() -> None:
    module = FxHost.capture(Form("division"), (X,)).module()
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, given, result: seen.append(given[0]))
    module(X)
    handle.remove()
    module(X)
    assert len(seen) == 1 and seen[0] is X


def test_stored_numbers_stay_exact() -> None:
    program = FxHost.capture(lambda_module(lambda x: torch.where(x * 0.1 > 0, x * 0.1, x / 3) + 2), (X,)).module()
    for module, x in ((program, X.double()), (copy.deepcopy(program).half(), X.half()), (program.double(), X.double())):
        assert torch.equal(module(x), torch.where(x * 0.1 > 0, x * 0.1, x / 3) + 2)
    assert not program.state_dict()


def test_a_caller_may_write_into_what_it_gets() -> None:
    program = FxHost.capture(lambda_module(lambda x: (torch.arange(3).view(3, 1), torch.ones(4) + x)), (X,)).module()
    program(X)[0].zero_()
    assert program(X)[0].flatten().tolist() == [0, 1, 2]


def test_what_forward_writes_out_is_computed_once_but_for_what_the_caller_gets() -> None:
    def forward(x: Tensor) -> tuple[Tensor, ...]:
        hidden = torch.tensor([1.0, 0.0, 1.0, 0.0])
        return x + (1 - hidden[None]).masked_fill(hidden[:1] > 0, -1e4) * 2, hidden * 3, W.t(), x @ W.t()

    program = FxHost.capture(lambda_module(forward), (X,)).module()
    program(X)[1].zero_()
    assert_close(program(X), forward(X))
    calls = [node.name for node in program.graph.nodes if node.op == "call_function"]
    assert len(calls) == 5, calls  # an addition, a multiplication, two turns, of which one is returned, a product


def test_a_cast_of_an_input_asks_for_its_dtype() -> None:
    program = FxHost.capture(lambda_module(lambda x: x.long() % 7), (X,)).module()
    for _ in range(2):
        assert_close(program(X), X.long() % 7)
        with pytest.raises(GraphError, match="float64, the program takes"):
            program(X.double())
