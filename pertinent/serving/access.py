"""Who may ask: API keys, kept as SHA-256 digests and compared in constant time, and the pages of which sites."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pertinent.errors import ConfigError, shorten
from pertinent.serving.limits import Headers
from pertinent.serving.messages import WireError

_ORIGIN = re.compile(r"https?://[a-z0-9.\-]+(:\d{1,5})?|https?://\[[0-9a-f:]+\](:\d{1,5})?")
# What a page may send beside the simple headers, what it may read, and for how many seconds it need not ask again.
_MAY_SEND = b"authorization, content-type, content-encoding, x-api-key, x-request-id, traceparent"
_MAY_READ = b"x-request-id, retry-after, retry-after-ms, server-timing, x-truncated, traceparent"
_AGE = b"600"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def key_digest(key: str) -> str:
    """The form in which a key stands in a configuration: hexadecimal SHA-256.

    >>> key_digest("secret")[:12]
    '2bb80d537b1d'
    """
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def check_keys(keys: Mapping[str, str]) -> None:
    """Raises ConfigError for a key that is not a SHA-256 digest; the value is not shown, as it may be the key."""
    for name, digest in keys.items():
        if not _DIGEST.fullmatch(digest):
            raise ConfigError(
                f"keys.{name}: is not 64 hexadecimal digits; give the SHA-256 of the key, not the key: "
                'printf %s "$KEY" | sha256sum'
            )


def read_keys(path: str | Path) -> dict[str, str]:
    """Digests by name from a file of lines ``name=SHA256``; blank lines and those with ``#`` are skipped.

    Raises ConfigError for a file without keys: it would open the server to everyone.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"keys_file: {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    pairs = [line.partition("=") for line in lines if line.strip() and not line.lstrip().startswith("#")]
    keys = {name.strip(): digest.strip() for name, _, digest in pairs}
    if not keys:
        raise ConfigError(f"keys_file: {path} has no keys; give lines of the form NAME=SHA256")
    check_keys(keys)
    return keys


class Keys:
    """The keys that may ask: ``keys``, and those of a file. Neither: everyone may, with any token or none."""

    def __init__(self, keys: Mapping[str, str], file: str | None = None) -> None:
        check_keys(keys)
        self._given, self._file = dict(keys), file
        self._stamp: tuple[int, int, int] | None = None
        self._digests: list[tuple[str, bytes]] = []
        self.reload()

    def reload(self) -> bool:
        """Read the file again where it has changed; True if it gave keys. Raises ConfigError and keeps the old."""
        stamp = self._stamp_now()
        if self._digests and stamp == self._stamp:
            return False
        self._stamp = stamp
        keys = {**self._given, **({} if self._file is None else read_keys(self._file))}
        self._digests = [(name, digest.encode("ascii")) for name, digest in keys.items()]
        return bool(keys)

    @property
    def names(self) -> list[str]:
        """The names of the keys."""
        return sorted(name for name, _ in self._digests)

    def _stamp_now(self) -> tuple[int, int, int] | None:
        try:
            stat = None if self._file is None else Path(self._file).stat()
        except OSError:
            return (0, 0, 0)
        return None if stat is None else (stat.st_ino, stat.st_mtime_ns, stat.st_size)

    def name_of(self, headers: list[tuple[bytes, bytes]]) -> str:
        """The name of the key in the headers, empty where no keys are set. Raises WireError, 401."""
        if not self._digests:
            return ""
        given = _token(headers)
        digest = hashlib.sha256(given).hexdigest().encode("ascii")
        found = ""
        for name, known in self._digests:  # all of them: the time tells nothing
            if hmac.compare_digest(digest, known):
                found = name
        if not found or not given:
            problem = "the API key is not known" if given else "an API key is needed"
            raise WireError(401, f"{problem}; send it as: Authorization: Bearer KEY", "unauthorized")
        return found


def _token(headers: list[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            return token.strip() if scheme.lower() == b"bearer" else b""
        if name in (b"x-api-key", b"api-key"):
            return value.strip()
    return b""


class Origins:
    """The sites whose pages may ask from a browser; any other page gets no header that would let it read.

    Raises ConfigError for what is no origin, and for ``*``: what only a network may reach is not for every page.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"cors_origins: {shorten(origin)} is not an origin; "
                    "give scheme, host in lower case and port, such as https://shop.example or http://localhost:3000"
                )
        self._allowed = frozenset(origin.encode("ascii") for origin in origins)

    def headers(self, asked: Headers, allow: bytes | None = None) -> Headers:
        """The headers that let the asking page read the answer; ``allow`` are the methods, for what it asks before."""
        if not self._allowed:
            return []
        told = [(b"vary", b"origin")]
        origin = next((value for name, value in asked if name == b"origin"), b"")
        if origin not in self._allowed:
            return told
        told.append((b"access-control-allow-origin", origin))
        if allow is None:
            return [*told, (b"access-control-expose-headers", _MAY_READ)]
        return [
            *told,
            (b"access-control-allow-methods", allow),
            (b"access-control-allow-headers", _MAY_SEND),
            (b"access-control-max-age", _AGE),
        ]
