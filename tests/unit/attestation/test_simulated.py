"""Attacks on simulated evidence: chains, signatures, forms.

``Forger`` makes evidence from parts, each of which a test may replace; the real
attester is compared with it first.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.tees import TEES, load_tee
from bentoml_secure.attestation.tees.simulated import (
    MAX_BLOB_BYTES,
    Simulated,
    SimulatedAttester,
)
from bentoml_secure.digest import canonical_json, digest_bytes
from bentoml_secure.errors import (
    AttestationError,
    ConfigurationError,
    MalformedInputError,
    SecureError,
    UnknownKindError,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
MARK = "SIMULATED - NOT HARDWARE"
LABEL = b"bentoml-secure/simulated/v1"
REPORT_DATA = bytes(range(64))


def usage(*, sign: bool, issue: bool) -> x509.KeyUsage:
    return x509.KeyUsage(sign, False, False, False, False, issue, False, False, False)


@dataclass
class Spec:
    """A certificate to make; the defaults are those of a good leaf."""

    name: str = f"leaf, {MARK}"
    ca: bool = False
    path_length: int | None = None
    usage: x509.KeyUsage | None = None
    critical: bool = True
    not_before: datetime = NOW - timedelta(days=1)
    not_after: datetime = NOW + timedelta(days=1)
    extra: x509.ExtensionType | None = None
    key: Any = None


class Forger:
    """A development root in memory that signs whatever it is told."""

    def __init__(self) -> None:
        self.root_key = Ed25519PrivateKey.generate()
        self.leaf_key = Ed25519PrivateKey.generate()
        self.root_spec = Spec(
            name=f"root, {MARK}",
            ca=True,
            path_length=0,
            usage=usage(sign=False, issue=True),
        )
        self.root = self.certificate(self.root_spec, self.root_key)
        self.leaf = self.certificate(Spec(), self.leaf_key)

    def certificate(
        self, spec: Spec, key: Any, issuer: str | None = None, issuer_key: Any = None
    ) -> bytes:
        def name(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        signer = issuer_key or self.root_key
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(spec.name))
            .issuer_name(name(issuer or self.root_spec.name))
            .public_key((spec.key or key).public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(spec.not_before)
            .not_valid_after(spec.not_after)
            .add_extension(
                x509.BasicConstraints(spec.ca, spec.path_length), spec.critical
            )
            .add_extension(
                spec.usage or usage(sign=True, issue=False), critical=spec.critical
            )
        )
        if spec.extra:
            builder = builder.add_extension(spec.extra, critical=False)
        algorithm = None if isinstance(signer, Ed25519PrivateKey) else hashes.SHA256()
        return builder.sign(signer, algorithm).public_bytes(Encoding.DER)

    def evidence(
        self,
        *,
        certificates: list[bytes] | None = None,
        report: dict[str, Any] | None = None,
        key: Ed25519PrivateKey | None = None,
        label: bytes = LABEL,
        fields: dict[str, Any] | None = None,
    ) -> Evidence:
        chain = [self.leaf, self.root] if certificates is None else certificates
        blob = {
            "version": 1,
            "report": {
                "report_data": REPORT_DATA.hex(),
                "measurement": "ab" * 32,
                "platform_id": "host-a",
                "issued_at": "2026-03-01T12:00:00Z",
            }
            | (report or {}),
            "certificates": [base64.b64encode(der).decode() for der in chain],
        } | (fields or {})
        signature = (key or self.leaf_key).sign(label + canonical_json(blob))
        return Evidence(
            kind="simulated",
            blob=canonical_json({**blob, "signature": signature.hex()}),
        )


@pytest.fixture(scope="module")
def forger() -> Forger:
    return Forger()


def verify(evidence: Evidence, now: datetime = NOW) -> VerifiedClaims:
    return Simulated().verify(evidence, (), now=now)


def refused(evidence: Evidence, match: str, now: datetime = NOW) -> None:
    with pytest.raises(SecureError, match=match) as caught:
        verify(evidence, now)
    assert isinstance(caught.value, AttestationError | MalformedInputError)


def test_a_report_says_what_was_signed(
    attester: SimulatedAttester, dev_root: Path
) -> None:
    claims = verify(attester.attest(REPORT_DATA))
    root = x509.load_pem_x509_certificate((dev_root / "root.pem").read_bytes())
    assert claims.kind == "simulated"
    assert claims.simulated
    assert claims.vendor == "none (simulated)"
    assert claims.report_data == REPORT_DATA
    assert claims.claims == {"measurement": "ab" * 32}
    assert claims.platform_id == "host-a"
    assert claims.root == digest_bytes(root.public_bytes(Encoding.DER))
    assert claims.issued_at == NOW
    assert claims.expires_at == root.not_valid_after_utc


def test_the_attester_writes_the_published_form(attester: SimulatedAttester) -> None:
    blob = json.loads(attester.attest(REPORT_DATA).blob)
    leaf_der, root_der = map(base64.b64decode, blob["certificates"])
    leaf = x509.load_der_x509_certificate(leaf_der)
    leaf.verify_directly_issued_by(x509.load_der_x509_certificate(root_der))
    signature = bytes.fromhex(blob.pop("signature"))
    key: Any = leaf.public_key()
    key.verify(signature, LABEL + canonical_json(blob))
    assert MARK in leaf.subject.rfc4514_string()


def test_forged_evidence_is_good_until_a_part_is_replaced(forger: Forger) -> None:
    claims = verify(forger.evidence())
    assert claims.root == digest_bytes(forger.root)
    assert claims.expires_at == NOW + timedelta(days=1)


def test_endorsements_of_other_kinds_are_not_read(forger: Forger) -> None:
    claims = Simulated().verify(forger.evidence(), (b"a VCEK",), now=NOW)
    assert claims == verify(forger.evidence())


class TestChain:
    def test_root_and_leaf_swapped(self, forger: Forger) -> None:
        swapped = [forger.root, forger.leaf]
        refused(forger.evidence(certificates=swapped), "is no root of a development")

    def test_another_root_beside_the_leaf(self, forger: Forger) -> None:
        chain = [forger.leaf, Forger().root]
        refused(forger.evidence(certificates=chain), "not signed by the root")

    def test_a_leaf_signed_by_itself(self, forger: Forger) -> None:
        alone = forger.certificate(Spec(), forger.leaf_key, issuer_key=forger.leaf_key)
        refused(
            forger.evidence(certificates=[alone, forger.root]), "not signed by the root"
        )

    def test_a_leaf_that_names_another_issuer(self, forger: Forger) -> None:
        leaf = forger.certificate(Spec(), forger.leaf_key, issuer=f"other, {MARK}")
        refused(
            forger.evidence(certificates=[leaf, forger.root]), "not signed by the root"
        )

    def test_a_leaf_that_issues_leaves(self, forger: Forger) -> None:
        below = forger.certificate(
            Spec(name=f"below, {MARK}"),
            Ed25519PrivateKey.generate(),
            issuer=f"leaf, {MARK}",
            issuer_key=forger.leaf_key,
        )
        chain = [below, forger.leaf]
        refused(forger.evidence(certificates=chain), "is no root of a development")

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_another_number_of_certificates(self, forger: Forger, count: int) -> None:
        chain = [forger.leaf, forger.root, forger.root][:count]
        refused(forger.evidence(certificates=chain), "want two, leaf and root")

    @pytest.mark.parametrize(
        "spec",
        [
            Spec(ca=True, path_length=0),
            Spec(usage=usage(sign=True, issue=True)),
            Spec(usage=usage(sign=False, issue=False)),
            Spec(critical=False),
            Spec(extra=x509.SubjectAlternativeName([x509.DNSName("example.org")])),
            Spec(key=ec.generate_private_key(ec.SECP256R1())),
        ],
        ids=["ca", "issues", "signs nothing", "not critical", "extra", "p-256"],
    )
    def test_a_leaf_of_another_form(self, forger: Forger, spec: Spec) -> None:
        leaf = forger.certificate(spec, forger.leaf_key)
        refused(
            forger.evidence(certificates=[leaf, forger.root]),
            "leaf certificate is no leaf of a development root",
        )

    @pytest.mark.parametrize(
        "change",
        [
            {"ca": False, "path_length": None},
            {"path_length": None},
            {"path_length": 1},
            {"usage": usage(sign=True, issue=True)},
        ],
        ids=["no ca", "any depth", "depth", "signs"],
    )
    def test_a_root_of_another_form(
        self, forger: Forger, change: dict[str, Any]
    ) -> None:
        spec = Spec(**{**vars(forger.root_spec), **change})
        root = forger.certificate(spec, forger.root_key)
        refused(
            forger.evidence(certificates=[forger.leaf, root]),
            "root certificate is no root of a development root",
        )

    def test_a_root_that_another_key_signed(self, forger: Forger) -> None:
        root = forger.certificate(
            forger.root_spec, forger.root_key, issuer_key=Ed25519PrivateKey.generate()
        )
        refused(
            forger.evidence(certificates=[forger.leaf, root]),
            "root certificate is not signed by the root",
        )

    @pytest.mark.parametrize("what", ["leaf", "root"])
    def test_a_subject_without_the_mark(self, what: str) -> None:
        forger = Forger()
        if what == "leaf":
            forger.leaf = forger.certificate(Spec(name="leaf"), forger.leaf_key)
        else:
            forger.root_spec.name = "Intel SGX Root CA"
            forger.root = forger.certificate(forger.root_spec, forger.root_key)
        refused(forger.evidence(), f"{what} certificate of .*, want '{MARK}'")

    @pytest.mark.parametrize(
        ("what", "spec"),
        [
            ("leaf", Spec(not_after=NOW - timedelta(seconds=1))),
            ("leaf", Spec(not_before=NOW + timedelta(seconds=1))),
        ],
        ids=["ended", "not begun"],
    )
    def test_a_leaf_out_of_its_dates(
        self, forger: Forger, what: str, spec: Spec
    ) -> None:
        leaf = forger.certificate(spec, forger.leaf_key)
        refused(
            forger.evidence(certificates=[leaf, forger.root]),
            f"{what} certificate is good from .* not at 2026-03-01T12:00:00Z",
        )

    @pytest.mark.parametrize("days", [-2, 2])
    def test_a_root_out_of_its_dates(self, forger: Forger, days: int) -> None:
        wide = Spec(
            not_before=datetime(2020, 1, 1, tzinfo=UTC),
            not_after=datetime(2030, 1, 1, tzinfo=UTC),
        )
        leaf = forger.certificate(wide, forger.leaf_key)
        evidence = forger.evidence(certificates=[leaf, forger.root])
        verify(evidence)
        refused(evidence, "root certificate is good", NOW + timedelta(days=days))

    def test_the_first_and_last_second_are_good(self, forger: Forger) -> None:
        for days in (-1, 1):
            verify(forger.evidence(), NOW + timedelta(days=days))
        refused(forger.evidence(), "is good", NOW + timedelta(days=1, seconds=1))

    @pytest.mark.parametrize(
        ("der", "match"),
        [
            (b"", "leaf certificate does not parse"),
            (b"\x30\x00", "leaf certificate does not parse"),
            (bytes(2049), "leaf certificate has 2049 bytes|at most 2048"),
        ],
    )
    def test_what_is_no_certificate(
        self, forger: Forger, der: bytes, match: str
    ) -> None:
        refused(forger.evidence(certificates=[der, forger.root]), match)

    def test_a_second_spelling_of_a_certificate(self, forger: Forger) -> None:
        leaf = forger.leaf
        while leaf[-1] & 1:  # a last bit of zero can also be spelled as unused
            leaf = forger.certificate(Spec(), forger.leaf_key)
        again = bytearray(leaf)
        assert again[-66:-64] == b"\x41\x00"
        again[-65] = 1
        refused(
            forger.evidence(certificates=[bytes(again), forger.root]),
            "does not end in 64 bytes of signature|does not parse",
        )


class TestSignature:
    def test_another_key_than_the_leaf(self, forger: Forger) -> None:
        evidence = forger.evidence(key=forger.root_key)
        refused(evidence, "the leaf's signature does not fit")

    def test_a_signature_made_for_something_else(self, forger: Forger) -> None:
        evidence = forger.evidence(label=b"bentoml-secure/statement/v1")
        refused(evidence, "the leaf's signature does not fit")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("report_data", "ff" * 64),
            ("measurement", "cd" * 32),
            ("platform_id", "host-b"),
            ("issued_at", "2026-03-01T12:00:01Z"),
        ],
    )
    def test_a_report_edited_after_signing(
        self, forger: Forger, field: str, value: str
    ) -> None:
        blob = json.loads(forger.evidence().blob)
        blob["report"][field] = value
        evidence = Evidence(kind="simulated", blob=canonical_json(blob))
        refused(evidence, "the leaf's signature does not fit")

    def test_a_leaf_replaced_under_the_same_key(self, forger: Forger) -> None:
        blob = json.loads(forger.evidence().blob)
        again = forger.certificate(Spec(), forger.leaf_key)
        blob["certificates"][0] = base64.b64encode(again).decode()
        evidence = Evidence(kind="simulated", blob=canonical_json(blob))
        refused(evidence, "the leaf's signature does not fit")


class TestForm:
    @pytest.mark.parametrize(
        ("fields", "match"),
        [
            ({"version": 2}, "version: got 2, want 1"),
            ({"version": True}, "version: got True, want 1"),
            ({"simulated": False}, "unknown field 'simulated'"),
            ({"certificates": {}}, "want two, leaf and root"),
            ({"certificates": [None, None]}, "certificate: want base64"),
            ({"certificates": ["AA==", "A"]}, "is not base64"),
            ({"report": []}, "simulated report: got list, want an object"),
        ],
    )
    def test_blobs(self, forger: Forger, fields: dict[str, Any], match: str) -> None:
        refused(forger.evidence(fields=fields), match)

    @pytest.mark.parametrize(
        ("report", "match"),
        [
            ({"debug": True}, "unknown field 'debug'"),
            ({"report_data": "00" * 63}, "report_data: got 126 hex digits, want 128"),
            ({"report_data": "00" * 32}, "report_data: got 64 hex digits, want 128"),
            ({"report_data": None}, "report_data: got None"),
            ({"measurement": ""}, "measurement: got 0 hex digits, want 64"),
            ({"measurement": "AB" * 32}, "measurement: got 'AB"),
            ({"platform_id": ""}, "platform_id: got ''"),
            ({"platform_id": "a\nb"}, "platform_id: got"),
            ({"platform_id": "x" * 129}, "platform_id: got"),
            ({"platform_id": 7}, "platform_id: got 7"),
            ({"issued_at": "yesterday"}, "issued_at: got 'yesterday'"),
            ({"issued_at": 0}, "issued_at: got 0"),
        ],
    )
    def test_reports_properly_signed(
        self, forger: Forger, report: dict[str, Any], match: str
    ) -> None:
        refused(forger.evidence(report=report), match)

    def test_another_spelling_of_the_same_json(self, forger: Forger) -> None:
        blob = json.dumps(json.loads(forger.evidence().blob)).encode()
        refused(Evidence(kind="simulated", blob=blob), "not canonical JSON")

    def test_bytes_after_the_end(self, forger: Forger) -> None:
        blob = forger.evidence().blob
        refused(Evidence(kind="simulated", blob=blob + b"\0"), "not valid JSON")
        refused(Evidence(kind="simulated", blob=blob + b" "), "not canonical JSON")

    def test_more_than_the_cap(self, forger: Forger) -> None:
        blob = forger.evidence().blob.ljust(MAX_BLOB_BYTES + 1)
        refused(
            Evidence(kind="simulated", blob=blob), "got 16385 bytes, want at most 16384"
        )

    def test_another_kind(self, forger: Forger) -> None:
        evidence = Evidence(kind="tdx", blob=forger.evidence().blob)
        refused(evidence, "evidence kind: got tdx, want simulated")


class TestAttester:
    def test_it_says_its_kind(self, attester: SimulatedAttester) -> None:
        assert attester.kind == attester.attest(REPORT_DATA).kind == "simulated"

    @pytest.mark.parametrize("length", [0, 32, 63, 65])
    def test_it_signs_64_bytes(self, attester: SimulatedAttester, length: int) -> None:
        with pytest.raises(MalformedInputError, match=f"got {length} bytes, want 64"):
            attester.attest(bytes(length))

    def test_it_dates_each_report(self, dev_root: Path) -> None:
        times = iter([NOW, NOW, NOW, NOW + timedelta(seconds=7)])
        attester = SimulatedAttester.from_folder(dev_root, clock=lambda: next(times))
        issued = [verify(attester.attest(REPORT_DATA)).issued_at for _ in range(2)]
        assert issued == [NOW, NOW + timedelta(seconds=7)]

    def test_processes_of_one_host_and_root_are_one_platform(
        self, dev_root: Path, tmp_path: Path, make_root: Callable[[Path], Path]
    ) -> None:
        folders = [dev_root, dev_root, make_root(tmp_path / "other")]
        one, again, other = (
            SimulatedAttester.from_folder(folder, clock=lambda: NOW).platform_id
            for folder in folders
        )
        assert one == again
        assert one != other
        assert one.startswith("simulated-")

    def test_each_process_has_a_key_of_its_own(self, dev_root: Path) -> None:
        leaves = {
            json.loads(
                SimulatedAttester.from_folder(dev_root, clock=lambda: NOW)
                .attest(REPORT_DATA)
                .blob
            )["certificates"][0]
            for _ in range(2)
        }
        assert len(leaves) == 2

    def test_it_says_so_in_the_log(
        self, dev_root: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            SimulatedAttester.from_folder(dev_root, clock=lambda: NOW)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert MARK in caplog.text

    def test_claims_out_of_form_are_refused_at_once(self, dev_root: Path) -> None:
        with pytest.raises(ConfigurationError, match="platform_id: got 'a b'"):
            SimulatedAttester.from_folder(
                dev_root, clock=lambda: NOW, platform_id="a b"
            )
        with pytest.raises(MalformedInputError, match="measurement: got 2 hex digits"):
            SimulatedAttester.from_folder(dev_root, clock=lambda: NOW, measurement="00")


def test_the_table_leads_to_every_kind() -> None:
    for kind in TEES:
        assert load_tee(kind) is load_tee(kind)
    with pytest.raises(UnknownKindError, match="unknown kind 'abacus'"):
        load_tee("abacus")
