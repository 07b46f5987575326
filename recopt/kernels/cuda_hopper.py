"""CUDA C++ for Hopper's own instructions: barriers that count bytes, clusters of blocks."""

from __future__ import annotations

HOPPER = r"""
typedef unsigned long long u64;

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

__device__ __forceinline__ void send(u32 to, u32 x, u32 bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
               :: "r"(to), "r"(x), "r"(bar) : "memory");
}
"""
