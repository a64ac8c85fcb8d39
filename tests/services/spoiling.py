"""An HTTP proxy on loopback that spoils requests to a store, as networks and busy servers do.

Whether a request is spoiled, and how, depends only on the seed, its verb, its target and how often it came. So requests
that run at once do not change each other's faults.

    with spoiling(s3, rate=0.2, seed=7) as proxy:            one in five, any fault
        for name, value in proxy.environment.items(): ...    what a program needs to go through the proxy
        proxy.spoil("PUT", "reset after", times=2)           the next two PUTs, whatever the rate
        proxy.requests["PUT"], proxy.faults["PUT", "500"]    counts

Verbs are GET, HEAD, PUT, POST and DELETE, with LIST, COPY and DELETE for what a store's protocol puts into others.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter, deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

FAULTS = ("503", "500", "reset before", "reset after", "cut")
"""Faults of a rate. `reset after`, `cut` and `stall` come after the server has carried out the request."""
OTHERS = ("stall", "429", "409", "400", "403", "401", "expired")
"""Faults to ask for by name: no answer until the client gives up, throttled, a conflict of two writers, a timeout that
the server reports, no right, which does not pass, and two answers to a token that has expired."""
_ANSWERS = {
    "503": ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "500": ("500 Internal Server Error", "InternalError", "We encountered an internal error. Please try again."),
    "403": ("403 Forbidden", "AccessDenied", "Access Denied"),
    "401": ("401 Unauthorized", "InvalidToken", "The token is not valid any more."),
    "expired": ("400 Bad Request", "ExpiredToken", "The provided token has expired."),
    "429": ("429 Too Many Requests", "TooManyRequests", "Please reduce your request rate."),
    "409": ("409 Conflict", "ConditionalRequestConflict", "A conflicting operation occurred. Please try again."),
    "400": ("400 Bad Request", "RequestTimeout", "Your socket connection to the server was not read from in time."),
}
_END = b"\r\n\r\n"
_HEAD_BYTES = 1 << 20


@dataclass(frozen=True)
class _Message:
    """A request or an answer: its first line and headers, and its body as it was sent."""

    head: bytes
    body: bytes = b""

    @property
    def first(self):
        """The words of the first line."""
        return self.head.partition(b"\r\n")[0].decode("latin-1").split(" ", 2)

    def header(self, name):
        """Return the value of a header; '' if it is absent."""
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.strip().lower() == name:
                return value.strip()
        return ""

    @property
    def verb(self):
        """What a request does: its method, or LIST, COPY, DELETE where the protocol puts these into another one."""
        method, target, *_ = self.first
        query = target.partition("?")[2].split("&")
        if any(self.header(f"x-{maker}-copy-source") for maker in ("amz", "goog", "ms")):
            return "COPY"
        if method == "GET" and any(one.startswith(("list-type=", "comp=list", "prefix=")) for one in query):
            return "LIST"
        if method == "POST" and any(one.startswith(("delete", "comp=batch")) for one in query):
            return "DELETE"
        return method


class Spoiling:
    """The proxy: its address, the faults to come, and counts of what passed."""

    def __init__(self, server, *, rate, verbs, faults, seed, stall_s):
        self._server, self._target = server, server.port
        self.rate, self.verbs, self.fault_kinds, self.seed, self.stall_s = rate, verbs, faults, seed, stall_s
        self.port = 0
        self.requests, self.faults = Counter(), Counter()
        self._came, self._next = Counter(), deque()
        self._lock = threading.Lock()

    @property
    def endpoint(self):
        """The address of the proxy."""
        return replace(self._server, port=self.port).endpoint

    @property
    def environment(self):
        """The variables with which a client reaches the server through the proxy."""
        return replace(self._server, port=self.port).environment

    def spoil(self, verb, fault, times=1, name=""):
        """Spoil the next requests with this verb whose target contains `name`, before any by the rate."""
        if fault not in FAULTS + OTHERS:
            msg = f"no fault is called {fault!r}"
            raise ValueError(msg)
        with self._lock:
            self._next.extend([(verb, name, fault)] * times)

    def _fault(self, request):
        verb, target = request.verb, request.first[1]
        with self._lock:
            self.requests[verb] += 1
            self._came[verb, target] += 1
            fault = self._asked_for(verb, target)
            chance = random.Random(f"{self.seed} {verb} {target} {self._came[verb, target]}")
            if not fault and (self.verbs is None or verb in self.verbs) and chance.random() < self.rate:
                fault = chance.choice(self.fault_kinds)
            if fault:
                self.faults[verb, fault] += 1
        return fault

    def _asked_for(self, verb, target):
        for at, (wanted, name, fault) in enumerate(self._next):
            if verb == wanted and name in target:
                del self._next[at]
                return fault
        return ""

    async def _serve(self, reader, writer):
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._pass(reader, writer):
                pass
        writer.close()

    async def _pass(self, reader, writer):
        """Pass on one request; return whether the connection goes on."""
        request = await _read(reader, writer)
        if request is None:
            return False
        fault = self._fault(request)
        if fault in _ANSWERS:
            writer.write(_refusal(fault, with_body=request.first[0] != "HEAD"))
            await writer.drain()
            return True
        if fault == "reset before":
            return _reset(writer)
        answer = await self._forward(request)
        if fault == "reset after":
            return _reset(writer)
        if fault == "stall":
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), self.stall_s)
            return _reset(writer)
        whole = answer.head + answer.body
        if fault == "cut":
            writer.write(whole[: len(answer.head) + len(answer.body) // 2] if answer.body else whole[: len(whole) // 2])
            await writer.drain()
            return False
        writer.write(whole)
        await writer.drain()
        return answer.header("connection").lower() != "close"

    async def _forward(self, request):
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target, limit=_HEAD_BYTES)
        try:
            lines = request.head.split(b"\r\n")
            writer.write(b"\r\n".join(line for line in lines if not line.lower().startswith(b"expect:")))
            writer.write(request.body)
            await writer.drain()
            answer = await _read(reader, method=request.first[0])
            while answer is not None and answer.first[1] == "100":
                answer = await _read(reader, method=request.first[0])
        finally:
            writer.close()
        if answer is None:
            raise ConnectionError("the server closed the connection")
        return answer


async def _read(reader, writer=None, method=""):
    """Read a request, or the answer to a request with this method; None at the end of the connection."""
    try:
        head = await reader.readuntil(_END)
    except asyncio.IncompleteReadError:
        return None
    message = _Message(head)
    if writer is not None and message.header("expect").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue" + _END)
        await writer.drain()
    if method == "HEAD" or (method and message.first[1] in {"100", "204", "304"}):
        return message
    if message.header("transfer-encoding").lower() == "chunked":
        return _Message(head, await _chunks(reader))
    length = message.header("content-length")
    if length:
        return _Message(head, await reader.readexactly(int(length)))
    return _Message(head, await reader.read()) if method else message  # an answer without length ends with the stream


async def _chunks(reader):
    found = []
    while True:
        line = await reader.readline()
        size = int(line.split(b";")[0], 16)
        found += [line, await reader.readexactly(size + 2)]
        if not size:
            return b"".join(found)


def _refusal(fault, *, with_body):
    status, code, words = _ANSWERS[fault]
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{words}</Message></Error>'.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return head + body if with_body else head


def _reset(writer):
    """Reset the connection, as a server that dies does; a plain close would say that this is the end of an answer."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


@contextmanager
def spoiling(server, *, rate=0.0, verbs=None, faults=FAULTS, seed=0, stall_s=600):
    """Start a proxy before a server of `services.stores`, which spoils this share of the requests with these verbs."""
    proxy = Spoiling(server, rate=rate, verbs=verbs, faults=faults, seed=seed, stall_s=stall_s)
    started = threading.Event()
    loop = asyncio.new_event_loop()

    async def run():
        listening = await asyncio.start_server(proxy._serve, "127.0.0.1", 0, limit=_HEAD_BYTES)
        proxy.port = listening.sockets[0].getsockname()[1]
        started.set()
        await listening.serve_forever()

    def serve():
        task = loop.create_task(run())
        proxy._stop = lambda: loop.call_soon_threadsafe(task.cancel)
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        left = asyncio.all_tasks(loop)
        for one in left:
            one.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.close()

    thread = threading.Thread(target=serve, name="spoiling", daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield proxy
    finally:
        proxy._stop()
        thread.join(10)
