"""Device times of GPU work: CUDA-graph replays over rotated inputs, so that neither launch gaps nor caches flatter."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

LARGE = 1 << 20  # bytes from which a tensor is copied by itself: of many at once a block copies 65536 elements
WORDS = {torch.int64: torch.float32, torch.float64: torch.float32}  # a copy of one type is one launch


class Times(NamedTuple):
    """Microseconds of one call: the median and the 10th and 90th percentile of the samples."""

    median: float
    p10: float
    p90: float


def summary(samples: Sequence[float]) -> Times:
    """Median and spread of samples in microseconds; at least two are needed."""
    cuts = statistics.quantiles(samples, n=10)
    return Times(statistics.median(samples), cuts[0], cuts[-1])


def copies(nbytes: int, most: int = 64, target: int = 128 << 20) -> int:
    """How many sets of inputs of ``nbytes`` outgrow the largest L2 of the GPUs in use (60 MB), ``most`` at most."""
    return max(2, min(most, -(-target // max(nbytes, 1))))


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch types no constructor of events
    return event


def device_times(calls: Sequence[Callable[[], object]], samples: int = 12, least_us: float = 400.0) -> Times:
    """Device time of one of ``calls`` (the same work on different inputs), measured in one CUDA graph of all of them.

    The graph repeats the calls until it lasts ``least_us``: what it takes to start is theirs too. Each of ``samples``
    replays gives one sample.
    """
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            for call in calls:
                call()
        once = min(_replays(calls, 1, 2, stream))
        rounds = max(1, math.ceil(least_us / once))
        return summary([t / (rounds * len(calls)) for t in _replays(calls, rounds, samples, stream)])


def _replays(
    calls: Sequence[Callable[[], object]], rounds: int, samples: int, stream: torch.cuda.Stream
) -> list[float]:
    """Microseconds of each of ``samples`` replays, after one, of a graph of so many rounds of the calls."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            for call in calls:
                call()
    graph.replay()
    events = [(_event(), _event()) for _ in range(samples)]
    for begin, end in events:
        begin.record(stream)
        graph.replay()
        end.record(stream)
    stream.synchronize()
    graph.reset()
    return [begin.elapsed_time(end) * 1000 for begin, end in events]


def _words(t: Tensor) -> Tensor:
    """Its memory as float32 where its elements are of 8 bytes."""
    return t.view(WORDS[t.dtype]) if t.dtype in WORDS else t


def graph_of(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of one call, after a warm-up on a stream of its own, and the result that its replays overwrite."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


def captured(function: Callable[..., Any], args: Sequence[Tensor]) -> Callable[..., Any]:
    """A CUDA graph of one call, which copies its arguments into its inputs."""
    held = tuple(t.clone() for t in args)
    graph, result = graph_of(lambda: function(*held))
    together = [n for n, t in enumerate(held) if t.nbytes < LARGE]
    together = together if len(together) > 1 else []
    alone = [n for n in range(len(held)) if n not in together]
    words = [_words(held[n]) for n in together]

    def call(*given: Tensor) -> Any:
        if together:  # first: it is the longest on the device, beside which the others are launched
            torch._foreach_copy_(words, [_words(given[n]) for n in together])
        for n in alone:
            held[n].copy_(given[n], non_blocking=True)
        graph.replay()
        return result

    return call


def copying(function: Callable[..., Any], args: Sequence[Tensor]) -> Callable[..., Any]:
    """A function that copies its contiguous arguments first, in one launch of at most 60 pieces: captured, its copies
    are part of the graph."""
    held = [t.clone() for t in args]
    step = max(8192, -(-sum(_words(t).numel() for t in held) // 60))

    def pieces(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [piece for t in tensors for piece in _words(t).view(-1).split(step)]

    into = pieces(held)

    def call(*given: Tensor) -> Any:
        torch._foreach_copy_(into, pieces(given))
        return function(*held)

    return call


def turns(call: Callable[..., object], sets: Sequence[Sequence[Tensor]]) -> Callable[[], object]:
    """A call whose inputs take turns, one set at least and its copy: none lies where the last one did."""
    rotating = itertools.cycle([*sets, [t.clone() for t in sets[0]]] if len(sets) == 1 else sets)
    return lambda: call(*next(rotating))


def host_times(peers: Mapping[str, Sequence[Callable[[], object]]], samples: int = 21) -> dict[str, Times]:
    """Wall time on the host of one of each peer's calls; peers take turns, so that a busy machine slows all alike."""
    rounds = {}
    for name, calls in peers.items():
        for call in calls:
            call()
        begin = time.perf_counter()
        for call in calls:
            call()
        rounds[name] = max(1, int(2e-3 / max(time.perf_counter() - begin, 1e-9)))
    results: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(samples):
        for name, calls in peers.items():
            begin = time.perf_counter()
            for _ in range(rounds[name]):
                for call in calls:
                    call()
            results[name].append((time.perf_counter() - begin) * 1e6 / (rounds[name] * len(calls)))
    return {name: summary(values) for name, values in results.items()}
