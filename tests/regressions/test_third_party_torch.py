"""What PyTorch models of others broke, each as small as it goes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import recopt
from recopt.errors import GraphError, LoadError, OptionError
from recopt.hosts.fx import FxHost


class Two(torch.nn.Module):
    def forward(self, x: torch.Tensor, *, y: torch.Tensor) -> torch.Tensor:
        return x - y


def host() -> FxHost:
    return FxHost.capture(Two(), {"x": torch.ones(3, 2), "y": torch.ones(3, 2)})


def test_examples_that_are_given_come_before_those_of_the_capture() -> None:
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(3, 2),), strict=False)
    captured, given = FxHost(program).examples(None), FxHost(program).examples((torch.full((3, 2), 7.0),))
    assert captured is not None and given is not None
    np.testing.assert_array_equal(captured[0], np.ones((3, 2)))
    np.testing.assert_array_equal(given[0], np.full((3, 2), 7.0))


def test_examples_by_name_are_put_in_the_programs_order() -> None:
    for given in ({"y": torch.zeros(4, 2), "x": torch.ones(4, 2)}, {"x": torch.ones(4, 2), "y": torch.zeros(4, 2)}):
        found = host().examples(given)
        assert found is not None
        assert [float(a.max()) for a in found] == [1, 0]
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(3, 2),), strict=False)
    by_name = FxHost(program).examples({"input": torch.zeros(1, 2)})
    assert by_name is not None and by_name[0].shape == (1, 2)


@pytest.mark.parametrize("given", [{"z": torch.ones(3, 2)}, (torch.ones(3, 2),) * 3, {"x": torch.ones(3, 2)}])
def test_examples_that_fit_no_call_are_refused(given: object) -> None:
    with pytest.raises(OptionError, match="which takes"):
        host().examples(given)
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(3, 2),), strict=False)
    with pytest.raises(OptionError, match="do not fit"):
        recopt.optimize(program, given)


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


class Swap(torch.nn.Module):
    def forward(self, pair: Pair) -> Pair:
        return Pair(pair.b, pair.a)


def test_what_an_archive_cannot_hold_is_one_error_and_no_file(tmp_path: Path) -> None:
    x = torch.ones(3, 2)
    optimized = recopt.optimize(Swap(), (Pair(x, 2 * x),))
    assert isinstance(optimized(Pair(x, 2 * x)), Pair)
    with pytest.raises(GraphError, match=r"cannot save the program: .*namedtuple"):
        optimized.save(tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_archive_is_one_error_and_nothing_is_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.pt2").write_text("nothing")
    with pytest.raises(LoadError, match="not a program"):
        recopt.optimize(tmp_path / "m.pt2")
    assert capfd.readouterr() == ("", "")


class Wide(torch.nn.Module):
    """Features of one number each, under one row of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.linear(torch.cat([a[:, None], b[:, None], c], dim=1)))


def test_features_of_one_number_are_the_columns_of_a_linear() -> None:
    args = (torch.randn(4), torch.randn(4), torch.randn(4, 1))
    wide = Wide().eval()
    optimized = recopt.optimize(wide, args)
    assert optimized.report.counts() == {"linear": 1}
    torch.testing.assert_close(optimized(*args), wide(*args))


class Heads(torch.nn.Module):
    """What attention ends with: heads that are joined by a copy, and a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.out = torch.nn.Linear(8, 8, bias=False)

    def forward(self, weights: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        heads = torch.einsum("bhts,bhsd->bhtd", weights, v)
        return self.out(heads.permute(0, 2, 1, 3).reshape(v.shape[0], -1, 8))


def test_a_projection_reads_joined_heads_as_the_graph_joins_them() -> None:
    args = (torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 4))
    optimized = recopt.optimize(Heads().eval(), args)
    ops = [n.op for n in optimized.host.nodes if not n.op.startswith("aten.sym_size")]
    joined = ["aten.einsum.default", "aten.permute.default", "aten.reshape.default", "recopt.linear.default"]
    assert ops == joined


class Pooled(torch.nn.Module):
    """Self-attentive pooling: the score's first layer reads rows of a table and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.items = torch.nn.Embedding(30, 16)
        self.first, self.last = torch.nn.Linear(16, 8, bias=False), torch.nn.Linear(8, 1, bias=False)

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        k = self.items(history)
        weights = torch.softmax(self.last(torch.tanh(self.first(k))), 1)
        return (weights * k).sum(1)


def test_a_score_over_rows_of_a_table_is_no_target_attention() -> None:
    history, pooled = torch.randint(0, 30, (4, 7)), Pooled().eval()
    optimized = recopt.optimize(pooled, (history,))
    assert optimized.report.counts()["linear"] == 2
    torch.testing.assert_close(optimized(history), pooled(history))


class Shared(torch.nn.Module):
    """A mean over the batch, one row at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x) / x.shape[0])


def test_a_factor_that_the_batch_gives_is_no_constant() -> None:
    optimized = recopt.optimize(Shared().eval(), (torch.randn(4, 5),))
    assert optimized.report.counts() == {"linear": 1}  # the division stays
    assert any("depends on the size" in refusal.reason for refusal in optimized.report.refusals)
    assert "aten.div.Tensor" in [node.op for node in optimized.host.nodes]


class Padded(torch.nn.Module):
    """Columns that are joined, turned around and padded to a width."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([torch.cat([a[:, :2], b[:, 1:3]], 1), a[:, 2:]], 1)
        return torch.nn.functional.pad(joined.flip(1), (0, 1))


