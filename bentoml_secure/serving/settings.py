"""Settings of one process, read from the environment.

BENTOML_SECURE_ATTESTER   what makes this process's evidence, see
``attestation.attesters``; default: simulated, where there is a development root
BENTOML_SECURE_DEV_ROOT   folder made by ``bentoml-secure dev-root``: this process
attests itself with SIMULATED evidence under that root
BENTOML_SECURE_POLICY     appraisal policy for runners; default: policy.toml of
the development root
BENTOML_SECURE_STORE      SQLite file of the receipts; default: a file of the
service's name under $BENTOML_HOME/bentoml_secure
BENTOML_SECURE_REPUTATION   SQLite file of what replicas' past answers count for;
default: beside the receipts, with .reputation.sqlite in place of the suffix
BENTOML_SECURE_TRIALS     file of known answers (``bentoml-secure trials make``), by
which replicas without a vote earn one; unset: newcomers vote from the start
BENTOML_SECURE_SALT_TOKEN_FILE   file with the bearer token that may read root
salts the entry drew; unset: nobody may
BENTOML_SECURE_AUDITORS   key ids (sha256:HEX, with commas between) of auditors whose
nonces decide, beside the entry's own draw, which requests are challenged
BENTOML_SECURE_ENDORSEMENTS   folder of endorsements that go along with this process's
evidence, and that others' is judged with, see ``attestation.endorsement_folder``
BENTOML_SECURE_BROKER     URL of the broker that releases the keys of sealed weights
BENTOML_SECURE_KEY_LIFETIME_SECONDS   how long a process's keys are good for, 10 to
604800; default: a day
BENTOML_SECURE_RUNTIME    what a runner runs its segment on, of what the plan permits:
``onnxruntime:EXTENDED`` (the default), ``onnxruntime:BASIC``,
``onnxruntime:DISABLE_ALL`` or ``torch``

Of a prover:

BENTOML_SECURE_PROOF_JOBS      database of its jobs: sqlite:////FILE, of one host, or
postgresql+psycopg://..., of several; default: a file of the service's name under
$BENTOML_HOME/bentoml_secure
BENTOML_SECURE_PROOF_THREADS   that one proof computes with; default 1
BENTOML_SECURE_PROOF_SLOTS     proofs at once; default 1
BENTOML_SECURE_PROOF_MEMORY_GIB   that its proofs may take together; default: what the
machine has free at the start
BENTOML_SECURE_PROOF_CLUSTER   address of a Ray cluster whose workers make the proofs;
unset: this machine does

Of a broker:

BENTOML_SECURE_BROKER_FOLDER   folder of its store, broker.db, and its policy,
policy.toml
BENTOML_SECURE_BROKER_WRAPPING_KEY   file of the key that its store's keys are wrapped
under; default: wrapping.key in that folder

A variable may be set for one process of several on a host: NAME__SERVICE, with the name
of the process's BentoML service, goes before NAME.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from bentoml_secure.attestation.attesters import (
    ATTESTER,
    DEV_ROOT,
    SERVICE,
    attester_kind,
)
from bentoml_secure.attestation.endorsement_folder import EndorsementFolder
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.keys.http_calls import parse_url
from bentoml_secure.receipts.epoch import MAX_AUDITORS
from bentoml_secure.session.identity import KEY_LIFETIME
from bentoml_secure.split.runtimes import DEFAULT, RuntimeChoice

PREFIX = "BENTOML_SECURE_"
POLICY = "BENTOML_SECURE_POLICY"
STORE = "BENTOML_SECURE_STORE"
REPUTATION = "BENTOML_SECURE_REPUTATION"
TRIALS = "BENTOML_SECURE_TRIALS"
SALT_TOKEN_FILE = "BENTOML_SECURE_SALT_TOKEN_FILE"  # noqa: S105 - a name
BROKER = "BENTOML_SECURE_BROKER"
BROKER_FOLDER = "BENTOML_SECURE_BROKER_FOLDER"
BROKER_WRAPPING_KEY = "BENTOML_SECURE_BROKER_WRAPPING_KEY"
KEY_LIFETIME_SECONDS = "BENTOML_SECURE_KEY_LIFETIME_SECONDS"
RUNTIME = "BENTOML_SECURE_RUNTIME"
AUDITORS = "BENTOML_SECURE_AUDITORS"
PROOF_JOBS = "BENTOML_SECURE_PROOF_JOBS"
PROOF_THREADS = "BENTOML_SECURE_PROOF_THREADS"
PROOF_SLOTS = "BENTOML_SECURE_PROOF_SLOTS"
PROOF_MEMORY = "BENTOML_SECURE_PROOF_MEMORY_GIB"
PROOF_CLUSTER = "BENTOML_SECURE_PROOF_CLUSTER"
_MOST_THREADS = 256
_MOST_GIB = 1 << 20
_KEY_ID = re.compile(r"sha256:[0-9a-f]{64}")
_KEY_LIFETIMES = range(10, 7 * 86_400 + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one process of a deployment is told from outside.

    Attributes:
        attester: Kind of what makes its evidence.
        policy: Path of the appraisal policy.
        store: Path of the receipts' database.
        reputation: Path of the ledger of replicas' reputations.
        salt_token: Bearer token for root salts that the entry drew, or None.
        trials: File of known answers, or None.
        broker: URL of the broker of sealed weights' keys, or None.
        endorsements: Beside those that the attester and others give, or None.
        key_lifetime: Of the process's keys.
        runtime: What a runner runs its segment on.
        auditors: Key ids of those who draw challenges beside the entry.
    """

    attester: str
    policy: Path
    store: Path
    reputation: Path
    salt_token: str | None
    trials: Path | None = None
    broker: str | None = None
    endorsements: EndorsementFolder | None = None
    key_lifetime: timedelta = KEY_LIFETIME
    runtime: RuntimeChoice = DEFAULT
    auditors: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProverSettings:
    """What a prover's process is told from outside, beside what every process is.

    Attributes:
        jobs: URL of the database of its jobs.
        folder: Where it keeps files of its own.
        threads: That one proof computes with.
        slots: Proofs at once.
        memory_bytes: That its proofs may take together; None for what is free.
        cluster: Address of a Ray cluster, or None.
    """

    jobs: str
    folder: Path
    threads: int = 1
    slots: int = 1
    memory_bytes: int | None = None
    cluster: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """What a broker's process is told from outside.

    Attributes:
        attester: Kind of what makes its evidence.
        store: Path of its database.
        wrapping_key: Path of the key that the database's keys are wrapped under.
        policy: Path of the models' owner's policy.
        endorsements: Beside those that the attester and others give, or None.
        key_lifetime: Of the process's keys.
    """

    attester: str
    store: Path
    wrapping_key: Path
    policy: Path
    endorsements: EndorsementFolder | None = None
    key_lifetime: timedelta = KEY_LIFETIME


