"""Spellings of lookups: single rows, bags, concats, and what looks like them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS, DIM, FIELDS = 30, 6, 5


class Tables(nn.Module):
    """Seeded tables and bags of them, and a spelling of what is looked up."""

    def __init__(self, spell: Callable[..., Any]) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)

        def table(rows: int, dim: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, dim, generator=g))

        self.weights = nn.ParameterList(table(ROWS + n, DIM) for n in range(FIELDS))
        self.mixed = nn.ParameterList(table(ROWS, dim) for dim in (4, 8, 16, 2, 3))
        self.wide = nn.ParameterList(table(ROWS, 1) for _ in range(FIELDS))
        self.turned = table(DIM, ROWS)
        self.register_buffer("short", torch.randn(ROWS, DIM, generator=g).half())
        self.register_buffer("brief", torch.randn(ROWS, DIM, generator=g).bfloat16())
        self.bias = nn.Parameter(torch.randn(1, generator=g))
        self.joined = table(ROWS * FIELDS, DIM)
        self.register_buffer("starts", torch.arange(FIELDS) * ROWS)
        self.holed = table(ROWS, DIM)
        self.holed.data[0] = torch.inf
        self.padded = table(ROWS, DIM)
        self.padded.data[0] = 0
        self.bags = nn.ModuleDict()
        for mode in ("sum", "mean", "max"):
            self.bags[mode] = nn.EmbeddingBag(ROWS, DIM, mode=mode)
            self.bags[mode].weight.data.copy_(torch.randn(ROWS, DIM, generator=g))
        self.spell = spell

    def bag(self, mode: str, ids: Tensor) -> Tensor:
        """One of the bags."""
        pooled: Tensor = self.bags[mode](ids)
        return pooled

    def forward(self, *args: Tensor) -> Any:
        return self.spell(self, *args)


@dataclass(frozen=True)
class Lookup:
    """A spelling: how many `recopt::embedding_bags` it becomes, on each road."""

    spell: Callable[..., Any]
    inputs: int = 1  # 2: dense columns beside the ids; 3: weights of the ids
    reason: str = ""  # of a near miss
    beside: tuple[str, ...] = ()  # what may stand beside the operator: ids that are computed
    onnx: bool = True  # whether the exporters carry it as one too

    def module(self) -> nn.Module:
        """The spelling as a module in eval."""
        return Tables(self.spell).eval()

    def args(self, batch: int) -> tuple[Tensor, ...]:
        """Ids [batch, FIELDS] in range of every table, and floats."""
        g = torch.Generator().manual_seed(batch)
        ids = torch.randint(0, ROWS, (batch, FIELDS), generator=g)
        ids[0, 1] = 0
        if self.inputs == 1:
            return (ids,)
        return ids, torch.randn(batch, 3 if self.inputs == 2 else FIELDS, generator=g)


def _columns(m: Any, ids: Tensor) -> list[Tensor]:
    return [F.embedding(ids[:, k], w) for k, w in enumerate(m.weights)]


def _one_by_one(m: Any, ids: Tensor) -> Tensor:
    total = F.embedding(ids[:, 0], m.wide[0])
    for k in range(1, FIELDS):
        total = total + F.embedding(ids[:, k], m.wide[k])
    return total


LOOKUPS: dict[str, Lookup] = {
    "filled_to_one_width": Lookup(
        lambda m, i: torch.stack(
            [F.pad(F.embedding(i[:, k], t), (0, 16 - t.shape[1])) for k, t in enumerate(m.mixed)], 1
        ),
        beside=("Concat", "Shape", "Expand"),
    ),
    "hashes_stacked": Lookup(
        lambda m, i: F.embedding(torch.stack([(i * n) % ROWS for n in (7, 11, 13)], -1), m.weights[0]).sum(-2),
        beside=("index_select", "mul", "remainder", "stack", "Mul", "Mod", "Concat"),
    ),
    "columns": Lookup(lambda m, ids: torch.cat(_columns(m, ids), 1)),
    "windows": Lookup(lambda m, ids: F.embedding(ids, m.weights[0]).unfold(1, 2, 1).sum(-1), beside=("index_select",)),
    "rows_chosen": Lookup(lambda m, ids: F.embedding(ids, m.weights[0])[:, [2, 0, 2]], beside=("index_select",)),
    "every_second_row": Lookup(lambda m, ids: F.embedding(ids, m.weights[0])[:, 1::2].sum(1), beside=("index_select",)),
    "columns_last_dim": Lookup(lambda m, ids: torch.cat(_columns(m, ids), dim=-1)),
    "columns_split": Lookup(
        lambda m, ids: torch.cat(
            [F.embedding(i, w).flatten(1) for i, w in zip(ids.split(1, 1), m.weights, strict=True)], 1
        )
    ),
    "columns_unbound": Lookup(
        lambda m, ids: torch.cat([F.embedding(i, w) for i, w in zip(ids.unbind(1), m.weights, strict=True)], 1)
    ),
    "columns_selected": Lookup(
        lambda m, ids: torch.cat([torch.index_select(w, 0, ids[:, k]) for k, w in enumerate(m.weights)], 1)
    ),
    "columns_kept": Lookup(
        lambda m, ids: torch.cat([F.embedding(ids[:, k : k + 1], w) for k, w in enumerate(m.weights)], 1).flatten(1)
    ),
    "stacked": Lookup(lambda m, ids: torch.stack(_columns(m, ids), 1)),
    "stacked_flat": Lookup(lambda m, ids: torch.stack(_columns(m, ids), 1).reshape(-1, FIELDS * DIM)),
    "dense_beside": Lookup(lambda m, ids, x: torch.cat([*_columns(m, ids), x], 1), 2),
    "dense_first": Lookup(lambda m, ids, x: torch.cat([x, *_columns(m, ids)], 1), 2),
    "nested_concats": Lookup(
        lambda m, ids, x: torch.cat([torch.cat(_columns(m, ids)[:2], 1), x, torch.cat(_columns(m, ids)[2:], 1)], 1), 2
    ),
    "mixed_widths": Lookup(lambda m, ids: torch.cat([F.embedding(ids[:, k], w) for k, w in enumerate(m.mixed)], 1)),
    "shared_table": Lookup(lambda m, ids: torch.cat([F.embedding(ids[:, k], m.weights[0]) for k in range(FIELDS)], 1)),
    "shared_and_own": Lookup(
        lambda m, ids: torch.cat(
            [F.embedding(ids[:, :3], m.weights[0]).flatten(1), F.embedding(ids[:, 4], m.weights[1])], 1
        )
    ),
    "bag_sum": Lookup(lambda m, ids: m.bag("sum", ids)),
    "bag_mean": Lookup(lambda m, ids: m.bag("mean", ids)),
    "bag_max": Lookup(lambda m, ids: m.bag("max", ids)),
    "bags_beside": Lookup(
        lambda m, ids: torch.cat([m.bag("sum", ids[:, :2]), m.bag("mean", ids[:, 2:4]), m.bag("max", ids)], 1)
    ),
    "summed": Lookup(lambda m, ids: F.embedding(ids, m.weights[0]).sum(1)),
    "averaged": Lookup(lambda m, ids: F.embedding(ids, m.weights[0]).mean(dim=1)),
    "summed_over_count": Lookup(lambda m, ids: F.embedding(ids, m.weights[0]).sum(1) / FIELDS),
    "largest": Lookup(lambda m, ids: F.embedding(ids, m.weights[0]).amax(1)),
    "largest_and_where": Lookup(lambda m, ids: F.embedding(ids, m.weights[0]).max(1).values),
    "summed_kept": Lookup(lambda m, ids: F.embedding(ids, m.weights[0]).sum(1, keepdim=True).flatten(1)),
    "weighted": Lookup(lambda m, ids, w: (F.embedding(ids, m.weights[0]) * w[:, :, None]).sum(1), 3),
    "weighted_product": Lookup(lambda m, ids, w: torch.einsum("bl,bld->bd", w, F.embedding(ids, m.weights[0])), 3),
    "weighted_bmm": Lookup(lambda m, ids, w: torch.bmm(w.unsqueeze(1), F.embedding(ids, m.weights[0])).squeeze(1), 3),
    "per_sample_weights": Lookup(
        lambda m, ids, w: F.embedding_bag(ids, m.weights[0], mode="sum", per_sample_weights=w), 3
    ),
    "rows_scaled": Lookup(
        lambda m, ids, w: torch.cat([F.embedding(ids[:, k], t) * w[:, k : k + 1] for k, t in enumerate(m.weights)], 1),
        3,
    ),
    "masked_sum": Lookup(lambda m, ids: (F.embedding(ids, m.weights[0]) * (ids != 0)[..., None]).sum(1)),
    "masked_mean": Lookup(
        lambda m, ids: (
            (F.embedding(ids, m.weights[0]) * (ids != 0).unsqueeze(-1).float()).sum(1)
            / (ids != 0).float().sum(1, keepdim=True).clamp(min=1)
        ),
    ),
    "masked_mean_eps": Lookup(
        lambda m, ids: (
            (F.embedding(ids, m.weights[0]) * (ids > 0).float()[..., None]).sum(1)
            / ((ids > 0).sum(1, keepdim=True).float() + 1e-8)
        ),
    ),
    "padding": Lookup(lambda m, ids: F.embedding_bag(ids, m.weights[0], mode="sum", padding_idx=2), onnx=False),
    "padding_int32": Lookup(
        lambda m, ids: F.embedding_bag(ids.int(), m.weights[0], mode="mean", padding_idx=2),
        beside=("to", "_assert_tensor_metadata"),
        onnx=False,
    ),
    "padding_mean": Lookup(lambda m, ids: F.embedding_bag(ids, m.weights[0], mode="mean", padding_idx=2), onnx=False),
    "cut_to_lengths": Lookup(
        lambda m, ids: (
            F.embedding(ids, m.weights[0]) * (torch.arange(FIELDS)[None] < ids[:, :1]).float()[..., None]
        ).sum(1),
    ),
    "masked_fill": Lookup(lambda m, ids: F.embedding(ids, m.weights[0]).masked_fill((ids == 0)[..., None], 0).sum(1)),
    "masked_where": Lookup(
        lambda m, ids: (
            torch.where((ids == 2)[..., None], torch.zeros(()), F.embedding(ids, m.weights[0])).mean(1) * FIELDS
        )
    ),
    "mixed_types": Lookup(
        lambda m, ids: torch.cat([F.embedding(ids[:, 0], m.weights[0]), F.embedding(ids[:, 1], m.short)], 1)
    ),
    "mixed_types_cast": Lookup(
        lambda m, ids: torch.cat([F.embedding(ids[:, 3], m.short).float(), F.embedding(ids[:, 1], m.weights[0])], 1)
    ),
    "one_hot": Lookup(lambda m, ids: F.one_hot(ids[:, 0], ROWS).float() @ m.weights[0]),
    "one_hot_bag": Lookup(
        lambda m, ids: torch.cat(
            [F.one_hot(ids, ROWS).to(torch.float32).matmul(m.weights[0]).sum(1), m.bag("sum", ids)], 1
        ),
    ),
    "one_hot_linear": Lookup(lambda m, ids: F.linear(F.one_hot(ids[:, 1], ROWS).float(), m.weights[0].T.contiguous())),
    "one_hot_counted": Lookup(lambda m, ids: F.one_hot(ids, ROWS).sum(1).float() @ m.weights[0]),
    "one_hot_mean": Lookup(lambda m, ids: F.one_hot(ids, ROWS).float().mean(1) @ m.weights[0]),
    "one_hot_columns": Lookup(lambda m, ids: F.linear(F.one_hot(ids[:, 2], ROWS).float(), m.turned)),
    "wide_chain": Lookup(_one_by_one),
    "wide_summed": Lookup(lambda m, ids: sum(F.embedding(ids[:, k], w) for k, w in enumerate(m.wide))),
    "wide_stacked_sum": Lookup(
        lambda m, ids: torch.stack([F.embedding(ids[:, k], w) for k, w in enumerate(m.wide)], 0).sum(0)
    ),
    "hashed": Lookup(
        lambda m, ids: torch.cat([F.embedding((ids[:, k] * 7919) % ROWS, w) for k, w in enumerate(m.weights)], 1),
    ),
    "modulo": Lookup(lambda m, ids: torch.cat([F.embedding(ids[:, k] % 20, w) for k, w in enumerate(m.weights)], 1)),
    "indexed": Lookup(lambda m, ids: torch.cat([w[ids[:, k]] for k, w in enumerate(m.weights)], 1)),
    "indexed_from_the_end": Lookup(lambda m, ids: torch.cat([w[ids[:, k] - 9] for k, w in enumerate(m.weights)], 1)),
    "indexed_bag": Lookup(lambda m, ids: torch.cat([m.weights[0][ids].sum(1), m.weights[1][ids - ROWS].mean(1)], 1)),
    "stacked_tables": Lookup(lambda m, ids: F.embedding(ids + m.starts[None], m.joined)),
    "stacked_tables_flat": Lookup(lambda m, ids: F.embedding(ids + m.starts, m.joined).flatten(1)),
    "stacked_tables_summed": Lookup(lambda m, ids: F.embedding(ids + m.starts, m.joined).sum(1)),
    "stacked_tables_averaged": Lookup(lambda m, ids: F.embedding(ids + m.starts, m.joined).mean(1)),
    "stacked_tables_hashed": Lookup(lambda m, ids: F.embedding((ids * 3) % ROWS + m.starts, m.joined).sum(1)),
    "own_mean": Lookup(
        lambda m, ids, w: (F.embedding(ids, m.weights[0]) * w[:, :, None]).sum(1) / w.sum(1, keepdim=True), 3
    ),
    "own_mean_clamped": Lookup(
        lambda m, ids, w: (
            torch.einsum("bl,bld->bd", w, F.embedding(ids, m.weights[0])) / w.sum(-1, keepdim=True).clamp(min=1e-6)
        ),
        3,
    ),
    "shares": Lookup(
        lambda m, ids, w: ((w / (w.sum(1, keepdim=True) + 9))[:, :, None] * F.embedding(ids, m.weights[0])).sum(1), 3
    ),
    "scaled": Lookup(lambda m, ids: F.embedding(ids, m.weights[0]).sum(1) * 0.7),
    "over_square_root_of_count": Lookup(lambda m, ids: F.embedding(ids, m.weights[0]).sum(1) / FIELDS**0.5),
    "rows_times_a_number": Lookup(lambda m, ids: F.embedding(ids, m.weights[0]) * DIM**0.5),
    "rows_and_positions": Lookup(
        lambda m, ids: F.embedding(ids, m.weights[0]) + F.embedding(torch.arange(FIELDS), m.weights[1])
    ),
    "rows_and_positions_scaled": Lookup(
        lambda m, ids: F.embedding(ids, m.weights[0]) * DIM**0.5 + m.weights[2][:FIELDS] + m.weights[3][0]
    ),
    "wide_and_bias": Lookup(lambda m, ids: _one_by_one(m, ids) + m.bias),
    "wide_and_bias_stacked": Lookup(
        lambda m, ids: (
            torch.cat([F.embedding(ids[:, k], w) for k, w in enumerate(m.wide)], 1).sum(1, keepdim=True) + m.bias
        )
    ),
    "mean_over_rows_that_are_not_zeros": Lookup(
        lambda m, ids: (
            F.embedding(ids, m.padded).sum(1)
            / ((F.embedding(ids, m.padded).abs().sum(-1) > 0).float().sum(-1, keepdim=True) + 1e-12)
        )
    ),
    "sum_of_rows_that_are_not_zeros": Lookup(
        lambda m, ids: (F.embedding(ids, m.padded) * (F.embedding(ids, m.padded).sum(-1, keepdim=True) != 0)).sum(1)
    ),
    "mean_over_given": Lookup(
        lambda m, ids, w: (
            (F.embedding(ids, m.weights[0]) * (ids != 0)[..., None]).sum(1) / (w[:, :1].clamp(min=1) + 1e-8)
        ),
        3,
    ),
    "mean_over_lengths": Lookup(
        lambda m, ids: (
            (F.embedding(ids, m.weights[0]) * (torch.arange(FIELDS)[None] < ids[:, :1]).float()[..., None]).sum(1)
            / (ids[:, :1].float() + 2)
        ),
    ),
    "largest_masked": Lookup(
        lambda m, ids: F.embedding(ids, m.weights[0]).masked_fill((ids == 0)[..., None], -1e9).max(1).values
    ),
    "largest_masked_by_infinity": Lookup(
        lambda m, ids: torch.where((ids != 0)[..., None], F.embedding(ids, m.weights[0]), -torch.inf).amax(1)
    ),
    "largest_within_lengths": Lookup(
        lambda m, ids: (
            F.embedding(ids, m.weights[0]) - (1 - (torch.arange(FIELDS)[None] < ids[:, :1]).float()[..., None]) * 1e9
        ).amax(1)
    ),
    "largest_padding": Lookup(lambda m, ids: F.embedding_bag(ids, m.weights[0], mode="max", padding_idx=2), onnx=False),
    "half_alone": Lookup(lambda m, ids: F.embedding(ids, m.short).float().sum(1)),
    "half_row": Lookup(lambda m, ids: F.embedding(ids[:, 2], m.short).float()),
    "halves_added": Lookup(
        lambda m, ids: torch.cat([F.embedding(ids, m.short).float().sum(1), F.embedding(ids[:, 1], m.weights[0])], 1),
    ),
    "bfloat_mean": Lookup(lambda m, ids: F.embedding(ids, m.brief).float().mean(1), onnx=False),
    "halves_weighted": Lookup(lambda m, ids, w: (F.embedding(ids, m.short).float() * w[..., None]).sum(1), 3),
    "equal_to_a_place": Lookup(
        lambda m, ids: (ids[:, :1] + 7 == torch.arange(ROWS)).float() @ m.weights[0]  # no row of its own above ROWS
    ),
    "equal_to_places_counted": Lookup(
        lambda m, ids: (ids[..., None] == torch.arange(ROWS)).float().sum(1) @ m.weights[0]
    ),
    "scattered": Lookup(lambda m, ids: torch.zeros(ids.shape[0], ROWS).scatter(1, ids[:, :1], 1.0) @ m.weights[0]),
    "scattered_and_counted": Lookup(
        lambda m, ids: torch.zeros(ids.shape[0], ROWS).scatter_add(1, ids, torch.ones_like(ids).float()) @ m.weights[0]
    ),
    "mask_given": Lookup(
        lambda m, ids, w: (F.embedding(ids, m.weights[0]) * (w > 0.4)[..., None]).sum(1),
        3,
        beside=("gt", "Greater"),
    ),
    "taken_along": Lookup(
        lambda m, ids: torch.cat(
            [
                torch.take_along_dim(m.weights[0], ids[:, :1].expand(-1, DIM), 0),
                torch.take_along_dim(m.weights[1], ids[:, 1:2], 0),
            ],
            1,
        ),
        onnx=False,
    ),
    "part_of_the_rows": Lookup(  # an ONNX file keeps tables whole: what it looks up is cut
        lambda m, ids: torch.cat(
            [F.embedding(ids[:, 0], m.weights[0])[:, 1:4], F.embedding(ids, m.joined[:, 2:3]).sum(1)], 1
        ),
        onnx=False,
    ),
    "stacked_behind_the_columns": Lookup(lambda m, ids: torch.stack(_columns(m, ids), -1)),
    "joined_along_two_dimensions": Lookup(
        lambda m, ids: torch.cat(
            [
                torch.cat([F.embedding(ids[:, :3], m.weights[0]), F.embedding(ids[:, 3:4], m.weights[1])], 1).flatten(
                    1
                ),
                F.embedding(ids[:, 4], m.weights[2]),
            ],
            1,
        )
    ),
    "ids_among_floats": Lookup(
        lambda m, ids, x: torch.cat(
            [
                F.embedding(x[:, 0].abs().floor().clamp(max=9).long(), m.weights[0]),
                F.embedding(ids[:, 1], m.weights[1]),
            ],
            1,
        ),
        2,
        beside=("select", "abs", "floor", "clamp", "Abs", "Floor", "Clip", "Min"),
    ),
    "missing_clamped_and_masked": Lookup(
        lambda m, ids: (F.embedding((ids - 5).clamp(min=0), m.weights[0]) * (ids - 5 >= 0)[..., None]).sum(1),
    ),
    "missing_left_out_of_a_mean": Lookup(
        lambda m, ids: (
            F.embedding((ids - 5).masked_fill(ids < 5, 0), m.weights[0]).masked_fill((ids < 5)[..., None], 0).sum(1)
            / (ids >= 5).sum(1, keepdim=True).clamp(min=1)
        ),
    ),
    "missing_left_out_of_a_maximum": Lookup(
        lambda m, ids: (
            F.embedding(torch.relu(ids - 5), m.weights[0]).masked_fill((ids - 5 < 0)[..., None], -1e9).max(1).values
        ),
        onnx=False,  # ONNX Runtime has no Relu of whole numbers
    ),
    "quotient_and_remainder": Lookup(
        lambda m, ids: torch.cat([F.embedding(ids // 7, m.weights[0]), F.embedding(ids % 7, m.weights[1])], -1).sum(1),
    ),
    "remainders_of_signed_ids": Lookup(
        lambda m, ids: torch.cat(
            [F.embedding(torch.fmod(ids, 9).abs(), m.weights[0]), F.embedding((ids - 3) & 7, m.weights[1])], 1
        ),
        onnx=False,  # TorchScript's exporter knows no such operators
    ),
    "hashed_by_shifts": Lookup(
        lambda m, ids: F.embedding(((ids * 31 + 7) ^ (ids >> 2)) % ROWS, m.weights[0]).sum(1), onnx=False
    ),
    "out_of_vocabulary": Lookup(
        lambda m, ids: torch.cat(
            [F.embedding(torch.where(ids[:, k] < 20, ids[:, k], 20 + ids[:, k] % 5), w) for k, w in enumerate(m.mixed)],
            1,
        ),
    ),
    "mask_of_two_conditions": Lookup(
        lambda m, ids: (
            F.embedding(ids, m.weights[0]) * ((ids != 0) & (torch.arange(FIELDS) < ids[:, :1])).unsqueeze(-1)
        ).sum(1)
    ),
    "largest_under_a_given_mask": Lookup(
        lambda m, ids, w: F.embedding(ids, m.weights[0]).masked_fill((w < 0.5)[..., None], -1e9).amax(1),
        3,
        beside=("lt", "Less"),
    ),
    "int32": Lookup(lambda m, ids: torch.cat([F.embedding(ids[:, k].int(), w) for k, w in enumerate(m.weights)], 1)),
}

NEAR_MISSES: dict[str, Lookup] = {
    # Their conditions do not say which ids count: they are weights, of which 0 times infinity is no number.
    "padding_from_the_end": Lookup(lambda m, ids: (m.weights[0][ids - 9] * (ids - 9 != 0)[..., None]).sum(1)),
    "padding_of_no_number": Lookup(lambda m, ids: (F.embedding(ids, m.holed) * (ids != 0)[..., None]).sum(1)),
    "hidden_row_of_no_number": Lookup(
        lambda m, ids: F.embedding(ids, m.holed).masked_fill((ids == 0)[..., None], 0).sum(1)
    ),
    "remainder_written_out": Lookup(lambda m, ids: F.embedding(ids - ids // 20 * 20, m.weights[0]).sum(1)),
    "lengths_of_no_number": Lookup(
        lambda m, ids: (F.embedding(ids, m.holed) * (torch.arange(FIELDS)[None] < ids[:, :1]).float()[..., None]).sum(
            1
        ),
    ),
    "table_computed": Lookup(lambda m, ids, x: F.embedding(ids * 0, x), 2),
    "weight_of_the_row": Lookup(
        lambda m, ids: (F.embedding(ids, m.weights[0]) * F.embedding(ids, m.weights[0]).sigmoid()).sum(1)
    ),
    "rows_multiplied": Lookup(
        lambda m, ids: F.embedding(ids[:, 0], m.weights[0]) * F.embedding(ids[:, 1], m.weights[1]), reason="multiplied"
    ),
    # Several rows may be zeros then, or none: which ids count is not one that is left out.
    "mask_of_rows": Lookup(
        lambda m, ids: torch.einsum(
            "bld,bl->bd", F.embedding(ids, m.padded), (F.embedding(ids, m.padded).sum(-1) > 0).float()
        )
    ),
    "largest_scaled": Lookup(lambda m, ids: F.embedding(ids, m.weights[0]).amax(1) * 0.7, reason="factor"),
    "largest_under_too_small_a_number": Lookup(  # rows below -1 would show where others are hidden
        lambda m, ids: F.embedding(ids, m.weights[0]).masked_fill((ids == 0)[..., None], -1.0).amax(1),
        reason="does not hide",
    ),
    "largest_less_too_small_a_number": Lookup(
        lambda m, ids: (F.embedding(ids, m.weights[0]) - (1 - (ids != 0).float()[..., None]) * 3).amax(1),
        reason="does not hide",
    ),
    "denominator_of_every_id": Lookup(
        lambda m, ids, w: (F.embedding(ids, m.weights[0]) / (w[:, :, None] + 2)).sum(1), 3, reason="a denominator"
    ),
    "scattered_twice": Lookup(lambda m, ids: torch.zeros(ids.shape[0], ROWS).scatter(1, ids, 1.0) @ m.weights[0]),
    "doubles": Lookup(lambda m, ids: F.embedding(ids, m.weights[0]).double().sum(1), reason="rows of float32"),
    "smallest": Lookup(lambda m, ids: F.embedding(ids, m.weights[0]).amin(1)),
    "squares": Lookup(lambda m, ids: F.embedding(ids, m.weights[0]).square().sum(1)),
    "ids_read_twice": Lookup(lambda m, ids: (torch.cat(_columns(m, ids), 1), ids.sum(1))),
}
