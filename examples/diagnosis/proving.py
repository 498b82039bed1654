"""The third act: the same model with proofs, whose owner has set them up.

1. the owner sets proofs up: circuits, keys, a manifest; the proving keys are sealed,
and the broker gets what opens them, for provers alone
2. a critical request: the answer at once, its proofs seconds later
3. the bundle, complete, verified offline from its files, opened with the root salt
"""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from bentoml_secure import SecureClient
from bentoml_secure.receipts.toml import write_toml
from bentoml_secure.receipts.trust import parse_trust
from examples.diagnosis.asking import Asked, kept
from examples.diagnosis.commands import command, say
from examples.diagnosis.judging import holds_offline
from examples.diagnosis.owner import Owner
from examples.diagnosis.processes import serve
from examples.diagnosis.promises import Check
from examples.diagnosis.train import Floats

TARGET = "services.proven:Diagnosis"
SCENARIOS = "services/proven.toml"
PROOFS = Path("models/diagnosis-proofs")
ACCURACY = "0.05"
PROOF_SECONDS = 300.0
REQUESTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """What came of the critical requests.

    Attributes:
        asked: Each, with its proofs.
        proof_seconds: From each answer to the last of its proofs.
        provisional: How many answers came before their proofs.
        offline: How many bundles hold by themselves, opened with their salts.
        expected: float32[requests], what the whole model says.
    """

    asked: Sequence[Asked]
    proof_seconds: Sequence[float]
    provisional: int
    offline: int
    expected: Floats


def set_up(owner: Owner, sealed: Path, policy: Path, samples: Floats) -> None:
    """Have the owner set proofs up, seal their keys and give them to the broker.

    Args:
        owner: Of the model.
        sealed: The sealed plan.
        policy: The deployment's appraisal policy.
        samples: float32[samples, 30], real ones: how accurate circuits are is measured
            on them.
    """
    folder = owner.folder
    key, data, plain = folder / "owner.pem", folder / "samples.npz", folder / "proofs"
    key.write_bytes(_new_key())
    np.savez(data, features=samples)
    made = ["prove", "setup", str(owner.plan), "--out", str(plain)]
    made += ["--samples", str(data), "--key", str(key), "--srs", str(folder / "srs")]
    command(*made, "--accuracy", ACCURACY, "--unsafe-srs")
    keys = folder / "provers.keys"
    command("seal-proofs", plain, "--out", PROOFS, "--keys", keys)
    wrapping = owner.broker / "wrapping.key"
    words = ["broker", "add-keys", str(owner.store), str(keys)]
    command(*words, "--wrapping-key", wrapping)
    keys.unlink()
    own = owner.broker / "policy.toml"
    also = folder / "proven-policy.toml"
    command("broker", "policy", sealed, *deployment(policy), "--out", also)
    own.write_text(_both(own, also))


def _new_key() -> bytes:
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _both(one: Path, other: Path) -> str:
    """Return a broker's policy for two deployments of one plan."""
    policy, added = (tomllib.loads(path.read_text()) for path in (one, other))
    (model,), (also,) = policy["models"], added["models"]
    model["config_digests"] += also["config_digests"]
    return write_toml(policy)


def deployment(policy: Path) -> list[str]:
    """Return what `broker policy` and `trust` take beside the plan."""
    words = ["--scenarios", SCENARIOS, "--service", "Diagnosis", "--replicas", "3"]
    return [*words, "--policy", str(policy), "--proofs", str(PROOFS)]


def ask(
    folder: Path,
    trust: Path,
    environment: Mapping[str, str],
    samples: Floats,
    expected: Floats,
) -> Proven:
    """Serve with provers, ask critical requests, and wait for their proofs.

    Args:
        folder: New; gets receipts and log.
        trust: The caller's trust file.
        environment: Of the deployment's processes.
        samples: float32[samples, 30]; the first few are asked about.
        expected: float32[samples], what the whole model says of them.
    """
    folder.mkdir(parents=True)
    own = {
        "BENTOML_HOME": str((folder / "home").resolve()),
        "BENTOML_SECURE_STORE": str((folder / "receipts.sqlite").resolve()),
    }
    say(f"\nproven: starting {TARGET}, 2 segments x 3 replicas and a prover ...")
    log = folder / "serve.log"
    asked, waited, provisional = list[Asked](), list[float](), 0
    with (
        serve(
            TARGET, project=Path.cwd(), environment={**environment, **own}, log=log
        ) as served,
        SecureClient(served.url, trust, scenario="critical") as client,
    ):
        for number in range(REQUESTS):
            body = {"features": [samples[number].tolist()]}
            started = time.monotonic()
            answer = client.call("diagnose", body)
            answered = time.monotonic()
            provisional += answer.is_provisional
            while answer.is_provisional:
                if time.monotonic() - answered > PROOF_SECONDS:
                    raise RuntimeError(f"no proof in time; see {log}")
                answer = client.confirm(answer)
            waited.append(time.monotonic() - answered)
            asked.append(kept(answer, answered - started, folder / f"{number:03}"))
            say(
                f"proven: answered in {1000 * (answered - started):.0f} ms, "
                f"proven {waited[-1]:.1f} s later"
            )
    accepted = parse_trust(trust.read_bytes())
    return Proven(
        asked=asked,
        proof_seconds=waited,
        provisional=provisional,
        offline=sum(holds_offline(one, accepted) for one in asked),
        expected=expected[:REQUESTS],
    )


def check_proven(proven: Proven) -> Iterable[Check]:
    """Return what must hold of critical requests."""
    count = len(proven.asked)
    yield Check(
        promise="critical: the answer came first, and its receipt said provisional",
        holds=proven.provisional == count,
        found=f"{proven.provisional}/{count}",
    )
    claims = [one.verdict.claims for one in proven.asked]
    whole = sum(c["proofs"]["verified"] == c["proofs"]["of"] == 2 for c in claims)
    yield Check(
        promise="critical: both segments are proven, and the proofs are linked",
        holds=whole == count,
        found=f"{whole}/{count}",
    )
    yield Check(
        promise="critical: the bundle holds offline, its proofs opened with the salt",
        holds=proven.offline == count,
        found=f"{proven.offline}/{count}",
    )
    equal = sum(
        one.malignant == want
        for one, want in zip(proven.asked, proven.expected, strict=True)
    )
    yield Check(
        promise="critical: answers are the whole model's, bit for bit",
        holds=equal == count,
        found=f"{equal}/{count}",
    )
    bounds = [c["proofs"]["bound"] for c in claims]
    apart = [max(c["proofs"]["deviation"].values()) for c in claims]
    near = sum(far <= most for far, most in zip(apart, bounds, strict=True))
    yield Check(
        promise="critical: the proven answer is as near as the owner promises",
        holds=near == count,
        found=f"{near}/{count}, at most {max(apart):.2g} of {bounds[0]:g} apart",
    )


def shown(bundle: Path) -> str:
    """Return how large a proven bundle is, and what is attached to it."""
    size = bundle.stat().st_size
    kinds = len(json.loads(bundle.read_text())["attachments"])
    return f"{bundle}: {size:,} bytes, {kinds} attachments"
