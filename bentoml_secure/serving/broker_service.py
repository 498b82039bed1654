"""``broker_service``: a key broker as a BentoML service.

    Broker = broker_service("Broker", module=__name__)

Its folder is named by BENTOML_SECURE_BROKER_FOLDER; see ``settings`` and
docs/sealed-models.md. One process: sessions live in it, the store's file outlives it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml

from bentoml_secure.attestation.attesters import open_attester, open_gpu_attester
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import Digest, digest_file_bytes, digest_json
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.keys.broker import Broker
from bentoml_secure.keys.broker_policy import (
    MAX_POLICY_BYTES,
    BrokerPolicy,
    parse_broker_policy,
)
from bentoml_secure.keys.broker_store import BrokerStore
from bentoml_secure.keys.hardening import forbid_core_dumps
from bentoml_secure.keys.wrapping_key import read_wrapping_key
from bentoml_secure.serving.bento_internals import configured_workers, own_module
from bentoml_secure.serving.broker_app import (
    MAX_EXCHANGES,
    BrokerCore,
    BrokerDoor,
    judge_asker,
)
from bentoml_secure.serving.deployment import refuse_workers
from bentoml_secure.serving.settings import (
    BrokerSettings,
    own_environment,
    read_broker_settings,
)
from bentoml_secure.session.identity import Identity
from bentoml_secure.session.responders import Responder
from bentoml_secure.statements import utc_now

# Paths are a stranger's to name: no metrics, log lines or traces by path.
_QUIET = {
    "metrics": {"enabled": False},
    "logging": {"access": {"enabled": False}},
    "tracing": {"excluded_urls": "bsec"},
}


class OpenBroker:
    """A broker's files, opened: its store, and what decides by it.

    Args:
        settings: Where they are.

    Raises:
        ConfigurationError: A file is missing, not in order, or open to others.
    """

    def __init__(self, settings: BrokerSettings) -> None:
        # Before there is anything to dump: the wrapping key opens the whole store.
        forbid_core_dumps()
        data = _read_policy(settings.policy)
        self.policy: BrokerPolicy = parse_broker_policy(data)
        self.config_digest: Digest = digest_json(
            {"version": 1, "broker_policy": digest_file_bytes(data)}
        )
        wrapping = read_wrapping_key(settings.wrapping_key)
        self.store = BrokerStore(settings.store)
        try:
            self.broker = Broker(self.policy, self.store, wrapping)
        except BaseException:
            self.store.close()
            raise

    def core(self, identity: Identity) -> BrokerCore:
        """Return what answers, as the broker that ``identity`` shows."""
        appraisal = self.policy.appraisal
        responder = Responder(
            identity,
            lambda shown: judge_asker(
                shown, appraisal, now=utc_now(), endorsements=identity.endorsements
            ),
            max_age_seconds=appraisal.max_age_seconds,
            clock=utc_now,
            max_exchanges=MAX_EXCHANGES,
        )
        return BrokerCore(broker=self.broker, responder=responder)


def _read_policy(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"broker policy: {error}.",
            remedy="`bentoml-secure broker policy` writes one.",
        ) from error


class BrokerProcess:
    """A broker, as BentoML makes it: the class of its service."""

    name: str
    core_of_process: BrokerCore | None = None

    def __init__(self) -> None:
        environment = own_environment(os.environ, self.name)
        settings = read_broker_settings(environment)
        self.opened = OpenBroker(settings)
        identity = Identity(
            open_attester(settings.attester, environment, clock=utc_now),
            role=Role.BROKER,
            service=self.name,
            segment=None,
            plan=None,
            config_digest=self.opened.config_digest,
            gpu=open_gpu_attester(environment, clock=utc_now),
            folder=settings.endorsements,
            key_lifetime=settings.key_lifetime,
        )
        type(self).core_of_process = self.opened.core(identity)

    @classmethod
    def running(cls) -> BrokerCore:
        """Return this process's broker.

        Raises:
            ConfigurationError: It has not started.
        """
        if cls.core_of_process is None:
            raise ConfigurationError(f"{cls.name} has not started in this process")
        return cls.core_of_process


def broker_service(name: str, *, module: str, **options: Any) -> Any:
    """Make a BentoML service that releases the keys of sealed models.

    Args:
        name: Of the service.
        module: Name of the module that it is served from: ``__name__``.
        **options: ``bentoml.service`` options, such as ``resources``.

    Returns:
        A ``bentoml.Service``.

    Raises:
        ConfigurationError: More than one worker was asked for.
    """

    def check() -> None:
        # In the supervisor: a start that cannot work fails there and then.
        refuse_workers({"workers": configured_workers(name)}, name)
        settings = read_broker_settings(own_environment(os.environ, name))
        OpenBroker(settings).store.close()

    def stop(self: BrokerProcess) -> None:
        self.opened.store.close()

    refuse_workers(options, name)
    made: type[BrokerProcess] = type(
        name,
        (BrokerProcess,),
        {
            "__module__": module,
            "__doc__": "Releases the keys of sealed models to attested processes.",
            "name": name,
            "bsec_check": bentoml.on_deployment(check),
            "bsec_stop": bentoml.on_shutdown(stop),
        },
    )
    service = bentoml.service(name=name, **{**_QUIET, **options})(made)
    own_module(service, module)
    service.add_asgi_middleware(BrokerDoor, core=made.running)
    return service
