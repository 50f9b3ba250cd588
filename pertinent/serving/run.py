"""``pertinent serve``: open the models, bind the port, serve until told to leave."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import ipaddress
import json
import logging
import math
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import uvicorn
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from pertinent.engine.backends import available_cores
from pertinent.errors import ConfigError, PertinentError
from pertinent.serving.access import check_keys, read_keys
from pertinent.serving.app import App, build_app
from pertinent.serving.config import ServeConfig
from pertinent.serving.memory import check_start
from pertinent.serving.peers import Peers, metrics_socket
from pertinent.serving.registry import Registry, Source
from pertinent.serving.telemetry import EventLog

__all__ = ["ServeConfig", "Stopped", "check", "serve", "sources"]

_log = logging.getLogger(__name__)

# Of mallopt(3): blocks of at least so many bytes are mapped one by one.
_MMAP_THRESHOLD, _LARGE_BLOCK = -3, 2**20
_SETTINGS = "PERTINENT_SERVE_SETTINGS"
# Workers that may die before a start waits, the longest that it does, and the seconds without a death that end it.
_CRASHES, _LONGEST_REST, _CALM = 3, 30.0, 60.0
# How long a worker may take to open its models, and to leave beside the times that it has to drain: with the default
# times less than the 30 seconds that most supervisors give.
_START, _LEAVE = 600.0, 3.0
_ADMIN = "PERTINENT_SERVE_ADMIN_PORT"
# A folder of this run, for what workers tell each other: they share no memory.
_RUNTIME = "PERTINENT_SERVE_RUNTIME"
_RESTARTS_FILE, _LEAVING_FILE = "restarts", "leaving"


@dataclass(frozen=True, slots=True)
class Stopped:
    """The server has left."""

    url: str
    exit_code: int = 0

    def plain(self) -> dict[str, Any]:
        """JSON-able values."""
        return {"url": self.url, "stopped": True}


def serve(config: ServeConfig) -> Stopped:
    """Serve until SIGTERM or Ctrl-C. Raises ConfigError and ArtifactError for what stands in the way."""
    check(config)
    # Whoever waits for a connection's bytes gets the interpreter five times as soon as by default.
    sys.setswitchinterval(0.001)
    _return_large_blocks()
    # One thread of the tokenizer per scoring thread: they share the cores fairly then.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    listening = bind(config.host, config.port)
    sockets = [listening]
    try:
        if config.admin_port is not None:
            sockets.append(bind(config.admin_host, config.admin_port))
        url = _url(config, listening)
        exit_code = 0
        if config.workers > 1:
            _serve_workers(config, sockets, url)
        else:
            log = EventLog()
            _log_to(log)
            models = Registry.open(sources(config), config.any_model)
            check_start(config.worker_memory_mb)
            app = build_app(config, models, log)
            app.on_startup = lambda: _on_start(app)
            app.admin_port = _admin_port(sockets)
            _say(app.models.names, url)
            uvicorn.Server(uvicorn.Config(app, **_settings(config))).run(sockets=sockets)
            exit_code = app.exit_code
    finally:
        for each in sockets:
            each.close()
    return Stopped(url, exit_code)


def check(config: ServeConfig) -> None:
    """Raises ConfigError for settings that do not fit together or would open the server to strangers."""
    check_keys(config.keys)
    if config.keys_file is not None:
        read_keys(config.keys_file)
    hosts = [config.host, *([config.admin_host] if config.admin_port is not None else [])]
    open_to_all = [host for host in hosts if not _loopback(host)]
    if open_to_all and not config.keys and config.keys_file is None and not config.insecure:
        raise ConfigError(
            f"host {open_to_all[0]} can be reached from other machines and no API key is set; give keys, "
            "or --insecure where something else keeps strangers out"
        )
    if (config.tls_certificate is None) != (config.tls_key is None):
        raise ConfigError("TLS needs both tls_certificate and tls_key; give both or none")
    for name in (config.tls_certificate, config.tls_key):
        if name is not None and not Path(name).is_file():
            raise ConfigError(f"{name}: no such file; give a certificate and its key in PEM")
    cores = available_cores()
    if config.threads is not None and config.threads * config.workers > max(cores, config.threads):
        raise ConfigError(
            f"{config.workers} workers of {config.threads} threads are more than the {cores} cores of this process; "
            "leave threads out, or take fewer workers"
        )
    if config.cache.hot_pairs is not None and config.models and config.model is None and config.index is None:
        raise ConfigError("hot_pairs are for the default model, and only others are served; give a MODEL")
    if config.behavior is not None and config.index is None:
        raise ConfigError("behavior is known by item id: give --index too")
    if config.behavior_model is not None and config.behavior is None:
        raise ConfigError("behavior_model is what behavior was made with: give --behavior too")
    unknown = set(config.indexes) - set(config.models)
    if unknown:
        raise ConfigError(f"indexes.{min(unknown)}: there is no such model; models: {', '.join(config.models) or '-'}")


def sources(config: ServeConfig) -> list[Source]:
    """What to open, the default model first."""
    threads = config.threads or max(1, available_cores() // config.workers)
    model = None if config.model is None else Path(config.model)
    found = []
    if model is not None or not config.models or config.index is not None:
        name = config.name or ("pertinent" if model is None else model.resolve().name)
        index = None if config.index is None else Path(config.index)
        hot = None if config.cache.hot_pairs is None else Path(config.cache.hot_pairs)
        behavior = [None if folder is None else Path(folder) for folder in (config.behavior, config.behavior_model)]
        found.append(Source(name, model, index, config.backend, threads, hot, config.cache.token_mb, *behavior))
    for name, folder in config.models.items():
        if found and name == found[0].name:
            raise ConfigError(f"models.{name}: the default model has this name too; give it another with --name")
        index = Path(config.indexes[name]) if name in config.indexes else None
        tokens = config.cache.token_mb
        found.append(Source(name, Path(folder), index, config.backend, threads, token_mb=tokens))
    return found


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError where the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(2_048)
            found.setblocking(False)
        except OSError:
            found.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; give another --host or --port"
        ) from None
    return found


def worker_app() -> App:
    """The application of one of several worker processes, from the settings that the parent left."""
    sys.setswitchinterval(0.001)
    _return_large_blocks()
    config = ServeConfig.build(json.loads(os.environ[_SETTINGS]), source="pertinent serve")
    log = EventLog()
    _log_to(log)
    try:
        app = App(config, Registry.open(sources(config), config.any_model), log, _restarts)
    except (PertinentError, OSError) as error:  # what stands there is not what the others opened: they go on
        log.event("log", level="error", message=f"this worker cannot start: {error}")
        log.close()
        raise SystemExit(1) from None
    app.on_startup = lambda: _on_start(app)
    app.admin_port = json.loads(os.environ.get(_ADMIN, "null"))
    if _RUNTIME in os.environ:
        app.peers = Peers(Path(os.environ[_RUNTIME]), app.metrics.render)
    return app


class Rest:
    """How long the next start of a worker waits after others have died: not at all at first, then ever longer.

    >>> rest = Rest()
    >>> [rest.after(deaths=1, now=float(second)) for second in range(7)]
    [0.0, 0.0, 0.0, 2.0, 4.0, 8.0, 16.0]
    >>> rest.after(deaths=1, now=200.0)  # it went well in between
    0.0
    """

    def __init__(self) -> None:
        self._deaths, self._last, self._pause = 0, -math.inf, 0.0

    def after(self, deaths: int, now: float) -> float:
        """Seconds to wait now that so many more have died."""
        if now - self._last > self._pause + _CALM:
            self._deaths = 0
        self._deaths += deaths
        self._last = now
        self._pause = min(2.0 ** min(self._deaths - _CRASHES, 10), _LONGEST_REST) if self._deaths > _CRASHES else 0.0
        return self._pause


class Workers(Multiprocess):
    """Processes that are started again when they die or hang, and ever later when they keep doing so (``Rest``).

    So the others have the cores meanwhile, and the log stays readable. One that is told to leave and has not done so
    after ``leave_seconds`` is ended; when the parent is told a second time, all are.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], leave_seconds: float) -> None:
        super().__init__(config, sockets)
        self._leave_seconds = leave_seconds
        self._leaving: dict[Process, float] = {}  # and when each is ended
        self._born = WeakKeyDictionary[Process, float]()
        self._rest, self._noticed, self._restarts = Rest(), set[int | None](), 0
        self._resting_until = -math.inf

    def keep_subprocess_alive(self) -> None:
        """Start again what has died or hangs, unless that has to wait."""
        self._reap()
        if self.should_exit.is_set():
            return
        patience = self.config.timeout_worker_healthcheck
        lost = [place for place, each in enumerate(self.processes) if not each.is_alive(timeout=patience)]
        new = [each for each in (self.processes[place] for place in lost) if each.pid not in self._noticed]
        for each in new:
            _log.error("worker %s %s; another one is started", each.pid, _end_of(each))
            each.kill()
            each.join()
            _forget_metrics(each)
        now = time.monotonic()
        if new:
            self._restarts += len(new)
            _tell_restarts(self._restarts)
            # Those that left by themselves after a good while, for their size, are no reason to wait.
            failed = [each for each in new if each.process.exitcode != 0 or now - self._born.get(each, now) < _CALM]
            pause = self._rest.after(len(failed), now) if failed else 0.0
            self._resting_until = max(self._resting_until, now + pause)
            if pause:
                _log.error("workers keep dying; the next start waits %.0f s", pause)
        self._noticed = {self.processes[place].pid for place in lost}
        if now >= self._resting_until:
            for place in lost:
                self.processes[place] = self._started()

    def restart_all(self) -> None:
        """Bring up a new process for each, one after the other; the old one leaves when the new one answers."""
        for place, old in enumerate(self.processes):
            new = self._started()
            if not self._answers(new):
                new.kill()
                new.join()
                if not self._told_to_leave():
                    _log.error("a new worker did not start; the old ones stay")
                return
            self.processes[place] = new
            self._dismiss(old)
            while old in self._leaving and not self._told_to_leave():
                time.sleep(0.05)
                self._reap()

    def handle_ttou(self) -> None:
        """One process fewer, where there are several."""
        if self.processes_num > 1:
            self.processes_num -= 1
            self._dismiss(self.processes.pop())

    def terminate_all(self) -> None:
        """Tell all to leave."""
        for each in self.processes:
            self._dismiss(each)

    def join_all(self) -> None:
        """Wait for all that were told to leave; told again itself, it tells them again, and they cut what they do."""
        while self._leaving:
            if self._told_to_leave():
                self.signal_queue.clear()
                for each in self._leaving:
                    if each.process.is_alive() and each.pid is not None:
                        os.kill(each.pid, signal.SIGTERM)
            time.sleep(0.02)
            self._reap()

    def _started(self) -> Process:
        found = Process(self.config, self.sockets)
        found.start()
        self._born[found] = time.monotonic()
        return found

    def _dismiss(self, process: Process) -> None:
        process.terminate()
        self._leaving[process] = time.monotonic() + self._leave_seconds

    def _reap(self) -> None:
        """Take leave of those that are gone, and end those whose time is up."""
        for each, end in list(self._leaving.items()):
            if each.process.is_alive():
                if time.monotonic() < end:
                    continue
                _log.error("worker %s does not leave and is ended", each.pid)
                each.kill()
            each.join()
            _forget_metrics(each)
            del self._leaving[each]

    def _answers(self, new: Process) -> bool:
        """Whether a process that was started gets to answer."""
        end = time.monotonic() + _START
        ready = getattr(new, "is_ready", new.ping)  # older uvicorn only knows whether it runs
        while new.process.is_alive() and time.monotonic() < end and not self._told_to_leave():
            if ready(timeout=1):
                return True
            time.sleep(0.1)
        return False

    def _told_to_leave(self) -> bool:
        return bool({signal.SIGTERM, signal.SIGINT} & set(self.signal_queue))


