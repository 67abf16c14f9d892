"""Stands in for the three programs of a cluster: `stub.py engine|picker|envoy PID_DIR ARGS...`.

Each writes its process id into PID_DIR, and answers what the local provider asks. The engine writes its arguments to its
log, ends at once if one of them is `--fail`, and answers 503 while there is a file `sick-POD` beside PID_DIR. Like Envoy,
the stub for Envoy reports the versions of its files; it also reports that a cluster is warming while there is a file
`warming` beside PID_DIR. The picker reports its memory unless there is a file `mute`.
"""

import http.server
import json
import os
import pathlib
import sys

ROLE, PID_DIR, ARGS = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]


def last(flag):
    return [ARGS[idx + 1] for idx, arg in enumerate(ARGS) if arg == flag][-1]


def versions(directory):
    for path in sorted(directory.glob("*.json")):
        content = json.loads(path.read_text())
        if path.name.startswith("eds-"):
            stat = "cluster." + content["resources"][0]["cluster_name"]
        else:
            stat = {"cds.json": "cluster_manager.cds", "lds.json": "listener_manager.lds"}[path.name]
        yield f'{stat}.version_text: "{content["version_info"]}"\n'


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body, status = b"ok\n", 200
        if ROLE == "envoy" and "warming_clusters" in self.path:
            body = b"cluster_manager.warming_clusters: %d\n" % (PID_DIR.parent / "warming").exists()
        elif ROLE == "envoy" and self.path == "/memory":
            body = b'{"allocated": "1000000"}'
        elif ROLE == "picker" and not (PID_DIR.parent / "mute").exists():
            body = b"process_resident_memory_bytes 1000000\n"
        elif ROLE == "envoy":
            body = "".join(versions(pathlib.Path(last("-c")).parent / "xds")).encode()
        if ROLE == "engine" and (PID_DIR.parent / ("sick-" + last("--pod-name"))).exists():
            status = 503
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if ROLE == "envoy" and "--version" in ARGS:
    sys.exit(print("envoy  version: 9e55/1.40.0/Clean/RELEASE/BoringSSL"))
if ROLE == "engine":
    print("arguments:", *ARGS, flush=True)
    if "--fail" in ARGS:
        sys.exit("stub: --fail is not a flag of this engine")
    port = int(last("--port"))
elif ROLE == "picker":
    port = int(last("--metrics-port"))
else:
    config = json.loads(pathlib.Path(last("-c")).read_text())
    if "--mode" in ARGS:
        sys.exit("stub: poison" if "poison" in json.dumps(config) else 0)
    port = config["admin"]["address"]["socket_address"]["port_value"]

(PID_DIR / f"{ROLE}-{os.getpid()}").touch()
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
