"""API keys: kept as SHA-256 digests, compared in constant time, told apart by name."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping

from pertinent.errors import ConfigError
from pertinent.serving.messages import WireError

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


class Keys:
    """The keys that may ask. No keys: everyone may, with any token or none."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        check_keys(keys)
        self._digests = [(name, digest.encode("ascii")) for name, digest in keys.items()]

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
