"""A web server on loopback: files in memory with ranges and ETags, faults on request, and a log of what was asked."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote


class Web:
    """The files of a web server by their path, how it behaves, and what was asked of it."""

    def __init__(self):
        self.files, self.asked, self.times = {}, [], {}
        self.ranges, self.tags, self.cut, self.status = True, True, 0, {}
        self.root, self.wait_s = "", 0.0
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def put(self, name, data):
        """Store a file; return its URL."""
        self.files[name] = data
        self.times[name] = self.times.get(name, 1_700_000_000) + 5
        return f"{self.root}/{quote(name)}"

    def count(self, verb, name=""):
        """Return how often a verb was used on files whose name contains `name`."""
        return sum(one == verb and name in path for one, path in self.asked)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Stay silent."""

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, *, body):
        web = self.server.web
        with web.lock:
            web.at_once += 1
            web.most_at_once = max(web.most_at_once, web.at_once)
        time.sleep(web.wait_s)
        with web.lock:
            web.at_once -= 1
        name = unquote(self.path).lstrip("/")
        web.asked.append((self.command, name))
        data = web.files.get(name)
        status = web.status.get(name, 200 if data is not None else 404)
        tag = f'"{hashlib.md5(data or b"").hexdigest()}"'
        first, last = 0, len(data or b"")
        if status == 200 and self.headers.get("If-Match", tag) != tag:
            status = 412
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if status == 200 and web.ranges and asked:
            status, first, last = 206, int(asked[1]), min(int(asked[2]) + 1, last)
        data = (data if status in {200, 206} else b"<html>an error page</html>")[first:last] if data else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", formatdate(web.times.get(name, 0), usegmt=True))
        if web.tags:
            self.send_header("ETag", tag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last - 1}/{len(web.files[name])}")
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if web.cut else data)
            if web.cut:
                web.cut -= 1
                self.close_connection = True


@contextmanager
def web_server():
    """Start a server on a free port of loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.web = Web()
    server.web.root = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