def _serve_workers(config: ServeConfig, sockets: list[socket.socket], url: str) -> None:
    models = Registry.open(sources(config), config.any_model)  # what is wrong is said once, by the parent
    check_start(config.worker_memory_mb)
    names = models.names
    del models
    os.environ[_SETTINGS] = json.dumps(config.plain())
    os.environ[_ADMIN] = json.dumps(_admin_port(sockets))
    _say(names, url)
    settings = uvicorn.Config(
        "pertinent.serving.run:worker_app", factory=True, workers=config.workers, **_settings(config)
    )
    log = EventLog()
    _log_to(log)
    with contextlib.ExitStack() as stack:
        stack.callback(log.close)
        # No place to write: restarts are not told, and each worker's metrics by itself alone.
        with contextlib.suppress(OSError):
            folder = tempfile.TemporaryDirectory(prefix="pertinent-", ignore_cleanup_errors=True)
            os.environ[_RUNTIME] = stack.enter_context(folder)
            (Path(folder.name) / _RESTARTS_FILE).write_bytes(bytes(8))
        Workers(settings, sockets, config.drain_delay + config.drain_timeout + _LEAVE).run()


def _end_of(worker: Process) -> str:
    """What has become of a process that no longer answers."""
    code = worker.process.exitcode
    if code is None:
        return "does not answer and is ended"
    if code >= 0:
        return "has left" if code == 0 else f"ended with exit code {code}"
    why = " (most often a file that it maps was cut)" if -code == getattr(signal, "SIGBUS", None) else ""
    names = {each.value: each.name for each in signal.Signals}
    return f"was ended by {names.get(-code, f'signal {-code}')}{why}"


