"""The torch.export host on graphs as export really gives them."""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from recopt.errors import GraphError, LoadError, VerifyError
from recopt.hosts.base import Value
from recopt.hosts.fx import FxHost
from recopt.hosts.fx_capture import capture
from recopt.ir import sizes
from recopt.lift import table_of

S0 = sizes.symbol("s0")


class Call(nn.Module):
    """A module around a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def host_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> FxHost:
    return FxHost.capture(Call(function), args, **kwargs)


def ops(host: FxHost) -> list[str]:
    return [node.op for node in host.nodes]


def value(host: FxHost, name: str) -> Value:
    """The named parameter, input or first output of the named node."""
    for node in host.nodes:
        for v in (*node.inputs, *node.outputs):
            if v.name == name or node.name == name:
                return v if v.name == name else node.outputs[0]
    raise KeyError(name)


def same_calls(host: FxHost, module: nn.Module, *calls: tuple[Any, ...]) -> None:
    """The host's module and `run` agree with the original."""
    program = host.module()
    for args in calls:
        expected = module(*args)
        assert_close(program(*args), expected)
        flat = torch.utils._pytree.tree_leaves(expected)
        results = host.run([leaf.numpy() for leaf in torch.utils._pytree.tree_leaves(args)])
        assert_close([torch.from_numpy(r) for r in results], flat)


# Reading


def test_linear_survives_and_the_batch_is_a_symbol() -> None:
    module = nn.Sequential(nn.Linear(8, 4), nn.ReLU()).eval()
    host = FxHost.capture(module, (torch.randn(3, 8),))
    assert ops(host) == ["aten.linear.default", "aten.relu.default"]
    assert [v.shape for v in host.inputs] == [(S0, 8)]
    assert [(v.shape, v.dtype) for v in host.outputs] == [((S0, 4), "float32")]
    linear = host.nodes[0]
    assert linear.inputs[0] is host.inputs[0] and [v.name for v in linear.inputs[1:]] == ["0.weight", "0.bias"]
    same_calls(host, module, (torch.randn(1, 8),), (torch.randn(5, 8),))


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_batch_of_one_is_not_specialised(batch: int) -> None:
    module = nn.Linear(8, 4)
    host = FxHost.capture(module, (torch.randn(batch, 8),))
    assert host.inputs[0].shape == (S0, 8)
    same_calls(host, module, (torch.randn(1, 8),), (torch.randn(4, 8),))


def test_only_inputs_of_the_batch_size_are_dynamic() -> None:
    host = host_of(lambda x, y, t: (x + y) @ t, torch.randn(3, 8), torch.randn(3, 8), torch.randn(8, 5))
    assert [v.shape for v in host.inputs] == [(S0, 8), (S0, 8), (8, 5)]


def test_a_batch_that_export_cannot_keep_is_static() -> None:
    host = host_of(lambda x: x.reshape(2, 12) + 1, torch.randn(3, 8))
    assert host.inputs[0].shape == (3, 8)
    with pytest.raises(GraphError, match=r"input .* has shape \(6, 8\)"):
        host.module()(torch.randn(6, 8))


def test_dynamic_shapes_as_given() -> None:
    dims = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},)
    host = FxHost.capture(nn.Linear(8, 4), (torch.randn(2, 3, 8),), dims)
    assert host.inputs[0].shape == (S0, sizes.symbol("s1"), 8)
    assert host.outputs[0].shape == (S0, sizes.symbol("s1"), 4)


