"""Terms as text, for reports and golden tests: y[i0, i1] = sum[r1<64](w[i1,r1]*x[i0,r1]) + b[i1]."""

from __future__ import annotations

from .tensor import Tensor, ravel


def show(t: Tensor, name: str = "y") -> str:
    """`t` in canonical form, one line."""
    t = t.canonical()
    dims = ", ".join(f"{ravel(d).text}<{s}" for d, s in zip(t.dims, t.shape, strict=True))
    return f"{name}[{dims}]: {t.dtype} = {t.body.text}"
