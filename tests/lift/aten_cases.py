"""Calls of ATen operators, at least one for each row of the lift table: (operator, arguments, keyword arguments).

Where the first dimension of a tensor is 3, it is the batch, which the tests make symbolic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

_g = torch.Generator().manual_seed(11)
B = 3  # the batch, unlike every other size below


@dataclass(frozen=True)
class Case:
    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def x(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=_g)


def pos(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=_g) + 0.2


def ids(high: int, *shape: int, low: int = 0, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=_g, dtype=dtype)


def mask(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=_g) < 0.5


CASES: list[Case] = []


def case(ops: str, *args: Any, **kwargs: Any) -> None:
    CASES.extend(Case(f"aten.{op}", args, kwargs) for op in ops.split())


INF, NAN = math.inf, math.nan
ODD = torch.tensor([[INF, -INF, NAN, 0.0, -0.0, 1.5, -2.5]])
SIGNED = torch.tensor([[INF, -INF, NAN, 0.0, 1.5, -2.5]])  # terms do not tell -0.0 from 0.0

# --- functions of one element
for name in "exp expm1 sigmoid erf silu mish selu hardswish hardsigmoid exp2 erfc sinc special_ndtr".split():
    case(f"{name}.default", 3 * x(B, 7))
for name in "sin cos tan atan sinh cosh tanh asinh".split():
    case(f"{name}.default", 3 * x(B, 7))
for name in "frac log_sigmoid deg2rad rad2deg reciprocal square relu relu6 neg negative abs absolute sign sgn".split():
    case(f"{name}.default", 3 * x(B, 7))
for name in "log log1p sqrt rsqrt log2 log10".split():
    case(f"{name}.default", pos(B, 7))
for name in "asin acos atanh".split():
    case(f"{name}.default", torch.tanh(x(B, 7)))
case("acosh.default", 1 + pos(B, 7))
case("sinc.default", ODD[:, 2:])
for name in "atan2 hypot fmax fmin copysign logaddexp2".split():
    overload = "Tensor" if name == "copysign" else "default"
    case(f"{name}.{overload}", 3 * x(B, 7), x(7))
    case(f"{name}.{overload}", SIGNED, SIGNED.T)
case("copysign.Scalar", 3 * x(B, 7), -2.0)
case("xlogy.Tensor special_xlog1py.default", ODD, pos(7, 1))
case("xlogy.Tensor", x(B, 7), ODD)
case("xlogy.Scalar_Self special_xlog1py.self_scalar", 0.0, ODD)
case("xlogy.Scalar_Other special_xlog1py.other_scalar", ODD, 2.0)
for name in "exp sqrt sigmoid log2 reciprocal".split():
    case(f"{name}.default", ids(9, B, 7, low=1))
for name in "floor ceil trunc fix round".split():
    case(f"{name}.default", 3 * x(B, 7))
    case(f"{name}.default", ids(9, B, 7))
for name in "isnan isinf isfinite".split():
    case(f"{name}.default", ODD)
    case(f"{name}.default", ids(9, B, 7))
case("neg.default abs.default square.default", ids(128, B, 5, low=-128, dtype=torch.int8))
case("sign.default relu.default", ids(9, B, 5, low=-9))
case("round.default", torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5]]))
case("round.decimals", 3 * x(B, 7), decimals=2)
case("bitwise_not.default", ids(9, B, 5, low=-9))
case("bitwise_not.default", mask(B, 5))
case("bitwise_not.default", ids(255, B, 5, dtype=torch.uint8))
case("nan_to_num.default", ODD)
case("nan_to_num.default", ODD, 1.0, 2.0, -3.0)
case("gelu.default", x(B, 7))
case("gelu.default", x(B, 7), approximate="tanh")
case("elu.default", x(B, 7))
case("elu.default", x(B, 7), 0.7, 1.3)
case("celu.default", x(B, 7), 0.6)
case("celu.default", x(B, 7))
case("leaky_relu.default", x(B, 7), 0.2)
case("leaky_relu.default", x(B, 7))
case("softplus.default", 9 * x(B, 7))
case("softplus.default", 9 * x(B, 7), 2.0, 5.0)
case("rrelu.default", x(B, 7), 0.1, 0.3, False)
case("log_sigmoid_forward.default", x(B, 7))
case("logit.default", torch.rand(B, 7, generator=_g))
case("logit.default", torch.rand(B, 7, generator=_g), 0.3)
case("glu.default", x(B, 8))
case("glu.default", x(B, 8, 5), 1)
case("hardtanh.default", x(B, 7))
case("hardtanh.default", x(B, 7), -0.3, 0.4)
case("threshold.default", x(B, 7), 0.1, -2.0)
case("hardshrink.default softshrink.default", x(B, 7))
case("hardshrink.default softshrink.default", x(B, 7), 0.3)
case("prelu.default", x(B, 7), x(7))
case("prelu.default", x(B, 7, 5), x(7))
case("prelu.default", x(B, 7), x(1))
case("_prelu_kernel.default", x(B, 7, 5), x(7, 1))

# --- functions of two
for name in "add sub subtract mul multiply div divide true_divide".split():
    case(f"{name}.Tensor", x(B, 7), pos(7))
    case(f"{name}.Tensor", ids(9, B, 7), pos(B, 1))
    case(f"{name}.Tensor", x(B, 7), pos(1)[0])
    case(f"{name}.Scalar", x(B, 7), 2.5)
    case(f"{name}.Scalar", ids(9, B, 7), 2)
    case(f"{name}.Scalar", ids(9, B, 7), 2.5)
case("add.Tensor sub.Tensor rsub.Tensor", x(B, 7), x(B, 7), alpha=2)
case("add.Tensor sub.Tensor rsub.Tensor", ids(9, B, 7), ids(9, B, 7, dtype=torch.int32), alpha=3)
case("rsub.Scalar", x(B, 7), 1.0)
case("rsub.Scalar", ids(9, B, 7), 1)
case("rsub.Scalar", mask(B, 7).float(), 1)
case("add.Tensor sub.Tensor mul.Tensor", ids(255, B, 7, dtype=torch.uint8), ids(255, B, 7, dtype=torch.uint8))
case("add.Tensor mul.Tensor", mask(B, 7), mask(B, 7))
case("add.Tensor mul.Tensor", mask(B, 7), ids(9, B, 7))
case("mul.Tensor", x(B, 7), mask(B, 7))
case("mul.Tensor", x(B, 7), x(B, 7).double())
for rounding in ("floor", "trunc"):
    for left in (ids(90, B, 7, low=-90), 9 * x(B, 7)):
        case("div.Tensor_mode divide.Tensor_mode", left, ids(9, 7, low=1) * 2 - 7, rounding_mode=rounding)
        case("div.Scalar_mode divide.Scalar_mode", left, -3, rounding_mode=rounding)
    case("div.Tensor_mode", torch.arange(-98.0, 99, 49).reshape(1, -1), torch.tensor(49.0), rounding_mode=rounding)
case("div.Tensor_mode", x(B, 7), pos(7), rounding_mode=None)
for left, right in ((ids(90, B, 7, low=-90), -7), (9 * x(B, 7), 0.75), (ids(90, B, 7), 2.5)):
    case("floor_divide.Scalar remainder.Scalar fmod.Scalar", left, right)
    case("floor_divide.default remainder.Tensor fmod.Tensor", left, torch.full((7,), right))
for left, right in ((9 * x(B, 7), 1.0), (x(B, 7), 2)):
    case("floor_divide.Scalar remainder.Scalar", left, right)
case("remainder.Scalar_Tensor", 31, ids(9, B, 7, low=1))
case("remainder.Tensor", ids(90, B, 7), ids(9, 7, low=1, dtype=torch.int32))
case("pow.Tensor_Tensor", pos(B, 7), x(B, 7))
case("pow.Tensor_Tensor", ids(9, B, 7), ids(4, 7))
for exponent in (2, 3, 0.5, -0.5, -1, 1.7, 0):
    case("pow.Tensor_Scalar", pos(B, 7), exponent)
case("pow.Tensor_Scalar", ids(9, B, 7), 2)
case("pow.Tensor_Scalar", ids(9, B, 7), 0.5)
case("pow.Scalar", 2.5, x(B, 7))
case("pow.Scalar", 2, ids(9, B, 7))
case("maximum.default max.other minimum.default min.other", x(B, 7), x(7))
case("special_ndtr.default", x(B, 7))
case("logaddexp.default", x(B, 7) * 30, torch.tensor(0.5))
case("logaddexp.default", torch.tensor(0.0), torch.tensor([[math.inf, -math.inf, 90.0, -90.0]]))
case("heaviside.default", torch.tensor([-1.0, 0.0, 2.0, math.nan]), torch.tensor(0.5))
case("maximum.default minimum.default", ids(9, B, 7), x(7))
for name in "eq ne not_equal lt less le less_equal gt greater ge greater_equal".split():
    case(f"{name}.Tensor", ids(4, B, 7), ids(4, 7))
    case(f"{name}.Tensor", x(B, 7), ids(2, B, 7))
    case(f"{name}.Scalar", ids(4, B, 7), 1.5)
    case(f"{name}.Scalar", ids(4, B, 7), 2)
    case(f"{name}.Scalar", x(B, 7), 0)
case("eq.Tensor lt.Tensor", mask(B, 7), mask(B, 7))
case("eq.Scalar", mask(B, 7), True)
for name in "logical_and logical_or logical_xor".split():
    case(f"{name}.default", mask(B, 7), mask(7))
    case(f"{name}.default", x(B, 7).relu(), ids(2, 7))
case("logical_not.default", mask(B, 7))
case("logical_not.default", x(B, 7).relu())
for name in "bitwise_and bitwise_or bitwise_xor __and__ __or__ __xor__".split():
    case(f"{name}.Tensor", ids(99, B, 7), ids(99, 7))
    case(f"{name}.Tensor", mask(B, 7), mask(7))
    case(f"{name}.Scalar", ids(99, B, 7), 12)
case("bitwise_left_shift.Tensor bitwise_right_shift.Tensor", ids(99, B, 7), ids(5, 7))
case("__lshift__.Tensor __rshift__.Tensor", ids(99, B, 7), ids(5, 7))
case("bitwise_left_shift.Tensor_Scalar bitwise_right_shift.Tensor_Scalar", ids(99, B, 7), 3)
case("__lshift__.Scalar __rshift__.Scalar", ids(99, B, 7), 3)
case("clamp.default clip.default", x(B, 7), -0.5, 0.5)
case("clamp.default clip.default", x(B, 7), min=0)
case("clamp.default clip.default", ids(9, B, 7), None, 4)
case("clamp.default", ids(9, B, 7), 2.5)
case("clamp.Tensor clip.Tensor", x(B, 7), x(7) - 1, x(7).abs() + 1)
case("clamp_min.default clamp_max.default", x(B, 7), 0.25)
case("clamp_min.Tensor clamp_max.Tensor", x(B, 7), x(7))
case("where.self", mask(B, 7), x(B, 7), x(7))
case("where.self", mask(B, 1), x(B, 7), ids(9, 7))
case("where.ScalarSelf", mask(B, 7), 1.5, x(B, 7))
case("where.ScalarOther", mask(B, 7), x(B, 7), -INF)
case("where.Scalar", mask(B, 7), 1.5, 2)
case("masked_fill.Scalar", x(B, 7), mask(B, 7), -INF)
case("masked_fill.Scalar", x(B, 7), mask(7), 0)
case("masked_fill.Tensor", x(B, 7), mask(B, 1), torch.tensor(2.0))
case("lerp.Scalar", x(B, 7), x(B, 7), 0.3)
case("lerp.Tensor", x(B, 7), x(B, 7), x(7))
case("addcmul.default addcdiv.default", x(B, 7), x(B, 1), pos(7))
case("addcmul.default addcdiv.default", x(B, 7), x(B, 1), pos(7), value=0.3)

# --- the same elements
for name in "clone contiguous detach alias lift_fresh_copy".split():
    case(f"{name}.default", x(B, 7))
case("to.dtype", 3 * x(B, 7), torch.int64)
case("to.dtype", ids(9, B, 7), torch.float32)
case("to.dtype", x(B, 7).relu(), torch.bool)
case("to.dtype", ids(300, B, 7, low=-300), torch.uint8)
case("to.device", x(B, 7), torch.device("cpu"), torch.float64)
case("to.other type_as.default", ids(9, B, 7), pos(1))
case("to.dtype_layout", ids(9, B, 7), dtype=torch.float32)
case("_to_copy.default", ids(9, B, 7), dtype=torch.float32)
for name in "dropout feature_dropout alpha_dropout feature_alpha_dropout".split():
    case(f"{name}.default", x(B, 7, 5), 0.3, False)
case("native_dropout.default", x(B, 7), 0.3, False)

# --- layout
case("permute.default", x(B, 7, 5), [2, 0, -2])
case("transpose.int swapaxes.default swapdims.default", x(B, 7, 5), 1, -1)
case("t.default", x(B, 7))
case("t.default", x(7))
case("numpy_T.default", x(B, 7))
case("mT.default adjoint.default", x(B, 7, 5))
case("movedim.int moveaxis.int", x(B, 7, 5), 0, 2)
case("movedim.intlist moveaxis.intlist", x(B, 7, 5, 2), [0, 1], [-1, 0])
case("view.default reshape.default _unsafe_view.default view_copy.default", x(B, 6, 5), [-1, 2, 15])
case("reshape.default", x(B, 6, 5).transpose(1, 2), [-1, 10, 3])
case("reshape.default", x(B, 6, 5), [-1])
case("view_as.default reshape_as.default", x(B, 6, 5), x(B, 30))
case("_reshape_alias.default", x(7, 6), [6, 7], [7, 1])
case("flatten.using_ints", x(B, 6, 5), 1, -1)
case("flatten.using_ints", x(B, 6, 5))
case("unflatten.int", x(B, 12), 1, [3, -1])
case("ravel.default", x(B, 6))
case("atleast_1d.default", x(B, 6))
case("expand.default", x(B, 1, 5), [-1, 4, -1])
case("expand.default", x(1, 5), [2, 4, 5])
case("expand_as.default", x(B, 1), x(B, 5))
case("broadcast_to.default", x(5), [4, 5])
case("squeeze.default", x(4, 1, 5, 1))
case("squeeze.dim", x(B, 1, 5), 1)
case("squeeze.dim", x(B, 1, 5), -1)
case("squeeze.dims", x(B, 1, 5, 1), [1, -1])
case("unsqueeze.default", x(B, 5), 1)
case("unsqueeze.default", x(B, 5), -1)
case("slice.Tensor", x(B, 9), 1, 2, 7)
case("slice.Tensor", x(B, 9), 1, -4, None)
case("slice.Tensor", x(B, 9), 1, -20, -2)
case("slice.Tensor", x(B, 9), -1, 1, 2**63 - 1, 3)
case("slice.Tensor", x(B, 9), 0, 1)
case("slice.Tensor", x(B, 9), 0, -2, 2**63 - 1)
case("slice.Tensor", x(B, 9))
case("select.int", x(B, 9), 1, 4)
case("select.int", x(B, 9), 1, -1)
case("select.int", x(B, 9), 0, -1)
case("narrow.default", x(B, 9), 1, 2, 4)
case("split.Tensor unsafe_split.Tensor", x(B, 9), 4, 1)
case("split.sizes split_with_sizes.default unsafe_split_with_sizes.default", x(B, 9), [2, 3, 4], -1)
case("chunk.default unsafe_chunk.default", x(B, 9), 4, 1)
case("tensor_split.sections", x(B, 9), 4, 1)
case("tensor_split.indices", x(B, 9), [2, 5], 1)
case("unbind.int", x(B, 4), 1)
case("cat.default concat.default concatenate.default", [x(B, 4), x(B, 2), x(B, 7)], 1)
case("cat.default", [x(B, 4), x(B, 4)])
case("cat.default", [x(B, 4), ids(9, B, 2)], -1)
case("cat.default", [mask(B, 4), mask(B, 2)], -1)
case("stack.default", [x(B, 4), x(B, 4)], 1)
case("stack.default", [x(B, 4), x(B, 4), x(B, 4)], -1)
case("hstack.default", [x(B, 4), x(B, 2)])
case("hstack.default", [x(4), x(2)])
case("vstack.default", [x(B, 4), x(B, 4)])
case("vstack.default", [x(4), x(4)])
case("column_stack.default", [x(B, 4), x(B)])
case("repeat.default", x(B, 5), [1, 4])
case("repeat.default", x(B, 5), [2, 1, 4])
case("tile.default", x(B, 5), [4])
case("tile.default", x(B, 5), [2, 1, 4])
case("repeat_interleave.self_int", x(B, 5), 4, 1)
case("repeat_interleave.self_int", x(B, 5), 4)
case("roll.default", x(B, 5), [2], [1])
case("roll.default", x(B, 5), [-7, 1], [1, 0])
case("roll.default", x(B, 5), [2])
case("flip.default", x(B, 5), [-1])
case("flip.default", x(B, 5), [0, 1])
case("fliplr.default flipud.default", x(B, 5))
case("rot90.default", x(B, 5, 4), 1, [1, 2])
case("rot90.default", x(B, 5, 4), -2, [2, 1])
case("rot90.default", x(B, 5, 4), 3, [0, 2])
case("pixel_shuffle.default", x(B, 18, 2, 5), 3)
case("pixel_unshuffle.default", x(B, 2, 6, 9), 3)
case("channel_shuffle.default", x(B, 6, 2, 3), 3)
case("pad.default", x(B, 5), [1, 2])
case("pad.default", x(B, 5), [1, -2, 0, 1], "constant", 0.5)
case("constant_pad_nd.default", x(B, 5), [-1, 2], 1.5)
case("constant_pad_nd.default", ids(9, B, 5), [1, 0])
case("unfold.default", x(B, 9), 1, 3, 2)
case("tril.default triu.default", x(B, 5, 6))
case("tril.default triu.default", x(B, 5, 6), -1)
case("tril.default triu.default", x(B, 5, 6), 2)
case("diagonal.default", x(5, 6))
case("diagonal.default", x(B, 5, 6), -2, 1, 2)
case("diag_embed.default", x(B, 5))
case("meshgrid.default", [x(4), x(5), x(2)])
case("meshgrid.indexing", [x(4), x(5), x(2)], indexing="xy")
case("slice_scatter.default", x(B, 9), x(B, 4), 1, 2, 6)
case("slice_scatter.default", x(B, 9), x(B, 4), 1, -4)
case("select_scatter.default", x(B, 9), x(B), 1, -2)

# --- lookups
case("embedding.default", x(11, 5), ids(11, B, 7))
case("embedding.default", x(11, 5), ids(11, B, dtype=torch.int32), 3)
case("index_select.default", x(B, 7, 5), 1, ids(7, 4))
case("gather.default", x(B, 7), 1, ids(7, B, 4))
case("gather.default", x(B, 7, 5), 1, ids(7, B, 2, 5))
case("index.Tensor", x(11, 5), [ids(11, B, 7)])
case("index.Tensor", x(11, 5), [ids(11, B, 7, low=-11)])
case("index.Tensor", x(B, 7, 5), [None, ids(7, 4), ids(5, 4)])
case("index.Tensor", x(B, 7, 5), [ids(2, 4), None, ids(5, 4)])
case("index.Tensor", x(B, 7, 5), [None, None, ids(5, 2, 4)])
case("index.Tensor", x(7, 6, 5), [ids(7, 4, 1), ids(6, 2)])
case("one_hot.default", ids(7, B, 4), 7)
case("scatter.value", x(B, 7), 1, ids(7, B, 1), 2.0)
case("scatter.src", x(B, 7), 1, ids(7, B, 1), x(B, 1))
case("scatter_add.default", x(B, 7), 1, ids(7, B, 4), x(B, 4))
case("scatter_reduce.two", x(B, 7), 1, ids(7, B, 4), x(B, 4), "sum")
case("take_along_dim.default", x(B, 7), ids(7, B, 4), 1)
case("take_along_dim.default", x(7, 3), ids(7, B, 1), 0)

# --- new tensors
for name in "zeros ones".split():
    case(f"{name}.default", [2, 5])
    case(f"{name}_like.default", x(B, 5))
    case(f"{name}_like.default", x(B, 5), dtype=torch.int64)
    case(f"new_{name}.default", x(B, 5), [2, 4])
case("full.default", [2, 5], 1.5)
case("full.default", [2, 5], True)
case("full_like.default", x(B, 5), -INF)
case("new_full.default", x(B, 5), [2, 4], 3)
case("fill.Scalar", x(B, 5), 2)
case("fill.Tensor", x(B, 5), torch.tensor(2.5))
case("scalar_tensor.default", 2.5)
case("to.dtype", torch.tensor(300), torch.uint8)
case("arange.default", 7)
case("arange.start", 2, 9)
case("arange.start_step", 2, 9, 3)
case("arange.start_step", 9, 2, -3)
case("arange.start_step", 0.5, 2.0, 0.25)
case("arange.default", 7, dtype=torch.float32)
case("linspace.default", -1.0, 2.0, 7)
case("eye.default", 5)
case("eye.m", 5, 7)

# --- products
case("linear.default", x(B, 7), x(5, 7), x(5))
case("linear.default", x(B, 4, 7), x(5, 7))
case("mm.default", x(B, 7), x(7, 5))
case("bmm.default", x(B, 4, 7), x(B, 7, 5))
case("matmul.default", x(B, 4, 7), x(7, 5))
case("matmul.default", x(B, 2, 4, 7), x(2, 7, 5))
case("matmul.default", x(7), x(B, 7, 5))
case("matmul.default", x(B, 7), x(7))
case("mv.default", x(B, 7), x(7))
case("dot.default vdot.default", x(7), x(7))
case("addmm.default", x(5), x(B, 7), x(7, 5))
case("addmm.default", x(B, 5), x(B, 7), x(7, 5), beta=0.5, alpha=2)
case("addmm.default", x(1, 5), x(B, 7), x(7, 5), beta=0)
case("baddbmm.default", x(B, 1, 5), x(B, 4, 7), x(B, 7, 5), beta=0.5, alpha=2)
case("addbmm.default", x(4, 5), x(B, 4, 7), x(B, 7, 5), alpha=2)
case("addmv.default", x(B), x(B, 7), x(7), beta=2)
case("addr.default", x(4, 5), x(4), x(5), alpha=0.5)
case("outer.default ger.default", x(B), x(5))
case("inner.default", x(B, 7), x(5, 7))
case("inner.default", x(B, 7), x(7))
case("einsum.default", "bk,nk->bn", [x(B, 7), x(5, 7)])
case("einsum.default", "b i d, bjd -> bij", [x(B, 4, 7), x(B, 5, 7)])
case("einsum.default", "...k,kn", [x(B, 4, 7), x(7, 5)])
case("einsum.default", "bii->bi", [x(B, 5, 5)])
case("tensordot.default", x(B, 4, 7), x(7, 4, 5), [1, 2], [1, 0])
case("bilinear.default", x(B, 4), x(B, 7), x(5, 4, 7), x(5))
case("conv1d.default", x(B, 4, 9), x(6, 4, 3), x(6))
case("conv1d.default", x(B, 4, 9), x(6, 2, 3), None, [2], [1], [2], 2)
case("conv1d.default", x(4, 9), x(6, 4, 1))
case("conv1d.padding", x(B, 4, 9), x(6, 4, 3), x(6), [1], "valid")
case("conv2d.default", x(B, 4, 6, 5), x(7, 4, 1, 1), x(7))
case("conv2d.default", x(B, 4, 6, 5), x(7, 4, 3, 2), x(7), [1, 2], [1, 0])
case("conv2d.padding", x(B, 4, 6, 5), x(7, 4, 3, 2), None, [1, 1], "valid")
case("conv_transpose1d.default", x(B, 4, 9), x(4, 6, 1), x(6))
case("conv_transpose2d.input", x(B, 4, 5, 3), x(4, 6, 1, 1))
case("conv_transpose3d.input", x(B, 4, 2, 5, 3), x(4, 6, 1, 1, 1))
case("conv3d.default", x(B, 4, 2, 3, 5), x(7, 4, 1, 1, 1), x(7))
case("conv3d.padding", x(B, 4, 2, 3, 5), x(7, 4, 1, 2, 3), None, [1, 1, 1], "valid")
case("convolution.default", x(B, 4, 9), x(6, 4, 3), x(6), [2], [1], [1], False, [0], 1)

# --- reductions
case("sum.default mean.default prod.default max.default min.default", x(B, 7))
case("sum.default prod.default", ids(3, B, 5, low=1, dtype=torch.int32))
case("sum.default", mask(B, 5))
for dim in ([1], [0, -1], []):
    case("sum.dim_IntList mean.dim", x(B, 7, 5), dim)
    case("amax.default amin.default", x(B, 7, 5), dim)
case("sum.dim_IntList mean.dim amax.default amin.default", x(B, 7, 5), [1], True)
case("sum.dim_IntList", ids(9, B, 7), [1], dtype=torch.float32)
case("prod.dim_int", x(B, 7), 1)
case("max.dim min.dim", x(B, 7), 1)
case("max.dim min.dim", x(B, 7), -1, True)
for name in ("any", "all"):
    case(f"{name}.default", mask(B, 7))
    case(f"{name}.dim", x(B, 7).relu(), 1)
    case(f"{name}.dim", mask(B, 2), 1, True)
    case(f"{name}.dims", mask(B, 2, 2), [1, 2])
case("cumsum.default", x(B, 7), 1)
case("cumsum.default", ids(9, B, 7), -1)
case("count_nonzero.default", x(B, 7).relu(), 1)
case("count_nonzero.dim_IntList", x(B, 7, 5).relu(), [1, 2])
case("softmax.int log_softmax.int", x(B, 7), -1)
case("softmax.int", ids(9, B, 7), 1, torch.float32)
case("_softmax.default _log_softmax.default", x(B, 7), 1, False)
HIDDEN = x(B, 7).masked_fill(mask(B, 7), -INF)
HIDDEN[1] = -INF
case("_safe_softmax.default", HIDDEN, 1)
case("logsumexp.default", x(B, 7), [1])
case("logsumexp.default", x(B, 7), [1], True)
case("norm.Scalar", x(B, 7))
case("norm.ScalarOpt_dim", x(B, 7), 2, [1])
for order in (1, 2, INF, -INF):
    case("linalg_vector_norm.default", x(B, 7), order, [-1], True)
case("linalg_vecdot.default", x(B, 7), x(7))
case("cosine_similarity.default", x(B, 7), x(B, 7), -1)
case("cosine_similarity.default", x(B, 7), x(1, 7))
case("cosine_similarity.default", x(B, 7) * 1e-9, x(B, 7))
case("pairwise_distance.default", x(B, 7), x(B, 7))
case("pairwise_distance.default", x(B, 7), x(B, 7), 1.0, 1e-6, True)
case("cdist.default", x(B, 4, 7), x(B, 5, 7))
case("cdist.default", x(B, 4, 7), x(B, 5, 7), 1.0)
EDGES = torch.tensor([-1.0, 0.0, 0.5, 1.5])
case("bucketize.Tensor", x(B, 7), EDGES)
case("bucketize.Tensor", torch.cat([EDGES, x(5)])[None], EDGES, right=True)
case("bucketize.Tensor", x(B, 7), EDGES, out_int32=True)
case("searchsorted.Tensor", EDGES, x(B, 7))
case("searchsorted.Tensor", EDGES, EDGES[None], side="right")
case("searchsorted.Scalar", EDGES, 0.5)
case("isin.Tensor_Tensor", ids(9, B, 7), ids(9, 4))
case("isin.Tensor_Tensor", ids(9, B, 7), ids(9, 4), invert=True)
case("isin.Tensor_Scalar", ids(9, B, 7), 4)

# --- normalisation
for name in "var std var_mean std_mean".split():
    case(f"{name}.default", x(4, 7), False)
    case(f"{name}.default", x(4, 7))
    case(f"{name}.dim", x(B, 7), [1])
    case(f"{name}.dim", x(B, 7), [1], False, True)
    case(f"{name}.correction", x(B, 7), [1])
    case(f"{name}.correction", x(B, 7, 5), [1, 2], correction=0, keepdim=True)
case("batch_norm.default", x(B, 7), pos(7), x(7), x(7), pos(7), False, 0.1, 1e-5, True)
case("batch_norm.default", x(B, 7, 5), None, None, x(7), pos(7), False, 0.1, 1e-3, True)
case("native_batch_norm.default", x(B, 7), pos(7), x(7), x(7), pos(7), False, 0.1, 1e-5)
case("_native_batch_norm_legit_no_training.default", x(B, 7), pos(7), x(7), x(7), pos(7), 0.1, 1e-5)
case("layer_norm.default", x(B, 7, 5), [5], pos(5), x(5))
case("layer_norm.default", x(B, 7, 5), [7, 5], None, None, 1e-3)
case("native_layer_norm.default", x(B, 7), [7], pos(7), None, 1e-5)
case("gru_cell.default", x(B, 5), x(B, 3), x(9, 5), x(9, 3))
case("gru_cell.default", x(B, 5), x(B, 3), x(9, 5), x(9, 3), x(9), x(9))
case("rms_norm.default", x(B, 7), [7], pos(7))
case("rms_norm.default", x(B, 7), [7], None, 1e-3)
case("_fused_rms_norm.default", x(B, 7), [7], pos(7), 1e-5)
case("group_norm.default", x(B, 6, 5), 3, pos(6), x(6))
case("group_norm.default", x(B, 6), 2)
case("instance_norm.default", x(B, 6, 5), pos(6), x(6), None, None, True, 0.1, 1e-5, True)
case("instance_norm.default", x(B, 6, 5), pos(6), None, x(6), pos(6), False, 0.1, 1e-5, True)
case("adaptive_avg_pool1d.default", x(B, 4, 5), [1])
case("adaptive_avg_pool2d.default", x(B, 4, 5, 6), [1, 1])
case("_adaptive_avg_pool2d.default", x(B, 4, 5, 6), [1, 1])

# --- attention
SDPA = "scaled_dot_product_attention.default"
QKV = (x(B, 2, 5, 4), x(B, 2, 7, 4), x(B, 2, 7, 6))
MASK = mask(B, 1, 5, 7)
MASK[0, 0, 2] = False
case(SDPA, *QKV)
case(SDPA, *QKV, x(5, 7))
case(SDPA, *QKV, x(B, 2, 5, 7), scale=0.3)
case(SDPA, *QKV, MASK)
case(SDPA, *QKV, None, 0.0, True)
case(SDPA, x(B, 4, 5, 4), QKV[1], QKV[2], enable_gqa=True)
FLASH = "_scaled_dot_product_flash_attention_for_cpu.default"
case(FLASH, QKV[0], QKV[1], x(B, 2, 7, 4))
case(FLASH, QKV[0], QKV[1], x(B, 2, 7, 4), attn_mask=x(5, 7), scale=0.3)

# --- embedding bags
BAGS = "embedding_bag.default _embedding_bag.default _embedding_bag_forward_only.default"
TABLE, FLAT, STARTS = x(11, 5), ids(11, 12), torch.tensor([0, 4, 4, 9])
for mode in (0, 1):
    case(BAGS, TABLE, FLAT, STARTS, False, mode)
    case("embedding_bag.padding_idx", TABLE, FLAT, STARTS, False, mode, False, None, False, int(FLAT[0]))
    case("embedding_bag.padding_idx", TABLE, FLAT, STARTS, False, mode, False, None, False, int(FLAT[0]) - 11)
case(BAGS, TABLE, FLAT, STARTS, False, 0, False, x(12), False)
case(BAGS, TABLE, FLAT, torch.tensor([0, 4, 4, 9, 12]), False, 0, False, None, True)

# --- calls that the table must not state
REFUSED: list[tuple[str, Case]] = []


def refuse(why: str, op: str, *args: Any, **kwargs: Any) -> None:
    REFUSED.append((why, Case(f"aten.{op}", args, kwargs)))


refuse("statistics", "batch_norm.default", x(B, 7), None, None, None, None, True, 0.1, 1e-5, True)
refuse("own statistics", "native_batch_norm.default", x(B, 7), None, None, None, None, True, 0.1, 1e-5)
refuse("randomness", "dropout.default", x(B, 7), 0.3, True)
refuse("randomness", SDPA, *QKV, None, 0.3)
refuse("mask", "index.Tensor", x(B, 7), [mask(B, 7)])
refuse("reflect", "pad.default", x(B, 7), [1, 1], "reflect")
refuse("order 3", "linalg_vector_norm.default", x(B, 7), 3, [1])
refuse("correction", "var.correction", x(B, 7), [1], correction=0.5)
refuse("transposed", "convolution.default", x(B, 4, 9), x(4, 6, 3), None, [1], [0], [1], True, [0], 1)
refuse("adaptive", "adaptive_avg_pool1d.default", x(B, 4, 6), [2])
refuse("complex64", "mul.Tensor", torch.complex(x(B, 7), x(B, 7)), x(B, 7))
refuse("no lift", "argmax.default", x(B, 7), 1)
refuse("no lift", "sort.default", x(B, 7))
