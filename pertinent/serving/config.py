"""The settings of the server."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pertinent.config import Config
from pertinent.serving.caching import CacheSettings
from pertinent.serving.limits import Limits
from pertinent.serving.queue import QueueConfig


class ServeConfig(Config):
    """Settings of ``pertinent serve``.

    ``model`` is the default model, under ``name`` or its folder's name; ``models`` and ``indexes`` are more
    of them by name. ``behavior`` has the neighbors of queries and items of its index, made with
    ``behavior_model`` (left out: with the default model itself), which scores pairs that have any. ``keys``
    are SHA-256 digests of API keys by name, ``keys_file`` has more of them and is read again while the server
    runs. ``admin_port`` takes metrics, configuration and pages off ``port``. ``watch_seconds`` is how often
    folders and keys are looked at for new versions, 0 for never. ``bad_items`` says what becomes of a request in which
    some items have no text or an id that the index does not have: they come last or are left out, or it is refused.
    With ``stale_hours`` no requests should come any more once an index, hot pairs or behavior are older.
    ``cors_origins`` are the sites whose pages may ask and read answers in a browser. Above ``unknown_share`` of
    item ids that the index does not have, health says degraded. A process with more than ``worker_memory_mb`` of its
    own refuses new requests, and leaves for another one where that does not help.
    """

    model: str | None = None
    name: str | None = Field(None, min_length=1)
    index: str | None = None
    models: dict[str, str] = {}
    indexes: dict[str, str] = {}
    behavior: str | None = None
    behavior_model: str | None = None
    any_model: bool = False
    bad_items: Literal["lowest", "reject"] = "lowest"
    backend: str | None = None
    threads: int | None = Field(None, ge=1)
    workers: int = Field(1, ge=1)
    worker_memory_mb: int | None = Field(None, ge=1)
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65_535)
    admin_port: int | None = Field(None, ge=0, le=65_535)
    admin_host: str = "127.0.0.1"
    keys: dict[str, str] = {}
    keys_file: str | None = None
    insecure: bool = False
    tls_certificate: str | None = None
    tls_key: str | None = None
    watch_seconds: float = Field(10.0, ge=0)
    drain_delay: float = Field(5.0, ge=0)
    drain_timeout: float = Field(20.0, gt=0)
    access_log: bool = True
    log_queries: bool = False
    tei_metrics: bool = False
    tracing: bool = False
    playground: bool = True
    cors_origins: list[str] = []
    unknown_share: float = Field(0.2, ge=0.0, le=1.0)
    stale_hours: float | None = Field(None, gt=0)
    limits: Limits = Limits()
    queue: QueueConfig = QueueConfig()
    cache: CacheSettings = CacheSettings()

    def without_secrets(self) -> dict[str, Any]:
        """The settings as they may be shown: of the keys only their names."""
        shown = self.plain()
        cache = {**shown["cache"], "redis": "set" if self.cache.redis else None}  # may hold a password
        return {**shown, "keys": sorted(self.keys), "tls_key": "set" if self.tls_key else None, "cache": cache}
