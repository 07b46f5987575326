"""The passes, in the order in which they run: read `PIPELINE` from top to bottom.

Those that are optional run where they are asked for: by name, by name with parameters ("quantize_tables:bits=4"), or as
an object that holds them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias

from recopt.errors import OptionError
from recopt.hosts.base import Host
from recopt.rewrite import Context

from . import (
    clean_up,
    fold_constants,
    fuse_attention,
    fuse_attention_weights,
    fuse_dot_interaction,
    fuse_embedding_bags,
    fuse_gru,
    fuse_layer_norm,
    fuse_linear,
    fuse_pointwise,
    fuse_target_attention,
    hint_repeats,
    join_residuals,
    keep_empty_batches,
    merge_tables,
    pad_features,
    project_queries,
    separate_residuals,
    separate_softmaxes,
    share_copies,
    simplify_layout,
    stack_columns,
)
from .cartesian_tables import CartesianTables
from .dedupe_ids import DedupeIds
from .hot_rows import HotRows
from .quantize_tables import QuantizeTables


class Pass(Protocol):
    """What a pass is: a module, or an object of a dataclass whose fields are its parameters."""

    @property
    def name(self) -> str: ...
    @property
    def run(self) -> Run: ...


class Run(Protocol):
    def __call__(self, host: Host, context: Context) -> bool: ...


Asked: TypeAlias = str | Pass
DEFAULT = "default"  # stands for all passes that are not optional

PIPELINE: tuple[Pass, ...] = (
    clean_up,
    share_copies,  # before lookups are what several read
    fuse_target_attention,
    fuse_attention,
    fuse_embedding_bags,
    CartesianTables(),
    HotRows(),
    QuantizeTables(),
    DedupeIds(),
    merge_tables,
    hint_repeats,
    fuse_layer_norm,  # before its sum of squares is a dot product of two
    fuse_dot_interaction,
    fuse_gru,
    project_queries,
    fuse_attention_weights,  # of products with queries that were projected
    fuse_linear,
    stack_columns,
    fuse_pointwise,
    join_residuals,
    simplify_layout,
    fold_constants,
    separate_residuals,
    separate_softmaxes,
    keep_empty_batches,
    pad_features,
)


def is_optional(item: Pass) -> bool:
    """Whether a pass runs only where it is asked for."""
    return dataclasses.is_dataclass(item)


def is_lossy(item: Pass) -> bool:
    """Whether what a pass makes computes the same within a bound alone."""
    return bool(getattr(item, "lossy", False))


def asked(passes: Sequence[Asked] | None) -> list[Pass]:
    """The passes asked for, in the pipeline's order. Raises OptionError for one that does not exist, for parameters
    that it does not have."""
    if isinstance(passes, str) or not isinstance(passes, Iterable | None):
        raise OptionError(f"passes are a list of names or objects, not {passes!r}")
    chosen: dict[str, Pass] = {}
    for item in (DEFAULT,) if passes is None else passes:
        if item == DEFAULT:
            chosen |= {p.name: p for p in PIPELINE if not is_optional(p)}
        else:
            found = _named(item) if isinstance(item, str) else item
            if isinstance(found, type) or not isinstance(getattr(found, "name", None), str):
                raise OptionError(f"a pass is a name or an object that has one, not {item!r}")
            chosen[found.name] = found
    order = [p.name for p in PIPELINE]
    unknown = [name for name in chosen if name not in order]
    if unknown:
        raise OptionError(f"no pass is called {unknown[0]!r}; there are: {', '.join(order)}")
    return sorted(chosen.values(), key=lambda p: order.index(p.name))


def _named(text: str) -> Pass:
    """ "quantize_tables:bits=4,error=0.01" """
    name, colon, rest = text.partition(":")
    found = next((p for p in PIPELINE if p.name == name.replace("_", "-")), None)
    if found is None:
        raise OptionError(f"no pass is called {name!r}; there are: {', '.join(p.name for p in PIPELINE)}")
    if not colon:
        return found
    fields: dict[str, Any] = {}
    if is_optional(found):
        fields = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}  # type: ignore[arg-type]  # a dataclass
    given: dict[str, Any] = {}
    for part in rest.split(","):
        key, _, value = part.partition("=")
        if key not in fields:
            known = ", ".join(fields) or "none"
            what = f"has no parameter {key!r}" if key else "lacks a parameter after the ':' or ','"
            raise OptionError(f"pass {found.name} {what}; there are: {known}")
        if key in given:
            raise OptionError(f"pass {found.name}: {key} is given twice")
        try:
            given[key] = type(fields[key])(value)
        except ValueError:
            raise OptionError(f"pass {found.name}: {key} is a {type(fields[key]).__name__}, not {value!r}") from None
    return dataclasses.replace(found, **given)  # type: ignore[type-var]  # a dataclass


__all__ = ["PIPELINE", "CartesianTables", "DedupeIds", "HotRows", "Pass", "QuantizeTables", "asked"]
