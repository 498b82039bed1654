"""A software TPM from its making to refused quotes: the whole protocol, for real."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bentoml_secure.attestation.appraisal import AppraisalPolicy, appraise
from bentoml_secure.attestation.attesters.tpm import KnownTpm, TpmAttester
from bentoml_secure.attestation.attesters.tpm_tools import Tpm2Tools
from bentoml_secure.attestation.evidence import AttestationResult, Evidence
from bentoml_secure.attestation.key_document import KeyDocument, report_data
from bentoml_secure.attestation.tees.tpm import Tpm, parse_tpm_evidence
from bentoml_secure.attestation.tees.tpm_credential import (
    EnrolmentRequest,
    PendingEnrolment,
    challenge_enrolment,
    conclude_enrolment,
    make_credential,
)
from bentoml_secure.attestation.tees.tpm_endorsement import verify_endorsement_key
from bentoml_secure.attestation.tees.tpm_keys import parse_attestation_key
from bentoml_secure.attestation.verification import verify_key_document
from bentoml_secure.digest import digest_bytes
from bentoml_secure.errors import (
    AttestationError,
    CheckFailedError,
    ConfigurationError,
    MalformedInputError,
    PolicyRejected,
    UnavailableError,
)
from bentoml_secure.signing import SigningKey
from bentoml_secure.testing.swtpm import SoftwareTpm, missing_tools
from bentoml_secure.testing.tpm_pki import TpmPki, marshal_public
from tests.unit.attestation.event_logs import event, head

pytestmark = pytest.mark.skipif(
    bool(missing_tools()), reason=f"not installed: {', '.join(missing_tools())}"
)

AUTHORITY = SigningKey.generate()
REPORT_DATA = bytes(range(64))
ZERO = bytes(32).hex()
MEASURED = 16
"""A register that anyone may extend and reset: for measuring in tests."""

NOW = datetime.now(UTC) + timedelta(days=1)
"""Later than the TPM is made, whose certificate begins by the system's clock."""


@pytest.fixture(scope="module")
def tpm() -> Iterator[SoftwareTpm]:
    with SoftwareTpm() as running:
        yield running


@pytest.fixture(scope="module")
def tools(tpm: SoftwareTpm) -> Tpm2Tools:
    return Tpm2Tools(tpm.tcti)


@pytest.fixture(scope="module")
def fresh(tpm: SoftwareTpm, tools: Tpm2Tools) -> TpmAttester:
    """Not enrolled."""
    known = KnownTpm(endorsements=(tpm.chain,))
    return TpmAttester(tools, pcrs=(0, 7, MEASURED), known=known)


@pytest.fixture(scope="module")
def root(fresh: TpmAttester) -> str:
    request = fresh.request_enrolment()
    ek = verify_endorsement_key(request.ek_certificate, request.endorsements, now=NOW)
    return ek.root


@pytest.fixture(scope="module")
def enrolment(fresh: TpmAttester, root: str) -> Any:
    pending = challenge_enrolment(fresh.request_enrolment(), ek_roots=[root], now=NOW)
    answer = fresh.activate(pending.credential)
    lifetime = timedelta(days=30)
    return conclude_enrolment(
        pending, answer, AUTHORITY, now=NOW, lifetime=lifetime
    ).to_json()


@pytest.fixture(scope="module")
def attester(
    tools: Tpm2Tools, tpm: SoftwareTpm, enrolment: Any
) -> Callable[..., TpmAttester]:
    """Open the enrolled TPM; keywords replace arguments."""

    def make(**changes: Any) -> TpmAttester:
        known = KnownTpm(endorsements=(tpm.chain,), enrolment=enrolment)
        arguments: dict[str, Any] = {"pcrs": (0, 7, MEASURED), "known": known}
        return TpmAttester(tools, **arguments | changes)

    return make


@pytest.fixture(scope="module")
def genuine(attester: Callable[..., TpmAttester]) -> Evidence:
    return attester().attest(REPORT_DATA)


