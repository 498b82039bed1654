"""What sealing, evidence and rotation cost: ``python -m benchmarks.session --json``.

sealed_over_plain_<size>   time of a request sealed over unsealed: the same server
code, one replica, a fresh server each, medians
aes_gcm_ms_<size>          AES-256-GCM alone over the bytes of such a request: each
tensor sealed and opened, both ways, both segments
verify_ms_<kind>           verifying and appraising one piece of evidence
handshake_ms_<kind>        a whole handshake with mutual evidence, both ends here
rotation_errors            failed requests under constant load while every session
is made anew several times and keys roll
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks import hop
from benchmarks.hop_model import SEGMENTS
from benchmarks.report import report
from benchmarks.serving import serve
from benchmarks.session_kinds import handshakes, verifications
from bentoml_secure.session.records import CHUNK_BYTES

SIZES = ("1MiB", "16MiB")
REQUESTS = {"1MiB": 60, "16MiB": 12}
MAX_AGE_SECONDS = 4
KEY_LIFETIME_SECONDS = 60
ROTATION_SECONDS = 75


def median_ms(call: Callable[[], object], times: int) -> float:
    """Return the median time of a call in milliseconds, after one to warm up."""
    call()
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken) * 1e3


def aes_gcm_ms(size: str) -> float:
    """Return what AES-256-GCM alone takes for the tensors of one request."""
    cipher, nonce = AESGCM(bytes(32)), bytes(12)
    view = memoryview(bytes(hop.SIZES[size]))
    chunks = [view[i : i + CHUNK_BYTES] for i in range(0, len(view), CHUNK_BYTES)]

    def there_and_back() -> None:
        for _ in range(SEGMENTS * 2):
            for chunk in chunks:
                cipher.decrypt(nonce, cipher.encrypt(nonce, chunk, b""), b"")

    return median_ms(there_and_back, 5)


def request_ms(folder: Path, *, sealed: bool) -> dict[str, float]:
    """Return the median time of a request by size, against a fresh server."""
    (folder / "scenarios-1.toml").write_text(hop.scenarios(1, sealed=sealed))
    identifier, variables = hop.environment("secure_1", folder)
    found = {}
    with serve(identifier, variables) as server:
        for size in SIZES:
            spec = {
                "nbytes": hop.SIZES[size],
                "requests": REQUESTS[size],
                "concurrency": 1,
            }
            result = server.call("bench", {"spec": spec})
            if result["errors"]:
                raise SystemExit(f"{size}: {result['first_error']}")
            found[size] = float(result["p50_ms"])
    return found


def sealing(folder: Path, repetitions: int) -> dict[str, float]:
    """Return times and ratios of requests with and without sealing."""
    runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for repetition in range(repetitions):
        for sealed in runs:
            print(f"repetition {repetition + 1}: sealed {sealed}", file=sys.stderr)
            runs[sealed].append(request_ms(folder, sealed=sealed))
    found = {}
    for size in SIZES:
        plain, sealed_ms = (
            statistics.median(run[size] for run in runs[sealed])
            for sealed in (False, True)
        )
        found[f"request_ms_plain_{size}"] = plain
        found[f"request_ms_sealed_{size}"] = sealed_ms
        found[f"sealed_over_plain_{size}"] = sealed_ms / plain
        found[f"aes_gcm_ms_{size}"] = aes_gcm_ms(size)
    return found


def rotation(folder: Path, seconds: float) -> dict[str, float]:
    """Ask without pause while sessions and keys are renewed; count what fails."""
    policy = (folder / "root" / "policy.toml").read_text()
    short = policy.replace("= 300", f"= {MAX_AGE_SECONDS}")
    (folder / "short.toml").write_text(short)
    (folder / "scenarios-3.toml").write_text(
        hop.scenarios(3, sealed=True, max_age=MAX_AGE_SECONDS)
    )
    identifier, variables = hop.environment("secure_3", folder)
    variables |= {
        "BENTOML_SECURE_POLICY": str(folder / "short.toml"),
        "BENTOML_SECURE_KEY_LIFETIME_SECONDS": str(KEY_LIFETIME_SECONDS),
    }
    requests, errors = [0], [0]
    with serve(identifier, variables) as server:
        ends = time.monotonic() + seconds

        def load() -> None:
            spec = {"nbytes": 256, "requests": 50, "concurrency": 4}
            while time.monotonic() < ends:
                result = server.call("bench", {"spec": spec})
                requests[0] += result["requests"]
                errors[0] += result["errors"]

        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
    return {"rotation_requests": requests[0], "rotation_errors": errors[0]}


def measure(
    *, repetitions: int = 5, rotation_seconds: float = ROTATION_SECONDS
) -> dict[str, Any]:
    """Return the JSON object of this benchmark."""
    figures: dict[str, float] = {}
    for kind, call in verifications().items():
        figures[f"verify_ms_{kind}"] = median_ms(call, 30)
    for kind, call in handshakes():
        figures[f"handshake_ms_{kind}"] = median_ms(call, 15)
    with tempfile.TemporaryDirectory(prefix="session-") as name:
        folder = Path(name)
        hop.prepare(folder)
        figures |= sealing(folder, repetitions)
        figures |= rotation(folder, rotation_seconds)
    return report(
        "session", figures, "bentoml", "cryptography", repetitions=repetitions
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description="What sealing and evidence cost.")
    parser.add_argument("--json", action="store_true", help="what it prints anyway")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rotation-seconds", type=float, default=ROTATION_SECONDS)
    options = parser.parse_args()
    found = measure(
        repetitions=options.repetitions, rotation_seconds=options.rotation_seconds
    )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
