"""A client behind proxies: they see ciphertext, and what they change is refused."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from bentoml_secure import SecureClient
from bentoml_secure.attestation.appraisal import parse_policy
from bentoml_secure.attestation.dev_root import create_dev_root
from bentoml_secure.client import Answer
from bentoml_secure.digest import canonical_json, digest_json
from bentoml_secure.errors import (
    AttestationError,
    ConfigurationError,
    MalformedInputError,
    PolicyRejected,
    ReceiptError,
    SecureError,
    UnavailableError,
    VerificationError,
)
from bentoml_secure.receipts.trust import Trust, parse_trust
from bentoml_secure.session.bodies import SEALED_TYPE
from bentoml_secure.statements import utc_now
from tests.harness import free_port, sample, stop, wait_until_ready
from tests.service.deployments import each_alone
from tests.service.recording import HttpProxy, Passed, Secrets, Wire
from tests.service.wiring import ENTRY, TARGET, Wired

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
HELLO, FINISH = "/bsec/v1/session/hello", "/bsec/v1/session/finish"
RECEIPTS = "/bsec/v1/receipts/"
STEPS = (
    "ask the entry for evidence over a fresh nonce",
    "judge its evidence, configuration, plan and package",
    "open a session with the keys that the evidence binds",
    "send the request sealed and open the answer",
    "fetch the receipt and judge it against the trust file",
)
PAGE = b"<html><body>Please log in</body></html>"

_SEEDS = itertools.count(9000)


def ask(wired: Wired, client: SecureClient) -> tuple[Answer, Secrets]:
    """Ask something new; return the answer and what nobody may see of it."""
    features = sample(8, seed=next(_SEEDS))
    answer = client.call("diagnose", {"features": features.tolist()})
    np.testing.assert_array_equal(
        np.asarray(answer.value["malignant"], np.float32),
        wired.project.expected(features)[:, 0],
    )
    return answer, Secrets(
        {
            "request": answer.question.body,
            "response": answer.body,
            "input": features.tobytes(),
            "root salt": answer.root_salt,
        }
    )


# Proxies that do what they should


def test_a_forward_proxy_sees_ciphertext(wired: Wired) -> None:
    with (
        HttpProxy() as proxy,
        wired.client(url=wired.direct, proxy=proxy.url) as client,
    ):
        answer, secrets = ask(wired, client)
    assert answer.verdict.state == "accepted"
    receipt = f"{RECEIPTS}{answer.receipt_id}?wait=5"
    assert proxy.paths == [HELLO, FINISH, "/diagnose", receipt]
    assert [dict(p.headers)["content-type"] for p in proxy.passed[2:3]] == [SEALED_TYPE]
    assert secrets.found_in(proxy.streams()) == set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Nginx:
    """An nginx that ends TLS, and what it sees then.

    Attributes:
        url: Where it listens, https.
        bodies: Of requests, as it had them in the clear.
        behind: The wire from it to the entry.
        trusting: A context that accepts its certificate.
    """

    url: str
    bodies: Path
    behind: Wire
    trusting: ssl.SSLContext


_CONFIGURATION = """\
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    log_format bodies escape=none "$request $request_body";
    client_body_temp_path {folder}/client;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/chain.pem;
        ssl_certificate_key {folder}/key.pem;
        client_body_in_single_buffer on;
        client_body_buffer_size 1m;
        access_log {folder}/bodies.log bodies;
        location / {{
            proxy_pass http://127.0.0.1:{behind};
            proxy_http_version 1.1;
        }}
    }}
}}
"""


def write_certificate(folder: Path) -> None:
    """Write a self-signed certificate for 127.0.0.1, and its key."""
    key, now = generate_private_key(SECP256R1()), utc_now()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a proxy")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    (folder / "chain.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )


@pytest.fixture(scope="module")
def nginx(wired: Wired, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """An nginx before the entry, with a wire between the two."""
    if not Path(NGINX).exists():
        pytest.skip("no nginx is installed: apt-get install nginx-light")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    write_certificate(folder)
    with Wire(int(wired.direct.rpartition(":")[2])) as behind:
        text = _CONFIGURATION.format(folder=folder, port=port, behind=behind.port)
        (folder / "nginx.conf").write_text(text)
        command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_until_listening(port, process, folder)
            yield Nginx(
                url=f"https://127.0.0.1:{port}",
                bodies=folder / "bodies.log",
                behind=behind,
                trusting=ssl.create_default_context(cafile=folder / "chain.pem"),
            )
        finally:
            stop(process)


def wait_until_listening(
    port: int, process: subprocess.Popen[bytes], folder: Path
) -> None:
    """Wait for nginx; fail with what it said."""
    ends = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > ends:
                said = (folder / "log").read_text()
                raise AssertionError(f"nginx does not listen: {said}") from None
            time.sleep(0.05)
        else:
            return


def test_an_nginx_that_ends_tls_sees_ciphertext(wired: Wired, nginx: Nginx) -> None:
    nginx.behind.forget()
    with wired.client(url=nginx.url, verify=nginx.trusting) as client:
        answer, secrets = ask(wired, client)
    assert answer.verdict.state == "accepted"
    bodies = nginx.bodies.read_bytes()
    # It did see the bodies of requests, sealed, and the handshake as it is.
    assert b"POST /diagnose HTTP/1.1 " in bodies
    assert b"key_document" in bodies
    replies = b"".join(nginx.behind.streams())
    assert f"content-type: {SEALED_TYPE}".encode() in replies.lower()
    assert secrets.found_in([bodies, *nginx.behind.streams()]) == set()


def test_it_would_see_everything_of_a_plain_call(wired: Wired, nginx: Nginx) -> None:
    nginx.behind.forget()
    with httpx.Client(base_url=nginx.url, verify=nginx.trusting) as http:
        said = http.post("/diagnose", json={"features": sample(8).tolist()})
    assert said.status_code == 200, said.text
    secrets = Secrets({"request": said.request.content, "response": said.content})
    assert secrets.found_in([nginx.bodies.read_bytes()]) == {"request"}
    assert secrets.found_in(nginx.behind.streams()) == {"request", "response"}


def test_two_proxies_one_after_the_other(wired: Wired, nginx: Nginx) -> None:
    with (
        HttpProxy() as proxy,
        wired.client(url=nginx.url, verify=nginx.trusting, proxy=proxy.url) as client,
    ):
        answer, _ = ask(wired, client)
    assert answer.verdict.state == "accepted"
    assert proxy.tunnels == [nginx.url.removeprefix("https://")]
    assert proxy.passed == []


def test_a_certificate_that_nobody_vouches_for(wired: Wired, nginx: Nginx) -> None:
    with (
        wired.client(url=nginx.url) as client,
        pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED") as caught,
    ):
        ask(wired, client)
    require_steps(caught.value, failed=0)


# Failures, step by step


def require_steps(error: BaseException, *, failed: int) -> None:
    """Require that an error's notes tell each step, and which one failed."""
    told = [f"step {n + 1}, {STEPS[n]}: done" for n in range(failed)]
    told.append(f"step {failed + 1}, {STEPS[failed]}: FAILED")
    assert error.__notes__ == told


