"""Keys, settings and strings of somebody else, under which a proof shows nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bentoml_secure.errors import ProofError
from bentoml_secure.proofs.linking import find_in_settings, verify_chain
from bentoml_secure.proofs.srs import verifier_digest, verifier_part
from bentoml_secure.proofs.srs_folder import SrsFolder
from bentoml_secure.testing.deployment import make_plan
from bentoml_secure.testing.proof_set_up import LIMITS, make_set_up
from bentoml_secure.testing.proofs import (
    Records,
    record_of,
    run_chain,
    secrets_of,
)
from bentoml_secure.testing.receipts import Draft, build_draft
from tests import proven_case
from tests.attacks.proofs import findings, judge


@pytest.fixture
def draft() -> Draft:
    return proven_case.proven()[0]


@pytest.fixture
def records() -> Records:
    return dict(proven_case.proven()[1])


class TestTheSetUp:
    def test_no_keys(self, draft: Draft, records: Records) -> None:
        bundle = replace(draft.bundle(), verification_keys=None)
        found = findings(draft, records, bundle=bundle)
        assert found == {"bundle verification_keys": "none"}

    @pytest.mark.parametrize("what", ["key", "settings"])
    def test_another_models(self, draft: Draft, records: Records, what: str) -> None:
        document = proven_case.set_up().document
        first, second = document["segments"]
        first[what] = second[what] if what == "key" else _edited(second[what])
        bundle = replace(draft.bundle(), verification_keys=document)
        assert "bundle verification_keys" in findings(draft, records, bundle=bundle)

    def test_the_provers_own(self, draft: Draft, records: Records) -> None:
        own = proven_case.set_up().signed_by("a prover")
        bundle = replace(draft.bundle(), verification_keys=own.document)
        found = findings(draft, records, bundle=bundle)
        assert found["manifest signer"] == own.manifest.signer_id
        assert found["manifest"] == own.manifest.digest

    def test_of_an_operator_who_is_not_the_owner(self) -> None:
        own = proven_case.set_up().signed_by("an operator")
        honest = proven_case.proven()[0].deployment.trust
        draft = build_draft(proven_case.deploy(own))
        trust = replace(
            draft.deployment.trust, manifest_signers=honest.manifest_signers
        )
        honest_records = proven_case.proven()[1]
        digest = draft.bundle().receipt.payload_digest
        records = {
            place: record_of(
                draft, digest, place, record.proof, (0,) * 4, draft.outputs
            )
            for place, record in honest_records.items()
        }
        found = findings(draft, records, trust=trust)
        assert found["manifest signer"] == own.manifest.signer_id

    def test_the_owners_with_a_wider_bound(
        self, draft: Draft, records: Records
    ) -> None:
        own = proven_case.set_up()
        accuracy = replace(own.manifest.accuracy, bound=100.0)
        wider = own.altered(accuracy=accuracy)
        bundle = replace(draft.bundle(), verification_keys=wider.document)
        found = findings(draft, records, bundle=bundle)
        assert found == {"manifest": wider.manifest.digest}

    def test_a_string_that_nobody_listed(self, draft: Draft, records: Records) -> None:
        trust = replace(draft.deployment.trust, srs=("sha256-srs-v1:" + "0" * 64,))
        found = findings(draft, records, trust=trust)
        assert found == {"srs": proven_case.srs()[0].digest}

    def test_a_string_whose_secret_somebody_knows(
        self, draft: Draft, records: Records
    ) -> None:
        trust = replace(draft.deployment.trust, unsafe_srs=False)
        assert findings(draft, records, trust=trust) == {"srs": "unsafe"}
        verdict = judge(draft, records)
        assert verdict.claims["unsafe_srs"] is True
        assert any(left.field == "srs" for left in verdict.unchecked)

    def test_a_trust_file_that_says_nothing_of_proofs(
        self, draft: Draft, records: Records
    ) -> None:
        trust = replace(
            draft.deployment.trust, manifest_signers=(), srs=(), unsafe_srs=False
        )
        found = findings(draft, records, trust=trust)
        assert found.keys() == {"manifest signer", "srs"}


def _edited(settings: str) -> str:
    import base64

    document = json.loads(base64.b64decode(settings))
    document["run_args"]["param_visibility"] = "Private"
    return base64.b64encode(json.dumps(document).encode()).decode()


def test_private_weights_would_prove_any_model(tmp_path: Path) -> None:
    """With weights as a witness, one verification key fits every model."""
    backend, parameters = proven_case.set_up().backend, proven_case.PARAMETERS
    model = proven_case.circuit(proven_case.IDENTITY)
    settings, _ = backend.measure(model, parameters, LIMITS)
    document = json.loads(settings)
    document["run_args"]["param_visibility"] = "Private"
    private = json.dumps(document).encode()
    record, file = proven_case.srs()
    made = make_set_up(
        make_plan(1, provable=True),
        [model],
        parameters,
        salt=proven_case.SALT,
        srs=record,
        srs_file=file,
        folder=tmp_path,
        backend=backend,
        settings=[private],
    )
    other = proven_case.circuit(3 * proven_case.IDENTITY)
    cheating = replace(made.keys[0], circuit=backend.compile(other, private, LIMITS))
    out: list[tuple[int, ...]] = []
    salt = proven_case.SALT.expand(bytes(32))
    proof = backend.prove(cheating, (1, 2, 3, 4, *salt), salt, LIMITS, out.append)
    assert out[0][:4] == (3, 6, 9, 12)
    # The key of the honest model takes the other one's proof:
    keys = [made.keys[0].verification]
    backend.verify([(proof, keys[0])], record.verifier, LIMITS)
    (finding,) = find_in_settings(made.manifest, keys, backend)
    assert "param_visibility" in finding.got
    with pytest.raises(ProofError, match="param_visibility"):
        verify_chain(made.manifest, keys, [proof], backend=backend)


def test_another_string_shows_nothing(draft: Draft, tmp_path: Path) -> None:
    """Who has made a string can forge: so its proofs verify under no other one."""
    file = SrsFolder(tmp_path).generate(proven_case.PARAMETERS.logrows)
    honest = proven_case.set_up()
    record = SrsFolder(tmp_path).record([proven_case.PARAMETERS.logrows])
    keys = tmp_path / "keys"
    keys.mkdir()
    made = make_set_up(
        make_plan(1, provable=True),
        [proven_case.circuit(proven_case.IDENTITY)],
        proven_case.PARAMETERS,
        salt=proven_case.SALT,
        srs=record,
        srs_file=file.path,
        folder=keys,
        backend=honest.backend,
    )
    (proof,), _ = run_chain(made, draft.inputs, secrets_of(draft, 0))
    verifier = verifier_part(file.path)
    assert verifier_digest(verifier) != honest.manifest.srs.digest
    own = [(proof, made.keys[0].verification)]
    honest.backend.verify(own, verifier, LIMITS)
    with pytest.raises(ProofError, match="does not verify"):
        honest.backend.verify(own, honest.manifest.srs.verifier, LIMITS)
