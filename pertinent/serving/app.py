"""The application: routes, limits, keys, and the one table from an error to a status.

Scoring routes are plain ASGI from the socket to the queue; what a dialect looks like is in ``wire``, what
may be sent in ``limits``, who may ask in ``access``.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from pertinent.errors import ConfigError, PertinentError, ScoringError
from pertinent.serving import behavior, caching, candidates, native, wire
from pertinent.serving.access import Keys, Origins
from pertinent.serving.config import ServeConfig
from pertinent.serving.limits import ClientGone, Limits, Receive, Sizes, check_head, check_request, read_body
from pertinent.serving.memory import EXIT_CODE, Memory, give_back, most_bytes, own_bytes
from pertinent.serving.messages import Answer, ErrorShape, Request, WireError
from pertinent.serving.openapi import openapi_document
from pertinent.serving.peers import Peers
from pertinent.serving.queue import Closed, DeadlinePassed, Refused, Result, ScoringQueue, Work, running_threads
from pertinent.serving.registry import Registry, Served
from pertinent.serving.telemetry import METRICS_TYPE, EventLog, Metrics
from pertinent.serving.tracing import TRACEPARENT, Tracing, traceparent

_log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Done = TypeVar("Done")

JSON = b"application/json"
PLAYGROUND = Path(__file__).parent / "playground" / "index.html"
API_PAGE = PLAYGROUND.with_name("api.html")
# The share of scores that may be no numbers before the whole answer is wrong.
NOT_FINITE_SHARE = 0.01
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
# Item ids after which their unknown share is told, and what is left of earlier ones after each request.
_IDS_SEEN, _FADING = 100, 0.99
# A scoring thread is given up for lost after so many seconds with one batch.
_STALLED = 60.0
# How often the process looks at its own size, in seconds.
_MEMORY_LOOK = 0.5
# Above its limit after so many looks in a row, with nothing under way, it stays there.
_MEMORY_LOOKS = 10
# Anyone may ask these, so that balancers need no key.
_OPEN = {
    "health",
    "livez",
    "readyz",
    "nim_live",
    "nim_ready",
    "oip_live",
    "oip_ready",
    "model_ready",
    "page",
    "api_page",
    "openapi",
}

# Where there is an admin port, only that has these.
_ADMIN = {"metrics", "config", "openapi", "page", "api_page", "candidates"}

# What an error becomes: status, code, and what the client reads (None: the error's own words).
ERRORS: tuple[tuple[type[BaseException], int, str, str | None], ...] = (
    (Refused, 429, "overloaded", None),
    (DeadlinePassed, 504, "deadline_passed", None),
    (Closed, 503, "shutting_down", None),
    (ScoringError, 500, "backend", None),
    (PertinentError, 500, "internal", "the request could not be answered"),
    (MemoryError, 500, "backend", "the request needs more memory than there is"),
    (Exception, 500, "internal", "the request could not be answered"),
)


def as_wire_error(error: BaseException) -> WireError:
    """Any error as one for the wire.

    >>> as_wire_error(DeadlinePassed("late")).status
    504
    """
    if isinstance(error, WireError):
        return error
    status, code, words = next((row[1:] for row in ERRORS if isinstance(error, row[0])), ERRORS[-1][1:])
    retry = error.retry_after if isinstance(error, (Refused, Closed)) else None
    return WireError(status, str(error) if words is None else words, code, retry_after=retry)


@dataclass(slots=True)
class Exchange:
    """One request on its way through the application, and what the log will say about it."""

    scope: Scope
    receive: Receive
    request_id: str
    started: float
    route: str = "other"
    dialect: str = ""
    shape: ErrorShape = "detail"
    key: str = ""
    scoring: bool = False  # it asks for scores
    read: bool = False  # the whole body has come
    admitted: bool = False  # memory was found for its body
    log: dict[str, Any] = field(default_factory=dict)
    span: Any = None  # of OpenTelemetry, where requests are traced

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """As they came, names in lower case."""
        return list(self.scope["headers"])

    def header(self, name: bytes) -> bytes:
        """The first header of a name, empty where there is none."""
        return next((value for key, value in self.scope["headers"] if key == name), b"")


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back."""

    body: bytes
    status: int = 200
    media: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