def refused(
    wired: Wired, proxy: HttpProxy, kind: type[SecureError], match: str, **settings: Any
) -> SecureError:
    """Ask through a proxy in front of the entry, which must fail; return how."""
    with (
        proxy,
        wired.client(url=proxy.url, **settings) as client,
        pytest.raises(kind, match=match) as caught,
    ):
        ask(wired, client)
    return caught.value


def test_a_deployment_of_another_configuration(wired: Wired) -> None:
    trust = parse_trust(wired.trust.read_bytes())
    other = replace(trust, config_digests=(digest_json("another"),))
    require_nothing_said(wired, other, "config_digest")


def test_evidence_under_another_root(wired: Wired, tmp_path: Path) -> None:
    create_dev_root(tmp_path / "root", now=utc_now())
    policy = parse_policy((tmp_path / "root" / "policy.toml").read_bytes())
    trust = parse_trust(wired.trust.read_bytes())
    require_nothing_said(wired, replace(trust, policy=policy), "root")


def require_nothing_said(wired: Wired, trust: Trust, field: str) -> None:
    """Require that a caller refuses the entry, says why, and sends no request."""
    with (
        HttpProxy(upstream=wired.direct) as proxy,
        SecureClient(proxy.url, trust) as client,
        pytest.raises(PolicyRejected, match=f"{field}: got") as caught,
    ):
        ask(wired, client)
    assert {finding.field for finding in caught.value.findings} == {field}
    require_steps(caught.value, failed=1)
    assert proxy.paths == [HELLO]


Change = Callable[[Passed], Passed]


def body(change: Callable[[bytes], bytes]) -> Change:
    return lambda passed: replace(passed, body=change(passed.body))


def page(status: int) -> Change:
    return lambda passed: passed.as_page(status, PAGE)


