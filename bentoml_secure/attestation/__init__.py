"""Attestation: who signed what about the machine a key lives on.

The roles are those of RFC 9334. An attester makes evidence over 64 bytes, a verifier
turns evidence into claims, an appraisal policy of the relying party decides. Rules of
this room:

    verify, then appraise     ``appraise`` takes ``VerifiedClaims``, which only the
                              verifiers under ``tees`` build
    nothing is fetched        a verifier reads its arguments: no network, no clock
    claims are derived        from signed bytes, never sent beside them
    every finding is listed   a rejection names each field that failed

    evidence           nouns: Evidence, VerifiedClaims, AttestationResult
    roles              protocols of attesters, verifiers and kinds of policy
    reference_values   reading and comparing the lists of a policy
    appraisal          AppraisalPolicy, appraise()
    key_document       what evidence binds: keys, role, plan, package
    verification       all of it for one key document
    ear                words of results that travel: tiers, vectors, profiles
    ear_claims         from a result to an EAR's claims
    ear_parsing        reading an EAR's claims
    ear_appraisal      ExpectedResult, appraise_claims()
    result_keys        what signs tokens, what is pinned
    results            issue_result(), verify_result(): EARs as signed tokens
    tees               verifiers, one file per kind
    attesters          devices, one file each
    endorsements       fetched from Intel and AMD on request, and cached
    event_log          boot logs, replayed into the registers that they explain
    measurement        reference values of images and enclaves
    dev_root           the folder that simulated evidence hangs on
    dev_chain          its certificates
"""