@pytest.fixture(scope="module")
def judge(tpm: SoftwareTpm, root: str) -> Callable[..., AttestationResult]:
    """Verify and appraise evidence; keywords replace keys of the policy."""

    def run(
        evidence: Evidence, challenge: bytes = REPORT_DATA, /, **changes: Any
    ) -> AttestationResult:
        table = {
            "pcr": {"0": [ZERO], "7": [ZERO], str(MEASURED): [ZERO]},
            "ek_roots": [root],
            "enrolment": [AUTHORITY.public.key_id],
        }
        policy = AppraisalPolicy.from_table(
            {
                "version": 1,
                "max_age_seconds": 300,
                "allow": ["tpm"],
                "tpm": table | changes,
            }
        )
        return appraise(
            Tpm().verify(evidence, (tpm.chain,), now=NOW),
            policy,
            report_data=challenge,
            now=NOW,
            nonce_issued_at=NOW,
        )

    return run


Judge = Callable[..., AttestationResult]


def fields_of(judge: Judge, *arguments: Any, **changes: Any) -> list[str]:
    with pytest.raises(PolicyRejected, match="authentic but not") as caught:
        judge(*arguments, **changes)
    return [finding.field for finding in caught.value.findings]


def test_a_quote_is_accepted(judge: Judge, genuine: Evidence) -> None:
    result = judge(genuine)
    assert result.kind == "tpm"
    assert result.claims.report_data == REPORT_DATA[:32]
    assert result.claims.claims["model"] == "swtpm"
    assert result.simulated
    assert [field.field for field in result.unchecked] == [
        "ek_revocation",
        "platform_id",
    ]


def test_another_challenge(judge: Judge, genuine: Evidence) -> None:
    assert fields_of(judge, genuine, bytes(64)) == ["report_data"]


def test_every_flipped_byte_of_a_quote_is_refused(
    judge: Judge, genuine: Evidence
) -> None:
    parts = parse_tpm_evidence(genuine)
    for field in ("message", "signature"):
        value = getattr(parts, field)
        for at in range(len(value)):
            flipped = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
            with pytest.raises(
                (CheckFailedError, MalformedInputError), match=r"quote\.|TPM signature"
            ):
                judge(replace(parts, **{field: flipped}).to_evidence())


def test_a_lying_register(judge: Judge, genuine: Evidence) -> None:
    parts = parse_tpm_evidence(genuine)
    lying = replace(parts, pcrs={**parts.pcrs, 0: b"\1" * 32})
    with pytest.raises(CheckFailedError, match=r"quote\.pcr_digest"):
        judge(lying.to_evidence())
    more = replace(parts, pcrs={**parts.pcrs, 4: bytes(32)})
    with pytest.raises(CheckFailedError, match=r"quote\.pcrs"):
        judge(more.to_evidence())


def test_a_register_that_the_policy_wants_and_nobody_quoted(
    judge: Judge, genuine: Evidence
) -> None:
    assert fields_of(judge, genuine, pcr={"4": [ZERO]}) == ["pcr"]


def test_another_reference_value(judge: Judge, genuine: Evidence) -> None:
    assert fields_of(judge, genuine, pcr={"7": ["11" * 32]}) == ["pcr"]


def test_a_root_that_is_not_listed(judge: Judge, genuine: Evidence) -> None:
    assert fields_of(judge, genuine, ek_roots=["sha256:" + "0" * 64]) == ["ek_root"]


def test_an_authority_that_is_not_listed(judge: Judge, genuine: Evidence) -> None:
    foreign = [SigningKey.generate().public.key_id]
    assert fields_of(judge, genuine, enrolment=foreign) == ["enrolment"]


def test_no_enrolment(judge: Judge, fresh: TpmAttester) -> None:
    assert fields_of(judge, fresh.attest(REPORT_DATA)) == ["enrolment"]


def test_an_attestation_key_of_somebody_else(judge: Judge, genuine: Evidence) -> None:
    """A software key that says it is a TPM's: certified EK, forged AK, same quote."""
    pki, parts = TpmPki(), parse_tpm_evidence(genuine)
    forged = replace(
        pki.parts(),
        ek_certificate=parts.ek_certificate,
        enrolment=parts.enrolment,
    )
    with pytest.raises(CheckFailedError, match=r"enrolment\.ak"):
        judge(forged.to_evidence())