def flipped(at: int) -> Change:
    def flip(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[at] ^= 1
        return bytes(changed)

    return body(flip)


def without_type(passed: Passed) -> Passed:
    kept = [pair for pair in passed.headers if pair[0].lower() != "content-type"]
    return replace(passed, headers=tuple(kept))


def redirected(passed: Passed) -> Passed:
    elsewhere = (("location", "https://login.example/"),)
    return replace(passed, status=302, headers=elsewhere, body=b"")


def other_evidence(passed: Passed) -> Passed:
    offer = json.loads(passed.body)
    report = json.loads(base64.b64decode(offer["attestation"]["evidence"]["blob"]))
    report["report"]["platform_id"] = "another"
    blob = base64.b64encode(canonical_json(report)).decode()
    offer["attestation"]["evidence"]["blob"] = blob
    return replace(passed, body=json.dumps(offer).encode())


def other_confirmation(passed: Passed) -> Passed:
    confirm = json.loads(passed.body)
    confirm["mac"] = "00" * 32
    return replace(passed, body=json.dumps(confirm).encode())


def other_status_of_receipt(passed: Passed) -> Passed:
    bundle = json.loads(passed.body)
    statement = json.loads(base64.b64decode(bundle["receipt"]["payload"]))
    statement["predicate"]["status"] = 201
    payload = base64.b64encode(canonical_json(statement)).decode()
    bundle["receipt"]["payload"] = payload
    return replace(passed, body=json.dumps(bundle).encode())


@pytest.mark.parametrize(
    ("path", "change", "kind", "why", "step"),
    [
        (HELLO, page(200), MalformedInputError, "hello is not valid JSON", 0),
        (HELLO, page(403), ConfigurationError, "status 403.*Please log in", 0),
        (HELLO, redirected, MalformedInputError, "redirects are not followed", 0),
        (HELLO, other_evidence, AttestationError, "leaf's signature does not fit", 1),
        (FINISH, page(502), UnavailableError, "status 502.*Please log in", 2),
        (FINISH, other_confirmation, VerificationError, "does not know the master", 2),
        ("/diagnose", body(lambda _: b""), MalformedInputError, "it ended early", 3),
        (
            "/diagnose",
            body(lambda data: data[: len(data) // 2]),
            MalformedInputError,
            "sealed",
            3,
        ),
        ("/diagnose", flipped(-1), VerificationError, "is not authentic", 3),
        ("/diagnose", flipped(0), VerificationError, "is not authentic", 3),
        (
            "/diagnose",
            lambda passed: replace(passed, status=201),
            VerificationError,
            "is not authentic",
            3,
        ),
        ("/diagnose", without_type, MalformedInputError, "answer is not sealed", 3),
        ("/diagnose", page(200), MalformedInputError, "answer is not sealed", 3),
        ("/diagnose", page(503), UnavailableError, "status 503.*Please log in", 3),
        ("/diagnose", redirected, MalformedInputError, "redirects are not", 3),
        (RECEIPTS, page(200), MalformedInputError, "bundle is not valid JSON", 4),
        (RECEIPTS, other_status_of_receipt, ReceiptError, "rejected", 4),
    ],
)
def test_what_a_proxy_changes_is_refused(
    wired: Wired,
    path: str,
    change: Change,
    kind: type[SecureError],
    why: str,
    step: int,
) -> None:
    def changed(passed: Passed) -> Passed:
        return change(passed) if passed.path.startswith(path) else passed

    proxy = HttpProxy(upstream=wired.direct, change=changed)
    error = refused(wired, proxy, kind, why)
    require_steps(error, failed=step)
    # Nothing was tried again, and nothing sent in the clear.
    assert len(proxy.paths) == max(step, 1)


def test_a_request_that_a_proxy_changes_is_refused_by_the_entry(wired: Wired) -> None:
    def changed(path: str, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if path == "/diagnose" else data

    proxy = HttpProxy(upstream=wired.direct, change_request=changed)
    error = refused(wired, proxy, UnavailableError, "status 502, verification")
    require_steps(error, failed=3)
    assert proxy.paths == [HELLO, FINISH, "/diagnose"]


# An entry that is a new process


def test_an_entry_that_is_restarted_is_followed(wired: Wired, tmp_path: Path) -> None:
    host = {ENTRY: {"port": free_port(), "depends": wired.depends}}
    with (
        each_alone(wired.project, tmp_path, host, target=TARGET) as running,
        HttpProxy(upstream=wired.direct) as proxy,
        wired.client(url=proxy.url) as client,
    ):
        wait_until_ready(running[ENTRY])
        for entry in (wired.direct, running[ENTRY].url):
            # The same URL for its callers, and a process with other keys behind it.
            proxy.upstream = entry
            answer, _ = ask(wired, client)
            assert answer.verdict.state == "accepted"
    called = [path for path in proxy.paths if not path.startswith(RECEIPTS)]
    opened = [HELLO, FINISH, "/diagnose"]
    assert called == [*opened, "/diagnose", *opened]
    refusal = [p for p in proxy.passed if p.path == "/diagnose"][1]
    assert (refusal.status, b'"unknown-session"' in refusal.body) == (401, True)


def test_an_entry_that_forgets_every_session_is_followed_once(wired: Wired) -> None:
    forgotten = b'{"error":{"code":"unknown-session","message":"none"}}'

    def changed(passed: Passed) -> Passed:
        if passed.path != "/diagnose":
            return passed
        return replace(passed, status=401, headers=(), body=forgotten)

    proxy = HttpProxy(upstream=wired.direct, change=changed)
    error = refused(wired, proxy, VerificationError, "has no such session")
    assert proxy.paths == [HELLO, FINISH, "/diagnose"] * 2
    assert [note.rpartition(": ")[2] for note in error.__notes__] == [
        *["done"] * 6,
        "FAILED",
    ]
    # Each time under another session and exchange id, and never in the clear.
    asked = [each.asked for each in proxy.passed if each.path == "/diagnose"]
    assert len({data[:32] for data in asked}) == 2
