"""Receipts: what the entry signs of each request, and judging it offline.

receipt        the receipt, derive_request_id(), issue(); its parts in records, chains,
commitments and draw
attachments    what comes later: the table of kinds
late_votes     the kind that accounts for votes still out at the decision
audit          the kind that says what recomputing the request came to
epoch          the kind that says if a receipt is challenged, of those gathered with it;
what is signed of all of them in epoch_root, epoch_closing; two roots in equivocation
localisation   the kind that says who in a dissenting chain is at fault
bundle         a receipt with all that it takes to judge it
trust          the caller's trust file
verify         verify_bundle(): every step, every finding; the steps are in
parties, drawing, rounds, committees, commitments, rulings, chaining, obligations and
opening, over a case; judgement holds what they share
store          where receipts are kept: SQLite, nothing changed or removed
strict, toml   reading JSON field by field; writing TOML
"""
