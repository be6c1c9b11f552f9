"""The npm packages `ws` and `watershed` as parties, in one Node process under remote control.

Installs the two packages beside this file when they are missing or the lock file has changed. Trusts peer.js;
never waits longer than `LIMIT` for an answer.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import shutil
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

from tests.support import LIMIT
from tests.support.parties import Ending, Feature, Message, Refused

HERE = Path(__file__).resolve().parent
MODULES = HERE / "node_modules"
INSTALL_LIMIT = 120.0

Library = Literal["ws", "watershed"]
FEATURES: dict[Library, frozenset[Feature]] = {
    "ws": frozenset(Feature) - {Feature.REFUSAL},
    "watershed": frozenset({Feature.PING, Feature.ABORT, Feature.REFUSAL}),
}


def install() -> None:
    """Install the two packages with npm, exactly as the lock file says, unless that has been done already."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise AssertionError(
                f"{program} is not installed: the interoperability tests talk to two npm packages. Install"
                " Node.js 18 or newer with npm (Debian: apt-get install nodejs npm), or set"
                " WATERSHED_MW_NO_NODE=1 to leave these tests out."
            )
    wanted = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()
    stamp = MODULES / ".installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    result = subprocess.run(
        ["npm", "ci", "--no-progress"], cwd=HERE, capture_output=True, text=True, timeout=INSTALL_LIMIT
    )
    assert result.returncode == 0, f"npm ci in {HERE.name} failed:\n{result.stdout}{result.stderr}"
    stamp.write_text(wanted)


class Node:
    """The Node process: `ask` sends a request and waits for its answer; requests may overlap."""

    def __init__(self) -> None:
        install()
        self._process = subprocess.Popen(
            # node-watershed 0.4.1 still says `new Buffer`, which works and warns.
            ["node", "--no-deprecation", str(HERE / "peer.js")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            future = self._waiting.pop(answer["id"])
            if "error" in answer:
                future.set_exception(AssertionError(f"peer.js: {answer['error']}"))
            else:
                future.set_result(answer["result"])
        for future in self._waiting.values():
            future.set_exception(AssertionError("peer.js has ended; see its error output above"))

    def ask(self, operation: str, **rest: object) -> Any:
        future: Future[Any] = Future()
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = future
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"id": number, "operation": operation, **rest}) + "\n")
            self._process.stdin.flush()
        try:
            return future.result(LIMIT)
        except TimeoutError:
            raise AssertionError(f"peer.js did not answer {operation!r} within {LIMIT} s") from None

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(LIMIT)
        finally:
            self._process.kill()
            self._reader.join(LIMIT)
            self._process.stdout.close()


def _pack(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _ending(answer: Any) -> Ending:
    return Ending(answer["code"], answer["reason"], answer["reset"])


class NodeSession:
    def __init__(self, node: Node, answer: Any) -> None:
        self._node = node
        self._session: int = answer["session"]
        self.protocol: str | None = answer["protocol"]
        self.compressed: bool = answer["compressed"]

    def _ask(self, operation: str, **rest: object) -> Any:
        return self._node.ask(operation, session=self._session, **rest)

    def send(self, message: Message) -> None:
        binary = isinstance(message, bytes)
        data = message if isinstance(message, bytes) else message.encode()
        self._ask("send", data=_pack(data), binary=binary)

    def send_fragments(self, parts: Sequence[bytes], *, text: bool) -> None:
        self._ask("fragments", parts=[_pack(part) for part in parts], binary=not text)

    def receive(self) -> Message:
        answer = self._ask("receive")
        data = base64.b64decode(answer["data"])
        return data if answer["binary"] else data.decode()

    def ping(self, data: bytes) -> bytes:
        return base64.b64decode(self._ask("ping", data=_pack(data))["data"])

    def close(self, code: int | None = 1000, reason: str = "") -> None:
        self._ask("close", code=code, reason=reason)

    def abort(self) -> None:
        self._ask("abort")

    def ending(self) -> Ending:
        return _ending(self._ask("ended"))


class NodeClient:
    def __init__(self, node: Node, library: Library) -> None:
        self._node = node
        self._library = library
        self.name = f"npm-{library}"
        self.features = FEATURES[library]

    def open(self, url: str, protocols: Sequence[str] = (), *, compression: bool = False) -> NodeSession:
        answer = self._node.ask(
            "open", library=self._library, url=url, protocols=list(protocols), compression=compression
        )
        if "refused" in answer:
            raise Refused(answer["refused"])
        return NodeSession(self._node, answer)


class NodeServer:
    def __init__(self, node: Node, library: Library) -> None:
        self._node = node
        self.name = f"npm-{library}"
        self.features = FEATURES[library]
        self.url = f"ws://127.0.0.1:{node.ask('listen', library=library)['port']}"

    def ending(self, path: str) -> Ending:
        return _ending(self._node.ask("ending", path=path))
