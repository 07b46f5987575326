"""Whether tensors are the same and where they were, asked in C and in Python."""

from __future__ import annotations

from array import array

import pytest
import torch

from recopt.kernels.embedding_bags import known as embedding_bags_known
from recopt.kernels.embedding_bags.known import Known, described


@pytest.fixture(params=["C", "Python"])
def _asked_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Python":
        monkeypatch.setattr(embedding_bags_known, "_compiled", lambda: None)
    else:
        assert embedding_bags_known._compiled() is not None


@pytest.mark.usefixtures("_asked_in")
def test_tensors_are_the_same_until_one_is_another_or_moves() -> None:
    tensors = [torch.randn(3, 4) for _ in range(5)]
    known = Known(tensors)
    assert known.same(tensors)
    assert known.same(tuple(tensors))
    assert not known.same(tensors[:4])
    assert not known.same([*tensors, tensors[0]])
    assert not known.same([*tensors[:3], tensors[4], tensors[3]])
    assert not known.same([*tensors[:4], tensors[4][:]])  # the same memory, another tensor
    tensors[2].add_(1)
    assert known.same(tensors)
    tensors[2].data = tensors[2].clone()
    assert not known.same(tensors)
    assert Known([]).same([])


@pytest.mark.usefixtures("_asked_in")
def test_descriptions_are_equal_where_a_plan_may_be_shared() -> None:
    ids, lengths = torch.zeros(7, 4, dtype=torch.int64), torch.zeros(8)
    words, addresses = described([ids, lengths], array("q", [7, 7]))
    assert addresses == array("q", [ids.data_ptr(), lengths.data_ptr()]).tobytes()
    assert described([ids[:3], lengths[2:6]], array("q", [3, 3]))[0] == words  # one more than there are rows
    others = [
        [ids, lengths[:7]],
        [ids[:, :3], lengths],
        [ids[:, 0], lengths],
        [ids.t().contiguous().t(), lengths],
        [ids.int(), lengths],
        [ids.to("meta"), lengths],
        [ids, lengths[::2]],
        [ids.unsqueeze(2), lengths],
        [ids, lengths.sum()],
    ]
    for other in others:
        assert described(other, array("q", [7, 7]))[0] != words
