"""Tries to use the ports and files of a run: as its user with the keys, as its user without, and as another local user.

Reads {"ports": [[HOST, PORT], ...], "paths": [...], "keys": {...} or null} from standard input, and writes for each
user what each port and each path gives. Run by `support.access`.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import ssl
import sys

from distributed import Security
from distributed.core import rpc
from distributed.protocol.pickle import dumps

NOBODY = 65534
PAGES = ("/status", "/metrics", "/health", "/info/main/logs.html", "/json/counts.json", "/proxy/1/127.0.0.1/status")
ACTS = ("/api/v1/retire_workers", "/proxy/1/127.0.0.1/status")
_ANSWER_S = 10


def without_certificate():
    """Return what a TLS client needs that has no certificate and trusts every server."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return {"ssl_context": context, "require_encryption": True}


async def run_code(address, connection_args):
    """Let a Dask server return its user's id; return its kind and the id, or None if it refuses."""
    with contextlib.suppress(OSError, TypeError, ValueError, RuntimeError, TimeoutError):
        async with asyncio.timeout(_ANSWER_S), rpc(address, connection_args=connection_args) as server:
            kind = (await server.identity())["type"]
            call = server.run_function if kind == "Scheduler" else server.run
            answer = await call(function=dumps(os.getuid), args=dumps(()), kwargs=dumps({}), wait=True)
            return kind, answer["result"]
    return None


def page(host, port, method, path):
    """Return the HTTP status of a page, or None if the port does not speak HTTP."""
    connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_S)
    try:
        connection.request(method, path, body=b"{}" if method == "POST" else None)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


async def gets(host, port, securities):
    """Return what one gets from a port."""
    if await asyncio.to_thread(page, host, port, "GET", "/") is None:
        for scheme, given in securities:
            found = await run_code(f"{scheme}://{host}:{port}", given)
            if found:
                return "runs code as user {1} in the {0}".format(*found)
        return "nothing"
    tried = [("acts by", "POST", ACTS), ("sees", "GET", PAGES)]
    for verb, method, paths in tried:
        statuses = [await asyncio.to_thread(page, host, port, method, path) for path in paths]
        found = [path for path, status in zip(paths, statuses, strict=True) if status not in (None, 404)]
        if found:
            return f"{verb} {' '.join(found)}"
    return "nothing"


def access(path):
    """Return what one may do with a file or a folder."""
    able = [name for name, mode in (("read", os.R_OK), ("write", os.W_OK)) if os.access(path, mode)]
    return " and ".join(able) or "nothing"


def main():
    """Try as each user, and print the results."""
    asked, found = json.load(sys.stdin), {}
    own = Security.temporary().get_connection_args("client")  # a certificate that the run does not know
    foreign = [("tcp", {}), ("tls", without_certificate()), ("tls", own)]
    users = {"the user without the keys": foreign, "another local user": foreign}
    if asked["keys"]:
        keys = Security(require_encryption=True, **asked["keys"]).get_connection_args("client")
        users = {"the user with the keys": [("tls", keys)]} | users
    for user, securities in users.items():
        if user == "another local user":
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)

        async def try_all(securities=securities):
            return await asyncio.gather(*(gets(host, port, securities) for host, port in asked["ports"]))

        found[user] = {"ports": asyncio.run(try_all()), "paths": [access(path) for path in asked["paths"]]}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
