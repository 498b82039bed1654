"""A process's own endorsements: where they go, and whom they help to judge."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import pytest

from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.attesters import DEV_ROOT
from bentoml_secure.attestation.endorsement_folder import (
    ENDORSEMENTS,
    EndorsementFolder,
)
from bentoml_secure.attestation.evidence import (
    AttestationResult,
    Evidence,
    VerifiedClaims,
)
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.attestation.tees.simulated import Simulated
from bentoml_secure.errors import ConfigurationError, MissingEndorsementError
from bentoml_secure.serving import broker_service as services
from bentoml_secure.serving.broker_app import judge_asker
from bentoml_secure.serving.broker_service import BrokerProcess, OpenBroker
from bentoml_secure.serving.channel import LocalChannel
from bentoml_secure.serving.deployment import Deployment
from bentoml_secure.serving.settings import (
    BROKER_FOLDER,
    STORE,
    read_broker_settings,
    read_settings,
)
from bentoml_secure.session.identity import Identity
from bentoml_secure.session.judging import judge
from bentoml_secure.session.keys import Shown
from bentoml_secure.statements import utc_now
from tests.harness import Project
from tests.unit.serving.serving_parts import MAX_AGE, Ground

NEEDED = b"collateral"
NONCE = bytes(range(32))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "endorsements"
    made.mkdir()
    (made / "file").write_bytes(NEEDED)
    return made


@pytest.fixture(autouse=True)
def _needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the simulated kind want an endorsement, as real ones do."""
    verify = Simulated.verify

    def wanting(
        self: Simulated,
        evidence: Evidence,
        endorsements: Sequence[bytes],
        *,
        now: datetime,
    ) -> VerifiedClaims:
        if NEEDED not in endorsements:
            raise MissingEndorsementError("simulated: no collateral was given")
        return verify(self, evidence, endorsements, now=now)

    monkeypatch.setattr(Simulated, "verify", wanting)


def shown_by(identity: Identity, now: datetime) -> Shown:
    keys = identity.keys
    return Shown(
        document=keys.document,
        record=identity.attest(NONCE, keys),
        nonce=NONCE,
        nonce_issued_at=now,
    )


