"""As much of the Compute Engine API (compute/v1) as the real gcloud needs, on a loopback port; every request is kept."""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
from typing import Any, NamedTuple

COLLECTION = re.compile(
    r"/compute/v1/(projects/[^/]+/(?:zones/[^/]+|global))/(instances|instanceTemplates)"
)
RESOURCE = re.compile(COLLECTION.pattern + r"/([^/]+)(?:/(\w+))?")


class Request(NamedTuple):
    method: str
    path: str
    body: Any


class ComputeApi:
    """Instances and templates by their path below /compute/v1/; a test may change them."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.resources: dict[str, dict[str, Any]] = {}
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *words: object) -> None:
                pass

            def answer(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Request(
                    self.command, self.path.partition("?")[0], json.loads(sent) if sent else None
                )
                api.requests.append(request)
                status, answer = api.answer(request)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> ComputeApi:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown()
        self.thread.join(10)
        self.server.server_close()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/compute/v1/"

    def posted(self) -> list[Any]:
        return [request.body for request in self.requests if request.method == "POST"]

    def answer(self, request: Request) -> tuple[int, Any]:
        one = RESOURCE.fullmatch(request.path)
        many = COLLECTION.fullmatch(request.path)
        if request.method == "POST" and many:
            return 200, self.create(many[1], many[2], request.body)
        if one and f"{one[1]}/{one[2]}/{one[3]}" in self.resources:
            found = self.resources[f"{one[1]}/{one[2]}/{one[3]}"]
            if request.method == "POST" and one[4] == "setScheduling":
                found["scheduling"] = request.body
                return 200, self.operation(one[1], found, "setScheduling")
            return 200, found
        if request.path.endswith(
            "/aggregated/instances"
        ):  # what `gcloud compute instances list` asks
            return 200, {"items": {"zones/all": {"instances": list(self.resources.values())}}}
        if (
            request.method == "GET" and not one
        ):  # the project, the zone, an image family: there, and no more is asked
            return 200, {
                "name": request.path.rpartition("/")[2],
                "selfLink": self.root + request.path[len("/compute/v1/") :],
            }
        why = f"The resource '{request.path[len('/compute/v1/') :]}' was not found"
        return 404, {
            "error": {
                "code": 404,
                "message": why,
                "errors": [{"reason": "notFound", "message": why}],
            }
        }

    def create(self, where: str, kind: str, body: Any) -> Any:
        path = f"{where}/{kind}/{body['name']}"
        made = {**body, "selfLink": self.root + path}
        if kind == "instances":
            made.update(kind="compute#instance", status="RUNNING", zone=self.root + where)
            made["lastStartTimestamp"] = time.strftime("%Y-%m-%dT%H:%M:%S.123+00:00", time.gmtime())
            made.setdefault("scheduling", {"automaticRestart": True})
        self.resources[path] = made
        return self.operation(where, made, "insert")

    def operation(self, where: str, target: Any, what: str) -> Any:
        scope = {"zone": self.root + where} if "/zones/" in where else {}
        return {
            "kind": "compute#operation", "name": "operation-1", "operationType": what, "status": "DONE", "progress": 100,
            "targetLink": target["selfLink"], "selfLink": f"{self.root}{where}/operations/operation-1", **scope,
        }  # fmt: skip