def read_settings(environment: Mapping[str, str], *, service: str) -> Settings:
    """Read the settings of a process of ``service``.

    Raises:
        ConfigurationError: No attester is configured, a file is not there, or a value
            of another form.
    """
    attester = _attester(environment)
    token_file = environment.get(SALT_TOKEN_FILE)
    broker = environment.get(BROKER) or None
    if broker is not None:
        parse_url(broker, what=BROKER, plain=True)
    store, trials = _store(environment, service), environment.get(TRIALS)
    reputation = environment.get(REPUTATION) or store.with_suffix(".reputation.sqlite")
    return Settings(
        attester=attester,
        policy=_policy(environment),
        store=store,
        reputation=Path(reputation).resolve(),
        trials=Path(trials).resolve() if trials else None,
        salt_token=_read_token(Path(token_file)) if token_file else None,
        broker=broker,
        endorsements=EndorsementFolder.from_environment(environment),
        key_lifetime=_read_key_lifetime(environment.get(KEY_LIFETIME_SECONDS)),
        runtime=read_runtime(environment),
        auditors=_read_auditors(environment.get(AUDITORS)),
    )


def read_prover_settings(
    environment: Mapping[str, str], *, service: str
) -> ProverSettings:
    """Read the settings of a prover's process.

    Raises:
        ConfigurationError: A value of another form.
    """
    file = _state_folder(environment) / f"{service.lower()}.jobs.sqlite"
    gib = _read_count(environment, PROOF_MEMORY, _MOST_GIB)
    return ProverSettings(
        jobs=environment.get(PROOF_JOBS) or f"sqlite:///{file}",
        folder=file.parent,
        threads=_read_count(environment, PROOF_THREADS, _MOST_THREADS) or 1,
        slots=_read_count(environment, PROOF_SLOTS, _MOST_THREADS) or 1,
        memory_bytes=None if gib is None else gib << 30,
        cluster=environment.get(PROOF_CLUSTER) or None,
    )


def _read_count(environment: Mapping[str, str], name: str, most: int) -> int | None:
    text = environment.get(name)
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and 0 < int(text[:9]) <= most):
        raise ConfigurationError(f"{name}: got {text!r:.40}, want 1 to {most}.")
    return int(text)


