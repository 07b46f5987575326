"""``recopt::linear``: a matrix product with bias and a pointwise epilogue, in torch and as one Triton launch.

``linear`` is the operator; ``linear_torch`` its plain-torch twin, which is also its CPU path; ``linear_triton`` the
launcher of the kernels in ``kernels``. On a GPU the choice between them comes from ``table``, measured
once and shipped: nothing is ever tuned at request time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..counters import counters
from ..devices import architecture, device_of, processors, starts_early
from ..epilogue import Epilogue, compile_epilogue
from ..launching import Grid, TritonLaunch, early_options, planned
from . import table
from .config import Config, Group, Hopper, Panel, Reduce, Tile

HALF = (torch.float16, torch.bfloat16)


class LinearError(ValueError):
    """The operands of a linear do not fit each other."""


def flops(m: int, n: int, k: int, epilogue: str = "") -> int:
    """Floating-point operations of one linear with bias: x [m, k], w [n, k]."""
    return 2 * m * n * k + m * n * (1 + compile_epilogue(epilogue).flops)


def bytes_moved(m: int, n: int, k: int, itemsize: int = 4, params: int = 0) -> int:
    """The fewest bytes one linear moves: x, w, bias and parameters read once, the output written once."""
    return itemsize * (m * k + n * k + n * (1 + params) + m * n)


def check_linear(x: Tensor, w: Tensor, b: Tensor | None) -> None:
    """Raise LinearError unless x is [..., K], w [N, K] and b [N] or None, of one dtype on one device; or x
    [B, K, space..] and w [N, K, 1..]."""
    if w.dim() > 2:
        if x.dim() != w.dim() or x.shape[1] != w.shape[1] or math.prod(w.shape[2:]) != 1:
            raise LinearError(f"linear over space needs x [B, K, ..] and w [N, K, 1..], got {[*x.shape]}, {[*w.shape]}")
    elif x.dim() < 1 or w.dim() != 2 or x.shape[-1] != w.shape[1]:
        raise LinearError(f"linear needs x [..., K] and w [N, K], got {list(x.shape)} and {list(w.shape)}")
    if b is not None and tuple(b.shape) != (w.shape[0],):
        raise LinearError(f"linear needs a bias of shape [{w.shape[0]}], got {list(b.shape)}")
    if x.dtype != w.dtype or (b is not None and b.dtype != x.dtype):
        raise LinearError(f"linear needs one dtype, got {x.dtype}, {w.dtype} and {b.dtype if b is not None else None}")


def linear_torch(x: Tensor, w: Tensor, b: Tensor | None, epilogue: str = "", params: Sequence[Tensor] = ()) -> Tensor:
    """x [..., K] @ w [N, K].T + b [N], then the epilogue: the reference, and the path on a CPU.

    The epilogue overwrites the product where autograd does not need it. Raises EpilogueError, LinearError.
    """
    e = compile_epilogue(epilogue)
    if w.dim() > 2:
        return _finish(_over_space(x, w, b, e, params), e, params)
    if e.params or params:
        e.check(params, w.shape[-2])
    if w.dim() != 2 or (b is not None and (b.dim() != 1 or b.size(0) != w.size(0))):
        check_linear(x, w, b)
    try:
        if x.is_cuda and b is not None and _is_relu(e) and x.dim() == 2 and not torch.is_grad_enabled():
            return torch._addmm_activation(b, x, w.t())  # cuBLASLt applies bias and ReLU itself
        return _finish(F.linear(x, w, b), e, params)
    except RuntimeError:
        # Looked at only now: at batch 1 a look costs as much as the bias.
        check_linear(x, w, b)
        raise


def _over_space(x: Tensor, w: Tensor, b: Tensor | None, e: Epilogue, params: Sequence[Tensor]) -> Tensor:
    """x [B, K, space..] with w [N, K, 1..]: a convolution of width one, which moves neither x nor y."""
    e.check(params, w.shape[0], w.dim() - 2)
    check_linear(x, w, b)
    if x.is_cuda:  # cuDNN may round to TF32; this does not
        y = torch.matmul(w.flatten(1), x.flatten(2))
        y = y if b is None else y.add_(b[:, None]) if not y.requires_grad else y + b[:, None]
        return y.view(x.shape[0], w.shape[0], *x.shape[2:])
    return over_space(x, w, b)


def over_space(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """x [B, K, space..] with w [N, K, 1..] on a CPU, unchecked. Where there is no space, a convolution takes ten times
    as long as the product of rows; a tracer would keep what this example has."""
    if x.numel() == x.shape[0] * x.shape[1] > 0 and not torch._C._get_tracing_state():
        y = F.linear(x.flatten(1), w.flatten(1), b)
        return y.view(*y.shape, *x.shape[2:])
    zeros, ones = (0,) * (w.dim() - 2), (1,) * (w.dim() - 2)
    return torch.convolution(x, w, b, ones, zeros, ones, False, zeros, 1)


def _is_relu(e: Epilogue) -> bool:
    return e.text in ("relu", "relu(h)")


def _finish(h: Tensor, e: Epilogue, params: Sequence[Tensor]) -> Tensor:
    if e.identity:
        return h
    needs_grad = torch.is_grad_enabled() and (h.requires_grad or any(p.requires_grad for p in params))
    return e.apply(h, params) if needs_grad else e.apply_(h, params)


def linear(x: Tensor, w: Tensor, b: Tensor | None, epilogue: str = "", params: Sequence[Tensor] = ()) -> Tensor:
    """x [..., K] @ w [N, K].T + b [N], then the epilogue text over ``h``; the result has x's dtype.

    ``params`` are the epilogue's ``p0 .. pm``, each [N] or [1]. With x [B, K, space..] and w [N, K, 1..] the channels
    come second, in the result [B, N, space..] and in ``params``, [N, 1..], too. float32 means float32 accuracy: a
    kernel that splits its operands for the tensor cores is used only where its error against float64 is no larger than
    cuBLAS's. Works inside a CUDA graph capture and never synchronises. Raises EpilogueError, LinearError.
    """
    if x.is_cuda and w.dim() > 2 and x.numel() == x.shape[0] * x.shape[1] > 0:  # no space: rows
        y = linear(x.flatten(1), w.flatten(1), b, epilogue, [p.flatten() for p in params])
        return y.view(*y.shape, *x.shape[2:])
    if not x.is_cuda or w.dim() > 2:
        return linear_torch(x, w, b, epilogue, params)
    config = _choose(x, w, epilogue)
    if config is None:
        return linear_torch(x, w, b, epilogue, params)
    return linear_triton(x, w, b, epilogue, params, config)


def _choose(x: Tensor, w: Tensor, epilogue: str) -> Config | None:
    if x.dtype not in (torch.float32, *HALF) or (torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)):
        return None
    n, k = w.shape
    if k == 0 or x.numel() == 0 or n == 0 or x.shape[-1] != k or architecture(x.device.index) != 9:
        return None
    bare = epilogue in _BARE
    return choose_config(x.numel() // k, n, k, x.dtype in HALF, _is_wide(x, w), bare)


# What cuBLASLt does beside the product: any other function takes launches of its own.
_BARE = frozenset({"", "h", "identity", "relu", "relu(h)"})


def _is_wide(x: Tensor, w: Tensor) -> bool:
    """Whether rows of x and w can be copied 16 bytes at a time."""
    if x.stride(-1) != 1 or w.stride(1) != 1 or w.stride(0) % 4 or (x.data_ptr() | w.data_ptr()) % 16:
        return False
    return all(v % 4 == 0 for v in x.stride()[:-1])


# More rows than the table knows, whose reading and writing takes longest. On an H200 in us, by the choice for 16384
# rows and by this one: 104448 x 64 x 256 67.5 and 46.5, x 64 x 128 32.2 and 28.4, x 64 x 64 20.6 and 19.4, x 192 x 64
# 50.4 and 46.6, x 128 x 64 34.4 and 30.4, x 128 x 128 49.6 and 44.5, x 256 x 64 50.5 both; 32768 x 64 x 256 25.7 and
# 15.4.
TALL = 23_000


@functools.lru_cache(maxsize=65536)
def choose_config(m: int, n: int, k: int, half: bool = False, wide: bool = True, bare: bool = True) -> Config | None:
    """The fastest measured way for x [m, k], w [n, k] on Hopper: a kernel's configuration, or None for cuBLASLt.

    The measured shape nearest in ratio decides. Half precision and other GPUs have no table: cuBLASLt. ``wide`` says
    that rows can be copied 16 bytes at a time, without which the kernels for Hopper alone are not chosen. ``bare``
    says that cuBLASLt can do what follows the product: else the nearest M with a kernel decides.
    """
    if half:
        return None
    if wide and m > TALL and 48 <= n <= 256 and 48 <= k <= 256:
        return Hopper(128 if -n % 128 < 64 else 64, early=True)
    rows = table.ROWS if wide else table.NARROW
    row = rows[_nearest(table.N, n), _nearest(table.K, k)]
    best = table.CONFIGS[row[_nearest(table.M, m)]]
    if best is None and not bare:
        at = [i for i, c in enumerate(row) if table.CONFIGS[c] is not None]
        best = table.CONFIGS[row[at[_nearest([table.M[i] for i in at], m)]]] if at else None
    return best


def _nearest(grid: Sequence[int], size: int) -> int:
    return min(range(len(grid)), key=lambda i: abs(math.log(grid[i] / size)))


def default_config(m: int, n: int, k: int) -> Config:
    """A configuration that is right for any shape and dtype, and fast for none in particular."""
    return Tile(64, 64, 32) if m > 32 else Tile(16, 64, 32, 4, 3, 1, False, "tf32x3")


# A launch bound to its shapes: called with x, w, b, params.
_Plan = Callable[..., Tensor]
_plans: dict[Hashable, _Plan] = {}


def linear_triton(
    x: Tensor, w: Tensor, b: Tensor | None, epilogue: str = "", params: Sequence[Tensor] = (),
    config: Config | None = None,
) -> Tensor:  # fmt: skip
    """The Triton kernel with the epilogue fused; arguments as in ``linear``.

    ``config`` forces a configuration; plain TF32 is used only where one with ``precision="tf32"`` is given.
    The first call at new shapes compiles or binds the kernel; later ones only launch it.
    Raises EpilogueError, LinearError.
    """
    # Everything that the compiled kernel depends on, so that a hit needs no look at the arguments.
    key = (
        x.shape, x.stride(), w.shape, w.stride(), x.dtype, epilogue, config, x.data_ptr() % 16, w.data_ptr() % 16,
        None if b is None else (b.data_ptr() % 16, b.stride()), x.device.index,
        tuple((p.shape, p.stride(), p.dtype, p.data_ptr() % 16) for p in params),
    )  # fmt: skip
    plan = planned(_plans, key, lambda: _bind(x, w, b, epilogue, params, config))
    with device_of(x):
        return plan(x, w, b, params)


def _bind(
    x: Tensor, w: Tensor, b: Tensor | None, epilogue: str, params: Sequence[Tensor], config: Config | None
) -> _Plan:
    check_linear(x, w, b)
    e = compile_epilogue(epilogue)
    e.check(params, w.shape[0])
    n, k = w.shape
    m = math.prod(x.shape[:-1])
    if m == 0 or n == 0 or k == 0:
        return lambda x, w, b, params: linear_torch(x, w, b, epilogue, params)
    config = config or default_config(m, n, k)
    if b is not None and b.stride(0) != 1:
        return lambda x, w, b, params: linear_triton(x, w, b.contiguous(), epilogue, params, config)
    shape = (*x.shape[:-1], n)
    flat = x.dim() == 2
    sxm, sxk = x.stride() if flat else x.reshape(m, k).stride()
    strides = tuple(0 if p.numel() == 1 else p.stride(0) for p in params)
    if isinstance(config, Panel | Group | Hopper) and not _fits_hopper(x, w, sxm, sxk):
        config = Tile(128, 64, 32) if m >= 128 and n >= 64 else default_config(m, n, k)
    early = config.early and starts_early(x.device)
    numbers: tuple[int, ...] = (m, n, k, sxm, sxk, w.stride(0), w.stride(1))
    more: _More = _nothing
    if isinstance(config, Reduce):
        kernel, grid, constants, options = _on_threads(config, m, n, k, early, w.stride(1) == 1)
    elif isinstance(config, Tile):
        kernel, grid, constants, options = _on_tiles(config, m, n, k, early, x.dtype in HALF)
        more = _meeting(x.device, config.split, m * n, grid[0])
    else:
        kernel, grid, constants, options = _on_hopper(config, m, n, k, early, x.device.index)
        more = _more_operands(config, x.reshape(m, k), w, m * n, grid[0])
        numbers = (m, n, k, sxm, w.stride(0))  # the others are 1
    tail = (strides, *numbers, e.triton_function(), b is not None, *constants)
    launch = TritonLaunch(kernel, grid, **options, **early_options(early))

    def run(x: Tensor, w: Tensor, b: Tensor | None, params: Sequence[Tensor]) -> Tensor:
        out = torch.empty(shape, dtype=x.dtype, device=x.device)
        x2 = x if flat else x.reshape(m, k)
        launch(x2, w, b, out, *more(x2, w), tuple(params), *tail)
        return out

    return run


# A kernel, its grid, its constants after BIAS, the options of its launch.
_Kernel = tuple[Any, Grid, tuple[Any, ...], dict[str, Any]]
# What a kernel takes between its output and its parameters, of operands x [M, K] and w.
_More = Callable[[Tensor, Tensor], tuple[Any, ...]]


def _on_threads(config: Reduce, m: int, n: int, k: int, early: bool, plain: bool) -> _Kernel:
    """`plain`: rows of w lie in order."""
    from .kernels import reduce_kernel

    grid = (-(-m // config.bm) * -(-n // config.bn), 1, 1)
    fetch = early and plain and config.fetches(m, n, k)
    constants = (config.bm, config.bn, config.bk, k % config.bk == 0, early, fetch)
    return reduce_kernel, grid, constants, {"num_warps": config.warps}


def _on_tiles(config: Tile, m: int, n: int, k: int, early: bool, half: bool) -> _Kernel:
    from .kernels import tile_kernel

    precision = "native" if half else config.precision
    grid = (-(-m // config.bm) * -(-n // config.bn), config.split, 1)
    constants = (
        precision, config.bm, config.bn, config.bk, config.split, 8, config.swap, k % config.bk == 0, early,
    )  # fmt: skip
    return tile_kernel, grid, constants, {"num_warps": config.warps, "num_stages": config.stages}


def _on_hopper(config: Panel | Group | Hopper, m: int, n: int, k: int, early: bool, device: int) -> _Kernel:
    """In Gluon, for Hopper alone."""
    constants: tuple[Any, ...]
    split = 1
    if isinstance(config, Panel):
        from .panel import panel_kernel as kernel

        programs = -(-m // config.bm) * -(-n // config.bn)
        constants = (*config[:-1], k % (config.parts * config.bk) == 0)
        options = {"num_warps": config.parts * config.rows * config.columns}
    elif isinstance(config, Group):
        from .group import group_kernel as kernel

        programs = -(-m // 64) * -(-n // config.bn)
        split = config.split
        constants = (config.bn, config.stages, config.registers, split, k % 32 == 0)
        options = {"num_warps": 4, "maxnreg": config.registers}
    else:
        from .hopper import hopper_kernel as kernel

        programs = min(-(-m // 128) * -(-n // config.bn), processors(device))
        constants = (128, config.bn, config.bk, config.stages)
        options = {"num_warps": 4}
    return kernel, (programs, split, 1), (*constants, early), options


def _more_operands(config: Panel | Group | Hopper, x: Tensor, w: Tensor, outputs: int, programs: int) -> _More:
    """For operands with the strides of x and w."""
    if isinstance(config, Group):  # both groups of a program count for their half of the tile
        return _meeting(x.device, config.split, outputs, 2 * programs)
    if isinstance(config, Hopper):
        from .hopper import blocks_of

        x_blocks, w_blocks = blocks_of(x, 128, config.bk), blocks_of(w, config.bn, config.bk)
        return lambda x, w: (x_blocks(x), w_blocks(w))
    return _nothing


def _nothing(x: Tensor, w: Tensor) -> tuple[()]:
    return ()


def _fits_hopper(x: Tensor, w: Tensor, sxm: int, sxk: int) -> bool:
    """Whether the copies into shared memory can be 16 bytes wide, on the one architecture with these instructions."""
    if not x.is_cuda or architecture(x.device.index) != 9 or x.dtype != torch.float32:
        return False
    # Tensor descriptors are not said to allow rows that overlap.
    apart = sxk == 1 and w.stride(1) == 1 and min(sxm, w.stride(0)) >= w.shape[1]
    return apart and all(v % 4 == 0 for v in (sxm, w.stride(0))) and (x.data_ptr() | w.data_ptr()) % 16 == 0


def _meeting(device: torch.device, split: int, outputs: int, programs: int) -> _More:
    """Where the programs of a split product hand in their parts, and the counters that tell the last to come."""
    if split == 1:
        return lambda x, w: (None, None)
    return lambda x, w: (
        torch.empty(split * outputs, dtype=torch.float32, device=device), counters(device, programs)
    )  # fmt: skip
