"""``bentoml_secure.service``: from a plan and a class to BentoML services.

    @bentoml_secure.service(plan="models/diagnosis", replicas=3,
                            scenarios="scenarios.toml", name="Diagnosis")
    class Diagnosis:
        @bentoml.api
        async def diagnose(self, features: list[list[float]]) -> dict:
            feed = {"features": np.asarray(features, np.float32)}
            out = await self.secure.infer(feed)
            return {"malignant": out["probability"][:, 0].tolist()}

One service per replica is made and added as a dependency, which serves supervision
only: tensors travel by our own route and client.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio.from_thread
import bentoml

from bentoml_secure import metrics
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.serving.assembly import assemble_entry
from bentoml_secure.serving.bento_internals import (
    api_paths,
    configured_workers,
    is_service,
    names_given_urls,
    own_module,
)
from bentoml_secure.serving.deployment import Deployment, refuse_workers
from bentoml_secure.serving.entry import Entry
from bentoml_secure.serving.entry_door import EntryDoor
from bentoml_secure.serving.request import current
from bentoml_secure.serving.runner import RunnerCore, RunSegment
from bentoml_secure.serving.runner_app import MAX_MESSAGE_BYTES, RunnerDoor
from bentoml_secure.tensors import Array

# BentoML parses JSON into Python objects of many times its size: raise with care.
MAX_BODY_BYTES = 16 << 20

# The door speaks for itself: BentoML's per-path metrics, access log and trace of the
# hop would each cost more than the signature, and the paths are a stranger's to name.
_QUIET = {
    "metrics": {"enabled": False},
    "logging": {"access": {"enabled": False}},
    "tracing": {"excluded_urls": "bsec"},
}


class Runner:
    """One replica of one segment, as BentoML makes it: the class of its service."""

    deployment: Deployment
    name: str
    segment_index: int

    def __init__(self) -> None:
        deployment, index = self.deployment, self.segment_index
        # Before there is anything to dump.
        deployment.weights.harden()
        self.identity = deployment.identify_runner(self.name, index)
        self.core = deployment.runner(self.name, index, self.load_run(), self.identity)
        type(self).core_of_process = self.core

    core_of_process: RunnerCore | None = None

    def load_run(self) -> RunSegment:
        """Load the segment and return what runs it: the seam of fault injection."""
        loaded = self.deployment.load(
            self.name, self.segment_index, lambda: self.identity
        )
        return loaded.run_unchecked

    @classmethod
    def running(cls) -> RunnerCore:
        """Return this process's runner.

        Raises:
            ConfigurationError: It has not started.
        """
        if cls.core_of_process is None:
            raise ConfigurationError(f"{cls.name} has not started in this process")
        return cls.core_of_process


class Secure:
    """What ``self.secure`` is in a handler."""

    def __init__(self, entry: Callable[[], Entry]) -> None:
        self._entry = entry

    @property
    def entry(self) -> Entry:
        """This process's entry: its replicas, receipts and configuration.

        Raises:
            ConfigurationError: The service has not started.
        """
        return self._entry()

    async def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run the plan on its named inputs; the receipt of this request records it.

        Args:
            feed: Exactly the plan's inputs: numpy arrays of the promised dtypes and
                shapes.

        Returns:
            The plan's outputs by name, agreed by a quorum of every segment.

        Raises:
            MalformedInputError: Inputs that are not the plan's.
            QuorumNotReached: A segment's replicas did not agree in time.
            ConfigurationError: Called outside a request.
        """
        return await self.entry.engine.infer(current(), feed)

    def infer_sync(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run ``infer`` from a synchronous API method."""
        return anyio.from_thread.run(self.infer, feed)


class _SecureAttribute:
    """Descriptor behind ``self.secure``: one entry per process, made on first use."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._entry: Entry | None = None
        self._lock = threading.Lock()
        self.services: Mapping[str, Any] = {}

    def __get__(self, instance: object, owner: type) -> Secure:
        return Secure(self.entry)

    def open(self, instance: Any) -> None:
        """Make the entry; ``instance`` holds the runners where they are local."""
        urls = {name: service.url for name, service in self.services.items()}
        self._deployment.require_urls(urls)
        local = {
            name: getattr(instance, dependency_name(name)).core
            for name, url in urls.items()
            if not url
        }
        with self._lock:
            self._entry = assemble_entry(
                self._deployment,
                {name: url for name, url in urls.items() if url},
                local,
            )

    def entry(self) -> Entry:
        """Return this process's entry.

        Raises:
            ConfigurationError: The service has not started.
        """
        if self._entry is None:
            raise ConfigurationError("the service has not started in this process")
        return self._entry

    async def close(self) -> None:
        """Close the entry, if one was made."""
        entry, self._entry = self._entry, None
        if entry is not None:
            await entry.close()


def dependency_name(runner: str) -> str:
    """Return the attribute under which the entry depends on a runner's service."""
    return f"bsec_{runner.lower()}"


def service(
    *,
    plan: str | Path,
    replicas: int,
    scenarios: str | Path,
    name: str | None = None,
    referees: bool = False,
    signer: str | Path | None = None,
    signature: str | Path | None = None,
    proofs: str | Path | None = None,
    in_process: bool = False,
    threads: int = 1,
    max_body_bytes: int = MAX_BODY_BYTES,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    runner: Mapping[str, Any] | None = None,
    **options: Any,
) -> Callable[[type], Any]:
    """Make a class a BentoML service whose answers carry receipts.

    Args:
        plan: Folder of the split plan, relative to the project.
        replicas: Of each segment; 2f+1 to stand f liars or failures.
        scenarios: File of the scenarios, relative to the project.
        name: Of the service; the class's name if left out.
        referees: Whether each segment has a referee, a runner beside its replicas that
            no committee is drawn from. It decides where a scenario says so, recomputes
            what is audited, and is to run where its operator is trusted most.
        signer: PEM file of the key whose OpenSSF model signature the plan must have.
        signature: File of that signature; a sealed plan's own if left out.
        proofs: Folder of the proof set-up that `bentoml-secure prove setup` made: each
            segment gets a prover, a service beside its replicas, and scenarios may ask
            for proofs.
        in_process: Build the runners inside the entry. For tests: such an entry sees
            every segment.
        threads: ONNX Runtime's threads per operation, in each runner.
        max_body_bytes: Cap on the body of a request and of an answer.
        max_message_bytes: Cap on the body of an exchange with a runner.
        runner: ``bentoml.service`` options of every runner, such as ``resources``.
        **options: ``bentoml.service`` options of the entry, such as ``traffic``.

    Returns:
        A class decorator; its result is a ``bentoml.Service``.

    Raises:
        ConfigurationError: A file is missing or not in order, or more than one
            worker was asked for.
        CheckFailedError: The plan is not what the signer signed.
    """

    def decorate(cls: type) -> Any:
        if is_service(cls):
            raise ConfigurationError(
                f"{cls!r} is a BentoML service already.",
                remedy="Use @bentoml_secure.service in place of @bentoml.service.",
            )
        deployment = Deployment.read(
            name=name or cls.__name__,
            plan=plan,
            replicas=replicas,
            referees=referees,
            scenarios=scenarios,
            threads=threads,
            in_process=in_process,
            max_message_bytes=max_message_bytes,
            module=cls.__module__,
            signer=signer,
            signature=signature,
            proofs=proofs,
        )
        return _build(cls, deployment, dict(runner or {}), options, max_body_bytes)

    refuse_workers(options, "entry")
    refuse_workers(runner or {}, "runner")
    return decorate


def _build(
    cls: type,
    deployment: Deployment,
    runner_options: dict[str, Any],
    options: dict[str, Any],
    max_body_bytes: int,
) -> Any:
    services = {
        name: _runner_service(deployment, name, index, cls.__module__, runner_options)
        for name, index in deployment.runners.items()
    }
    if deployment.provers:
        # Their job store is an extra's: not for who proves nothing.
        from bentoml_secure.serving.prover_service import prover_services

        services |= prover_services(deployment, cls.__module__)
    attribute = _SecureAttribute(deployment)
    attribute.services = services
    made = _entry_class(cls, deployment, attribute, services)
    # One stopped replica would hang the stock readiness; ours is bounded.
    options.setdefault("runner_probe", {"enabled": False})
    entry = bentoml.service(name=deployment.name, **options)(made)
    own_module(entry, cls.__module__)
    entry.add_asgi_middleware(
        EntryDoor,
        entry=attribute.entry,
        apis=api_paths(entry),
        max_body_bytes=max_body_bytes,
        salt_token=lambda: deployment.settings.salt_token,
    )
    return entry


def _runner_service(
    deployment: Deployment,
    name: str,
    index: int,
    module: str,
    options: dict[str, Any],
) -> Any:
    def check() -> None:
        # In the supervisor: a start that cannot work fails there and then.
        refuse_workers({"workers": configured_workers(name)}, name)
        deployment.require_segment(index, name)
        deployment.require_settings(name)
        if deployment.weights.sealed:
            deployment.broker_url(name)

    made: type[Runner] = type(
        name,
        (Runner,),
        {
            "__module__": module,
            "__doc__": f"{name}: runs segment {index} of {deployment.name}.",
            "deployment": deployment,
            "name": name,
            "segment_index": index,
            "bsec_check": bentoml.on_deployment(check),
        },
    )
    # The session work-around for whoever calls it by BentoML's proxy all the same.
    proxied = {"runner_connection": {"max_requests": 10**9, "max_age": 1e9}}
    service = bentoml.service(name=name, **{**_QUIET, **proxied, **options})(made)
    own_module(service, module)
    service.add_asgi_middleware(
        RunnerDoor,
        core=made.running,
        max_message_bytes=deployment.max_message_bytes,
    )
    return service


def _entry_class(
    cls: type,
    deployment: Deployment,
    attribute: _SecureAttribute,
    services: Mapping[str, Any],
) -> type:
    def init(self: Any) -> None:
        attribute.open(self)
        cls.__init__(self)  # type: ignore[misc]  # the class that was decorated

    async def start(self: Any) -> None:
        metrics.forget_ended_processes()
        await attribute.entry().start()

    async def stop(self: Any) -> None:
        await attribute.close()

    async def is_ready(self: Any) -> bool:
        return await attribute.entry().is_ready()

    def check() -> None:
        refuse_workers({"workers": configured_workers(deployment.name)}, "entry")
        # Again in the worker, but BentoML starts a failing worker anew for ever.
        named = names_given_urls()
        if named is not None:
            urls = {name: "named" if name in named else None for name in services}
            deployment.require_urls(urls)
        deployment.require_rules()
        # Reads settings and policy: a missing one fails the start, not a request.
        _ = deployment.configuration.digest

    namespace: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__init__": init,
        "secure": attribute,
        "bsec_start": bentoml.on_startup(start),
        "bsec_stop": bentoml.on_shutdown(stop),
        "bsec_check": bentoml.on_deployment(check),
        **{dependency_name(name): bentoml.depends(s) for name, s in services.items()},
    }
    if not hasattr(cls, "__is_ready__"):
        namespace["__is_ready__"] = is_ready
    made = type(cls.__name__, (cls,), namespace)
    return made
