"""Scorers of set speed, and servers on the loopback."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
import uvicorn

from pertinent.artifact import Artifact
from pertinent.engine.index import IndexConfig, ItemIndex
from pertinent.engine.scorer import Scorer
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.records import Item, TokenBatch
from pertinent.serving.app import App, build_app
from pertinent.serving.config import ServeConfig
from pertinent.serving.registry import Registry, Served
from pertinent.serving.run import _settings, bind
from pertinent.serving.telemetry import EventLog


class SetSpeed:
    """A backend that takes a set time a token; the logit of a pair follows from its tokens alone."""

    name = "set-speed"

    def __init__(self, seconds: float = 0.0, workers: int = 2) -> None:
        self.seconds, self.workers = seconds, workers
        self.begun = 0
        self.batches: list[tuple[int, int]] = []
        self.hold = threading.Event()
        self.hold.set()

    def forward(self, batch: TokenBatch) -> Any:
        self.begun += 1
        self.hold.wait(20)
        self.batches.append(batch.token_ids.shape)
        time.sleep(self.seconds * batch.token_ids.size)
        sums = (batch.token_ids * batch.mask * (1 + batch.position_ids)).sum(axis=1)
        return np.sin(sums).astype(np.float32)


@pytest.fixture
def speed_scorer(tiny_pairs: PairTokenizer) -> Callable[..., Scorer]:
    """``speed_scorer(seconds, workers)``: a scorer over a backend of set speed."""

    def make(seconds: float = 0.0, workers: int = 2) -> Scorer:
        return Scorer(SetSpeed(seconds, workers), tiny_pairs, name="set-speed", version="0")

    return make


@pytest.fixture(scope="module")
def tiny_scorer(tiny_artifact: Artifact) -> Iterator[Scorer]:
    scorer = Scorer.load(tiny_artifact.path, threads=2)
    yield scorer
    scorer.close()


THRESHOLDS = {
    "for_recall": {"90%": 0.5, "95%": 0.4, "99%": 0.2},
    "table": [{"threshold": 0.1, "precision": 0.5, "recall": 0.9, "f1": 0.64, "kept": 0.8}],
}


class Lines:
    """A stream that keeps what the event log writes."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


class Running:
    """A server in a thread, on a port of its own."""

    def __init__(self, config: ServeConfig, models: Registry) -> None:
        self.lines = Lines()
        self.app: App = build_app(config, models, EventLog(self.lines))  # type: ignore[arg-type]
        self.socket = bind("127.0.0.1", 0)
        self.port: int = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = uvicorn.Server(uvicorn.Config(self.app, **_settings(config)))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)
        self.client = httpx2.Client(base_url=self.url, timeout=30, trust_env=False)

    def post(self, path: str, body: Any, **named: Any) -> httpx2.Response:
        return self.client.post(path, json=body, **named)

    def stop(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(10)
        self.socket.close()


@pytest.fixture(scope="module")
def tiny_index(tiny_pairs: PairTokenizer, tmp_path_factory: pytest.TempPathFactory) -> ItemIndex:
    titles = ["wireless earbuds", "usb cable", "tea pot green", "", "日本語 イヤホン", "coffee mug for men"]
    items = [Item(f"B{n}" if n % 2 else str(n), f"{titles[n % 6]} {n}") for n in range(200)]
    folder = tmp_path_factory.mktemp("index") / "index"
    return ItemIndex.build(items, tiny_pairs, folder, config=IndexConfig(progress=False))


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Running]]:
    """``start(scorer, index=None, **settings)``: a running server; all are stopped in the end."""
    running: list[Running] = []

    def run(scorer: Scorer, index: ItemIndex | None = None, **settings: Any) -> Running:
        config = ServeConfig(**{"watch_seconds": 0, "drain_timeout": 1.0, **settings})
        served = Served("tiny", scorer, index, THRESHOLDS)
        running.append(Running(config, Registry([served], any_model=config.any_model)))
        return running[-1]

    yield run
    for each in running:
        each.stop()


