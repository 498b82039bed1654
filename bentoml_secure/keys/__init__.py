"""Weights that lie sealed on disk, and the keys that open them.

    segment_key      32 secret bytes that neither print nor pickle, and their id
    sealed_weights   the format of one sealed file
    sealed_plan      a plan's folder with sealed files: reading it
    seal_model       making one, and the keys that go to a broker
    sealed_proofs    a proof set-up with sealed proving keys: reading it
    seal_proofs      making one
    order_secret     what the key follows from to which orders of proofs are sealed
    key_file         those keys on their way there
    model_signing    OpenSSF model signatures: who made the model
    broker           which key goes to whom
    broker_policy    what the model's owner demands of who asks
    broker_store     keys, revocations and the audit log
    broker_file      the SQLite file under it
    wrapping_key     what its keys are wrapped under
    audit_log        the log's entries and their chain
    release_messages what a session carries between asker and broker
    release          asking a broker for the key of one's own segment
    trustee          the same keys from a Trustee broker
    http_calls       one bounded call, for a process's start
    hardening        no core dumps of a process that holds keys

A key is released for one segment to one attested process, stays in its memory, and
is gone with it. Plaintext weights are never written to disk.
"""

from __future__ import annotations
