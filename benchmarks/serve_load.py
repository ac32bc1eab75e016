"""Measure the throughput of the server, and its behaviour under four times the load that it can answer.

hey generates the load (in Debian: apt-get install hey) over loopback, so generator and server share the cores. Every
request has the same texts. The reference is batch prediction of these texts, in this process.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd

TEXTS = 8
"""Texts per request."""


def batch_speed(run: Path, texts: list[str]) -> float:
    """Return the texts per second of the second of two calls of ``predict_proba``."""
    import bertsmith as bs

    classifier = bs.load(run, device="cpu")
    for _ in range(2):
        began = time.perf_counter()
        classifier.predict_proba(texts)
        seconds = time.perf_counter() - began
    return len(texts) / seconds


def load(url: str, body: Path, seconds: int, clients: int, rate: float | None = None) -> pd.DataFrame:
    """Send requests for some time; return ``response-time`` (seconds), ``status-code`` and ``offset`` of each.

    Args:
        url: the URL to post to.
        body: file with the body of each request.
        seconds: duration of the load.
        clients: number of concurrent clients.
        rate: requests per second of all clients; ``None``: each client sends the next request after a response.
    """
    command = ["hey", "-z", f"{seconds}s", "-c", str(clients), "-m", "POST", "-T", "application/json", "-t", "60"]
    command += ["-D", str(body), "-o", "csv"]
    if rate is not None:
        command += ["-q", f"{max(rate / clients, 1):.0f}"]
    out = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    rows = list(csv.reader(io.StringIO(out)))
    return pd.DataFrame(rows[1:], columns=rows[0]).astype(float)


def memory(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def ended_under_load(server: subprocess.Popen, url: str, body: bytes) -> tuple[int, int, int]:
    """Send SIGTERM under load; return the exit code, and how many requests the server answered and dropped."""
    answered, dropped = [], []

    def send() -> None:
        while True:
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    answered.append(response.status)
            except urllib.error.HTTPError as error:
                answered.append(error.code)
            except urllib.error.URLError as error:
                if not isinstance(error.reason, ConnectionRefusedError):
                    dropped.append(error)
                return
            except OSError as error:
                dropped.append(error)
                return

    threads = [threading.Thread(target=send) for _ in range(16)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    server.send_signal(signal.SIGTERM)
    code = server.wait(60)
    for thread in threads:
        thread.join()
    return code, len(answered), len(dropped)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run or export folder")
    parser.add_argument("texts", type=Path, help="CSV with a column Text")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--clients", type=int, default=8)
    given = parser.parse_args()
    if shutil.which("hey") is None:
        print("hey is not installed: apt-get install hey", file=sys.stderr)
        return 2
    texts = pd.read_csv(given.texts)["Text"].astype(str).sample(TEXTS, random_state=0).tolist()
    batch = batch_speed(given.run, texts * 64)
    command = [sys.executable, "-m", "bertsmith", "serve", str(given.run), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    url = next(m[1] for line in server.stderr if (m := re.search(r'"(http://[\d.:]+)"', line))) + "/predict"
    threading.Thread(target=lambda: [None for _ in server.stderr], daemon=True).start()
    with tempfile.TemporaryDirectory() as name:
        body = Path(name) / "body.json"
        body.write_text(json.dumps({"inputs": [[text] for text in texts], "truncate": True}))
        load(url, body, 5, given.clients)  # warms up the server
        most = load(url, body, given.seconds, given.clients)
        good = most[most["status-code"] == 200]
        sustained = len(good) / given.seconds
        before = memory(server.pid)
        flood = load(url, body, given.seconds, 8 * given.clients, 4 * sustained)
        after = memory(server.pid)
        accepted = flood[flood["status-code"] == 200]["response-time"]
        counts = {int(code): int(n) for code, n in flood["status-code"].value_counts().items()}
        p50, p99 = np.percentile(accepted, [50, 99])
        code, answered, dropped = ended_under_load(server, url, body.read_bytes())
    print(f"batch prediction: {batch:,.0f} texts/s")
    print(
        f"at saturation ({given.clients} clients): {TEXTS * sustained:,.0f} texts/s, "
        f"{TEXTS * sustained / batch:.0%} of batch prediction; "
        f"p99 {np.percentile(good['response-time'], 99):.3f} s, {len(most) - len(good):,} refused"
    )
    print(
        f"overload: target of {4 * sustained:,.0f} requests/s for {given.seconds} s, "
        f"actual {len(flood) / given.seconds:,.0f}: {counts}; "
        f"accepted requests: p50 {p50:.3f} s, p99 {p99:.3f} s; memory {before:,.0f} to {after:,.0f} MiB"
    )
    print(f"SIGTERM under load: exit code {code}, {answered:,} answered, {dropped} dropped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