def test_a_key_that_signs_anything(judge: Judge, genuine: Evidence) -> None:
    parts = parse_tpm_evidence(genuine)
    attributes = int.from_bytes(parts.ak_public[6:10], "big") & ~(1 << 16)
    unrestricted = (
        parts.ak_public[:6] + attributes.to_bytes(4, "big") + parts.ak_public[10:]
    )
    with pytest.raises(CheckFailedError, match=r"ak\.attributes: got not restricted"):
        judge(replace(parts, ak_public=unrestricted).to_evidence())


def test_a_quote_after_another_measurement(
    judge: Judge, attester: Callable[..., TpmAttester], tools: Tpm2Tools
) -> None:
    measured = hashlib.sha256(b"something else").digest()
    extend = ["tpm2_pcrextend", f"{MEASURED}:sha256={measured.hex()}"]
    tools.run(extend)
    try:
        evidence = attester().attest(REPORT_DATA)
    finally:
        tools.run(["tpm2_pcrreset", str(MEASURED)])
    assert fields_of(judge, evidence) == ["pcr"]
    replayed = hashlib.sha256(bytes(32) + measured).hexdigest()
    judge(evidence, pcr={str(MEASURED): [replayed]})
    judge(attester().attest(REPORT_DATA))


def test_the_same_key_after_a_reset(
    judge: Judge, attester: Callable[..., TpmAttester], tpm: SoftwareTpm
) -> None:
    opened = attester()
    before = judge(opened.attest(REPORT_DATA)).claims.claims
    tpm.reset()
    # The key that was loaded is gone: it is derived anew, under the same enrolment.
    after = judge(opened.attest(REPORT_DATA)).claims.claims
    assert after["reset_count"] == before["reset_count"] + 1
    assert after["ak_name"] == before["ak_name"]


def test_an_event_log_explains_what_was_measured(
    attester: Callable[..., TpmAttester],
    tools: Tpm2Tools,
    tpm: SoftwareTpm,
    tmp_path: Path,
    judge: Judge,
) -> None:
    path = tmp_path / "log"
    path.write_bytes(head() + event(4, b"boot loader") + event(4, b"kernel"))
    opened = attester(pcrs=(4,), event_log=path)
    for data in (b"boot loader", b"kernel"):
        tools.run(["tpm2_pcrextend", f"4:sha256={hashlib.sha256(data).hexdigest()}"])
    try:
        evidence = opened.attest(REPORT_DATA)
        path.write_bytes(head() + event(4, b"boot loader"))
        less = opened.attest(REPORT_DATA)
    finally:
        tpm.reset()
    result = judge(evidence, pcr={"unchecked": "the log explains it"})
    assert result.claims.claims["event_log"] == "replayed"
    with pytest.raises(CheckFailedError, match=r"event_log\.replay: got PCR 4"):
        judge(less)


@pytest.mark.parametrize("length", [0, 32, 63, 65])
def test_it_quotes_64_bytes(fresh: TpmAttester, length: int) -> None:
    with pytest.raises(MalformedInputError, match=f"got {length} bytes, want 64"):
        fresh.attest(bytes(length))


def test_a_process_shows_its_keys_with_it(
    attester: Callable[..., TpmAttester],
    tpm: SoftwareTpm,
    root: str,
    make_document: Callable[..., KeyDocument],
) -> None:
    nonce, opened = bytes(range(32)), attester()
    document = make_document(platform="tpm", not_after="2099-01-01T00:00:00Z")
    policy = AppraisalPolicy.from_table(
        {
            "version": 1,
            "max_age_seconds": 300,
            "allow": ["tpm"],
            "tpm": {
                "pcr": {"0": [ZERO]},
                "ek_roots": [root],
                "enrolment": [AUTHORITY.public.key_id],
            },
        }
    )

    def verify(shown: KeyDocument, asked: bytes) -> AttestationResult:
        return verify_key_document(
            shown,
            opened.attest(report_data(asked, document)),
            opened.endorsements,
            policy,
            nonce=nonce,
            now=NOW,
            nonce_issued_at=NOW,
        )

    assert verify(document, nonce).claims.platform_id.startswith("sha256:")
    with pytest.raises(PolicyRejected, match="report_data"):
        verify(document, nonce[::-1])
    other = make_document(platform="tpm", not_after="2098-01-01T00:00:00Z")
    with pytest.raises(PolicyRejected, match="report_data"):
        verify(other, nonce)