class Process:
    """``pertinent serve`` on a free port; ``url`` is known when it is ready."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "pertinent", "serve", "--port", "0", *arguments]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PERTINENT_")}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**clean, **environment}
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    @property
    def url(self) -> str:
        return self.lines[0].rsplit(" ", 1)[1]

    def events(self, name: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in list(self.lines) if line.startswith("{")]
        return [line for line in found if line["event"] == name]

    def wait_for(self, name: str, count: int = 1, seconds: float = 60) -> list[dict[str, Any]]:
        deadline = time.monotonic() + seconds
        while len(self.events(name)) < count:
            assert time.monotonic() < deadline and self.process.poll() is None, self.lines
            time.sleep(0.02)
        return self.events(name)

    def end(self, seconds: float = 20) -> int:
        self.process.terminate()
        return self.process.wait(seconds)


def _processes() -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*arguments: str, **environment: str) -> Process:
        started.append(Process(*arguments, **environment))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            workers = psutil.Process(each.process.pid).children(recursive=True)  # they have the same pipe
            for process in (each.process, *workers):
                process.kill()
        each.process.wait()
        assert each.process.stderr is not None and each.process.stdout is not None
        each._reader.join(5)
        each.process.stderr.close()
        each.process.stdout.close()


@pytest.fixture
def run() -> Iterator[Callable[..., Process]]:
    """``run(model, flag, ..., VARIABLE=value)``: the command in a process of its own; killed after the test."""
    yield from _processes()


@pytest.fixture(scope="module")
def run_shared() -> Iterator[Callable[..., Process]]:
    """As ``run``, for a process that the tests of a module share."""
    yield from _processes()


# The contrast of every text with what is behind it.
CONTRAST = """(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(part => part / 255).map(part =>
    part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4).reduce((sum, part, place) =>
    sum + part * [.2126, .7152, .0722][place], 0);
  const behind = node => {
    for (let each = node; each; each = each.parentElement) {
      const color = parse(getComputedStyle(each).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), low = [];
  let seen = 0;
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const told = walker.currentNode.data.trim() && !["SCRIPT", "OPTION"].includes(node.tagName);
    if (!told || !node.checkVisibility()) continue;
    const [one, other] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(one, other) + .05) / (Math.min(one, other) + .05);
    seen += 1;
    if (ratio < 4.5) low.push([node.className, walker.currentNode.data.trim().slice(0, 30), ratio]);
  }
  return {seen, low};
})()"""


class Page:
    """A page in a real Chromium, over the pipe that its debugger listens on."""

    def __init__(self, profile: Path) -> None:
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run", "--hide-scrollbars"]
        told, self._tell, heard, answer = (_high(end) for end in (*os.pipe(), *os.pipe()))
        # It reads its orders from descriptor 3 and answers on 4.
        wrapped = ["bash", "-c", f'exec "$@" 3<&{told} 4>&{answer}', "bash", *command]
        self._process = subprocess.Popen(
            wrapped, pass_fds=(told, answer), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(told)
        os.close(answer)
        self._heard = os.fdopen(heard, "rb")
        self._number, self._session, self._rest = 0, "", b""
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **named: Any) -> dict[str, Any]:
        """What the debugger answers to a command; uncaught errors and breaches of the policy are kept on the way."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": named}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._tell, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, (method, found)
                result: dict[str, Any] = found["result"]
                return result
            if found.get("method") == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(found["params"]["exceptionDetails"])[:2_000])
            if found.get("method") == "Log.entryAdded" and found["params"]["entry"]["source"] == "security":
                self.problems.append(found["params"]["entry"]["text"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._heard.fileno(), 1 << 20)
            assert part, "Chromium has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def js(self, expression: str) -> Any:
        """The value of an expression on the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 60.0) -> None:
        """Wait until an expression holds."""
        end = time.monotonic() + seconds
        while not self.js(expression):
            assert time.monotonic() < end, (expression, self.problems, self.js("document.body.innerText"))
            time.sleep(0.02)

    def open(self, url: str, width: int = 1280, dark: bool = False) -> None:
        """Load an address in a window of a width, and wait for its first results."""
        self.resize(width, dark)
        self.js("window.before = true")
        self.call("Page.navigate", url=url)
        self.until("!window.before && document.readyState === 'complete' && !!document.querySelector('[data-done]')")

    def resize(self, width: int, dark: bool = False) -> None:
        """Another window, light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def press(self, *keys: str) -> None:
        """Keys, one after the other."""
        for key in keys:
            text = {"text": "\r"} if key == "Enter" else {}
            for kind in ("keyDown", "keyUp"):
                self.call(
                    "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=_KEYS[key], **text
                )
                text = {}

    def point(self, selector: str) -> None:
        """Move the mouse to the middle of an element."""
        box = self.js(
            f"(box => [box.x + box.width / 2, box.y + box.height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])

    def contrast(self) -> dict[str, Any]:
        """How many texts are ``seen``, and those with too ``low`` a contrast to be read by everyone."""
        found: dict[str, Any] = self.js(CONTRAST)
        return found

    def shot(self, path: Path) -> None:
        """A picture of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        os.close(self._tell)
        self._heard.close()
        self._process.terminate()
        self._process.wait(20)


def _high(descriptor: int) -> int:
    """The same file under a number that is not in the way of 3 and 4."""
    found = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(descriptor)
    return found


_KEYS = {
    "Enter": 13,
    "Tab": 9,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Home": 36,
    "End": 35,
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of a browser that the tests of a module share; ``page.problems`` has what went wrong in it."""
    if shutil.which("chromium") is None:
        pytest.skip("needs Chromium")
    opened = Page(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()
