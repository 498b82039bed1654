"""Evidence of every kind under development roots, to be verified and timed.

Formats and checks are the real ones; only the roots differ. A TPM is a software TPM,
where there is one, and is left out where there is not.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.attesters.tpm import KnownTpm, TpmAttester
from bentoml_secure.attestation.attesters.tpm_tools import Tpm2Tools
from bentoml_secure.attestation.dev_root import create_dev_root
from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.attestation.roles import Attester, Verifier
from bentoml_secure.attestation.tees.az_snp_vtpm import AzSnpVtpm
from bentoml_secure.attestation.tees.cca import Cca
from bentoml_secure.attestation.tees.nitro import Nitro
from bentoml_secure.attestation.tees.nvidia_gpu import NvidiaGpu
from bentoml_secure.attestation.tees.sev_snp import SevSnp
from bentoml_secure.attestation.tees.sgx import Sgx
from bentoml_secure.attestation.tees.simulated import Simulated, SimulatedAttester
from bentoml_secure.attestation.tees.tdx import Tdx
from bentoml_secure.attestation.tees.tpm import Tpm, parse_tpm_evidence
from bentoml_secure.attestation.tees.tpm_credential import (
    challenge_enrolment,
    conclude_enrolment,
)
from bentoml_secure.attestation.tees.tpm_endorsement import verify_endorsement_key
from bentoml_secure.digest import digest_json
from bentoml_secure.session.handshake import Initiator
from bentoml_secure.session.identity import Identity
from bentoml_secure.session.judging import judge
from bentoml_secure.session.responders import Responder, TokenBucket
from bentoml_secure.signing import SigningKey
from bentoml_secure.statements import utc_now
from bentoml_secure.testing.amd_pki import AmdPki
from bentoml_secure.testing.az_vm import AzVm
from bentoml_secure.testing.cca_pki import CcaPki
from bentoml_secure.testing.dcap_pki import DcapPki
from bentoml_secure.testing.nitro_pki import NitroPki
from bentoml_secure.testing.nvidia_pki import NvidiaPki
from bentoml_secure.testing.simulated_tdx import (
    SimulatedTdxAttester,
    mr_td,
    root_digest,
)
from bentoml_secure.testing.swtpm import SoftwareTpm, missing_tools

REPORT_DATA = bytes(range(64))
GROUND = digest_json("benchmark")
WHY = {"unchecked": "a benchmark"}


def verifications() -> dict[str, Callable[[], object]]:
    """Return, by kind, what verifies one piece of evidence."""
    now = utc_now().replace(microsecond=0)
    dcap, amd = DcapPki(now=now), AmdPki(now=now)
    azure, nitro, nvidia, cca = (
        AzVm(amd),
        NitroPki(now=now),
        NvidiaPki(now=now),
        CcaPki(),
    )
    given: dict[str, tuple[Verifier, Evidence, Sequence[bytes]]] = {
        "tdx": (
            Tdx(root=dcap.root_digest),
            Evidence(kind="tdx", blob=dcap.tdx_quote(REPORT_DATA)),
            (dcap.collateral("TDX"),),
        ),
        "sgx": (
            Sgx(root=dcap.root_digest),
            Evidence(kind="sgx", blob=dcap.sgx_quote(REPORT_DATA)),
            (dcap.collateral("SGX"),),
        ),
        "sev-snp": (
            SevSnp(roots=amd.roots),
            amd.attest(REPORT_DATA),
            amd.endorsements(),
        ),
        "az-snp-vtpm": (
            AzSnpVtpm(roots=amd.roots),
            azure.attest(REPORT_DATA),
            amd.endorsements(),
        ),
        "nitro": (Nitro(root=nitro.root), nitro.attest(REPORT_DATA), ()),
        "nvidia-gpu": (
            NvidiaGpu(root=nvidia.root),
            nvidia.attest(REPORT_DATA[:32]),
            (),
        ),
        "cca": (
            Cca(development_key=cca.cpak.public_key()),
            cca.attest(REPORT_DATA),
            (cca.jwk,),
        ),
    }
    calls: dict[str, Callable[[], object]] = {
        kind: _verification(verifier, evidence, endorsements, now)
        for kind, (verifier, evidence, endorsements) in given.items()
    }
    with tempfile.TemporaryDirectory() as name:
        attester = simulated(Path(name))
        evidence = attester.attest(REPORT_DATA)
    calls["simulated"] = _verification(Simulated(), evidence, (), now)
    if not missing_tools():
        with software_tpm() as (tpm, _):
            evidence, chain = tpm.attest(REPORT_DATA), tpm.endorsements
        # Its certificate begins when the TPM is made, after all the others.
        calls["tpm"] = _verification(Tpm(), evidence, chain, utc_now())
    return calls


def _verification(
    verifier: Verifier, evidence: Evidence, endorsements: Sequence[bytes], now: datetime
) -> Callable[[], object]:
    return lambda: verifier.verify(evidence, endorsements, now=now)


def simulated(folder: Path) -> SimulatedAttester:
    """Return an attester under a new development root."""
    create_dev_root(folder / "root", now=datetime.now(UTC))
    return SimulatedAttester.from_folder(folder / "root", clock=utc_now)


@contextlib.contextmanager
def software_tpm() -> Iterator[tuple[TpmAttester, dict[str, Any]]]:
    """Run a software TPM, enrolled; yield its attester and the policy for it."""
    authority, pcrs = SigningKey.generate(), (0, 7)
    with SoftwareTpm() as running:
        tools, chain = Tpm2Tools(running.tcti), (running.chain,)
        fresh = TpmAttester(tools, pcrs=pcrs, known=KnownTpm(endorsements=chain))
        request, now = fresh.request_enrolment(), utc_now()
        ek = verify_endorsement_key(
            request.ek_certificate, request.endorsements, now=now
        )
        pending = challenge_enrolment(request, ek_roots=[ek.root], now=now)
        envelope = conclude_enrolment(
            pending,
            fresh.activate(pending.credential),
            authority,
            now=now,
            lifetime=timedelta(days=1),
        )
        known = KnownTpm(endorsements=chain, enrolment=envelope.to_json())
        attester = TpmAttester(tools, pcrs=pcrs, known=known)
        quoted = parse_tpm_evidence(attester.attest(REPORT_DATA)).pcrs
        yield (
            attester,
            {
                "pcr": {str(index): [value.hex()] for index, value in quoted.items()},
                "ek_roots": [ek.root],
                "enrolment": [authority.public.key_id],
            },
        )


def handshakes() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield, by kind, what makes one handshake, evidence of that kind on both ends."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "root"
        attester: Attester = simulated(Path(name))
        claims = Simulated().verify(attester.attest(REPORT_DATA), (), now=utc_now())
        table: dict[str, Any] = {"roots": [claims.root], "measurement": WHY}
        yield "simulated", _handshake(attester, table)
        attester = SimulatedTdxAttester(root, machine="benchmark", clock=utc_now)
        table = {"roots": [root_digest(root, now=utc_now())], "mr_td": [mr_td()]}
        yield "simulated-tdx", _handshake(attester, table)
    if not missing_tools():
        with software_tpm() as (attester, table):
            yield "tpm", _handshake(attester, table)


def _handshake(attester: Attester, table: dict[str, Any]) -> Callable[[], object]:
    kind = attester.kind
    policy = AppraisalPolicy.from_table(
        {"version": 1, "max_age_seconds": 300, "allow": [kind], kind: table}
    )

    def identity(role: Role) -> Identity:
        segment = GROUND if role is Role.RUNNER else None
        return Identity(
            attester,
            role=role,
            service=str(role),
            segment=segment,
            plan=GROUND,
            config_digest=GROUND,
        )

    caller, runner = identity(Role.ENTRY), identity(Role.RUNNER)
    responder = Responder(
        runner,
        lambda shown: judge(shown, policy, now=utc_now()),
        max_age_seconds=300,
        clock=utc_now,
        quotes=TokenBucket(per_second=1e6, burst=1_000_000),
    )

    def make_session() -> object:
        initiator = Initiator(caller.keys, max_age_seconds=300, clock=utc_now)
        offer = initiator.read_offer(
            responder.offer(initiator.hello()),
            lambda shown: judge(shown, policy, now=utc_now()),
        )
        record = caller.attest(offer.nonce, caller.keys)
        return initiator.conclude(responder.accept(initiator.finish(record)))

    return make_session