def read_broker_settings(environment: Mapping[str, str]) -> BrokerSettings:
    """Read the settings of a broker's process.

    Raises:
        ConfigurationError: No attester is configured, or no folder.
    """
    attester, named = _attester(environment), environment.get(BROKER_FOLDER)
    if not named:
        raise ConfigurationError(
            f"{BROKER_FOLDER} is not set: the broker has no keys to release.",
            remedy="`bentoml-secure broker init` makes a store; docs/sealed-models.md"
            " has the steps.",
        )
    folder = Path(named).resolve()
    wrapping_key = environment.get(BROKER_WRAPPING_KEY) or folder / "wrapping.key"
    return BrokerSettings(
        attester=attester,
        store=folder / "broker.db",
        wrapping_key=Path(wrapping_key).resolve(),
        policy=folder / "policy.toml",
        endorsements=EndorsementFolder.from_environment(environment),
        key_lifetime=_read_key_lifetime(environment.get(KEY_LIFETIME_SECONDS)),
    )


def _attester(environment: Mapping[str, str]) -> str:
    attester = attester_kind(environment)
    if attester is None:
        raise ConfigurationError(
            "This process cannot attest itself: no attester is configured.",
            remedy=(
                f"Set {ATTESTER} to what this machine has. For development run "
                f"`bentoml-secure dev-root DIR` and set {DEV_ROOT}=DIR for every "
                "process of the deployment."
            ),
        )
    return attester


def _policy(environment: Mapping[str, str]) -> Path:
    dev_root = environment.get(DEV_ROOT)
    if dev_root and not Path(dev_root).exists():
        raise ConfigurationError(
            f"development root: {Path(dev_root).resolve()} does not exist.",
            remedy="Run `bentoml-secure dev-root DIR`, or correct the variable.",
        )
    named = environment.get(POLICY) or (dev_root and Path(dev_root) / "policy.toml")
    if not named:
        raise ConfigurationError(
            "policy: none is named, and there is no development root to have one.",
            remedy=f"Write one (`bentoml-secure measure` helps) and set {POLICY}.",
        )
    policy = Path(named).resolve()
    if not policy.exists():
        raise ConfigurationError(
            f"policy: {policy} does not exist.",
            remedy="Run `bentoml-secure dev-root DIR`, or correct the variable.",
        )
    return policy


def _read_auditors(text: str | None) -> frozenset[str]:
    named = frozenset(filter(None, (text or "").replace(" ", "").split(",")))
    for auditor in named:
        if not _KEY_ID.fullmatch(auditor):
            raise ConfigurationError(
                f"{AUDITORS}: got {auditor!r:.80}, want sha256:<64 hex digits>."
            )
    if len(named) > MAX_AUDITORS:
        raise ConfigurationError(
            f"{AUDITORS}: got {len(named)}, want at most {MAX_AUDITORS}."
        )
    return named


def _read_key_lifetime(text: str | None) -> timedelta:
    if not text:
        return KEY_LIFETIME
    if not (text.isascii() and text.isdecimal() and int(text[:9]) in _KEY_LIFETIMES):
        raise ConfigurationError(
            f"{KEY_LIFETIME_SECONDS}: got {text!r:.40}, want"
            f" {_KEY_LIFETIMES[0]} to {_KEY_LIFETIMES[-1]}."
        )
    return timedelta(seconds=int(text))


def read_runtime(environment: Mapping[str, str]) -> RuntimeChoice:
    """Read what a runner runs its segment on; needs no other setting.

    Raises:
        ConfigurationError: It names no runtime.
    """
    words = environment.get(RUNTIME)
    try:
        return RuntimeChoice.parse(words) if words else DEFAULT
    except ConfigurationError as error:
        raise ConfigurationError(f"{RUNTIME}: {error}") from error


def _store(environment: Mapping[str, str], service: str) -> Path:
    if path := environment.get(STORE):
        return Path(path).resolve()
    return _state_folder(environment) / f"{service.lower()}.sqlite"


def _state_folder(environment: Mapping[str, str]) -> Path:
    home = Path(environment.get("BENTOML_HOME") or Path.home() / "bentoml")
    return (home / "bentoml_secure").resolve()


def _read_token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{SALT_TOKEN_FILE}: {error}") from error
    if len(token) < 32:
        raise ConfigurationError(
            f"{SALT_TOKEN_FILE}: got a token of {len(token)} characters, want 32."
        )
    return token


def own_environment(environment: Mapping[str, str], service: str) -> dict[str, str]:
    """Return the environment of one service's process: its own variables first.

    Args:
        environment: Of the host's processes.
        service: Name of the process's BentoML service.
    """
    own = dict(environment)
    suffix = f"__{service}"
    for name, value in environment.items():
        if name.startswith(PREFIX) and name.endswith(suffix):
            own[name.removesuffix(suffix)] = value
    own[SERVICE] = service
    return own


def from_environment(service: str) -> Settings:
    """Read the settings of this process."""
    return read_settings(own_environment(os.environ, service), service=service)
