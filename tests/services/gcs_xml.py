"""Google Cloud Storage's XML interface before an emulator that only knows the JSON one.

    python gcs_xml.py PORT EMULATOR_PORT TOKEN

obstore writes, copies, lists and deletes through the XML interface. Writes become multipart uploads, because the
emulator ignores conditions on its simple ones. JSON requests are passed on as they are.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from xml.sax.saxutils import escape

_JSON = ("/storage/v1/", "/upload/", "/download/", "/batch/")
_PASSED = ("content-type", "content-range", "range", "accept", "x-upload-content-type")
_BOUNDARY = "8c0a5c1e7d3b4f6f"


class _Translator(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # a head and a body sent apart would wait for each other's acknowledgement
    disable_nagle_algorithm = True
    emulator, token = 0, ""

    def log_message(self, *_):
        pass

    def do_PUT(self):
        body = self._body()
        if not self._is_xml():
            return self._pass_on(body)
        bucket, name, _ = self._target()
        condition = self.headers.get("x-goog-if-generation-match")
        asked = {"ifGenerationMatch": condition} if condition else {}
        source = self.headers.get("x-goog-copy-source")
        if source:
            from_bucket, _, from_name = unquote(source).lstrip("/").partition("/")
            path = f"{_path(from_bucket, from_name)}/rewriteTo/{_path(bucket, name).removeprefix('/storage/v1/')}"
            answer, found = self._ask("POST", f"{path}?{urlencode(asked)}", b"{}", {"Content-Type": "application/json"})
        else:
            path = f"/upload/storage/v1/b/{bucket}/o?{urlencode({'uploadType': 'multipart', 'name': name} | asked)}"
            kind = {"Content-Type": f"multipart/related; boundary={_BOUNDARY}"}
            answer, found = self._ask("POST", path, _multipart(name, body), kind)
        if answer.status != 200:
            return self._refuse(answer.status)
        meta = json.loads(found)
        meta = meta.get("resource", meta)
        return self._answer(200, b"", {"ETag": _etag(meta["md5Hash"]), "x-goog-generation": meta["generation"]})

    def do_GET(self):
        if not self._is_xml():
            return self._pass_on(b"")
        bucket, name, query = self._target()
        if not name:
            return self._list(bucket, query)
        ask = {key: value for key, value in self.headers.items() if key.lower() == "range"}
        answer, found = self._ask(self.command, f"{_path(bucket, name)}?alt=media", b"", ask)
        if answer.status not in {200, 206}:
            return self._refuse(answer.status)
        headers = {key: value for key, value in answer.getheaders() if key.lower() in _SHOWN}
        headers["ETag"] = _etag(answer.getheader("X-Goog-Hash").rpartition("md5=")[2])
        wanted = self.headers.get("if-match")
        if wanted and wanted != headers["ETag"]:
            return self._refuse(412)
        return self._answer(answer.status, found, headers)

    do_HEAD = do_GET  # noqa: N815 - the names of http.server

    def do_DELETE(self):
        if not self._is_xml():
            return self._pass_on(b"")
        bucket, name, _ = self._target()
        answer, _ = self._ask("DELETE", _path(bucket, name))
        return self._answer(204) if answer.status in {200, 204} else self._refuse(answer.status)

    def do_POST(self):
        return self._pass_on(self._body())

    do_PATCH = do_POST  # noqa: N815

    def _list(self, bucket, query):
        asked = {"maxResults": query.get("max-keys", "1000")}
        names = {"prefix": "prefix", "delimiter": "delimiter", "continuation-token": "pageToken"}
        asked |= {names[key]: value for key, value in query.items() if key in names}
        answer, found = self._ask("GET", f"/storage/v1/b/{bucket}/o?{urlencode(asked)}")
        if answer.status != 200:
            return self._refuse(answer.status)
        listing = json.loads(found)
        objects = "".join(
            f"<Contents><Key>{escape(one['name'])}</Key><LastModified>{one['updated']}</LastModified>"
            f"<ETag>{escape(_etag(one['md5Hash']))}</ETag><Size>{one['size']}</Size></Contents>"
            for one in listing.get("items") or []
        )
        folders = "".join(
            f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in listing.get("prefixes") or []
        )
        token = listing.get("nextPageToken", "")
        more = f"<NextContinuationToken>{escape(token)}</NextContinuationToken>" if token else ""
        more += f"<IsTruncated>{str(bool(token)).lower()}</IsTruncated>"
        text = f"<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>{objects}{folders}{more}</ListBucketResult>"
        return self._answer(200, text.encode())

    def _is_xml(self):
        return not self.path.startswith(_JSON)

    def _target(self):
        parts = urlsplit(self.path)
        bucket, _, name = parts.path.lstrip("/").partition("/")
        return unquote(bucket), unquote(name), dict(parse_qsl(parts.query))

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _ask(self, method, path, body=b"", headers=None):
        self._connection.request(method, path, body, headers or {})
        answer = self._connection.getresponse()
        return answer, answer.read()

    def setup(self):
        """Open a connection to the emulator for each of the client's."""
        super().setup()
        self._connection = http.client.HTTPConnection("127.0.0.1", self.emulator)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def finish(self):
        """Close it."""
        self._connection.close()
        super().finish()

    def _pass_on(self, body):
        passed = {key: value for key, value in self.headers.items() if key.lower() in _PASSED}
        answer, found = self._ask(self.command, self.path, body, passed)
        hidden = {"date", "server", "connection", "transfer-encoding", "content-length"}
        return self._answer(
            answer.status, found, {key: value for key, value in answer.getheaders() if key.lower() not in hidden}
        )

    def _refuse(self, status):
        code = _CODES.get(status, "InternalError")
        self._answer(status, f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode())

    def _answer(self, status, body=b"", headers=None):
        headers = {key.lower(): value for key, value in (headers or {}).items()}
        if self.command != "HEAD":
            headers["content-length"] = str(len(body))
        headers.setdefault("content-length", "0")
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def parse_request(self):
        """Read a request; refuse one of the XML interface that does not have the token."""
        if not super().parse_request():
            return False
        if self._is_xml() and self.headers.get("authorization") != f"Bearer {self.token}":
            self._body()
            self._refuse(401)
            self.wfile.flush()
            return False
        return True


_SHOWN = ("content-length", "content-range", "last-modified", "x-goog-generation", "content-type")
_CODES = {401: "AuthenticationRequired", 403: "AccessDenied", 404: "NoSuchKey", 412: "PreconditionFailed"}


def _path(bucket, name):
    return f"/storage/v1/b/{quote(bucket, safe='')}/o/{quote(name, safe='')}"


def _multipart(name, body):
    head = f"--{_BOUNDARY}\r\nContent-Type: application/json\r\n\r\n{json.dumps({'name': name})}\r\n"
    kind = f"--{_BOUNDARY}\r\nContent-Type: application/octet-stream\r\n\r\n"
    return b"".join([head.encode(), kind.encode(), body, f"\r\n--{_BOUNDARY}--\r\n".encode()])


def _etag(md5):
    return f'"{base64.b64decode(md5).hex()}"'


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    """Translate until the process is killed."""
    port, _Translator.emulator, _Translator.token = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    _Server(("127.0.0.1", port), _Translator).serve_forever()


if __name__ == "__main__":
    main()
