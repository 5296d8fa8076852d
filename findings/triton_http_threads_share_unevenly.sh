#!/usr/bin/env bash
# tritonserver 2.51.0 (24.10, of nvidia-pytriton 0.7.0): one of its HTTP threads serves nearly all connections.
#
# --http-thread-count is 8 by default. A new connection goes to the first thread that has nothing to
# do at that moment, and stays there. So where connections come one after the other, all are served by
# one thread, whatever the option says, and its one CPU bounds what Triton's HTTP can stream.
#
# Output seen on 2026-11-29:
#   8 HTTP threads: 64 connections are served by 1 thread
#   64 HTTP threads: 64 connections are served by 1 thread
#
# Installs nvidia-pytriton alone, without its dependencies, into a temporary folder and starts the
# tritonserver in it, without a model, on ports of the loopback interface. A thread counts as serving a
# connection if it wakes for most of 50 requests on it. Needs Linux on x86_64 with glibc 2.35 and Python
# 3.10 or newer. Exit code 1 when more than a quarter of the threads serve.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --platform manylinux_2_35_x86_64 --dest "$folder" nvidia-pytriton==0.7.0
"$folder/venv/bin/python" - "$folder" <<'EOP'
import http.client
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

CONNECTIONS, REQUESTS = 64, 50
folder = Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
zipfile.ZipFile(wheel).extractall(folder)
binary = folder / "pytriton/tritonserver/bin/tritonserver"
binary.chmod(0o755)
(folder / "models").mkdir()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(connection):
    connection.request("GET", "/v2/health/live")
    return connection.getresponse().read()


def waits(server):
    """Return how often each thread has waited for something."""
    found = {}
    for task in Path(f"/proc/{server.pid}/task").iterdir():
        text = (task / "status").read_text()
        found[task.name] = int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0])
    return found


def serving(threads):
    """Return how many threads serve all connections."""
    port = free_port()
    options = [f"--model-repository={folder / 'models'}", "--http-address=127.0.0.1"]
    options += [f"--http-port={port}", f"--http-thread-count={threads}"]
    options += ["--allow-grpc=false", "--allow-metrics=false", "--exit-timeout-secs=1"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([binary, *options], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                ask(connection)
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    sys.exit((folder / "log").read_text())
                time.sleep(0.1)
        connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=5) for _ in range(CONNECTIONS)]
        for connection in connections:
            ask(connection)  # connects
        used = set()
        for connection in connections:
            before = waits(server)
            for _ in range(REQUESTS):
                ask(connection)
            after = waits(server)
            used |= {thread for thread in after if after[thread] - before.get(thread, 0) > REQUESTS / 2}
        return len(used)
    finally:
        server.kill()
        server.wait()


changed = False
for threads in (8, 64):
    used = serving(threads)
    print(f"{threads} HTTP threads: {CONNECTIONS} connections are served by {used} thread{'s' * (used != 1)}")
    changed |= not 1 <= used <= threads / 4
sys.exit(changed)
EOP