def test_sizes_are_polynomials_and_floor_divisions_are_symbols() -> None:
    host = host_of(lambda x: (torch.cat([x, x, x[1:]]), x[: x.shape[0] // 2]), torch.randn(6, 2))
    joined, half = host.outputs
    assert joined.shape == (sizes.size(3 * S0 - 1), 2)
    assert half.shape is not None and half.shape[0] == sizes.symbol("s1")


def test_sizes_computed_in_the_graph_are_scalars() -> None:
    host = host_of(lambda x: x.reshape(x.shape[0] * 2, 4) * x.shape[0], torch.randn(3, 8))
    scalars = [node.outputs[0] for node in host.nodes if node.outputs[0].scalar]
    assert scalars and all(s.shape == () and s.dtype == "int64" for s in scalars)
    assert not any(host.is_constant(s) for s in scalars)


def test_tuples_are_outputs_of_one_node() -> None:
    host = host_of(lambda x: [part * 2 for part in x.split(3, -1)], torch.randn(3, 8))
    split = host.nodes[0]
    assert [out.shape for out in split.outputs] == [(S0, 3), (S0, 3), (S0, 2)]
    assert [out.index for out in split.outputs] == [0, 1, 2]
    assert [host.users(out) for out in split.outputs] == [[node] for node in host.nodes[1:]]


def test_types_devices_and_formats_are_text() -> None:
    host = host_of(lambda x: x.to(torch.float64) + torch.arange(8, device=x.device), torch.randn(3, 8))
    assert host.nodes[0].kwargs == {"dtype": "float32", "device": "cpu", "layout": "strided"} and host.nodes[0].opaque
    assert host.nodes[1].args == (host.inputs[0], "float64")
    arange = next(node for node in host.nodes if "arange" in node.op)
    assert arange.kwargs["device"] == "cpu"


def test_composite_operators_become_what_they_call() -> None:
    def function(x: Tensor) -> list[Tensor]:
        left, right = torch.hsplit(torch.special.expit(x), 2)
        return [torch.linalg.matmul(left, right.T), torch.quantile(x, 0.5, dim=1), x.diff(dim=1)]

    x = torch.randn(3, 8)
    host = host_of(function, x)
    before, expected = {node.op for node in host.nodes}, host.run([x.numpy()])
    known = {"aten.sigmoid.default", "aten.slice.Tensor", "aten.mm.default", "aten.sub.Tensor"}
    host.inline(known)
    after = {node.op for node in host.nodes}
    assert before - after == {"aten.special_expit.default", "aten.hsplit.int", "aten.linalg_matmul.default",
                              "aten.diff.default"}  # fmt: skip
    assert after - before == known and "aten.quantile.scalar" in after  # which calls what is not known
    host.check()
    for was, now in zip(expected, host.run([x.numpy()]), strict=True):
        np.testing.assert_array_equal(now, was)


def test_a_number_made_of_the_batch_does_not_fix_it() -> None:
    host = host_of(lambda x: x.reshape(len(x), -1, 2).sum(1), torch.randn(3, 8))
    assert not isinstance(host.inputs[0].shape[0], int)
    assert host.run([np.ones((5, 8), np.float32)])[0].shape == (5, 2)


def test_recurrences_stay_whole() -> None:
    host = host_of(nn.LSTM(8, 4, batch_first=True), torch.randn(3, 1, 8))
    before = [node.op for node in host.nodes]
    host.inline(table_of(host))
    assert "aten.lstm.input" in before and [node.op for node in host.nodes] == before


# Constants


class Stored(nn.Module):
    """Two names for one weight, buffers of both kinds, a plain tensor, and a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.register_buffer("kept", torch.randn(8))
        self.register_buffer("lost", torch.randn(8), persistent=False)
        self.plain = torch.randn(8)

    def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Any]:
        y = self.a(x) + self.b(x) * self.kept + self.lost
        return {"y": y * scale, "rest": (y.sum(-1), [self.plain + x])}


def test_parameters_buffers_keywords_and_nested_results() -> None:
    module = Stored()
    host = FxHost.capture(module, {"x": torch.randn(3, 8), "scale": torch.randn(3, 1)})
    program = host.module()
    assert set(program.state_dict()) == set(module.state_dict())
    x, scale = torch.randn(5, 8), torch.randn(5, 1)
    assert_close(program(x, scale=scale), module(x, scale=scale))
    assert_close(program(scale=scale, x=x), module(x, scale=scale))
    assert program.a.weight is module.a.weight


def test_constants_are_views_of_storage() -> None:
    module = nn.Linear(8, 4)
    host = FxHost.capture(module, (torch.randn(3, 8),))
    weight = next(v for v in host.nodes[0].inputs if v.name == "weight")
    assert host.is_constant(weight) and not host.is_constant(host.inputs[0])
    assert np.shares_memory(host.constant(weight), module.weight.detach().numpy())
    with pytest.raises(GraphError, match="not constant"):
        host.constant(host.outputs[0])


def test_bfloat16_constants() -> None:
    module = nn.Linear(8, 4).bfloat16()
    host = FxHost.capture(module, (torch.randn(3, 8, dtype=torch.bfloat16),))
    weight = host.nodes[0].inputs[1]
    assert weight.dtype == "bfloat16" and host.constant(weight).dtype == ml_dtypes.bfloat16
    back = host.add_constant(host.constant(weight), name="again")
    assert np.array_equal(host.constant(back), host.constant(weight)) and back.dtype == "bfloat16"


def test_computed_constants_are_evaluated() -> None:
    weight = torch.randn(8, 4)

    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(weight)

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.w.t() * torch.arange(8)).split(2)[1].t()

    host = FxHost.capture(Folded(), (torch.randn(3, 8),))
    folded = host.nodes[-1].inputs[1]
    assert host.is_constant(folded)
    assert_close(torch.from_numpy(host.constant(folded)), (weight.t() * torch.arange(8)).split(2)[1].t())


def test_random_and_effects_are_opaque_and_never_constant() -> None:
    host = host_of(lambda x: x + torch.rand(8) * torch.zeros(8), torch.randn(3, 8))
    rand = next(node for node in host.nodes if "rand" in node.op)
    assert rand.opaque and not host.is_constant(rand.outputs[0])
    before = host.count_nodes()
    host.normalise()
    assert rand in host.nodes and host.count_nodes() == before


def test_dropout_is_opaque_only_where_it_drops() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    training = FxHost.capture(module.train(), (torch.randn(3, 4),))
    training.normalise()
    assert training.nodes[-1].op == "aten.dropout.default" and training.nodes[-1].opaque
    evaluating = FxHost.capture(module.eval(), (torch.randn(3, 4),))
    evaluating.normalise()
    assert ops(evaluating) == ["aten.linear.default"]
    with torch.no_grad():
        assert_close(evaluating.module()(torch.ones(2, 4)), module(torch.ones(2, 4)))


def test_recurrent_and_attention_operators_without_dropout_are_not_opaque() -> None:
    gru = nn.GRU(4, 4, batch_first=True).eval()
    host = FxHost.capture(gru, (torch.randn(3, 5, 4),))
    assert not any(node.opaque for node in host.nodes)
    attention = host_of(nn.functional.scaled_dot_product_attention, *[torch.randn(2, 1, 3, 4)] * 3)
    assert ops(attention) == ["aten.scaled_dot_product_attention.default"] and not attention.nodes[0].opaque


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.relu_(self.fc(x)) * self.calls


def test_a_mutated_buffer_is_no_constant_and_is_written_back() -> None:
    module, twin = Counter(), Counter()
    twin.load_state_dict(module.state_dict())
    host = FxHost.capture(module, (torch.randn(3, 4),))
    host.normalise()
    assert module.calls.item() == 0  # capturing ran nothing
    assert "aten.relu.default" in ops(host) and not any(op.split(".")[1].endswith("_") for op in ops(host))
    calls = value(host, "calls")
    assert not host.is_constant(calls)
    written = next(node for node in host.nodes if calls in node.inputs)
    assert host.is_output(written.outputs[0])
    program = host.module()
    for _ in range(3):
        x = torch.randn(2, 4)
        assert_close(program(x), twin(x))
    assert program.calls.item() == 3
    host.check()


def test_batch_norm_in_training_writes_its_statistics() -> None:
    module = nn.BatchNorm1d(4).train()
    twin = copy.deepcopy(module)
    host = FxHost.capture(module, (torch.randn(3, 4),))
    assert not host.is_constant(value(host, "running_mean"))
    program = host.module()
    x = torch.randn(5, 4)
    assert_close(program(x), twin(x))
    assert_close(program.running_mean, twin.running_mean)


def test_a_written_input_is_written() -> None:
    def function(x: Tensor) -> Tensor:
        x.add_(1)
        return x * 2

    host = host_of(function, torch.zeros(3, 4))
    x = torch.zeros(2, 4)
    assert_close(host.module()(x), torch.full((2, 4), 2.0))
    assert_close(x, torch.ones(2, 4))


def test_weights_in_plain_lists_are_constants() -> None:
    weights = [torch.randn(4, 4), torch.randn(4, 4)]
    module = Call(lambda x: x @ weights[0] @ weights[1])
    host = FxHost.capture(module, (torch.randn(3, 4),))
    assert all(host.is_constant(node.inputs[1]) for node in host.nodes if "matmul" in node.op)
    same_calls(host, module, (torch.randn(2, 4),))


def test_control_flow_stays_one_opaque_node() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda a: a + 1, lambda a: a - 1, (x * 2,))

    host = host_of(function, torch.ones(3, 4))
    cond = next(node for node in host.nodes if node.op == "higher_order.cond")
    assert cond.opaque and host.users(next(n for n in host.nodes if n.op == "aten.mul.Tensor").outputs[0]) == [cond]
    for program in (host.module(), host.clone().module()):
        assert_close(program(torch.ones(2, 4)), torch.full((2, 4), 3.0))
        assert_close(program(-torch.ones(2, 4)), torch.full((2, 4), -3.0))


def test_no_grad_blocks_are_inlined() -> None:
    def function(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x * 2
        return y + 1

    program = torch.export.export(Call(function), (torch.randn(3, 4),), strict=False)
    assert ops(FxHost(program)) == ["aten.mul.Tensor", "aten.add.Tensor"]


# Errors


def test_errors_of_capture_are_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def branches(x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1

    cases: list[tuple[Any, Any, str]] = [
        (Call(branches), (torch.randn(3, 4),), "decides on the values of tensors"),
        (nn.Linear(4, 4).to("meta"), (torch.randn(3, 4),), "'weight' lies on the meta device"),
        (nn.Linear(4, 4), None, "example inputs are missing"),
        (nn.Linear(4, 4), (), "do not fit"),
        (nn.Linear(4, 4), (torch.randn(3, 5),), "do not fit"),
        (nn.Linear(4, 4), 3, "need a tuple or a dict"),
        ("model", (), "need a torch.nn.Module"),
    ]
    for module, inputs, reason in cases:
        with pytest.raises(LoadError, match=reason) as error:
            FxHost.capture(module, inputs)
        assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_calls_on_operands_alike_share_what_the_fake_kernel_said() -> None:
    host = host_of(lambda x, y: x + y, torch.randn(3, 4, 4), torch.randn(3, 4, 4))
    x, y = host.inputs
    turned = host.call("aten.permute.default", (x, [0, 2, 1]), name="turned")
    half = host.call("aten.to.dtype", (x, "float16"), name="half")
    made = [host.call("aten.relu.default", (v,), name="r") for v in (x, y, turned, half)]
    vals = [host._node_of(v).meta["val"] for v in made]
    assert vals[0] is vals[1] and len({id(v) for v in vals}) == 3
    assert [v.stride()[1:] for v in vals[1:]] == [(4, 1), (1, 4), (4, 1)] and made[3].dtype == "float16"


def test_wrong_feeds_and_wrong_calls() -> None:
    host = FxHost.capture(nn.Linear(4, 4), (torch.randn(3, 4),))
    x = host.inputs[0]
    with pytest.raises(VerifyError, match="takes 1 inputs, got 2"):
        host.run([np.ones((1, 4), np.float32)] * 2)
    with pytest.raises(VerifyError, match="cannot run"):
        host.run([np.ones((1, 5), np.float32)])
    with pytest.raises(GraphError, match="no operator"):
        host.call("aten.nothing.default", (x,), name="n")
    with pytest.raises(GraphError, match="refuses its arguments"):
        host.call("aten.permute.default", (x, [0, 3]), name="n")
    with pytest.raises(GraphError, match="no value of this graph"):
        host.call("aten.relu.default", (Value("y", (1,), "float32"),), name="n")
    with pytest.raises(GraphError, match=r"takes \(s0, 4\)"):
        host.module()(torch.randn(3, 5))
    with pytest.raises(GraphError, match="takes 1 tensors, got ndarray"):
        host.module()(np.ones((3, 4), np.float32))
    with pytest.raises(TypeError):
        host.module()()


def test_arguments_frozen_by_capture_are_checked() -> None:
    host = host_of(lambda x, n: x * n, torch.randn(3, 4), 2)
    program = host.module()
    assert_close(program(torch.ones(2, 4), 2), torch.full((2, 4), 2.0))
    with pytest.raises(GraphError, match="was 2 when the model was captured"):
        program(torch.ones(2, 4), 3)


# Changing


def test_call_replace_and_erase() -> None:
    module = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    host = FxHost.capture(module, (torch.randn(3, 8),))
    linear, relu = host.nodes
    with host.at(relu):
        new = host.call("aten.gelu.default", (linear.outputs[0],), {"approximate": "tanh"}, name="a gelu")
    assert (new.shape, new.dtype, new.name) == ((S0, 4), "float32", "a_gelu")
    old = relu.outputs[0]
    host.replace(old, new)
    assert host.outputs == [new] and host.is_output(new) and not host.is_output(old)
    assert host.erase_dead() == 1
    assert ops(host) == ["aten.linear.default", "aten.gelu.default"]
    host.check()
    x = torch.randn(2, 8)
    assert_close(host.module()(x), nn.functional.gelu(module[0](x), approximate="tanh"))
    node = host._node_of(new)
    assert "nn_module_stack" in node.meta and "1" in str(node.meta["nn_module_stack"])


def test_replace_refreshes_readers_and_tuple_elements() -> None:
    host = host_of(lambda x: [part * 2 for part in x.split(4, -1)], torch.randn(3, 8))
    split, first, second = host.nodes
    with host.at(first):
        new = host.call("aten.slice.Tensor", (host.inputs[0], 1, 4, 8), name="second")
    host.replace(split.outputs[1], new)
    assert second.inputs == (new,) and second.args[0] is new
    with host.at(second):
        third = host.call("aten.neg.default", (split.outputs[1],), name="again")  # picked out of the tuple anew
    host.replace(second.outputs[0], third)
    assert host.erase_dead() == 2
    x = torch.randn(2, 8)
    assert_close(host.module()(x), [x[:, :4] * 2, -x[:, 4:]])


def test_dtypes_and_devices_are_written_by_the_schema() -> None:
    host = FxHost.capture(nn.Linear(4, 4), (torch.randn(3, 4),))
    y = host.call("aten.to.dtype", (host.outputs[0], "float64"), name="wide")
    z = host.call("aten.full.default", ([3], 1.5), {"dtype": "int64", "device": "cpu"}, name="full")
    assert (y.dtype, z.dtype) == ("float64", "int64")
    assert host.constant(z).tolist() == [1, 1, 1]


def test_added_constants_are_shared_named_and_saved(tmp_path: Path) -> None:
    host = FxHost.capture(nn.Linear(4, 4), (torch.randn(3, 4),))
    array = np.arange(4, dtype=np.float32)
    c, d = host.add_constant(array, name="fc.shift"), host.add_constant(array[::-1], name="fc.shift")
    assert (c.name, d.name) == ("fc_shift", "fc_shift_1")
    assert np.shares_memory(host.constant(c), array)
    y = host.outputs[0]
    host.replace(y, host.call("aten.add.Tensor", (host.call("aten.sub.Tensor", (y, d), name="m"), c), name="p"))
    assert host.users(y)
    host.check()
    path = tmp_path / "model.bin"
    host.save(path)
    program = host.module()
    assert list(program.state_dict()) == ["weight", "bias", "fc_shift", "fc_shift_1"]
    x = torch.randn(2, 4)
    with open(path, "rb") as file:
        assert_close(torch.export.load(file).module()(x), program(x))


def test_sizes_are_built_in_the_graph() -> None:
    host = host_of(lambda x, y: (x * 2, y[: y.shape[0] // 2]), torch.randn(6, 8), torch.randn(6, 2))
    s1 = host.inputs[1].shape[0]  # type: ignore[index]
    assert host.size(5) == 5
    wanted = sizes.size(2 * S0**2 + 3 * s1 - 1)
    total = host.size(wanted)
    assert isinstance(total, Value) and total.scalar
    y = host.call("aten.full.default", ([total], 1.0), name="ones")
    assert y.shape == (wanted,)
    host.replace(host.outputs[0], y)
    host.check()
    assert host.module()(torch.randn(3, 8), torch.randn(4, 2))[0].shape == (2 * 9 + 12 - 1,)
    with pytest.raises(GraphError, match="no dimension"):
        host.size(sizes.symbol("elsewhere"))


def test_normalise_merges_and_drops() -> None:
    def function(x: Tensor) -> Tensor:
        a, b = x.detach().contiguous(), x.clone()
        one, same, other = torch.relu(a) + 1, torch.relu(b) + 1, torch.relu(x) + 1.0
        return one * same - other

    host = host_of(function, torch.randn(3, 4))
    host.normalise()
    assert ops(host) == [
        "aten.relu.default",
        "aten.add.Tensor",
        "aten.add.Tensor",
        "aten.mul.Tensor",
        "aten.sub.Tensor",
    ]
    first = [node.name for node in host.nodes]
    host.normalise()
    assert [node.name for node in host.nodes] == first
    same_calls(host, Call(function), (torch.randn(2, 4),))


def write_part(x: Tensor, v: Tensor) -> Tensor:
    x = x.clone()
    x[:, 2:4] = v
    return x


def write_broadcast(x: Tensor, v: Tensor) -> Tensor:
    x = x.clone()
    x[:, 2:4] = v[:, :1]
    x[0] = v[0, 1]
    return x


def write_numbers(x: Tensor, v: Tensor) -> Tensor:
    x = x.clone()
    x[:, ::2] = 1.5
    x[:, 1] = float("-inf")
    x[:, -1] = -3
    return x


def write_twice(x: Tensor, v: Tensor) -> Tensor:
    x = x.clone()
    x[:, 2:4] = v
    x[:, 0:3] = x[:, 3:6]
    return x


@pytest.mark.parametrize("function", [write_part, write_broadcast, write_numbers, write_twice])
def test_normalise_writes_without_copies_of_what_is_overwritten(function: Callable[..., Tensor]) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    args = torch.randn(3, 7), torch.randn(3, 2)
    host = host_of(function, *args, dynamic_shapes=(({0: batch}, {0: batch}),))
    host.normalise()
    assert not {"aten.copy.default", "aten.fill.Tensor", "aten.fill.Scalar"} & set(ops(host))
    same_calls(host, Call(function), args, (torch.randn(1, 7), torch.randn(1, 2)))


def test_normalise_keeps_copies_that_others_read_or_that_convert() -> None:
    def reads(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        part = torch.ops.aten.copy.default(x[:, 2:4], v)
        return torch.slice_scatter(x, part, 1, 2, 4), part

    def converts(x: Tensor, v: Tensor) -> Tensor:
        return torch.slice_scatter(x, torch.ops.aten.copy.default(x[:, 2:4], v.double()), 1, 2, 4)

    args = torch.randn(3, 7), torch.randn(3, 2)
    for function in (reads, converts):
        host = host_of(function, *args)
        host.normalise()
        assert "aten.copy.default" in ops(host)
        same_calls(host, Call(function), args)


def test_normalise_keeps_what_changes_strides_type_or_aliasing() -> None:
    def function(x: Tensor) -> Any:
        return x.t().contiguous().view(-1), x.to(torch.float64) * 2, x.clone()

    host = host_of(function, torch.randn(3, 4))
    host.normalise()
    names = " ".join(ops(host))
    assert "clone" in names and "to" in names and "contiguous" in names and "aten.reshape.default" in ops(host)
    x = torch.randn(2, 4)
    assert host.module()(x)[2].data_ptr() != x.data_ptr()
    same_calls(host, Call(function), (x,))


def test_type_assertions_stay_on_inputs_only() -> None:
    host = host_of(lambda x: torch.relu(x).to(torch.float64).relu().float(), torch.randn(3, 4))
    host.normalise()
    assert ops(host) == ["aten.relu.default", "aten.to.dtype", "aten.relu.default", "aten.to.dtype"]
    host = host_of(lambda x: x.to(torch.float64), torch.randn(3, 4))
    host.normalise()
    assert ops(host) == ["aten._assert_tensor_metadata.default", "aten.to.dtype"]


def test_unused_inputs_stay_and_unused_parameters_go() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            torch.relu(y)
            return self.used(x)

    host = FxHost.capture(Unused(), (torch.randn(3, 4), torch.randn(3, 2)))
    assert host.erase_dead() == 1
    assert len(host.inputs) == 2
    program = host.module()
    assert set(program.state_dict()) == {"used.weight", "used.bias"}
    program(torch.randn(2, 4), torch.randn(2, 2))


def test_what_was_given_is_not_changed() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU(inplace=True))
    module.eval()[2].train()
    state = {k: v.clone() for k, v in module.state_dict().items()}
    random = torch.random.get_rng_state()
    program = torch.export.export(module, (torch.randn(3, 4),), strict=False)
    torch.random.set_rng_state(random)
    graph = str(program.graph)
    for host in (FxHost(program), FxHost.capture(module, (torch.ones(3, 4),))):
        twin = host.clone()
        before = (host.count_nodes(), str(host._graph))
        twin.normalise()
        twin.replace(twin.outputs[0], twin.call("aten.neg.default", (twin.outputs[0],), name="n"))
        twin.add_constant(np.ones(3), name="c")
        twin.erase_dead()
        twin.module()
        assert (host.count_nodes(), str(host._graph)) == before
    assert str(program.graph) == graph and set(program.state_dict) == set(state)
    assert [m.training for m in module] == [False, False, True, False]
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())


# The callable module


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def test_structures_of_arguments_and_results() -> None:
    def nested(d: dict[str, list[Tensor]], t: tuple[Tensor, Tensor]) -> Any:
        return {"a": [d["p"][0] + t[1], None], "b": (t[0],)}

    args = ({"p": [torch.randn(3, 4)]}, (torch.randn(3, 2), torch.randn(3, 4)))
    program = host_of(nested, *args).module()
    assert_close(program(*args), nested(*args))
    with pytest.raises(GraphError, match="needs 2 members"):
        program(args[0], args[1][:1])
    named = host_of(lambda x: Pair(x + 1, x * 2), torch.randn(3, 4)).module()
    result = named(torch.ones(2, 4))
    assert isinstance(result, Pair)
    assert_close(result.right, torch.full((2, 4), 2.0))


def test_copies_and_pickles() -> None:
    module = Stored()
    host = FxHost.capture(module, {"x": torch.randn(3, 8), "scale": torch.randn(3, 1)})
    program = host.module()
    x, scale = torch.randn(2, 8), torch.randn(2, 1)
    twice = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(program))))
    for twin in (copy.deepcopy(program), twice):
        assert_close(twin(x, scale=scale), module(x, scale=scale))
        assert set(twin.state_dict()) == set(program.state_dict())
        assert "._parameters['weight']" in twin.code  # read without nn.Module.__getattr__
        twin.load_state_dict({k: torch.zeros_like(v) for k, v in twin.state_dict().items()}, assign=True)
        assert_close(twin(x, scale=scale)["y"], module.lost * scale)
        with pytest.raises(GraphError):
            twin(x, scale=torch.randn(3, 1))


def test_vmap_is_the_operators_that_it_becomes() -> None:
    layer, x = nn.Linear(3, 5), torch.randn(4, 3)
    module = Call(torch.vmap(lambda row: torch.relu(layer(row))))
    module.layer = layer
    host = FxHost.capture(module.eval(), (x,))
    assert all(op.startswith("aten.") for op in ops(host))
    assert_close(torch.from_numpy(host.run([x.numpy()])[0]), torch.relu(layer(x)).detach())


def test_moving_moves_devices_in_the_graph() -> None:
    module = nn.Linear(4, 4)
    host = FxHost.capture(Call(lambda x: module(x) + torch.arange(4, device=x.device)), (torch.randn(3, 4),))
    host_module = FxHost.capture(_Positions(), (torch.randn(3, 4),)).module()
    assert host.module()(torch.randn(2, 4)).device.type == "cpu"
    moved = copy.deepcopy(host_module).to("meta")
    assert moved(torch.randn(2, 4, device="meta")).device.type == "meta"
    assert host_module(torch.randn(2, 4)).device.type == "cpu"


class _Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + torch.arange(4, device=x.device)


def test_the_module_compiles_and_exports_again() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    program = FxHost.capture(module, (torch.randn(3, 4),)).module()
    x = torch.randn(2, 4)
    assert_close(torch.compile(program, backend="eager", fullgraph=True)(x), module(x))
    again = FxHost.capture(program, (x,))
    assert ops(again) == ["aten.linear.default", "aten.relu.default"]


@pytest.mark.parametrize("name", ["wdl", "din", "dien", "dlrm"])
def test_examples(name: str) -> None:
    example = importlib.import_module(f"examples.{name}")
    module = example.model()
    host = FxHost.capture(module, example.inputs(1))
    nodes = host.count_nodes()
    host.normalise()
    assert host.count_nodes() <= nodes and not any(node.opaque for node in host.nodes)
    assert all(v.shape is not None and v.shape[0] == S0 for v in (*host.inputs, *host.outputs))
    host.check()
    with torch.no_grad():
        same_calls(host, module, example.inputs(1), example.inputs(5))


def test_opt_einsum_does_not_fix_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opt_einsum")
    monkeypatch.setattr(torch.backends.opt_einsum, "enabled", True)

    class Unit(nn.Module):
        def forward(self, x: Tensor, w: Tensor, q: Tensor) -> Tensor:
            return torch.einsum("bth,dh,bd->tb", x, w, q)

    program = capture(Unit(), (torch.randn(4, 31, 24), torch.randn(13, 24), torch.randn(4, 13)))
    assert program.module()(torch.ones(9, 31, 24), torch.ones(13, 24), torch.ones(9, 13)).shape == (31, 9)
    assert torch.backends.opt_einsum.enabled


def test_an_encoder_with_a_mask_is_captured() -> None:
    """torch.export alone refuses it: the encoder asks its mask whether it is the causal one."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 1)

        def forward(self, x: Tensor) -> Any:
            return self.layers(x, mask=torch.ones(5, 5, dtype=torch.bool).tril(-2))

    module = Encoder().eval()
    program = capture(module, (torch.randn(4, 5, 8),))
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        assert_close(program.module()(x), module(x))
