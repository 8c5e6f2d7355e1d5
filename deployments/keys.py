"""API keys: who may ask. Read once at start, kept as SHA-256 digests, and never shown.

A file has one key a line, a variable of the environment one in each line or between commas:

    KEY
    NAME KEY
    NAME TENANT KEY

KEY is the key itself, or `sha256:` and the 64 hexadecimal digits of its digest, so that no secret
need lie on a disk. `#` after a space begins a comment. A key without a name is called after its
place.
"""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from medha_actors.config import ApiKeysConfig
from medha_actors.errors import ConfigError

MAX_KEYS: Final = 1024  # each is compared with each request's: 0.2 ms at most
_MAX_BYTES: Final = 2**20
_COMMENT: Final = re.compile(r"(?:^|\s)#.*")
_NAME: Final = re.compile(r"[\w.@:/-]{1,64}", re.ASCII)
_PLAIN: Final = re.compile(r"[\x21-\x7e]{16,512}")
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Key:
    """One key: whose it is, and what is kept of it."""

    name: str
    tenant: str
    digest: bytes = field(repr=False)


class Keys:
    """The keys of one server."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, secret: bytes) -> Key | None:
        """Whose key this is. Takes as long for a right one as for a wrong one, wherever it
        stands."""
        digest = sha256(secret).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def load_keys(
    config: ApiKeysConfig, environment: Mapping[str, str] = os.environ
) -> Keys | None:
    """None: no keys are configured, and everybody may ask. Raises ConfigError, which names the
    place and never the key."""
    keys: list[Key] = []
    if config.file is not None:
        keys += _parse(_read(Path(config.file)).splitlines(), "api_keys.file: line")
    if config.environment is not None:
        name = config.environment
        if name not in environment:
            raise ConfigError(
                f"args: api_keys.environment: there is no variable {name}"
            )
        entries = re.split(r"[\n,]", environment[name])
        keys += _parse(entries, f"api_keys.environment: {name}, entry")
    if config.file is None and config.environment is None:
        return None
    if not keys:
        raise ConfigError("args: api_keys: there is no key, so nobody could ask")
    if len(keys) > MAX_KEYS:
        raise ConfigError(
            f"args: api_keys: has {len(keys)} keys, at most {MAX_KEYS} are allowed"
        )
    _check_different(keys)
    return Keys(keys)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise ConfigError(
            f"args: api_keys.file: {path}: {error.strerror or error}"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"args: api_keys.file: {path} is not a text in UTF-8"
        ) from None
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"args: api_keys.file: {path} is over {_MAX_BYTES} bytes")
    return text


def _parse(entries: Iterable[str], what: str) -> list[Key]:
    keys = []
    for number, entry in enumerate(entries, 1):
        words = _COMMENT.sub("", entry).split()
        if words:
            keys.append(_key(words, number, f"args: {what} {number}"))
    return keys


def _key(words: list[str], number: int, where: str) -> Key:
    *owner, secret = words
    if len(owner) > 2:
        raise ConfigError(
            f"{where} has {len(words)} words, allowed is [NAME [TENANT]] KEY"
        )
    if not all(_NAME.fullmatch(word) for word in owner):
        raise ConfigError(
            f"{where}: a name has 1 to 64 letters, digits or any of . @ : / _ -"
        )
    name = owner[0] if owner else f"key-{number}"
    return Key(name, owner[-1] if owner else name, _digest(secret, where))


def _digest(secret: str, where: str) -> bytes:
    if secret.startswith("sha256:"):
        match = _DIGEST.fullmatch(secret.lower())
        if match is None:
            raise ConfigError(
                f"{where}: after sha256: there must be 64 hexadecimal digits"
            )
        digest = bytes.fromhex(match[1])
        if digest == sha256(b"").digest():
            raise ConfigError(f"{where}: this is the digest of nothing")
        return digest
    if not _PLAIN.fullmatch(secret):
        raise ConfigError(f"{where}: a key has 16 to 512 characters of printable ASCII")
    return sha256(secret.encode()).digest()


def _check_different(keys: list[Key]) -> None:
    owners: dict[bytes, str] = {}
    names: set[str] = set()
    for key in keys:
        if key.name in names:
            raise ConfigError(f"args: api_keys: {key.name} is the name of two keys")
        if key.digest in owners:
            raise ConfigError(
                f"args: api_keys: {owners[key.digest]} and {key.name} are one key"
            )
        names.add(key.name)
        owners[key.digest] = key.name
