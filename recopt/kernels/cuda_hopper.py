"""CUDA C++ for Hopper's own instructions: barriers that count bytes, clusters of blocks."""

from __future__ import annotations

HOPPER = r"""
// All threads of the cluster; what they wrote is seen by the others.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void start_barrier(u32 bar, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(bar), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barriers_started() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// One arrival, and so many bytes to wait for that another block sends.
__device__ __forceinline__ void arrive(u32 bar, u32 bytes) {
  if (bytes)
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;"
                 :: "r"(bar), "r"(bytes) : "memory");
  else
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" :: "r"(bar) : "memory");
}

__device__ __forceinline__ void wait(u32 bar, u32 phase) {
  u32 done;
  do
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;}" : "=r"(done) : "r"(bar), "r"(phase & 1) : "memory");
  while (!done);
}

// An address of this block's shared memory in that of another one of the cluster.
__device__ __forceinline__ u32 elsewhere(u32 at, u32 rank) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
  return there;
}

__device__ __forceinline__ void send(u32 to, uint2 x, u32 bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];"
               :: "r"(to), "r"(x.x), "r"(x.y), "r"(bar) : "memory");
}

// Memory of this block into that of another one of the cluster.
__device__ __forceinline__ void send(u32 to, u32 from, u32 bytes, u32 bar) {
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               :: "r"(to), "r"(from), "r"(bytes), "r"(bar) : "memory");
}

__device__ __forceinline__ void send(u32 to, u32 x, u32 bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
               :: "r"(to), "r"(x), "r"(bar) : "memory");
}
"""

# Products by four warps side by side, which go on until they are waited for.
WGMMA = r"""
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_sent() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int GROUPS_LEFT>
__device__ __forceinline__ void products_left() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS_LEFT) : "memory");
}
// What was written to shared memory is seen by the tensor cores of all that then meet.
__device__ __forceinline__ void show() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
template <int T>
__device__ __forceinline__ void ready(float (&d)[T][4]) {  // not read before this
#pragma unroll
  for (int j = 0; j < T; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) asm volatile("" : "+f"(d[j][i])::"memory");
}

// Registers of a thread, for all of a group of four warps.
template <int COUNT> __device__ __forceinline__ void registers_more() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> __device__ __forceinline__ void registers_fewer() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
"""


def wgmma(tiles: int, registers: bool) -> str:
    """`multiply` of 16 rows a warp with 8 * `tiles` columns, of which the left operand lies in registers or in shared
    memory: d = a * b, plus d if there is `more`. A lane has of a row 8 columns' pairs, and those of the row 8 below."""
    sums, given = 4 * tiles, 4 if registers else 1
    left = ", ".join(f"%{sums + i}" for i in range(given))
    numbers = ", ".join(f"%{i}" for i in range(sums))
    outputs = ", ".join(f'"+f"(d[{i // 4}][{i % 4}])' for i in range(sums))
    inputs = ", ".join(f'"r"(a[{i}])' for i in range(4)) if registers else '"l"(a)'
    return f"""
__device__ __forceinline__ void multiply(
    float (&d)[{tiles}][4], {"const u32 (&a)[4]" if registers else "u64 a"}, u64 b, int more) {{
  asm volatile("{{.reg .pred p; setp.ne.b32 p, %{sums + given + 1}, 0;\\n"
               "wgmma.mma_async.sync.aligned.m64n{8 * tiles}k16.f32.f16.f16 {{{numbers}}}, "
               "{"{" + left + "}" if registers else left}, %{sums + given}, p, 1, 1, {"0" if registers else "0, 0"};}}"
               : {outputs} : {inputs}, "l"(b), "r"(more));
}}
"""