class TestEntry:
    async def test_without_any_no_runner_is_accepted(self, ground: Ground) -> None:
        peer = ground.peer(0, 0, LocalChannel(ground.core(0)))
        with pytest.raises(MissingEndorsementError, match="no collateral"):
            await peer.attest()

    async def test_its_own_are_in_receipts_too(
        self, ground: Ground, folder: Path
    ) -> None:
        ground.own = ground.identity(folder=EndorsementFolder(folder))
        peer = ground.peer(0, 0, LocalChannel(ground.core(0)))
        await peer.attest()
        record = peer.require(MAX_AGE).record
        assert record.endorsements == (NEEDED,)
        assert record.digest == peer.require(MAX_AGE).party.evidence

    async def test_a_runners_are_enough(
        self, ground: Ground, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        having = functools.partial(ground.identity, folder=EndorsementFolder(folder))
        with monkeypatch.context() as patch:
            patch.setattr(ground, "identity", having)
            core = ground.core(0)
        (folder / "file").write_bytes(NEEDED + b", renewed")
        (folder / "other").write_bytes(NEEDED)
        own = core.responder.identity

        def judge_entry(shown: Shown) -> AttestationResult:
            now, known = ground.clock(), own.endorsements
            return judge(shown, ground.policy, now=now, endorsements=known)

        monkeypatch.setattr(core.responder, "_judge", judge_entry)
        peer = ground.peer(0, 0, LocalChannel(core))
        await peer.attest()
        sent = peer.require(MAX_AGE).record.endorsements
        assert sent == (NEEDED + b", renewed", NEEDED)


class TestRunner:
    @pytest.fixture
    def deployment(
        self, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Deployment:
        monkeypatch.setenv(DEV_ROOT, str(project.dev_root))
        monkeypatch.setenv(STORE, str(tmp_path / "store"))
        return Deployment.read(
            name="D",
            plan=project.plan,
            replicas=3,
            scenarios=project.folder / "services" / "scenarios.toml",
            threads=1,
            in_process=False,
            max_message_bytes=1 << 20,
            module="nowhere",
        )

    def test_it_judges_the_entry_with_its_own(
        self, deployment: Deployment, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown = shown_by(deployment.identify(Role.ENTRY, "D", None), utc_now())
        name = next(iter(deployment.runners))
        own = deployment.identify_runner(name, 0)
        with pytest.raises(MissingEndorsementError, match="no collateral"):
            deployment.judge_entry(shown, own)
        # Its alone: not those of the other processes on the host.
        monkeypatch.setenv(f"{ENDORSEMENTS}__{name}", str(folder))
        own = deployment.identify_runner(name, 0)
        assert deployment.judge_entry(shown, own).kind == "simulated"
        assert deployment.identify_runner("D", 0).endorsements == ()

    def test_it_judges_its_broker_with_its_own(
        self, deployment: Deployment, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown = shown_by(deployment.identify(Role.BROKER, "B", None), utc_now())
        own = deployment.identify_runner("R", 0)
        with pytest.raises(MissingEndorsementError, match="no collateral"):
            deployment.judge_broker(shown, own)
        monkeypatch.setenv(ENDORSEMENTS, str(folder))
        own = deployment.identify_runner("R", 0)
        assert deployment.judge_broker(shown, own).kind == "simulated"


class TestBroker:
    def test_it_judges_askers_with_its_own(self, ground: Ground) -> None:
        asker = ground.identity(Role.RUNNER, "R", ground.plan.segments[0].identity)
        shown, now = shown_by(asker, ground.clock()), ground.clock()
        with pytest.raises(MissingEndorsementError, match="no collateral"):
            judge_asker(shown, ground.policy, now=now)
        result = judge_asker(shown, ground.policy, now=now, endorsements=(NEEDED,))
        assert result.kind == "simulated"

    def test_they_are_those_of_its_folder(
        self,
        ground: Ground,
        folder: Path,
        project: Project,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """From its settings, through what it shows, to whom it judges."""
        asked: list[object] = []

        def judged(
            shown: Shown,
            policy: AppraisalPolicy,
            *,
            now: datetime,
            endorsements: object,
        ) -> AttestationResult | None:
            asked.append(endorsements)
            return None

        class Opened(OpenBroker):
            def __init__(self, settings: object) -> None:
                self.config_digest = ground.configuration.digest
                self.policy = type("P", (), {"appraisal": ground.policy})()
                self.broker = None  # type: ignore[assignment]

        monkeypatch.setenv(DEV_ROOT, str(project.dev_root))
        monkeypatch.setenv(BROKER_FOLDER, str(folder.parent))
        monkeypatch.setenv(ENDORSEMENTS, str(folder))
        monkeypatch.setattr(services, "judge_asker", judged)
        monkeypatch.setattr(services, "OpenBroker", Opened)

        class Made(BrokerProcess):
            name = "Made"

        Made()
        responder = Made.running().responder
        shown = shown_by(responder.identity, utc_now())
        assert shown.record is not None
        assert shown.record.endorsements == (NEEDED,)
        responder._judge(shown)
        assert asked == [(NEEDED,)]


class TestStarts:
    @pytest.fixture
    def wrong(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        (folder / "empty").touch()
        return str(folder)

    def test_of_an_entry_or_runner(self, wrong: str, project: Project) -> None:
        environment = {DEV_ROOT: str(project.dev_root), ENDORSEMENTS: wrong}
        with pytest.raises(ConfigurationError, match="empty is empty"):
            read_settings(environment, service="D")
        del environment[ENDORSEMENTS]
        assert read_settings(environment, service="D").endorsements is None

    def test_of_a_broker(self, wrong: str, project: Project) -> None:
        environment = {
            DEV_ROOT: str(project.dev_root),
            BROKER_FOLDER: ".",
            ENDORSEMENTS: wrong,
        }
        with pytest.raises(ConfigurationError, match="empty is empty"):
            read_broker_settings(environment)

    def test_the_supervisor_wants_a_runners_too(
        self,
        wrong: str,
        project: Project,
        configure: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        import bentoml_secure

        class Asks:
            """Asks nothing."""

        monkeypatch.setenv(DEV_ROOT, str(project.dev_root))
        made = bentoml_secure.service(
            plan=project.plan,
            replicas=3,
            scenarios=project.folder / "services" / "scenarios.toml",
            name="Made",
        )(Asks)
        configure(made)
        name = "MadeSegment1Replica2"
        runner = made.all_services()[name].inner
        runner.bsec_check()
        monkeypatch.setenv(f"{ENDORSEMENTS}__{name}", wrong)
        with pytest.raises(ConfigurationError, match="empty is empty"):
            runner.bsec_check()
        made.all_services()["MadeSegment0Replica0"].inner.bsec_check()
