"""Which models an application serves: the one whose configuration its `args` are, or several, whose
configurations stand under `models`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from medha_actors.bounds import explained
from medha_actors.config import MedhaConfig, load
from medha_actors.errors import ConfigError
from medha_actors.quantities import Options

_NO_NAME: Final = re.compile(r"[^A-Za-z0-9._-]+")  # of what Serve lets stand in names


class SeveralConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True
):
    """The `args` of several models behind the same ingress replicas."""

    models: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=64)]
    # of the ingress replicas: passed on to serve.deployment
    deployment_config: Options = msgspec.field(default_factory=dict)


class Entry(NamedTuple):
    """One model: the `args` that it would have alone, and what they say."""

    args: dict[str, Any]
    config: MedhaConfig

    @property
    def model_id(self) -> str:
        return self.config.model_loading_config.model_id


class Catalogue(NamedTuple):
    """`several`: clients choose by `model`, and each model has grids of its own."""

    entries: list[Entry]
    several: bool
    deployment_config: Mapping[str, Any]

    @property
    def drain_timeout_s(self) -> float:
        """The longest that one of them wants."""
        return max([entry.config.drain_timeout_s for entry in self.entries])


def catalogue_of(args: dict[str, Any]) -> Catalogue:
    """From the `args` of an application; raises ConfigError."""
    if "models" not in args:
        config = load(args)
        return Catalogue([Entry(args, config)], False, config.deployment_config)
    try:
        asked = msgspec.convert(args, SeveralConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(explained(str(error), args, SeveralConfig)) from None
    entries = [_entry(number, each) for number, each in enumerate(asked.models)]
    _check_names(entries)
    return Catalogue(entries, True, asked.deployment_config)


def grids_name(entry: Entry) -> str:
    """Of the deployment of a model's grids, where there are several."""
    return f"grids-{_NO_NAME.sub('-', entry.model_id)}"


def _entry(number: int, args: dict[str, Any]) -> Entry:
    fleet = args.get("fleet") or {}
    if isinstance(fleet, dict) and fleet.get("num_grids") is None:
        args = {**args, "fleet": {**fleet, "num_grids": 1}}
    try:
        entry = Entry(args, load(args))
    except ConfigError as error:
        wrong = error.message.removeprefix("args: ")
        raise ConfigError(f"args: models[{number}]: {wrong}") from None
    if entry.config.deployment_config:
        raise ConfigError(
            f"args: models[{number}].deployment_config: is that of the ingress replicas, which all "
            "models share: write it beside `models`"
        )
    return entry


def _check_names(entries: list[Entry]) -> None:
    known: dict[str, str] = {}
    for entry in entries:
        name = grids_name(entry)
        if name in known:
            raise ConfigError(
                f"args: models: {known[name]!r} and {entry.model_id!r} are too alike; give each a "
                "model_id of its own"
            )
        known[name] = entry.model_id
