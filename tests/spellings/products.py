"""Spellings of the affine part y[..., n] = sum_k x[..., k] * W[n, k] + b[n]."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .case import CUT_K, CUT_N, K, N, Spelling, T

EPS = 1e-5


def linear(m: Any, x: Tensor) -> Tensor:
    """The canonical spelling: the reference of a row that names none."""
    return F.linear(x, m.weight, m.bias)


def _no_bias(m: Any, x: Tensor) -> Tensor:
    return F.linear(x, m.weight)


def _normed(m: Any, x: Tensor) -> Tensor:
    scale = m.gamma / torch.sqrt(m.var + EPS)
    return F.linear(x, m.weight * scale[:, None], m.beta - m.mean * scale)


def _normed_bias(m: Any, x: Tensor) -> Tensor:
    scale = m.gamma / torch.sqrt(m.var + EPS)
    return F.linear(x, m.weight * scale[:, None], m.beta + (m.bias - m.mean) * scale)


def _swap(x: Tensor) -> Tensor:
    return x.transpose(-1, -2)


def _one_dot_per_output(m: Any, x: Tensor) -> Tensor:
    return torch.stack([(x * w).sum(-1) for w in m.weight.unbind(0)], dim=-1) + m.bias  # type: ignore[no-any-return]


def _rank_ones(m: Any, x: Tensor) -> Tensor:
    y = m.bias
    for k in range(K):
        y = y + x[..., k : k + 1] * m.weight_t[k]
    return y  # type: ignore[no-any-return]


def _rank_ones_stacked(m: Any, x: Tensor) -> Tensor:
    return torch.stack([x[..., k, None] * m.weight[:, k] for k in range(K)]).sum(0) + m.bias


def _dots_by_column(m: Any, x: Tensor) -> Tensor:
    rows = m.down.unbind(0)
    return torch.stack([sum((x[..., k] * w[k] for k in range(1, K)), x[..., 0] * w[0]) for w in rows], dim=-1)


def _batch_norm(m: Any, h: Tensor) -> Tensor:
    return F.batch_norm(h, m.mean, m.var, m.gamma, m.beta, training=False, eps=EPS)


def _folded(norm: Any, weight: Tensor, bias: Tensor | float) -> tuple[Tensor, Tensor]:
    scale = 1 / torch.sqrt(norm.running_var + EPS)
    if norm.affine:
        return weight * (scale * norm.weight)[:, None], (bias - norm.running_mean) * scale * norm.weight + norm.bias
    return weight * scale[:, None], (bias - norm.running_mean) * scale


def _in_normed(m: Any, x: Tensor) -> Tensor:
    n = m.in_norm
    return F.linear((x - n.running_mean) / torch.sqrt(n.running_var + EPS) * n.weight + n.bias, m.weight, m.bias)


def _ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)


def _fake_per_tensor(w: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(w, 0.01, 3, -128, 127)


def _snapped(w: Tensor) -> Tensor:
    return (torch.clamp(torch.round(w.float() / 0.01) + 3, -128, 127) - 3) * 0.01


S = Spelling

PRODUCTS: dict[str, Spelling] = {
    # the product itself
    "functional": S(linear),
    "module": S(lambda m, x: m.linear(x)),
    "no_bias": S(lambda m, x: m.linear_no_bias(x), _no_bias),
    "matmul_no_bias": S(lambda m, x: x @ m.weight.T, _no_bias),
    "matmul_transpose": S(lambda m, x: x @ m.weight.T + m.bias),
    "matmul_stored_transposed": S(lambda m, x: torch.matmul(x, m.weight_t) + m.bias),
    "matmul_permute": S(lambda m, x: x @ m.weight.permute(1, 0) + m.bias),
    "linalg_matmul_of_lifted": S(
        lambda m, x: torch.linalg.matmul(torch.atleast_3d(x)[..., 0], m.weight_t) + m.bias,
        ranks=(2,),
        note="torch's composites of other operators",
    ),
    "mm": S(lambda m, x: torch.mm(x, m.weight_t) + m.bias, ranks=(2,)),
    "addmm": S(lambda m, x: torch.addmm(m.bias, x, m.weight.t()), ranks=(2,)),
    "addmm_alpha_beta": S(
        lambda m, x: torch.addmm(m.bias, x, m.weight_t, beta=0.5, alpha=1.5),
        lambda m, x: F.linear(x, 1.5 * m.weight, 0.5 * m.bias),
        ranks=(2,),
    ),
    "addmm_beta_zero": S(lambda m, x: torch.addmm(m.bias2, x, m.weight_t, beta=0) + m.bias, ranks=(2,)),
    "baddbmm": S(
        lambda m, x: torch.baddbmm(m.bias_11n, x, m.weight_t.expand(x.shape[0], K, N)), ranks=(3,), note="bias [1,1,N]"
    ),
    "bmm_after_expand": S(lambda m, x: torch.bmm(x, m.weight_t[None].expand(x.shape[0], K, N)) + m.bias, ranks=(3,)),
    "bmm_of_one": S(lambda m, x: torch.bmm(x[None], m.weight_t[None])[0] + m.bias, ranks=(2,)),
    "bmm_row_vectors": S(
        lambda m, x: torch.bmm(x[:, None], m.weight_t.expand(x.shape[0], -1, -1)).squeeze(1) + m.bias, ranks=(2,)
    ),
    "bmm_repeat": S(lambda m, x: torch.bmm(x, m.weight_t.repeat(x.shape[0], 1, 1)) + m.bias, ranks=(3,)),
    "matmul_column_vector": S(lambda m, x: (m.weight @ x[..., None])[..., 0] + m.bias),
    "transposed_product": S(lambda m, x: _swap(m.weight @ _swap(x)) + m.bias, note="(W x^T)^T"),
    "transposed_product_and_bias": S(lambda m, x: _swap(m.weight @ _swap(x) + m.bias_n1)),
    "einsum_bk_nk": S(lambda m, x: torch.einsum("bk,nk->bn", x, m.weight) + m.bias, ranks=(2,)),
    "einsum_weight_first": S(lambda m, x: torch.einsum("ij,zj->zi", m.weight, x) + m.bias, ranks=(2,)),
    "einsum_to_transposed": S(lambda m, x: torch.einsum("bk,nk->nb", x, m.weight).T + m.bias, ranks=(2,)),
    "einsum_stored_transposed": S(lambda m, x: torch.einsum("zy,yx->zx", x, m.weight_t) + m.bias, ranks=(2,)),
    "einsum_implicit": S(lambda m, x: torch.einsum("ak,kb", x, m.weight_t) + m.bias, ranks=(2,)),
    "einsum_btk_nk": S(lambda m, x: torch.einsum("btk,nk->btn", x, m.weight) + m.bias, ranks=(3,)),
    "einsum_weight_first_3d": S(lambda m, x: torch.einsum("dc,bac->bad", m.weight, x) + m.bias, ranks=(3,)),
    "einsum_time_first": S(
        lambda m, x: torch.einsum("btk,kn->tbn", x, m.weight_t).transpose(0, 1) + m.bias, ranks=(3,)
    ),
    "einsum_channel_first": S(lambda m, x: torch.einsum("btk,nk->bnt", x, m.weight).mT + m.bias, ranks=(3,)),
    "einsum_ellipsis": S(lambda m, x: torch.einsum("...k,nk->...n", x, m.weight) + m.bias),
    "einsum_heads": S(lambda m, x: torch.einsum("...k,hnk->...hn", x, m.heads).flatten(-2) + m.bias),
    "einsum_with_bias_operand": S(lambda m, x: torch.einsum("...k,nk->...n", _ones(x), m.augmented)),
    "tensordot": S(lambda m, x: torch.tensordot(x, m.weight, dims=([-1], [1])) + m.bias),
    "inner": S(lambda m, x: torch.inner(x, m.weight) + m.bias),
    "unsqueeze_mul_sum": S(lambda m, x: (x.unsqueeze(-2) * m.weight).sum(-1) + m.bias),
    "mul_unsqueeze_sum_over_rows": S(lambda m, x: (x.unsqueeze(-1) * m.weight_t).sum(-2) + m.bias),
    "mul_sum_keepdim": S(lambda m, x: (m.weight * x.unsqueeze(-2)).sum(-1, keepdim=True).squeeze(-1) + m.bias),
    "mul_mean_times_k": S(lambda m, x: (x.unsqueeze(-2) * m.weight).mean(-1) * K + m.bias),
    "expand_mul_sum": S(lambda m, x: (x.unsqueeze(-2).expand(*x.shape[:-1], N, K) * m.weight).sum(dim=-1) + m.bias),
    "one_dot_per_output": S(_one_dot_per_output),
    "cat_of_heads": S(lambda m, x: torch.cat([x @ w.T for w in m.heads.unbind(0)], dim=-1) + m.bias),
    "low_rank_beside": S(
        lambda m, x: linear(m, x) + 0.5 * F.linear(F.linear(x, m.down), m.up),
        lambda m, x: F.linear(x, m.weight + 0.5 * (m.up @ m.down), m.bias),
        note="W + BA is less work than a second product",
    ),
    "zero_point_by_number": S(
        lambda m, x: F.linear(x, (m.quantised.to(x.dtype) - 3) * 0.01, m.bias),
        lambda m, x: 0.01 * F.linear(x, m.quantised.to(x.dtype) - 3) + m.bias,
        note="a number taken from every weight",
    ),
    # written out, column by column
    "sum_of_rank_ones": S(_rank_ones),
    "sum_of_rank_ones_stacked": S(_rank_ones_stacked),
    "dots_by_column": S(_dots_by_column, lambda m, x: F.linear(x, m.down)),
    "rank_one_beside_a_product": S(lambda m, x: x[..., 1:] @ m.weight_t[1:] + x[..., :1] * m.weight_t[0] + m.bias),
    "scalars": S(
        lambda m, x: torch.cat([0.5 * x[..., :1] - 0.25 * x[..., 1:2] + 0.1, x[..., :1] + 3 * x[..., 1:2]], dim=-1),
        lambda m, x: F.linear(x[..., :2], torch.tensor([[0.5, -0.25], [1, 3]], dtype=x.dtype), m.pair.to(x.dtype)),
        note="two columns of x; a concatenation joins the results, or a slice is left",
    ),
    "through_one_unit": S(
        lambda m, x: F.linear(torch.sigmoid(F.linear(x, m.one_row)), m.one_column, m.bias),
        linears=2,
        reference=lambda m, x: torch.sigmoid(x @ m.one_row.T) * m.one_column[:, 0] + m.bias,
        note="a layer of one feature",
    ),
    # convolutions of width one
    "conv1d_single": S(lambda m, x: F.conv1d(x[:, :, None], m.conv1, m.bias).squeeze(2), ranks=(2,)),
    "conv1d_over_time": S(lambda m, x: F.conv1d(_swap(x), m.conv1, m.bias).transpose(1, 2), ranks=(3,)),
    "conv1d_same": S(
        lambda m, x: F.conv1d(_swap(x), m.conv1, m.bias, padding="same").transpose(1, 2),
        ranks=(3,),
        note="pads nothing",
    ),
    "conv1d_no_bias": S(lambda m, x: _swap(F.conv1d(_swap(x), m.conv1)) + m.bias, ranks=(3,)),
    "conv1d_module": S(lambda m, x: m.conv1d(x.permute(0, 2, 1)).permute(0, 2, 1), ranks=(3,)),
    "conv2d_single": S(lambda m, x: F.conv2d(x[:, :, None, None], m.conv2, m.bias).flatten(1), ranks=(2,)),
    "conv2d_over_time": S(lambda m, x: _swap(F.conv2d(_swap(x)[..., None], m.conv2, m.bias).squeeze(3)), ranks=(3,)),
    "conv2d_module": S(lambda m, x: m.conv2d(_swap(x).unsqueeze(2)).squeeze(2).transpose(2, 1), ranks=(3,)),
    "conv2d_channels_last": S(
        lambda m, x: m.conv2d(x.unsqueeze(1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).squeeze(1), ranks=(3,)
    ),
    # the bias
    "bias_first": S(lambda m, x: m.bias + x @ m.weight.T),
    "bias_1n": S(lambda m, x: x @ m.weight.T + m.bias_1n),
    "bias_11n": S(lambda m, x: x @ m.weight.T + m.bias_11n, ranks=(3,)),
    "bias_expanded": S(lambda m, x: x @ m.weight_t + m.bias.expand(*x.shape[:-1], N)),
    "two_adds": S(lambda m, x: x @ m.weight.T + m.bias + m.bias2, lambda m, x: F.linear(x, m.weight, m.bias + m.bias2)),
    "linear_then_add": S(lambda m, x: m.linear(x) + m.bias2, lambda m, x: F.linear(x, m.weight, m.bias + m.bias2)),
    "sub_negated_bias": S(lambda m, x: x @ m.weight.T - (-m.bias)),
    "bias_minus_product": S(lambda m, x: m.bias - x @ (-m.weight.T)),
    "rsub": S(lambda m, x: torch.rsub(-(x @ m.weight_t), m.bias)),
    "add_alpha": S(
        lambda m, x: torch.add(x @ m.weight_t, m.bias, alpha=2), lambda m, x: F.linear(x, m.weight, 2 * m.bias)
    ),
    "add_scalar": S(lambda m, x: F.linear(x, m.weight) + 0.25, lambda m, x: F.linear(x, m.weight) + 0.25),
    "unsqueeze_add_squeeze": S(lambda m, x: ((x @ m.weight.T).unsqueeze(1) + m.bias).squeeze(1)),
    "ones_column": S(lambda m, x: F.linear(_ones(x), m.augmented)),
    "ones_column_by_pad": S(lambda m, x: F.linear(F.pad(x, (0, 1), value=1.0), m.augmented)),
    "ones_column_new": S(lambda m, x: torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1) @ m.augmented.T),
    # scales and norms around it
    "add_mul_add": S(
        lambda m, x: (x @ m.weight.T + m.bias) * m.scale + m.shift,
        lambda m, x: F.linear(x, m.weight * m.scale[:, None], m.bias * m.scale + m.shift),
    ),
    "mul_add": S(
        lambda m, x: m.scale * F.linear(x, m.weight) + m.shift,
        lambda m, x: F.linear(x, m.weight * m.scale[:, None], m.shift),
    ),
    "addcmul": S(
        lambda m, x: torch.addcmul(m.shift, F.linear(x, m.weight), m.scale),
        lambda m, x: F.linear(x, m.weight * m.scale[:, None], m.shift),
    ),
    "div_after": S(
        lambda m, x: F.linear(x, m.weight, m.bias) / m.scale,
        lambda m, x: F.linear(x, m.weight / m.scale[:, None], m.bias / m.scale),
    ),
    "scalar_before_and_after": S(
        lambda m, x: (x * 2.0) @ m.weight.T / math.sqrt(K) + m.bias,
        lambda m, x: F.linear(x, m.weight * (2.0 / math.sqrt(K)), m.bias),
    ),
    "scale_on_input": S(
        lambda m, x: F.linear(x * m.in_scale, m.weight, m.bias), lambda m, x: F.linear(x, m.weight * m.in_scale, m.bias)
    ),
    "shift_on_input": S(
        lambda m, x: F.linear(x + m.in_shift, m.weight, m.bias),
        lambda m, x: F.linear(x, m.weight, m.bias + m.weight @ m.in_shift),
    ),
    "standardised_input": S(
        lambda m, x: F.linear((x - m.in_shift) / m.in_scale, m.weight, m.bias),
        lambda m, x: F.linear(x, m.weight / m.in_scale, m.bias - m.weight @ (m.in_shift / m.in_scale)),
    ),
    "scale_on_weight": S(
        lambda m, x: F.linear(x, m.weight * m.scale_n1, m.bias),
        lambda m, x: F.linear(x, m.weight) * m.scale_n1[:, 0] + m.bias,
    ),
    "negated_twice": S(lambda m, x: -(F.linear(-x, m.weight) - m.bias), linear),
    "times_one_plus_zero": S(lambda m, x: F.linear(x * 1.0 + 0.0, m.weight, m.bias) * 1.0),
    "batch_norm": S(lambda m, x: _batch_norm(m, F.linear(x, m.weight, m.bias)), _normed_bias, ranks=(2,)),
    "batch_norm_module": S(
        lambda m, x: m.norm(m.linear_no_bias(x)), lambda m, x: F.linear(x, *_folded(m.norm, m.weight, 0.0)), ranks=(2,)
    ),
    "batch_norm_plain": S(
        lambda m, x: m.norm_plain(m.linear(x)),
        lambda m, x: F.linear(x, *_folded(m.norm_plain, m.weight, m.bias)),
        ranks=(2,),
    ),
    "batch_norm_transposed": S(lambda m, x: _swap(_batch_norm(m, _swap(x @ m.weight.T))), _normed, ranks=(3,)),
    "batch_norm_flattened": S(
        lambda m, x: _batch_norm(m, (x @ m.weight.T).reshape(-1, N)).reshape(-1, T, N), _normed, ranks=(3,)
    ),
    "batch_norm_bias_transposed": S(
        lambda m, x: _swap(_batch_norm(m, _swap(F.linear(x, m.weight, m.bias)))), _normed_bias, ranks=(3,)
    ),
    "batch_norm_unsqueezed": S(
        lambda m, x: _batch_norm(m, (x @ m.weight.T).unsqueeze(2)).squeeze(2), _normed, ranks=(2,)
    ),
    "batch_norm_2d": S(
        lambda m, x: m.norm_2d(F.linear(x, m.weight)[:, :, None, None]).flatten(1),
        lambda m, x: F.linear(x, *_folded(m.norm_2d, m.weight, 0.0)),
        ranks=(2,),
    ),
    "batch_norm_of_conv": S(lambda m, x: _swap(_batch_norm(m, F.conv1d(_swap(x), m.conv1))), _normed, ranks=(3,)),
    "batch_norm_by_hand": S(
        lambda m, x: (F.linear(x, m.weight) - m.mean) / torch.sqrt(m.var + EPS) * m.gamma + m.beta, _normed
    ),
    "batch_norm_by_rsqrt": S(
        lambda m, x: (F.linear(x, m.weight) - m.mean) * (torch.rsqrt(m.var + EPS) * m.gamma) + m.beta, _normed
    ),
    "batch_norm_before": S(lambda m, x: F.linear(m.in_norm(x), m.weight, m.bias), _in_normed, ranks=(2,)),
    "batch_norm_before_transposed": S(
        lambda m, x: F.linear(_swap(m.in_norm(_swap(x))), m.weight, m.bias), _in_normed, ranks=(3,)
    ),
    # in pieces
    "cat_of_two": S(
        lambda m, a, b: F.linear(torch.cat([a[..., :CUT_K], b[..., CUT_K:]], -1), m.weight, m.bias),
        lambda m, a, b: F.linear(torch.cat([a[..., :CUT_K], b[..., CUT_K:]], -1), m.weight, m.bias),
        inputs=2,
        note="the joined input may stay a concatenation, or be read in place",
    ),
    "sum_of_pieces": S(
        lambda m, a, b: F.linear(a[..., :CUT_K], m.left) + F.linear(b[..., CUT_K:], m.right, m.bias),
        lambda m, a, b: F.linear(torch.cat([a[..., :CUT_K], b[..., CUT_K:]], -1), m.weight, m.bias),
        inputs=2,
        note="the joined input may be a concatenation, or the pieces accumulate",
    ),
    "split_k": S(lambda m, x: x[..., :CUT_K] @ m.left.T + x[..., CUT_K:] @ m.right.T + m.bias),
    "split_k_by_slices_of_weight": S(
        lambda m, x: F.linear(x[..., :9], m.weight[:, :9], m.bias) + F.linear(x[..., 9:], m.weight[:, 9:])
    ),
    "split_k_by_chunk": S(
        lambda m, x: sum(a @ w for a, w in zip(x.chunk(3, -1), m.weight_t.chunk(3, 0), strict=True)) + m.bias
    ),
    "split_k_at_places": S(
        lambda m, x: (
            sum(a @ w for a, w in zip(x.tensor_split((5, 9), -1), m.weight_t.tensor_split((5, 9)), strict=True))
            + m.bias
        ),
        note="TorchScript writes a loop that fills a sequence",
    ),
    "split_columns": S(
        lambda m, x: torch.cat([F.linear(x, m.top, m.top_bias), F.linear(x, m.bottom, m.bottom_bias)], dim=-1)
    ),
    "split_columns_then_bias": S(lambda m, x: torch.cat([x @ m.top.T, x @ m.bottom.T], dim=-1) + m.bias),
    "split_columns_interleaved": S(lambda m, x: torch.stack([x @ m.even.T, x @ m.odd.T], dim=-1).flatten(-2) + m.bias),
    "columns_cut_and_joined": S(
        lambda m, x: torch.cat(torch.split(F.linear(x, m.weight, m.bias), [CUT_N, N - CUT_N], dim=-1), dim=-1)
    ),
    "heads": S(lambda m, x: torch.stack([x @ w.T for w in m.heads.unbind(0)], dim=-2).flatten(-2) + m.bias),
    "two_weights": S(
        lambda m, x: F.linear(x, m.weight) + F.linear(x, m.weight2, m.bias),
        lambda m, x: F.linear(x, m.weight + m.weight2, m.bias),
    ),
    "sum_of_weights": S(
        lambda m, x: F.linear(x, m.weight + m.weight2, m.bias),
        lambda m, x: F.linear(x, m.weight, m.bias) + F.linear(x, m.weight2),
    ),
    "two_layers": S(
        lambda m, x: F.linear(F.linear(x, m.wide, m.wide_bias), m.back, m.bias),
        lambda m, x: F.linear(x, m.back @ m.wide, m.bias + m.back @ m.wide_bias),
        note="no activation between, and the middle is wider: one product is cheaper",
    ),
    "input_added": S(
        lambda m, x: x @ m.square + m.square_bias + x,
        lambda m, x: F.linear(x, m.square.T + torch.eye(K, dtype=x.dtype), m.square_bias),
    ),
    "input_subtracted_scaled": S(
        lambda m, x: (x @ m.square - x * m.in_scale) * 0.5,
        lambda m, x: F.linear(x, 0.5 * (m.square.T - torch.diag(m.in_scale))),
    ),
    "mean_of_experts": S(
        lambda m, x: torch.einsum("bk,enk->ben", x, torch.stack([m.weight, m.weight2])).mean(1) + m.bias,
        lambda m, x: F.linear(x, (m.weight + m.weight2) / 2, m.bias),
        ranks=(2,),
    ),
    "last_of_running_sum": S(lambda m, x: (x[..., None, :] * m.weight).cumsum(-1)[..., -1] + m.bias, ranks=(2,)),
    "low_rank_weight": S(
        lambda m, x: F.linear(x, m.up @ m.down, m.bias), lambda m, x: F.linear(F.linear(x, m.down), m.up, m.bias)
    ),
    "masked_weight": S(
        lambda m, x: F.linear(x, m.weight * m.mask, m.bias),
        lambda m, x: F.linear(x, m.weight.masked_fill(m.mask == 0, 0.0), m.bias),
    ),
    "weight_norm": S(
        lambda m, x: F.linear(x, m.weight * (m.magnitude / m.weight.norm(dim=1, keepdim=True)), m.bias),
        lambda m, x: F.linear(x, F.normalize(m.weight, dim=1) * m.magnitude, m.bias),
    ),
    # the layout
    "flatten_unflatten": S(
        lambda m, x: torch.unflatten(F.linear(x.flatten(0, 1), m.weight, m.bias), 0, (x.shape[0], T)), ranks=(3,)
    ),
    "mm_of_view": S(lambda m, x: (x.reshape(-1, K) @ m.weight.T).view(-1, T, N) + m.bias, ranks=(3,)),
    "addmm_of_view": S(lambda m, x: torch.addmm(m.bias, x.view(-1, K), m.weight.t()).view(-1, T, N), ranks=(3,)),
    "time_first": S(lambda m, x: F.linear(x.transpose(0, 1), m.weight, m.bias).transpose(0, 1), ranks=(3,)),
    "transposed_twice": S(lambda m, x: x.mT.mT @ m.weight.t().t().t() + m.bias),
    "weight_of_view": S(lambda m, x: F.linear(x, m.heads.reshape(-1, K), m.bias)),
    "squeeze_unsqueeze": S(lambda m, x: F.linear(x.unsqueeze(0), m.weight, m.bias).squeeze(0)),
    "contiguous_clone": S(lambda m, x: F.linear(x.contiguous(), m.weight.clone(), m.bias).contiguous()),
    "dropout_in_eval": S(lambda m, x: m.dropout(F.linear(m.dropout(x), m.weight, m.bias)), linear),
    "cast_to_its_own_type": S(lambda m, x: F.linear(x.to(torch.float32), m.weight, m.bias).float()),
    "flipped_k": S(lambda m, x: F.linear(x.flip(-1), m.weight.flip(-1), m.bias)),
    "rolled_k": S(lambda m, x: F.linear(x.roll(5, -1), m.weight.roll(5, -1), m.bias)),
    "permuted_k": S(lambda m, x: F.linear(x[..., m.in_order], m.weight.index_select(1, m.in_order), m.bias)),
    "permuted_columns": S(
        lambda m, x: F.linear(x, m.weight, m.bias)[..., m.order],
        lambda m, x: F.linear(x, m.weight[m.order], m.bias[m.order]),
    ),
    "first_columns": S(lambda m, x: F.linear(x, m.padded)[..., :N] + m.bias, linear),
    # the stored type of the weight
    "int8_weight": S(
        lambda m, x: F.linear(x, (m.quantised.float() - m.zeros.float()) * m.steps, m.bias),
        lambda m, x: F.linear(x, (m.quantised.int() - m.zeros.int()).to(x.dtype) * m.steps, m.bias),
    ),
    "int8_weight_scale_after": S(
        lambda m, x: F.linear(x, m.quantised.float()) * m.step + m.bias,
        lambda m, x: F.linear(x, m.quantised.to(m.step.dtype) * m.step, m.bias),
    ),
    "int8_weight_zero_point_after": S(
        lambda m, x: (
            (F.linear(x, m.quantised.to(x.dtype)) - x.sum(-1, keepdim=True) * m.zeros[:, 0].float()) * m.step + m.bias
        ),
        lambda m, x: F.linear(x, (m.quantised.int() - m.zeros.int()).to(x.dtype) * m.step, m.bias),
    ),
    "fake_quantised_weight": S(
        lambda m, x: F.linear(x, _fake_per_tensor(m.weight), m.bias),
        lambda m, x: F.linear(x, _snapped(m.weight).to(x.dtype), m.bias),
        note="quantise-dequantise around the weight",
    ),
}
