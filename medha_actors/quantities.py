"""The kinds of values that the configuration tree has, with their bounds; what only one field has
stands at the field."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta

Policy = Literal[
    "fcfs",
    "fcfs_chunked",
    "edf",
    "lrs",
    "lars",
    "hrrn",
    "spf",
    "relegation",
    "dspf",
    "aspf",
    "boost",
    "dboost",
    "preflow",
    "dpreflow",
    "guardc",
]
DType = Literal["auto", "float32", "bfloat16", "float16"]

Count = Annotated[int, Meta(ge=1, le=65_536)]
Tokens = Annotated[int, Meta(ge=1, le=2**30)]
ChunkTokens = Annotated[int, Meta(ge=1, le=2**20)]
Bytes = Annotated[int, Meta(ge=1, le=2**50)]
Seconds = Annotated[float, Meta(ge=0.0, le=86_400.0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
RopeFactor = Annotated[float, Meta(ge=0.0, le=1e6)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Place = Annotated[str, Meta(min_length=1, max_length=4096)]  # a path, a hub id or a URL
LOOPBACK: Final = "loopback"
Origin = Annotated[
    str,
    Meta(max_length=256, pattern=r"^(loopback|\*|[a-z][a-z0-9+.-]*://[^\s/*?#@]+)$"),
]
Variable = Annotated[str, Meta(max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Options = Annotated[dict[str, Any], Meta(max_length=256)]