class TestEnrolling:
    @pytest.fixture
    def pending(self, fresh: TpmAttester, root: str) -> PendingEnrolment:
        return challenge_enrolment(fresh.request_enrolment(), ek_roots=[root], now=NOW)

    def test_a_credential_for_another_key_is_not_opened(
        self, fresh: TpmAttester
    ) -> None:
        request = fresh.request_enrolment()
        ek = verify_endorsement_key(
            request.ek_certificate, request.endorsements, now=NOW
        )
        name = parse_attestation_key(request.ak_public).name
        secret = bytes(range(32))
        assert fresh.activate(make_credential(ek.key, name, secret)) == secret
        other = parse_attestation_key(marshal_public(TpmPki().ak_key)).name
        with pytest.raises(UnavailableError, match="tpm2_activatecredential failed"):
            fresh.activate(make_credential(ek.key, other, secret))

    def test_a_request_survives_the_trip(self, fresh: TpmAttester) -> None:
        request = fresh.request_enrolment()
        assert EnrolmentRequest.from_json(request.to_json()) == request

    @pytest.mark.parametrize(
        ("document", "match"),
        [
            ({}, "is missing"),
            ([], "want an object"),
            (
                {"ek_certificate": "", "ak_public": 1, "endorsements": []},
                "ak_public: want base64",
            ),
        ],
    )
    def test_requests_of_another_form(self, document: Any, match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            EnrolmentRequest.from_json(document)

    def test_a_maker_that_is_not_enrolled(self, fresh: TpmAttester) -> None:
        with pytest.raises(CheckFailedError, match=r"enrolment\.ek_root"):
            challenge_enrolment(
                fresh.request_enrolment(), ek_roots=["sha256:" + "0" * 64], now=NOW
            )

    def test_an_endorsement_key_of_another_type(self) -> None:
        pki = TpmPki()
        request = EnrolmentRequest(
            ek_certificate=pki.ek_certificate,
            ak_public=marshal_public(pki.ak_key),
            endorsements=pki.chain,
        )
        with pytest.raises(AttestationError, match="256 bits, want RSA of 2048"):
            challenge_enrolment(
                request,
                ek_roots=[pki.root_digest],
                now=datetime(2026, 3, 1, tzinfo=UTC),
            )

    def test_another_answer(self, pending: PendingEnrolment) -> None:
        for answer in (b"", bytes(32), pending.secret[:-1], pending.credential):
            with pytest.raises(CheckFailedError, match=r"enrolment\.answer"):
                conclude_enrolment(
                    pending, answer, AUTHORITY, now=NOW, lifetime=timedelta(1)
                )

    @pytest.mark.parametrize("seconds", [-1, 601])
    def test_an_answer_out_of_time(
        self, pending: PendingEnrolment, seconds: int
    ) -> None:
        with pytest.raises(CheckFailedError, match=r"enrolment\.age"):
            conclude_enrolment(
                pending,
                pending.secret,
                AUTHORITY,
                now=NOW + timedelta(seconds=seconds),
                lifetime=timedelta(1),
            )

    @pytest.mark.parametrize("days", [0, -1, 367])
    def test_lifetimes(self, pending: PendingEnrolment, days: int) -> None:
        with pytest.raises(ConfigurationError, match="lifetime of an enrolment"):
            conclude_enrolment(
                pending,
                pending.secret,
                AUTHORITY,
                now=NOW,
                lifetime=timedelta(days=days),
            )

    def test_the_secret_is_not_shown(self, pending: PendingEnrolment) -> None:
        assert repr(pending.secret) not in repr(pending)


def test_the_root_is_the_folders_own(tpm: SoftwareTpm, root: str) -> None:
    chain = x509.load_pem_x509_certificates(tpm.chain)
    assert digest_bytes(chain[-1].public_bytes(Encoding.DER)) == root
