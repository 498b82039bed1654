"""Attacks on evidence of NVIDIA GPUs, under a development root."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bentoml_secure.attestation.appraisal import AppraisalPolicy, appraise
from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.reference_values import Unchecked
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.attestation.tees.nvidia_gpu import MAX_GPUS, NvidiaGpu
from bentoml_secure.errors import (
    AttestationError,
    CheckFailedError,
    ConfigurationError,
    MalformedInputError,
    PolicyRejected,
)
from bentoml_secure.testing.nvidia_pki import DEVICE, NvidiaPki, fwid_extension

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
NONCE = bytes(range(32))
BLOCK2, BLOCK3 = "02" * 48, "03" * 48


@pytest.fixture(scope="module")
def pki() -> NvidiaPki:
    return NvidiaPki(now=NOW)


@pytest.fixture(scope="module")
def verify(pki: NvidiaPki) -> Callable[..., VerifiedClaims]:
    tee = NvidiaGpu(root=pki.root)

    def verify(evidence: Evidence, now: datetime = NOW) -> VerifiedClaims:
        return tee.verify(evidence, (), now=now)

    return verify


Verify = Callable[..., VerifiedClaims]


def refused(verify: Verify, evidence: Evidence, now: datetime = NOW) -> str:
    with pytest.raises(CheckFailedError) as caught:
        verify(evidence, now)
    (finding,) = caught.value.findings
    return finding.field


def second(pki: NvidiaPki, nonce: bytes = NONCE, **stated: Any) -> dict[str, Any]:
    """Return the entry of another device under the same root."""
    return pki.entry(nonce, chain=pki.pki.chain(DEVICE, serial_number=77), **stated)


def policy(**table: Any) -> AppraisalPolicy:
    return AppraisalPolicy.from_table(
        {
            "version": 1,
            "max_age_seconds": 300,
            "allow": ["nvidia-gpu"],
            "nvidia-gpu": {"firmware": {"unchecked": "a test"}, **table},
        }
    )


def fields_of(
    claims: VerifiedClaims, accepted: AppraisalPolicy, nonce: bytes = NONCE
) -> list[str]:
    try:
        appraise(claims, accepted, report_data=nonce, now=NOW, nonce_issued_at=None)
    except PolicyRejected as rejection:
        return [finding.field for finding in rejection.findings]
    return []


class TestGood:
    def test_a_device_says_what_it_signed(self, pki: NvidiaPki, verify: Verify) -> None:
        claims = verify(pki.attest(NONCE))
        assert (claims.kind, claims.vendor) == ("nvidia-gpu", "none (simulated)")
        assert claims.simulated
        assert claims.report_data == NONCE
        assert claims.platform_id == "GH100-4"
        assert claims.issued_at is None
        assert claims.expires_at == NOW + timedelta(days=1)
        assert claims.claims["measurements"] == [{"2": BLOCK2, "3": BLOCK3}]
        (gpu,) = claims.claims["gpus"]
        assert gpu == {
            "device": "GH100-4",
            "model": "GH100 A01 GSP BROM",
            "arch": "HOPPER",
            "driver_version": "590.12",
            "vbios_version": "96.00.A5.00.01",
            "chip_sku": None,
            "project": "G520",
            "project_sku": None,
            "fwid": bytes(range(48)).hex(),
            "protected_pcie": None,
            "feature_flag": "0200",
            "measurements": 0,
        }

    def test_a_blackwell(self) -> None:
        pki = NvidiaPki(now=NOW, model="GB100 A01 GSP BROM")
        evidence = pki.evidence(pki.entry(NONCE, arch="BLACKWELL"))
        claims = NvidiaGpu(root=pki.root).verify(evidence, (), now=NOW)
        assert claims.claims["gpus"][0]["arch"] == "BLACKWELL"

    def test_several_devices_are_one_machine(
        self, pki: NvidiaPki, verify: Verify
    ) -> None:
        one, other = pki.entry(NONCE), second(pki)
        claims = verify(pki.evidence(one, other))
        assert claims.claims["count"] == 2
        assert claims.claims["measurements"] == [{"2": BLOCK2, "3": BLOCK3}]
        assert claims.platform_id == verify(pki.evidence(other, one)).platform_id
        assert claims.platform_id.startswith("gpus-2-")

    def test_devices_of_other_firmware_show_theirs(
        self, pki: NvidiaPki, verify: Verify
    ) -> None:
        other = second(pki, evidence=_b64(pki.report(NONCE, measurements={9: b"\1"})))
        claims = verify(pki.evidence(pki.entry(NONCE), other))
        assert [gpu["measurements"] for gpu in claims.claims["gpus"]] == [0, 1]
        assert claims.claims["measurements"][1] == {"9": "01"}

    def test_what_may_vary(self, pki: NvidiaPki, verify: Verify) -> None:
        want = verify(pki.attest(NONCE))
        entry = pki.entry(NONCE)
        stated = {
            "nonce": entry["nonce"].upper(),
            "driver_version": "590.12",
            "vbios_version": "96.00.a5.00.01",
            "version": "1.0",
        }
        for evidence in (
            pki.evidence(entry, as_list=True),
            pki.evidence({**entry, **stated}),
            Evidence(kind="nvidia-gpu", blob=pki.evidence(entry).blob + b"\n\0\0"),
        ):
            got = verify(evidence)
            assert got.claims == want.claims

    def test_firmware_from_before_it_reported_its_id(
        self, pki: NvidiaPki, verify: Verify
    ) -> None:
        report = pki.report(NONCE, opaque={20: b""})
        claims = verify(pki.evidence(pki.entry(NONCE, report=report)))
        assert claims.claims["gpus"][0]["fwid"] is None

    def test_it_is_described_unverified(self, pki: NvidiaPki) -> None:
        described = NvidiaGpu().describe(pki.attest(NONCE))
        assert described["nonce"] == NONCE.hex()
        assert described["gpus"][0]["driver_version"] == "590.12"


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class TestChecks:
    """Each check, by evidence that nothing else refuses."""

    def test_a_signature_by_another_device(
        self, pki: NvidiaPki, verify: Verify
    ) -> None:
        report = NvidiaPki(now=NOW).report(NONCE)
        evidence = pki.evidence(pki.entry(NONCE, report=report))
        assert refused(verify, evidence) == "spdm.signature"

    def test_a_report_that_says_something_else(
        self, pki: NvidiaPki, verify: Verify
    ) -> None:
        report = pki.report(NONCE)
        for place in (2, 36, 39, 40, 70, 205, 213, 260, len(report) - 1):
            hurt = bytearray(report)
            hurt[place] ^= 2
            evidence = pki.evidence(pki.entry(NONCE, report=bytes(hurt)))
            assert refused(verify, evidence) == "spdm.signature"

    @pytest.mark.parametrize(("flags", "which"), [(0, 255), (1, 2), (1, 0)])
    def test_a_report_of_less_than_all(
        self, pki: NvidiaPki, verify: Verify, flags: int, which: int
    ) -> None:
        report = pki.report(NONCE, flags=flags, which=which)
        evidence = pki.evidence(pki.entry(NONCE, report=report))
        assert refused(verify, evidence) == "request"

    def test_a_nonce_beside_the_report(self, pki: NvidiaPki, verify: Verify) -> None:
        entry = pki.entry(NONCE, nonce=NONCE[::-1].hex())
        assert refused(verify, pki.evidence(entry)) == "nonce"

    def test_devices_that_answer_several_nonces(
        self, pki: NvidiaPki, verify: Verify
    ) -> None:
        evidence = pki.evidence(pki.entry(NONCE), second(pki, NONCE[::-1]))
        assert refused(verify, evidence) == "nonces"

    def test_a_device_that_counts_twice(self, pki: NvidiaPki, verify: Verify) -> None:
        evidence = pki.evidence(pki.entry(NONCE), second(pki), pki.entry(NONCE))
        assert refused(verify, evidence) == "devices"

    def test_firmware_that_the_leaf_was_not_issued_to(
        self, pki: NvidiaPki, verify: Verify
    ) -> None:
        other = pki.report(NONCE, opaque={20: b"f" * 48})
        assert refused(verify, pki.evidence(pki.entry(NONCE, report=other))) == "fwid"
        for extensions in ((), (fwid_extension(b"f" * 48),)):
            chain = pki.pki.chain(4, extensions=extensions)
            evidence = pki.evidence(pki.entry(NONCE, chain=chain))
            assert refused(verify, evidence) == "fwid"

    @pytest.mark.parametrize("arch", ["BLACKWELL", "hopper", "LS10", None])
    def test_an_architecture_that_it_is_not(
        self, pki: NvidiaPki, verify: Verify, arch: str | None
    ) -> None:
        evidence = pki.evidence(pki.entry(NONCE, arch=arch))
        assert refused(verify, evidence) == "arch"

    @pytest.mark.parametrize(
        "stated",
        [{"driver_version": "591.0"}, {"vbios_version": "x"}, {"driver_version": 590}],
    )
    def test_versions_that_it_did_not_sign(
        self, pki: NvidiaPki, verify: Verify, stated: dict[str, Any]
    ) -> None:
        evidence = pki.evidence(pki.entry(NONCE, **stated))
        assert refused(verify, evidence) == "stated_versions"

    @pytest.mark.parametrize(
        "model", ["LS10 A01 FSP BROM", "GA100 A01 GSP BROM", "GH100", "Identity"]
    )
    def test_a_device_that_is_no_such_gpu(self, model: str) -> None:
        pki = NvidiaPki(now=NOW, model=model)
        tee = NvidiaGpu(root=pki.root)
        with pytest.raises(CheckFailedError, match="model: got") as caught:
            tee.verify(pki.attest(NONCE), (), now=NOW)
        assert caught.value.findings[0].field == "model"

    def test_one_bad_device_among_good_ones(
        self, pki: NvidiaPki, verify: Verify
    ) -> None:
        report = NvidiaPki(now=NOW).report(NONCE)
        evidence = pki.evidence(pki.entry(NONCE), second(pki, evidence=_b64(report)))
        assert refused(verify, evidence) == "spdm.signature"


class TestChain:
    @pytest.mark.parametrize(
        ("field", "index", "changes"),
        [
            ("chain.validity", 4, {"not_after": NOW - timedelta(seconds=1)}),
            ("chain.ca", 3, {"ca": False}),
            ("chain.leaf_ca", 4, {"ca": True}),
            ("chain.key_cert_sign", 3, {"key_cert_sign": False}),
            ("chain.digital_signature", 4, {"digital_signature": False}),
            ("chain.path_length", 2, {"path_length": 0}),
            ("chain.issuer", 2, {"issuer": "somebody else"}),
        ],
    )
    def test_one_certificate_that_does_not_hold(
        self,
        pki: NvidiaPki,
        verify: Verify,
        field: str,
        index: int,
        changes: dict[str, Any],
    ) -> None:
        chain = pki.pki.chain(index, **changes)
        evidence = pki.evidence(pki.entry(NONCE, chain=chain))
        assert refused(verify, evidence) == field

    def test_another_root(self, pki: NvidiaPki, verify: Verify) -> None:
        assert refused(verify, NvidiaPki(now=NOW).attest(NONCE)) == "chain.root"
        with pytest.raises(CheckFailedError, match=r"chain\.root: .*102bf659"):
            load_tee("nvidia-gpu").verify(pki.attest(NONCE), (), now=NOW)

    def test_another_order(self, pki: NvidiaPki, verify: Verify) -> None:
        chain = pki.pki.chain()
        evidence = pki.evidence(pki.entry(NONCE, chain=chain[::-1]))
        assert refused(verify, evidence) == "chain.root"
        evidence = pki.evidence(
            pki.entry(NONCE, chain=[chain[0], *chain[3:0:-1], chain[4]])
        )
        assert refused(verify, evidence) == "chain.issuer"

    def test_a_development_root_has_to_say_so(self) -> None:
        with pytest.raises(ConfigurationError, match="does not parse"):
            NvidiaGpu(root=b"no certificate")


class TestForms:
    @pytest.mark.parametrize(
        ("stated", "match"),
        [
            ({"nonce": "00" * 31}, "want 64"),
            ({"nonce": 7}, "want lower-case hex"),
            ({"evidence": "?"}, "not base64"),
            ({"evidence": None}, "want base64"),
            ({"evidence": ""}, "SPDM request version"),
            ({"certificate": None}, "want base64"),
            ({"certificate": ""}, "got 0 PEM certificates"),
            ({"certificate": _b64(b"-----BEGIN CERTIFICATE-----\n")}, "got 0 PEM"),
            (
                {
                    "certificate": _b64(
                        b"-----BEGIN CERTIFICATE-----A-----END CERTIFICATE-----"
                    )
                },
                "is not PEM",
            ),
        ],
    )
    def test_an_entry_out_of_its_form(
        self, pki: NvidiaPki, verify: Verify, stated: dict[str, Any], match: str
    ) -> None:
        with pytest.raises(MalformedInputError, match=match):
            verify(pki.evidence(pki.entry(NONCE, **stated)))

    @pytest.mark.parametrize(
        ("blob", "match"),
        [
            (b"", "got 0 bytes"),
            (b"[]", "got 0 devices, want 1 to 8"),
            (json.dumps([{}] * (MAX_GPUS + 1)).encode(), "got 9 devices"),
            (b"{}", "want an object with arch"),
            (b"[[]]", "want an object with arch"),
            (b"null", "want an object with arch"),
            (b"{", "not valid JSON"),
        ],
    )
    def test_what_is_no_evidence(self, verify: Verify, blob: bytes, match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            verify(Evidence(kind="nvidia-gpu", blob=blob))

    def test_certificates_that_are_not_five(
        self, pki: NvidiaPki, verify: Verify
    ) -> None:
        chain = pki.pki.chain()
        for wrong in (chain[:4], chain[1:], [*chain, chain[-1]]):
            with pytest.raises(MalformedInputError, match="want 5 and nothing else"):
                verify(pki.evidence(pki.entry(NONCE, chain=wrong)))
        pem = base64.b64decode(pki.entry(NONCE)["certificate"])
        with pytest.raises(MalformedInputError, match="want 5 and nothing else"):
            verify(pki.evidence(pki.entry(NONCE, certificate=_b64(pem + b"more"))))

    @pytest.mark.parametrize(
        ("opaque", "match"),
        [
            ({3: b""}, "driver version"),
            ({3: b"new\0"}, "driver version"),
            ({6: b""}, "VBIOS version: got 0 bytes"),
            ({6: bytes(9)}, "VBIOS version: got 9 bytes"),
        ],
    )
    def test_versions_out_of_their_form(
        self, pki: NvidiaPki, verify: Verify, opaque: dict[int, bytes], match: str
    ) -> None:
        report = pki.report(NONCE, opaque=opaque)
        with pytest.raises(MalformedInputError, match=match):
            verify(pki.evidence(pki.entry(NONCE, report=report)))

    def test_evidence_of_another_kind(self, pki: NvidiaPki, verify: Verify) -> None:
        with pytest.raises(AttestationError, match="got tdx, want nvidia-gpu"):
            verify(Evidence(kind="tdx", blob=pki.attest(NONCE).blob))


class TestPolicy:
    @pytest.mark.parametrize(
        "table",
        [
            {"min_driver": "590.0"},
            {"min_driver": "590.12"},
            {"min_driver": "590"},
            {"min_driver": "59.999"},
            {"min_vbios": "96.00.A5.00.00"},
            {"min_vbios": "96.00.a5.00.01"},
            {"firmware": {"2": [BLOCK2], "3": ["ff" * 48, BLOCK3]}},
            {"arch": ["HOPPER"]},
            {"count": 1},
        ],
    )
    def test_what_is_demanded_and_there(
        self, pki: NvidiaPki, verify: Verify, table: dict[str, Any]
    ) -> None:
        assert fields_of(verify(pki.attest(NONCE)), policy(**table)) == []

    @pytest.mark.parametrize(
        ("field", "table"),
        [
            ("min_driver", {"min_driver": "590.13"}),
            ("min_driver", {"min_driver": "1000"}),
            ("min_driver", {"min_driver": "590.12.1"}),
            ("min_vbios", {"min_vbios": "96.00.A5.00.02"}),
            ("min_vbios", {"min_vbios": "97.00.00.00.00"}),
            ("firmware", {"firmware": {"2": [BLOCK3]}}),
            # A block that is all zero is not in use.
            ("firmware", {"firmware": {"1": ["00" * 48]}}),
            ("firmware", {"firmware": {"64": [BLOCK2]}}),
            ("arch", {"arch": ["BLACKWELL"]}),
            ("count", {"count": 2}),
        ],
    )
    def test_what_is_demanded_and_not_there(
        self, pki: NvidiaPki, verify: Verify, field: str, table: dict[str, Any]
    ) -> None:
        assert fields_of(verify(pki.attest(NONCE)), policy(**table)) == [field]

    def test_the_worst_of_several_devices_counts(
        self, pki: NvidiaPki, verify: Verify
    ) -> None:
        report = pki.report(NONCE, opaque={3: b"535.1\0"}, measurements={2: b"\1"})
        old = second(pki, evidence=_b64(report))
        claims = verify(pki.evidence(pki.entry(NONCE), old))
        accepted = policy(min_driver="590.0", firmware={"2": [BLOCK2]})
        assert fields_of(claims, accepted) == ["min_driver", "firmware"]

    def test_another_nonce(self, pki: NvidiaPki, verify: Verify) -> None:
        claims = verify(pki.attest(NONCE))
        assert fields_of(claims, policy(), NONCE[::-1]) == ["report_data"]

    def test_what_was_left_out_is_listed(self, pki: NvidiaPki, verify: Verify) -> None:
        result = appraise(
            verify(pki.evidence(pki.entry(NONCE), second(pki))),
            policy(count={"unchecked": "any"}, firmware={"2": {"unchecked": "beta"}}),
            report_data=Unchecked("a test"),
            now=NOW,
            nonce_issued_at=None,
        )
        left = [(field.field, field.reason) for field in result.unchecked]
        assert ("count", "any") in left
        assert ("firmware", "2: beta") in left
        assert len(left) == len(set(left))
        assert {field for field, _ in left} == {
            *("count", "arch", "min_driver", "min_vbios", "firmware"),
            *("revocation", "devtools", "report_data", "age", "platform_id"),
        }

    def test_a_policy_reads_back(self) -> None:
        for table in (
            {},
            {"min_driver": "590.0", "min_vbios": "96.00.A5.00.00", "count": 8},
            {"arch": ["BLACKWELL", "HOPPER"], "firmware": {"2": [BLOCK2]}},
            {"min_driver": {"unchecked": "w"}, "arch": {"unchecked": "w"}},
            {"firmware": {"2": [BLOCK2], "3": {"unchecked": "w"}}},
        ):
            accepted = policy(**table)
            want = {"firmware": {"unchecked": "a test"}, **table}
            assert accepted.to_json()["nvidia-gpu"] == want
            assert AppraisalPolicy.from_table(accepted.to_json()) == accepted

    @pytest.mark.parametrize(
        ("table", "match"),
        [
            ({"firmware": None}, "want accepted values by index"),
            ({"firmware": {}}, "want accepted values by index"),
            ({"firmware": [BLOCK2]}, "want accepted values by index"),
            ({"firmware": {"0": [BLOCK2]}}, "unknown key '0'"),
            ({"firmware": {"2": []}}, "at least one measurement"),
            ({"firmware": {"2": ["0"]}}, "want measurement in hex"),
            ({"firmware": {"unchecked": " "}}, "want a reason"),
            ({"min_driver": 590}, "want a version such as '590.0'"),
            ({"min_driver": "newest"}, "want a version such as '590.0'"),
            ({"min_vbios": "96.00"}, "want a version such as '96"),
            ({"min_vbios": {"why": "w"}}, "unknown key 'why'"),
            ({"arch": ["AMPERE"]}, "want HOPPER or BLACKWELL"),
            ({"arch": []}, "at least one HOPPER"),
            ({"count": 0}, "want 1 to 8"),
            ({"count": True}, "want 1 to 8"),
            ({"count": 9}, "want 1 to 8"),
            ({"cc_mode": "on"}, "unknown key 'cc_mode'"),
        ],
    )
    def test_a_policy_out_of_its_form(self, table: dict[str, Any], match: str) -> None:
        with pytest.raises(ConfigurationError, match=match):
            policy(**table)