Handler = Callable[[Exchange, dict[str, str]], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A route of the table: who answers, under which name it is counted, and how its errors look."""

    handler: Handler
    template: str
    serves: str
    shape: ErrorShape


class App:
    """The ASGI application over served models. ``draining`` is set before it leaves, ``closing`` when it does."""

    def __init__(
        self,
        config: ServeConfig,
        models: Registry,
        log: EventLog | None = None,
        restarts: Callable[[], int] = int,
    ) -> None:
        self.config, self.models = config, models
        self._origins = Origins(config.cors_origins)  # before any thread runs: it may refuse
        self.limits: Limits = config.limits
        self.metrics = Metrics(config.tei_metrics, restarts)
        self.queue = ScoringQueue(config.queue, running_threads([each.scorer for each in models.all]), self.metrics)
        self.caches = caching.SharedCaches(config.cache)
        self.metrics.watch(self.queue, models, self.caches)
        self.log = log if log is not None else EventLog()
        self.draining = False
        self.closing = False
        self.on_startup: Callable[[], None] | None = None
        self.leave: Callable[[], bool] | None = None  # where it may leave now; set by whoever runs it
        self.exit_code = 0
        self.peers: Peers | None = None  # where there are several workers
        self.tracing = Tracing(package_version()) if config.tracing else None
        self.admin_port: int | None = None  # set by whoever binds it
        self.idle: dict[Any, None] = {}  # connections without a request, the longest idle first
        self._keys = Keys(config.keys, config.keys_file)
        self._asked_ids = (0.0, 0.0)  # item ids asked for of late, and those of them that no index had
        self._reloading = asyncio.Lock()
        self._searches = candidates.Searches()
        self._memory = Memory(config.worker_memory_mb)
        self._admitted = 0  # requests under way
        self._watchers: list[asyncio.Task[None]] = []
        self._sizes, self._urgent = Sizes(), 0  # what is known of bodies that have not been read
        self._exact, self._templates = self._routes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def reload(self, names: list[str] | None = None) -> dict[str, str]:
        """Open models again beside the old ones and swap them in; the old stay where that fails."""
        async with self._reloading:
            outcome = await asyncio.to_thread(self.models.reload, names)
        for name, result in outcome.items():
            ok = not result.startswith("failed")
            self.metrics.reloaded(ok)
            self.log.event("reload", model=name, ok=ok, outcome=result)
        return outcome

    def reload_keys(self) -> None:
        """Read the file of keys again where it has changed; keys that are wrong change nothing."""
        try:
            if self._keys.reload():
                self.log.event("keys", names=self._keys.names, ok=True)
        except ConfigError as error:
            self.log.event("keys", ok=False, outcome=str(error))

    def not_ready(self) -> str | None:
        """Why no requests should come, None if they should."""
        if self.draining:
            return "draining"
        limit, (_, _, oldest) = self.config.queue.overloaded_ms, self.queue.waiting
        if limit is not None and 1_000 * oldest > limit:
            return f"overloaded: a request has waited for {oldest:.1f} s"
        damaged = next((each.name for each in self.models.all if each.mapped.damaged is not None), None)
        if damaged is not None:
            return f"model {damaged} is damaged: a file that it reads from was cut or written to"
        return self._stale() or self.queue.stalled(_STALLED)

    def degraded(self) -> list[str]:
        """What is wrong though requests are answered: versions that are not taken, ids that the index does not have."""
        # Anyone may ask: why, with names of files, is in the log.
        found = [f"model {name}: its new version could not be taken" for name in self.models.failures]
        found += [
            f"model {name}: its hot pairs are of another version and not used"
            for name in self.models.without_hot_pairs()
        ]
        if self._memory.full:
            found.append("above worker_memory_mb: new requests are refused")
        asked, unknown = self._asked_ids
        if asked >= _IDS_SEEN and unknown / asked > self.config.unknown_share:
            found.append(f"{unknown / asked:.0%} of the item ids of late are not in the index")
        return found

    def _stale(self) -> str | None:
        """What is older than may be served, None for nothing."""
        if self.config.stale_hours is None:
            return None
        now = time.time()
        for served in self.models.all:
            for part, made in served.made.items():
                hours = (now - made) / 3_600
                if hours > self.config.stale_hours:
                    return f"stale: the {part} of model {served.name} is {hours:.1f} h old"
        return None

    async def close(self) -> None:
        """Stop watching, fail what still waits, write the last lines."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        if self.peers is not None:
            await self.peers.close()
        await asyncio.to_thread(self.queue.close)
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        await asyncio.to_thread(self.caches.close)
        self.log.close()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                if self.config.watch_seconds:
                    self._watchers.append(asyncio.create_task(self._watch(self.config.watch_seconds)))
                if self.config.worker_memory_mb is not None:
                    self._watchers.append(asyncio.create_task(self._watch_memory()))
                if self.peers is not None:
                    await self.peers.start()
                if self.on_startup is not None:
                    self.on_startup()
                served = {each.name: each.version for each in self.models.all}
                admin = {} if self.admin_port is None else {"admin_port": self.admin_port}
                self.log.event("ready", models=served, version=package_version(), **admin)
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                self.log.event("stopped")
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _watch(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                self.reload_keys()
                changed = await asyncio.to_thread(self.models.changed)
                if changed:
                    await self.reload(changed)
            except Exception as error:  # the next look may find it mended; without one nothing would be taken any more
                _log.error("looking for new versions failed", exc_info=error)

    async def _watch_memory(self) -> None:
        looks = 0
        while True:
            await asyncio.sleep(_MEMORY_LOOK)
            try:
                looks = await self._look_at_memory(looks)
            except Exception as error:  # such as no thread, just when memory is short
                _log.error("looking at memory failed", exc_info=error)

    async def _look_at_memory(self, looks: int) -> int:
        """After so many looks above the limit with nothing under way: one more, or none."""
        was, idle = self._memory.full, not (self._admitted or self.queue.waiting[0] or self._reloading.locked())
        if self._memory.exceeded and (idle or not was):  # a collection stops all threads: not twice a second under load
            await asyncio.to_thread(give_back)
        self._memory.full = self._memory.exceeded
        if self._memory.full != was:
            self.log.event("memory", full=self._memory.full, megabytes=(own_bytes() or 0) // 2**20)
        if not (self._memory.full and idle):
            return 0
        # What was taken on is done, and took nothing with it: this is here to stay.
        if looks + 1 >= _MEMORY_LOOKS and self.leave is not None and not self.draining and self.leave():
            self.exit_code = EXIT_CODE
            _log.error("more memory than worker_memory_mb is held for good; this process leaves")
        return looks + 1

    # --- from a request to a reply ---------------------------------------------------------------

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, _request_id(scope), time.monotonic())
        if self.tracing is not None:
            exchange.span = self.tracing.start(scope["method"], scope["headers"])
        close = False
        try:
            reply = await self._answer(exchange)
        except ClientGone:
            self._note(exchange, 499)
            return
        except asyncio.CancelledError:
            # The server leaves and waits no longer: at the end of its time to drain, or at a second signal.
            reply, close = self._error(exchange, Closed("the server is shutting down")), True
        except Exception as error:
            reply = self._error(exchange, error)
            # Nobody knows where the next request begins.
            close = reply.status in (400, 408, 414, 431) and not exchange.read
        finally:
            self._admitted -= exchange.admitted
        self._note(exchange, reply.status)
        await self._send(exchange, reply, send, close)

    async def _answer(self, exchange: Exchange) -> Reply:
        scope = exchange.scope
        check_head(scope, self.limits)
        path = wire.clean_path(scope["path"])
        methods, values = self._find(path)
        if methods is None:
            raise WireError(404, "there is no such path; see /openapi.json", "not_found")
        first = next(iter(methods.values()))
        exchange.route, exchange.shape = first.template, first.shape
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"]).encode()
        if method == "OPTIONS":
            return Reply(b"", 204, headers=((b"allow", allowed), *self._origins.headers(exchange.headers, allowed)))
        entry = methods.get(method)
        if entry is None:
            raise WireError(405, f"{path} takes {', '.join(methods)}", "method_not_allowed", param=allowed.decode())
        exchange.shape = entry.shape
        if self.admin_port is not None and entry.serves in _ADMIN and not self._is_admin(scope):
            raise WireError(404, "there is no such path on this port", "not_found")
        if entry.serves not in _OPEN:
            exchange.key = self._keys.name_of(scope["headers"])
        return await entry.handler(exchange, values)

    def _is_admin(self, scope: Scope) -> bool:
        server: tuple[str, int] | None = scope.get("server")
        return server is not None and server[1] == self.admin_port

    def _error(self, exchange: Exchange, error: Exception) -> Reply:
        found = as_wire_error(error)
        if found.status >= 500 and not isinstance(error, (WireError, DeadlinePassed, Closed)):
            _log.error("request %s failed", exchange.request_id, exc_info=error)
        if isinstance(error, Refused):
            self.metrics.shed(error.reason)
        if isinstance(error, DeadlinePassed):
            self.metrics.late(partial=False)
        shape = found.shape or exchange.shape
        exchange.log["code"] = found.code
        headers: list[tuple[bytes, bytes]] = []
        if found.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if found.status == 405 and found.param:
            headers.append((b"allow", found.param.encode()))
        if found.retry_after is not None:
            milliseconds = max(1_000, round(found.retry_after * 1000))
            headers.append((b"retry-after", str(-(-milliseconds // 1000)).encode()))
            headers.append((b"retry-after-ms", str(milliseconds).encode()))
        body = wire.error_body(found, shape, exchange.request_id)
        return Reply(body, wire.error_status(found, shape), headers=tuple(headers))

    async def _send(self, exchange: Exchange, reply: Reply, send: Send, close: bool) -> None:
        headers = [
            (b"content-type", reply.media),
            (b"content-length", str(len(reply.body)).encode()),
            (b"x-request-id", exchange.request_id.encode("ascii")),
            *reply.headers,
        ]
        if reply.status == 204:
            headers = headers[2:]
        else:
            headers += self._origins.headers(exchange.headers)
        if exchange.span is not None:
            headers.append((TRACEPARENT, traceparent(exchange.span)))
        if close or self.draining:
            headers.append((b"connection", b"close"))
        body = b"" if exchange.scope["method"] == "HEAD" else reply.body
        try:
            async with asyncio.timeout(self.limits.write_seconds):
                await send({"type": "http.response.start", "status": reply.status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
        except TimeoutError:
            _log.warning("request %s: the client does not read its answer", exchange.request_id)

    def _note(self, exchange: Exchange, status: int) -> None:
        self.metrics.answered(exchange.route, exchange.dialect, status)
        if exchange.scoring:
            self.metrics.asked(status, exchange.log.get("documents"), time.monotonic() - exchange.started)
        if self.tracing is not None:
            self.tracing.end(exchange.span, exchange.route, status, {"request_id": exchange.request_id, **exchange.log})
        if self.config.access_log:
            self.log.event(
                "request",
                request_id=exchange.request_id,
                method=exchange.scope["method"],
                route=exchange.route,
                status=status,
                milliseconds=round(1000 * (time.monotonic() - exchange.started), 2),
                **({"key": exchange.key} if exchange.key else {}),
                **exchange.log,
            )

    # --- routes ----------------------------------------------------------------------------------

    def _routes(self) -> tuple[dict[str, dict[str, _Entry]], list[tuple[re.Pattern[str], dict[str, _Entry]]]]:
        table: dict[str, dict[str, _Entry]] = {}

        def add(method: str, path: str, serves: str, handler: Handler, shape: ErrorShape = "detail") -> None:
            table.setdefault(path, {})[method] = _Entry(handler, path, serves, shape)

        plain: dict[str, Handler] = {
            "models": self._models,
            "info": self._info,
            "health": self._health,
            "metrics": self._metrics,
            "nim_live": self._nim_live,
            "nim_ready": self._nim_ready,
            "oip_live": self._live,
            "oip_ready": self._ready,
            "model_ready": self._ready,
        }
        for route in wire.ROUTES:
            handler = self._rerank(route) if route.serves == "score" else plain[route.serves]
            add(route.method, route.path, route.serves, handler, route.errors)
        add("POST", "/v1/relevance", "relevance", self._relevance)
        if self.config.playground:
            add("POST", "/v1/candidates", "candidates", self._candidates)
            add("GET", "/docs", "api_page", self._api_page)
        add("GET", "/livez", "livez", self._live)
        add("GET", "/readyz", "readyz", self._ready)
        add("GET", "/v1/config", "config", self._config)
        add("GET", "/openapi.json", "openapi", self._openapi)
        add("GET", "/", "page", self._page, "tei")
        exact = {path: methods for path, methods in table.items() if "{" not in path}
        templates = [(_pattern(path), methods) for path, methods in table.items() if "{" in path]
        return exact, templates

    def _find(self, path: str) -> tuple[dict[str, _Entry] | None, dict[str, str]]:
        methods = self._exact.get(path)
        if methods is not None:
            return methods, {}
        for pattern, methods in self._templates:
            match = pattern.fullmatch(path)
            if match is not None:
                return methods, match.groupdict()
        return None, {}

    def _rerank(self, route: wire.Route) -> Handler:
        async def handle(exchange: Exchange, values: dict[str, str]) -> Reply:
            exchange.scoring = True
            self._check_room(exchange, self.config.queue.deadline_ms)
            body = await self._body(exchange)
            began = time.perf_counter()
            request = wire.parse(route, body, wire.clean_path(exchange.scope["path"]))
            dialect = wire.DIALECTS[request.dialect]
            exchange.dialect, exchange.shape = dialect.name, dialect.errors
            check_request(request, self.limits)
            self._check_items("blank", "its text is null or blank", request.bad)
            self._sizes.note(exchange.route, len(body), len(request.documents))
            self._urgent = min(self._urgent, request.priority)
            served = self._whole(request.model)
            self._say(exchange, served, len(request.documents), request.query)
            work = _work(request, served)
            self.metrics.took("parse", time.perf_counter() - began)
            deadline = exchange.started + self.config.queue.deadline_ms / 1000
            result = await self._unless_gone(
                exchange, self._scored(served, work, exchange.key, deadline, partial=False)
            )
            began = time.perf_counter()
            answer = self._checked(request, result, served, exchange)
            headers = _headers(served, result, len(request.bad), request.repaired, request.unused)
            if dialect.errors == "tei":
                extra = wire.tei_headers(request, answer)
                headers += tuple((name.encode(), value.encode()) for name, value in extra.items())
            content = dialect.render(request, answer)
            self.metrics.took("write", time.perf_counter() - began)
            return Reply(content, headers=headers)

        return handle

    async def _relevance(self, exchange: Exchange, values: dict[str, str]) -> Reply:
        exchange.dialect, exchange.scoring = "relevance", True
        self._check_room(exchange, None)  # it may ask for a partial answer, which no deadline stands against
        content = await self._body(exchange)
        began = time.perf_counter()
        body, repaired = native.parse(content)
        served = self._whole(body.model)
        prepared = native.prepare(body, served, self.limits, repaired)
        self._check_items("unknown", "its id is not in the index", prepared.unknown.tolist())
        self._check_items("blank", "its text is null or blank", prepared.blank.tolist())
        self._sizes.note(exchange.route, len(content), len(prepared.work))
        self._say(exchange, served, len(prepared.work), body.query)
        limit = self.config.queue.deadline_ms
        deadline = exchange.started + min(limit, body.deadline_ms or limit) / 1000
        plan = native.behavior_plan(prepared, served)
        self.metrics.took("parse", time.perf_counter() - began)
        try:
            result, scores = await self._relevances(exchange, prepared, served, plan, deadline)
        except (Refused, DeadlinePassed, Closed, ClientGone, WireError):
            raise
        except Exception as error:
            if not body.fallback:
                raise
            _log.error("request %s: the model failed, word overlap stands in", exchange.request_id, exc_info=error)
            plan, result = None, Result.none(len(prepared.work))
            scores = result.logits
        self.metrics.bad("unknown", len(prepared.unknown))
        if body.texts is None:
            asked, unknown = self._asked_ids
            now = len(prepared.unknown)
            self._asked_ids = _FADING * asked + len(prepared.work) + now, _FADING * unknown + now
        if not result.scored.all():
            self.metrics.late(partial=True)
        began = time.perf_counter()
        told = (prepared, result, scores, served, exchange.request_id, plan)
        if body.tokens or (body.fallback and not result.scored.all()):
            # Tokens told for people, or word overlap of thousands of titles: other requests do not wait for it.
            reply = await asyncio.to_thread(_checked_reply, *told)
        else:
            reply = _checked_reply(*told)
        headers = _headers(served, result, len(prepared.blank) + len(prepared.unknown), repaired, [])
        written = native.encode(reply)
        self.metrics.took("write", time.perf_counter() - began)
        return Reply(written, headers=headers)

    async def _relevances(
        self,
        exchange: Exchange,
        prepared: native.Prepared,
        served: Served,
        plan: behavior.Plan | None,
        deadline: float,
    ) -> tuple[Result, NDArray[np.float32]]:
        """What became of the pairs of a request, and their probabilities."""
        partial = prepared.body.partial or prepared.body.fallback
        work = self._behaved(served, prepared.work, plan, exchange.key, deadline, partial)
        result = await self._unless_gone(exchange, work)
        scores, _ = self._scores(result, prepared.blank, served)
        return result, scores if plan is None else plan.relevance(scores)

    async def _candidates(self, exchange: Exchange, values: dict[str, str]) -> Reply:
        exchange.dialect = "candidates"
        body = candidates.parse(await self._body(exchange), self.limits.documents)
        served = self._whole(body.model)
        self._say(exchange, served, body.top, body.query)
        found = await self._unless_gone(exchange, self._searches.answer(body, served, exchange.request_id))
        return Reply(msgspec.json.encode(found))

    async def _scored(self, served: Served, work: Work, key: str, deadline: float, partial: bool) -> Result:
        caches = self.caches.of(served)
        return await caching.score(self.queue, caches, served, work, key, deadline, partial)

    async def _behaved(
        self, served: Served, work: Work, plan: behavior.Plan | None, key: str, deadline: float, partial: bool
    ) -> Result:
        """As ``_scored``, and pairs with neighbors by the model that reads them."""
        if plan is None:
            return await self._scored(served, work, key, deadline, partial)

        async def texts(pairs: NDArray[np.int64]) -> Result:
            return await self._scored(served, work.take(pairs), key, deadline, partial)

        return await behavior.score(self.queue, plan, len(work), texts, key, deadline, partial)

    def _check_items(self, reason: str, problem: str, places: list[int]) -> None:
        """Raises WireError for items that could only come last, where such requests are refused."""
        if places and self.config.bad_items == "reject":
            self.metrics.bad(reason, len(places))
            more = f", and of {len(places) - 1} more" if len(places) > 1 else ""
            raise WireError(422, f"item {places[0]}: {problem}{more}; this server refuses such items", "bad_items")

    def _check_room(self, exchange: Exchange, deadline_ms: int | None) -> None:
        """Raises Refused before a long body is read, where the queue would refuse what must be in it."""
        pairs = self._sizes.least(exchange.route, exchange.header(b"content-length"))
        if pairs:
            time_left = None if deadline_ms is None else deadline_ms / 1000
            self.queue.check_room(pairs, exchange.key, self._urgent, time_left)

    async def _body(self, exchange: Exchange) -> bytes:
        packed = bool(exchange.header(b"content-encoding"))
        size = most_bytes(exchange.header(b"content-length"), packed, self.limits.body_bytes)
        self._memory.check(size)
        exchange.admitted = True
        self._admitted += 1
        with self._memory.coming(size):
            body = await read_body(exchange.receive, exchange.headers, self.limits)
        exchange.read = True
        return body

    def _whole(self, name: str | None) -> Served:
        """The model of this name. Raises WireError where there is none, or where it can no longer be read."""
        found = self.models.get(name)
        found.check()
        return found

    def _say(self, exchange: Exchange, served: Served, documents: int, query: str) -> None:
        exchange.log |= {"dialect": exchange.dialect, "model": served.name, "documents": documents}
        if self.config.log_queries:
            exchange.log["query"] = query[:1_000].encode("utf-8", "replace").decode("utf-8")

    def _checked(self, request: Request, result: Result, served: Served, exchange: Exchange) -> Answer:
        if not request.truncate and result.truncated.any():
            place = int(np.flatnonzero(result.truncated)[0])
            raise WireError(
                422, f"text {place} with its query is longer than the model reads, and truncation is off", "too_long"
            )
        scores, logits = self._scores(result, np.array(request.bad, dtype=np.int64), served)
        seconds = {**result.seconds, "compute": result.seconds["score"]}
        return Answer(
            scores=scores,
            order=wire.rank_order(scores, request.top),
            logits=logits,
            truncated=int(result.truncated.sum()),
            tokens=result.tokens,
            request_id=request.request_id or exchange.request_id,
            model=request.model or served.name,
            version=served.version,
            created=int(time.time()),
            timings=seconds,
        )

    def _scores(
        self, result: Result, blank: NDArray[np.int64], served: Served
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probabilities and logits, all finite; what has none gets the lowest of the answer, and so do blank texts."""
        logits = result.logits
        broken = np.flatnonzero(~np.isfinite(logits) & result.scored)
        if len(broken) and len(broken) >= NOT_FINITE_SHARE * len(logits):
            self.metrics.bad("not_finite", len(broken))
            raise ScoringError(f"{len(broken)} of {len(logits)} scores are not finite")
        if len(broken) or len(blank):
            lowest = np.union1d(broken, blank)
            self.metrics.bad("not_finite", len(broken))
            self.metrics.bad("blank", len(blank))
            logits = logits.copy()
            finite = np.isfinite(logits) & result.scored
            logits[lowest] = logits[finite].min(initial=np.float32(np.inf)) if finite.any() else 0.0
        found = served.scorer.probabilities(logits)
        known = found if result.scored.all() else found[result.scored]

        def count() -> None:
            self.metrics.scored(len(logits), int(result.truncated.sum()), result.seconds)
            self.metrics.relevance(served.name, known, native.filter_threshold(served))

        asyncio.get_running_loop().call_soon(count)  # while the answer is on its way
        return found, logits

    async def _unless_gone(self, exchange: Exchange, work: Coroutine[Any, Any, Done]) -> Done:
        """What ``work`` gives; it is cancelled when the client closes the connection before."""
        own, left, over = asyncio.current_task(), False, False
        assert own is not None

        def leave(_: asyncio.Task[None]) -> None:
            nonlocal left
            if not over:  # both may end in one turn of the loop: then this comes when nobody waits any more
                left = True
                own.cancel()

        gone = asyncio.ensure_future(_gone(exchange.receive))
        gone.add_done_callback(leave)
        try:
            return await work
        except asyncio.CancelledError:
            if left and not own.uncancel():  # else the server cuts what is under way
                raise ClientGone from None
            raise
        finally:
            over = True
            gone.cancel()  # it ends in the next turn of the loop, which the answer need not wait for

    # --- beside scoring --------------------------------------------------------------------------

    async def _models(self, exchange: Exchange, values: dict[str, str]) -> Reply:
        created = int(min(each.loaded for each in self.models.all))
        return Reply(wire.render_models(self.models.names, created))

    async def _info(self, exchange: Exchange, values: dict[str, str]) -> Reply:
        served = self.models.get(None)
        body = wire.tei_info(
            model=served.name,
            version=served.version,
            max_input_length=served.scorer.pairs.config.length,
            max_batch_tokens=self.config.queue.batch_tokens,
            max_documents=self.limits.documents,
            max_concurrent_requests=self.config.queue.max_requests,
            threads=served.scorer.backend.workers,
            dtype="int8" if "int8" in served.scorer.backend.name else "float32",
            package_version=package_version(),
        )
        return Reply(body)

    async def _health(self, exchange: Exchange, values: dict[str, str]) -> Reply:
        reason = self.not_ready()
        if reason is not None:
            raise WireError(503, "unhealthy", "not_ready", shape="tei")
        return Reply(b"")

    async def _live(self, exchange: Exchange, values: dict[str, str]) -> Reply:
        reason = self.queue.stalled(_STALLED)
        return _state(reason, "live")

    async def _ready(self, exchange: Exchange, values: dict[str, str]) -> Reply:
        if "model" in values:
            self.models.get(values["model"])
        return _state(self.not_ready(), "ready", self.degraded())

    async def _nim_live(self, exchange: Exchange, values: dict[str, str]) -> Reply:
        stalled = self.queue.stalled(_STALLED)
        return Reply(wire.nim_health("live" if stalled is None else "not ready", stalled or "Service is live."))

    async def _nim_ready(self, exchange: Exchange, values: dict[str, str]) -> Reply:
        reason = self.not_ready()
        if reason is None:
            return Reply(wire.nim_health("ready", "Service is ready."))
        return Reply(wire.nim_health("not ready", f"Service is not ready: {reason}."), 503)

    async def _metrics(self, exchange: Exchange, values: dict[str, str]) -> Reply:
        told = await (asyncio.to_thread(self.metrics.render) if self.peers is None else self.peers.render())
        return Reply(told, media=METRICS_TYPE.encode())

    async def _config(self, exchange: Exchange, values: dict[str, str]) -> Reply:
        served = {each.name: each.version for each in self.models.all}
        shown = {**self.config.without_secrets(), "keys": self._keys.names}
        settings = {"settings": shown, "models": served, "failed_reloads": self.models.failures}
        return Reply(msgspec.json.encode(settings))

    async def _openapi(self, exchange: Exchange, values: dict[str, str]) -> Reply:
        return Reply(openapi_document(package_version(), secured=bool(self._keys.names)))

    async def _page(self, exchange: Exchange, values: dict[str, str]) -> Reply:
        if not self.config.playground or b"text/html" not in exchange.header(b"accept"):
            return await self._health(exchange, values)
        return _html(PLAYGROUND)

    async def _api_page(self, exchange: Exchange, values: dict[str, str]) -> Reply:
        return _html(API_PAGE)


def build_app(config: ServeConfig, models: Registry, log: EventLog | None = None) -> App:
    """The application over opened models; ``close`` it, or let the server's lifespan do so."""
    return App(config, models, log)


def _html(path: Path) -> Reply:
    policy = b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
    policy += b"; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    headers = ((b"content-security-policy", policy), (b"x-content-type-options", b"nosniff"))
    return Reply(path.read_bytes(), media=b"text/html; charset=utf-8", headers=headers)


def package_version() -> str:
    """The installed version of the package."""
    try:
        return version("pertinent")
    except PackageNotFoundError:
        return "0"


def _work(request: Request, served: Served) -> Work:
    most = request.max_tokens
    if most is not None and most >= served.scorer.pairs.config.item_length - 1:
        most = None  # the model reads no more than that anyway
    if request.queries is None:
        work = Work.of_texts(request.query, request.documents)
    else:
        places: dict[str, int] = {}
        rows = np.array([places.setdefault(query, len(places)) for query in request.queries], dtype=np.int64)
        work = Work(list(places), rows, titles=request.documents)
    return replace(work, max_tokens=most, priority=request.priority)


def _checked_reply(prepared: native.Prepared, result: Result, scores: Any, served: Served, *more: Any) -> Any:
    """The reply of the native route, which reads titles: not from a file that was cut meanwhile."""
    served.check()
    return native.reply(prepared, result, scores, served, *more)


def _headers(
    served: Served, result: Result, bad: int, repaired: int, unused: list[str]
) -> tuple[tuple[bytes, bytes], ...]:
    timing = ", ".join(f"{name};dur={1000 * value:.2f}" for name, value in result.seconds.items())
    headers = {
        "x-model-version": served.version,
        "server-timing": timing,
        "x-scored": str(int(result.scored.sum())),
        "x-truncated": str(int(result.truncated.sum())),
    }
    if result.cached is not None:
        headers["x-cached"] = str(int(result.cached.sum()))
    if bad:
        headers["x-bad-items"] = str(bad)
    if repaired:
        headers["x-repaired-surrogates"] = str(repaired)
    if unused:
        headers["x-unused-settings"] = ", ".join(unused)
    return tuple((name.encode("ascii"), value.encode("ascii", "replace")) for name, value in headers.items())


def _state(reason: str | None, good: str, degraded: Sequence[str] = ()) -> Reply:
    if reason is None:
        return Reply(msgspec.json.encode({"status": good, **({"degraded": degraded} if degraded else {})}))
    return Reply(msgspec.json.encode({"status": f"not {good}", "reason": reason}), 503)


def _pattern(template: str) -> re.Pattern[str]:
    """A template as a regular expression; a model's name may hold slashes.

    >>> _pattern("/v2/models/{model:path}/ready").fullmatch("/v2/models/a/b/ready").groupdict()
    {'model': 'a/b'}
    """
    before, _, rest = template.partition("{")
    name, _, after = rest.partition("}")
    return re.compile(f"{re.escape(before)}(?P<{name.partition(':')[0]}>.+){re.escape(after)}")


def _request_id(scope: Scope) -> str:
    given: bytes = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode("ascii") if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
