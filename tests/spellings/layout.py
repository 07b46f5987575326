"""Functions of x [batch, 24] that only move elements, each with the fewest standard ONNX operators that the best graph
written by hand has (a sine at the end included, where there is one: it stands for whatever reads the result)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH = 24
ROWS, COLUMNS = torch.tril_indices(6, 6, -1)


def crossed(x: Tensor) -> Tensor:
    """[batch, 6, 6], computed: two slices and an einsum."""
    return torch.einsum("bi,bj->bij", x[:, :6], x[:, 6:12])


def folded(x: Tensor) -> Tensor:
    """[batch, 4, 6]."""
    return x.reshape(x.shape[0], 4, 6)


def split_again(x: Tensor) -> Tensor:
    parts = [torch.cat([c.unsqueeze(1) for c in part.chunk(2, 1)], 1) for part in x.split(12, 1)]
    return torch.cat([p.reshape(-1, 12) for p in parts], 1).sin()


def through_heads(x: Tensor) -> Tensor:
    heads = torch.stack(x.chunk(4, 1), 1)  # [batch, 4, 6]
    return torch.cat([heads[:, n] for n in range(4)], 1).sin()


def scattered(x: Tensor) -> Tensor:
    return torch.cat([x[:, i : i + 1] for i in (3, 17, 5, 20, 1)], 1).sin()


# name -> (function, the fewest nodes, why)
def columns_written(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 2:5] = x[:, 9:12]
    y[:, -1] = x[:, 0]
    return y.sin()


def steps_written(x: Tensor) -> Tensor:
    y = x.reshape(-1, 6, 4).clone()
    y[:, 1:, 2] = y[:, :-1, 3]
    y[:, 0] = 0.0
    return y.sin()


FORMS: dict[str, tuple[Callable[[Tensor], Tensor], int, str]] = {
    "concat_of_slices": (lambda x: torch.cat([x[:, :5], x[:, 5:9], x[:, 9:]], 1).sin(), 1, "the whole"),
    "concat_of_concats": (
        lambda x: torch.cat([torch.cat([x[:, :3], x[:, 3:7]], 1), torch.cat([x[:, 7:8], x[:, 8:]], 1)], 1).sin(),
        1,
        "the whole",
    ),
    "concat_of_concats_of_part": (
        lambda x: torch.cat([torch.cat([x[:, 2:3], x[:, 3:7]], 1), torch.cat([x[:, 7:8], x[:, 8:20]], 1)], 1).sin(),
        2,
        "a slice",
    ),
    "concat_swapped": (lambda x: torch.cat([x[:, 12:], x[:, :12]], 1).sin(), 2, "a gather"),
    "concat_twice_the_same": (lambda x: torch.cat([x, x], 1).sin(), 2, "a concat"),
    "concat_of_selected": (lambda x: torch.cat([x[:, n][:, None] for n in range(24)], 1).sin(), 1, "the whole"),
    "stack_of_selected": (lambda x: torch.stack([x[:, n] for n in range(24)], 1).sin(), 1, "the whole"),
    "stack_of_selected_even": (lambda x: torch.stack([x[:, n] for n in range(0, 24, 2)], 1).sin(), 2, "a slice"),
    "stack_of_some": (lambda x: torch.stack([x[:, n] for n in (1, 2, 3, 4)], 1).sin(), 2, "a slice"),
    "scattered": (scattered, 2, "a gather"),
    "columns_written": (columns_written, 2, "a gather"),
    "steps_written": (steps_written, 4, "a gather of x and a 0"),
    "split_concat": (lambda x: torch.cat(x.split(4, 1), 1).sin(), 1, "the whole"),
    "split_shuffled": (lambda x: torch.cat([x.split(4, 1)[n] for n in (2, 0, 1, 5, 3, 4)], 1).sin(), 2, "a gather"),
    "split_reversed": (lambda x: torch.cat(x.split(1, 1)[::-1], 1).sin(), 2, "a slice that runs backwards"),
    "split_on_another_axis": (lambda x: torch.stack(x.split(4, 1), 2).sin(), 2, "a gather with a matrix"),
    "split_some": (lambda x: torch.cat(x.split([3, 5, 7, 9], 1)[1:3], 1).sin(), 2, "a slice"),
    "chunks": (lambda x: torch.cat([c.unsqueeze(1) for c in x.chunk(3, 1)], 1).sin(), 2, "a reshape"),
    "chunks_turned": (
        lambda x: torch.cat([c.unsqueeze(1) for c in x.chunk(3, 1)], 1).permute(0, 2, 1).sin(),
        2,
        "a gather with a matrix",
    ),
    "split_again": (split_again, 1, "the whole"),
    "through_heads": (through_heads, 1, "the whole"),
    "unbound": (lambda x: torch.cat(folded(x).unbind(1), 1).sin(), 1, "the whole"),
    "unbound_turned": (lambda x: torch.cat(folded(x).unbind(2), 1).sin(), 2, "a gather"),
    "reshapes": (lambda x: x.reshape(-1, 4, 6).reshape(-1, 24).reshape(-1, 6, 4).sin(), 2, "a reshape"),
    "reshapes_back": (lambda x: x.reshape(-1, 4, 6).reshape(-1, 3, 8).reshape(-1, 24).sin(), 1, "the same"),
    "reshape_as": (lambda x: folded(x).reshape_as(x).sin(), 1, "the same"),
    "view_as": (lambda x: folded(x).transpose(1, 2).reshape(x.shape).sin(), 2, "a gather"),
    "squeezed": (lambda x: x.unsqueeze(1).unsqueeze(3).squeeze(1).squeeze(2).sin(), 1, "the same"),
    "unsqueezed": (lambda x: x.unsqueeze(1).unsqueeze(3).sin(), 2, "a reshape"),
    "slices": (lambda x: x[:, 2:20][:, 3:][:, ::2][:, 1:].sin(), 2, "a slice"),
    "slices_of_all": (lambda x: x[:, 0:][:, :24][:, :].sin(), 1, "the same"),
    "slices_of_two": (lambda x: folded(x)[:, 1:][:, :, 2:][:, :2][:, :, 1:3].sin(), 3, "a reshape and a slice"),
    "slice_of_concat": (lambda x: torch.cat([x, x.cos()], 1)[:, :24].sin(), 1, "one of its parts"),
    "slice_across_concat": (lambda x: torch.cat([x, x.cos()], 1)[:, 12:36].sin(), 4, "the slice of a concat"),
    "empty_branches": (lambda x: torch.cat([x[:, :0], x, x[:, 24:]], 1).sin(), 1, "the whole"),
    "empty_in_between": (lambda x: torch.cat([x[:, :7], x[:, 3:3], x[:, 7:]], 1).sin(), 1, "the whole"),
    "dead_branch": (lambda x: torch.cat([folded(x).transpose(1, 2).reshape(-1, 24), x], 1)[:, 24:].sin(), 1, "x"),
    "same_branches": (lambda x: torch.cat([x[:, 2:6], x[:, 2:6]], 1).sin(), 2, "a gather"),
    "transposes": (lambda x: folded(x).transpose(1, 2).transpose(1, 2).permute(0, 2, 1).sin(), 2, "a gather"),
    "transposes_back": (lambda x: folded(x).permute(2, 0, 1).permute(1, 2, 0).flatten(1).sin(), 1, "the same"),
    "transpose_of_batch": (lambda x: folded(x).permute(2, 0, 1).permute(2, 1, 0).transpose(0, 1).sin(), 2, "a reshape"),
    "to_columns": (lambda x: x.t().unsqueeze(1).squeeze(1).contiguous().sin(), 2, "a transpose"),
    "shuffle": (lambda x: folded(x).transpose(1, 2).contiguous().view(x.shape[0], -1).sin(), 2, "a gather"),
    "shuffle_back": (
        lambda x: folded(x).transpose(1, 2).reshape(-1, 6, 4).transpose(1, 2).reshape(x.shape[0], -1).sin(),
        1,
        "the same",
    ),
    "pixels": (lambda x: F.pixel_shuffle(x.reshape(-1, 4, 3, 2), 2).sin(), 2, "a gather with an image"),
    "letters": (lambda x: torch.einsum("bij->bji", folded(x)).sin(), 2, "a gather with a matrix"),
    "computed_in_vain": (lambda x: folded(x * 1 - 0.0).reshape(-1, 24).sin(), 1, "the same"),
    "power_of_one": (lambda x: folded(x**1.0).reshape(-1, 24).sin(), 1, "the same"),
    "whole_again": (lambda x: x.floor().ceil().floor().sin(), 2, "the first floor"),
    "positive_again": (lambda x: x.relu().relu().relu().sin(), 2, "the first of them"),
    "never_negative_zero": (lambda x: (x.abs() + 0.0).sin(), 2, "its size"),
    "not_not": (lambda x: (x > 3).logical_not().logical_not(), 1, "the comparison"),
    "gathers": (lambda x: x[:, [3, 1, 7, 7, 2]][:, [1, 0, 2]].sin(), 2, "a gather"),
    "gather_of_a_range": (lambda x: x[:, list(range(4, 12))].sin(), 2, "a slice"),
    "gather_of_all": (lambda x: x[:, list(range(24))].sin(), 1, "the same"),
    "index_select": (
        lambda x: x.index_select(1, torch.tensor([5, 4])).index_select(1, torch.tensor([1, 0])).sin(),
        2,
        "a slice",
    ),
    "flips": (lambda x: x.flip(1).flip(1).sin(), 1, "the same"),
    "flip_of_slice": (lambda x: x[:, 4:].flip(1)[:, 2:].sin(), 2, "a slice that runs backwards"),
    "rolled": (lambda x: x.roll(5, 1).sin(), 2, "a gather"),
    "rolled_back": (lambda x: x.roll(5, 1).roll(-5, 1).sin(), 1, "the same"),
    "triangle": (lambda x: crossed(x)[:, ROWS, COLUMNS].sin(), 6, "a reshape and a gather after the product"),
    "triangle_flat": (lambda x: crossed(x).flatten(1)[:, ROWS * 6 + COLUMNS].sin(), 6, "the same"),
    "triangle_by_rows": (
        lambda x: torch.cat([crossed(x)[:, n, :n] for n in range(1, 6)], 1).sin(),
        6,
        "a reshape and a gather after the product",
    ),
    "diagonal": (lambda x: x[:, :16][:, [0, 5, 10, 15]].sin(), 2, "a slice with a step"),
    "pad_and_slice": (lambda x: F.pad(x, (3, 5))[:, 3:27].sin(), 1, "the same"),
    "pad_and_cut": (lambda x: F.pad(x, (3, 5))[:, 1:27].sin(), 2, "a pad"),
    "pads": (lambda x: F.pad(F.pad(x, (1, 2)), (3, 4)).sin(), 2, "a pad"),
    "concat_with_zeros": (lambda x: torch.cat([x, x.new_zeros(x.shape[0], 3)], 1).sin(), 2, "a pad"),
    "expand_and_slice": (lambda x: x[:, None].expand(-1, 5, -1).reshape(-1, 120)[:, :24].sin(), 1, "the same"),
    "repeat_and_index": (lambda x: x.repeat(1, 3)[:, 24:48].sin(), 1, "the same"),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1)[:, ::2].sin(), 1, "the same"),
    "run_time_shapes": (
        lambda x: folded(x).transpose(1, 2).reshape(x.shape[0], x.shape[1]).reshape(x.size(0), 2, -1).sin(),
        2,
        "a gather with a matrix",
    ),
    "run_time_widths": (lambda x: x[:, : x.shape[1] // 2].sin(), 2, "a slice"),
    "stacked_by_columns": (lambda x: torch.column_stack(torch.hsplit(x, 4)).sin(), 1, "the same"),
    "chosen_never": (lambda x: torch.where(torch.zeros(24, dtype=torch.bool), x.cos(), x).sin(), 1, "the same"),
    "copied_there_and_back": (lambda x: x.T.contiguous().T.sin(), 1, "the same"),
    "written_slice": (lambda x: torch.slice_scatter(x, x[:, 0:3], 1, 2, 5).sin(), 2, "a gather"),
    "turned_four_times": (lambda x: folded(x).rot90(1, (1, 2)).rot90(3, (1, 2)).flatten(1).sin(), 1, "the same"),
    "casts": (lambda x: x.double().float().sin(), 1, "the same"),
    "casts_of_layout": (lambda x: folded(x.double()).reshape(-1, 24).float().sin(), 1, "the same"),
}
NOT_SCRIPTED = frozenset(
    {"stacked_by_columns", "written_slice", "turned_four_times"}
)  # what torch's older exporter does not write
# What torch launches at least, the sine included: one, where views are all that is left, or the same. A second copies:
# elements in another order, or a slice that a concat made contiguous, as it stays. The triangles have a product too.
LAUNCHES: dict[str, int] = (
    dict.fromkeys(FORMS, 1)
    | dict.fromkeys(
        """concat_of_concats_of_part concat_swapped concat_twice_the_same stack_of_selected_even stack_of_some scattered
    columns_written split_shuffled split_reversed split_on_another_axis split_some unbound_turned view_as
    same_branches to_columns shuffle pixels gathers gather_of_a_range index_select flip_of_slice rolled diagonal
    pad_and_cut pads
    concat_with_zeros run_time_shapes written_slice whole_again positive_again
    never_negative_zero""".split(),
        2,
    )
    | dict.fromkeys("steps_written slice_across_concat triangle triangle_flat triangle_by_rows".split(), 3)
)