def _tell_restarts(count: int) -> None:
    with contextlib.suppress(OSError, KeyError):
        # In place: who reads it meanwhile has the number before or this one.
        file = os.open(Path(os.environ[_RUNTIME]) / _RESTARTS_FILE, os.O_WRONLY)
        try:
            os.write(file, count.to_bytes(8, "little"))
        finally:
            os.close(file)


def _forget_metrics(worker: Process) -> None:
    with contextlib.suppress(OSError, KeyError):
        metrics_socket(Path(os.environ[_RUNTIME]), worker.pid or 0).unlink()


def _takes_turn() -> bool:
    """Whether this worker may leave now: one at a time does, until it is gone."""
    try:
        file = os.open(Path(os.environ[_RUNTIME]) / _LEAVING_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (OSError, KeyError):
        return True  # no place to agree on it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return False
    return True  # the file stays open, and the turn is over when the process is


def _restarts() -> int:
    try:
        return int.from_bytes((Path(os.environ[_RUNTIME]) / _RESTARTS_FILE).read_bytes(), "little")
    except (OSError, KeyError):
        return 0


def _return_large_blocks() -> None:
    """Let glibc give large blocks back when they are freed.

    Left alone it raises the size from which it does so to that of the largest block freed, and arrays of models that
    were swapped out stay with the process, in as many places as threads have loaded models.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE_BLOCK)


def _settings(config: ServeConfig) -> dict[str, Any]:
    limits = config.limits
    return {
        "http": "pertinent.serving.protocol:Protocol",
        "ws": "none",
        "lifespan": "on",
        "interface": "asgi3",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": limits.idle_seconds,
        "timeout_graceful_shutdown": config.drain_timeout,
        "h11_max_incomplete_event_size": limits.header_bytes + limits.url_bytes,
        "ssl_certfile": config.tls_certificate,
        "ssl_keyfile": config.tls_key,
    }


def _on_start(app: App) -> None:
    _on_signals(app)
    loop = asyncio.get_running_loop()
    told = -math.inf

    def on_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal told
        error = context.get("exception")
        # The loop says so for each place in the listening socket's queue, thousands of times a second.
        if isinstance(error, OSError) and "socket" in context:
            if loop.time() - told < 1.0:
                return
            told = loop.time()
            app.log.event("refused", reason="no more connections can be opened", error=str(error))
            return
        loop.default_exception_handler(context)

    loop.set_exception_handler(on_fault)


def _on_signals(app: App) -> None:
    """SIGTERM and Ctrl-C drain and leave; a second one cuts what is under way; SIGHUP looks for new models."""
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)  # uvicorn has set its own just before
    if not isinstance(server, uvicorn.Server):
        return

    told = False

    def on_signal(delay: float) -> None:
        nonlocal told
        if told:
            server.should_exit = server.force_exit = True
            for request in server.server_state.tasks:
                request.cancel()
            return
        told = True
        app.exit_code = 0  # whatever it was leaving for, it was asked to
        leave(delay)

    def leave(delay: float) -> None:
        if app.draining:
            return
        app.draining = True
        app.log.event("draining", seconds=delay)
        loop.call_later(delay, close, server)

    def leave_for_another() -> bool:
        # Other workers take the connections that this one no longer takes; elsewhere a balancer has to notice first.
        if app.config.workers > 1 and not _takes_turn():
            return False
        leave(0.0 if app.config.workers > 1 else app.config.drain_delay)
        return True

    def close(server: uvicorn.Server) -> None:
        app.closing = True
        server.should_exit = True

    tasks: set[asyncio.Task[Any]] = set()

    def reload() -> None:
        app.reload_keys()
        task = loop.create_task(app.reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    app.leave = leave_for_another
    loop.add_signal_handler(signal.SIGTERM, on_signal, app.config.drain_delay)
    loop.add_signal_handler(signal.SIGINT, on_signal, 0.0)
    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, reload)


class _Bridge(logging.Handler):
    """Records of the standard logging as lines of the event log."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, asyncio.CancelledError):  # a second signal has cut what was under way: no fault of anyone
            return
        values = {"error": f"{type(error).__name__}: {error}"} if error is not None else {}
        self._log.event("log", level=record.levelname.lower(), message=record.getMessage(), **values)


def _log_to(log: EventLog) -> None:
    for name, level in (("pertinent", logging.INFO), ("uvicorn", logging.ERROR), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers = [_Bridge(log)]
        logger.propagate = False


def _say(names: Sequence[str], url: str) -> None:
    if sys.stderr is None:  # closed before the start
        return
    with contextlib.suppress(OSError, ValueError):  # nobody reads it, or its disk is full: no reason not to serve
        sys.stderr.write(f"pertinent serves {', '.join(names)} at {url}\n")
        sys.stderr.flush()


def _admin_port(sockets: Sequence[socket.socket]) -> int | None:
    return int(sockets[1].getsockname()[1]) if len(sockets) > 1 else None


def _url(config: ServeConfig, listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    scheme = "https" if config.tls_certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _loopback(host: str) -> bool:
    """Whether only this machine can reach an address.

    >>> _loopback("127.0.0.1"), _loopback("::1"), _loopback("localhost"), _loopback("0.0.0.0"), _loopback("")
    (True, True, True, False, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
