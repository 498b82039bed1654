"""Who shows what: each replica of a segment has evidence of another kind.

    replica 0   simulated       a report under the development root
    replica 1   simulated-tdx   a TDX quote with its certificates and collateral, all in
                                Intel's formats, under a root made for it
    replica 2   tpm             a quote of a software TPM of its own, which the model's
                                owner has enrolled

Formats and checks are those of real machines; behind none of it is one. Where there is
no software TPM, replica 2 shows a simulated TDX quote of a machine of its own, and the
demo says so.
"""

from __future__ import annotations

import json
import logging
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bentoml_secure.attestation.attesters import ATTESTER
from bentoml_secure.attestation.attesters.simulated import SIMULATED_PLATFORM
from bentoml_secure.attestation.attesters.tpm import FOLDER, KnownTpm, TpmAttester
from bentoml_secure.attestation.attesters.tpm_tools import TCTI, Tpm2Tools
from bentoml_secure.attestation.dev_root import POLICY
from bentoml_secure.attestation.tees.tpm_credential import (
    challenge_enrolment,
    conclude_enrolment,
)
from bentoml_secure.digest import Digest, digest_bytes
from bentoml_secure.errors import MissingDependencyError, UnavailableError
from bentoml_secure.receipts.toml import write_toml
from bentoml_secure.signing import SigningKey
from bentoml_secure.testing.simulated_tdx import mr_td, root_digest
from bentoml_secure.testing.swtpm import SoftwareTpm

SIMULATED, SIMULATED_TDX, TPM = "simulated", "simulated-tdx", "tpm"
PACKAGES = "swtpm swtpm-tools tpm2-tools"
LIFETIME = timedelta(days=30)

NOTHING_STARTED = {str(register): [bytes(32).hex()] for register in range(8)}
"""What the firmware's registers hold: the software TPM saw no machine start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """What the replicas attest themselves with.

    Attributes:
        environment: Variables of the deployment's processes that say so.
        kinds: Of evidence, by the replica's number.
        policy: The deployment's appraisal policy.
        note: Why a kind is not there, or empty.
    """

    environment: Mapping[str, str]
    kinds: tuple[str, ...]
    policy: Path
    note: str = ""


@contextmanager
def machines(
    folder: Path, dev_root: Path, runners: Sequence[Sequence[str]]
) -> Iterator[Machines]:
    """Give each replica its attester, and write the policy that accepts all of them.

    Args:
        folder: Exists; gets the policy and what is known of the TPMs.
        dev_root: Of all that is simulated.
        runners: Names of the three replicas of each segment.
    """
    authority = SigningKey.generate()
    environment = {_of(ATTESTER, names[1]): SIMULATED_TDX for names in runners}
    kinds, note = (SIMULATED, SIMULATED_TDX, TPM), ""
    roots: set[Digest] = set()
    with ExitStack() as running:
        try:
            for names in runners:
                tpm = running.enter_context(SoftwareTpm())
                known = folder / "tpm" / names[2]
                roots.add(enrol(tpm, authority, known))
                environment |= _by_tpm(names[2], tpm.tcti, known)
        except (MissingDependencyError, UnavailableError) as error:
            kinds, roots = (SIMULATED, SIMULATED_TDX, SIMULATED_TDX), set()
            for names in runners:
                environment |= _by_another_machine(names[2])
            note = (
                f"No software TPM here: {error.args[0]} Replicas 2 show simulated TDX"
                f" quotes of other machines instead.\nFor TPMs: apt-get install"
                f" {PACKAGES} (Debian, Ubuntu), then make demo again."
            )
        policy = folder / "policy.toml"
        text = policy_text(dev_root, ek_roots=sorted(roots), authority=authority)
        policy.write_text(text)
        yield Machines(environment=environment, kinds=kinds, policy=policy, note=note)


def _of(variable: str, service: str) -> str:
    return f"{variable}__{service}"


def _by_tpm(service: str, tcti: str, known: Path) -> dict[str, str]:
    return {
        _of(ATTESTER, service): TPM,
        _of(TCTI, service): tcti,
        _of(FOLDER, service): str(known.resolve()),
    }


def _by_another_machine(service: str) -> dict[str, str]:
    return {
        _of(ATTESTER, service): SIMULATED_TDX,
        _of(SIMULATED_PLATFORM, service): f"machine of {service}",
    }


def enrol(tpm: SoftwareTpm, authority: SigningKey, folder: Path) -> Digest:
    """Enrol a TPM: once per attestation key, by who vouches that it lives in that TPM.

    Args:
        tpm: Running.
        authority: The model's owner's.
        folder: New; gets what the TPM's process sends along.

    Returns:
        The digest of the root that the TPM's maker certified it under.
    """
    certificates = x509.load_pem_x509_certificates(tpm.chain)
    root = digest_bytes(certificates[-1].public_bytes(Encoding.DER))
    with _quiet(TpmAttester.__module__):
        # It warns of a TPM that nobody enrolled, which is what is about to change.
        known = KnownTpm(endorsements=(tpm.chain,))
        device = TpmAttester(Tpm2Tools(tpm.tcti), known=known)
    pending = challenge_enrolment(
        device.request_enrolment(), ek_roots=[root], now=datetime.now(UTC)
    )
    enrolment = conclude_enrolment(
        pending,
        device.activate(pending.credential),
        authority,
        now=datetime.now(UTC),
        lifetime=LIFETIME,
    )
    folder.mkdir(parents=True)
    (folder / "enrolment.json").write_text(json.dumps(enrolment.to_json()))
    (folder / "ek_chain.pem").write_bytes(tpm.chain)
    return root


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def policy_text(
    dev_root: Path, *, ek_roots: Sequence[Digest], authority: SigningKey
) -> str:
    """Return the policy: the development root's, and a table for each other kind.

    Args:
        dev_root: Has a policy for ``simulated``.
        ek_roots: Of the TPMs' makers; none where there are no TPMs.
        authority: Whose enrolments count.
    """
    policy = tomllib.loads((dev_root / POLICY).read_text())
    policy["allow"] = [SIMULATED, SIMULATED_TDX]
    root = root_digest(dev_root.absolute(), now=datetime.now(UTC))
    policy[SIMULATED_TDX] = {"roots": [root], "mr_td": [mr_td()]}
    if ek_roots:
        policy["allow"].append(TPM)
        policy[TPM] = {
            "pcr": NOTHING_STARTED,
            "ek_roots": list(ek_roots),
            "enrolment": [authority.public.key_id],
        }
    return write_toml(policy)