def test_columns_that_are_joined_and_padded_are_moved() -> None:
    args = (torch.randn(4, 5), torch.randn(4, 6))
    optimized = recopt.optimize(Padded(), args)
    assert optimized.report.counts() == {"simplify-layout": 1}
    torch.testing.assert_close(optimized(*args), Padded()(*args), rtol=0, atol=0)


class Deep(torch.nn.Module):
    """Layers without an activation, each added to what it reads where `residual` says so."""

    def __init__(self, depth: int, residual: bool) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(depth))
        for layer in self.layers:
            torch.nn.init.normal_(layer.get_parameter("weight"), std=0.05)  # so that a sum of 70 stays near 1
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x) if self.residual else layer(x)
        return x


@pytest.mark.parametrize("residual", [False, True])
def test_layers_without_an_activation_become_few(residual: bool) -> None:
    """More than 64 in one product are more axes than numpy has; as one term a chain of residuals doubles at each."""
    args = (torch.randn(4, 4),)
    deep = Deep(70, residual).eval()
    optimized = recopt.optimize(deep, args)
    assert not optimized.report.undone
    assert set(optimized.report.counts()) == {"linear"}
    assert len(list(optimized.host.nodes)) <= 70 // 2
    torch.testing.assert_close(optimized(*args), deep(*args))


class Dense(torch.nn.Module):
    """Layers that add up all the layers before."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(5))
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(8) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = layer(seen[-1] if seen else x)
            for before in seen:
                h = h + before
            seen.append(norm(h * torch.sigmoid(h)))
        return seen[-1]


def test_the_search_for_a_recurrence_ends_where_all_layers_before_are_added() -> None:
    fast = recopt.optimize(Dense().eval(), (torch.randn(4, 8),), verify="none")  # took minutes
    assert fast.report.counts() == {"linear": 5}
    assert fast.report.timings["fuse-gru"] < 30


def test_a_squeeze_of_the_batch_stays() -> None:
    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(x.sum(1).squeeze(-1))

    fast = recopt.optimize(Net(), (torch.randn(4, 3),))
    assert not fast.report.undone
    assert [fast(torch.ones(batch, 3)).shape for batch in (1, 2)] == [(), (2,)]


def test_the_dtype_that_a_cast_expects_is_checked_with_the_shapes() -> None:
    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x.float().relu() + y.to("cpu")

    fast = recopt.optimize(Net(), (torch.randn(4, 3), torch.randn(4, 3)))
    for _ in range(2):
        torch.testing.assert_close(fast(torch.ones(2, 3), torch.ones(2, 3)), torch.full((2, 3), 2.0))
        with pytest.raises(GraphError, match=r"input x is torch.float64, the program takes torch.float32"):
            fast(torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3))
    assert "_assert" not in fast.model.code


@pytest.mark.parametrize("shape", [(4, 6), (0, 6), (4, 6, 1), (4, 6, 5), (0, 6, 5)])
def test_channels_without_space_are_rows(shape: tuple[int, ...]) -> None:
    w = torch.randn(3, 6, *[1] * (len(shape) - 2))
    b = torch.randn(3)
    x = torch.randn(shape)
    expected = torch.einsum("bk...,nk->bn...", x, w.reshape(3, 6)) + b.reshape(3, *[1] * (len(shape) - 2))
    torch.testing.assert_close(torch.ops.recopt.linear(x, w, b, "", []), expected)


def test_rows_that_are_picked_from_joined_columns_are_copied_whole() -> None:
    rows = torch.tensor([4, 0, 0, 3])

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(-1, 5, 8)[:, rows] * 2

    fast = recopt.optimize(Net(), (torch.randn(4, 40),))
    indices = [b.numel() for b in fast.model.buffers() if b.dtype == torch.int64]
    assert "index_select" in fast.model.code and indices == [4]
    x = torch.randn(3, 40)
    torch.testing.assert_close(fast(x), x.reshape(-1, 5, 8)[:, rows] * 2)


def test_a_product_of_a_concat_of_which_one_part_is_not_read_at_all() -> None:
    picked, w = torch.tensor([-5, -1, 1]), torch.randn(4, 3)

    class Net(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            y = torch.cat([a, b], 1)[:, picked]
            y = torch.cat([y[:, 1:].clamp(min=2.0), y[:, :1]], 1)  # the last column is one of a
            return y[:, [2, 0, 1]] @ w.T

    given = (torch.randn(4, 3), torch.randn(4, 3))
    torch.testing.assert_close(recopt.optimize(Net(), given)(*given), Net()(*given))


class Last(torch.nn.Module):
    """The row of the last item of each history, whose length says where that is, beside a user's."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.users = torch.nn.Embedding(20, 4), torch.nn.Embedding(9, 4)

    def forward(self, items: torch.Tensor, length: torch.Tensor, user: torch.Tensor) -> torch.Tensor:
        last = items.gather(1, (length - 1).view(-1, 1)).squeeze(1)
        return self.users(user) + self.items(last)


def test_lengths_less_one_name_places_when_a_rewrite_is_proved() -> None:
    model, args = Last().eval(), (torch.randint(0, 20, (4, 6)), torch.tensor([1, 6, 2, 3]), torch.arange(4))
    result = recopt.optimize(model, args)
    assert result.report.counts().get("embedding-bags") == 1 and not result.report.undone
    torch.testing.assert_close(result(*args), model(*args))
