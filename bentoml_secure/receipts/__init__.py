"""Receipts: what the entry signs of each request, and judging it offline.

receipt        the receipt, derive_request_id(), issue(); its parts in records
attachments    what comes later: the table of kinds
late_votes     the kind that accounts for votes still out at the decision
bundle         a receipt with all that it takes to judge it
trust          the caller's trust file
verify         verify_bundle(): every step, every finding; the steps are in
parties, rounds, obligations, opening, over a case
store          where receipts are kept: SQLite, nothing changed or removed
strict, toml   reading JSON field by field; writing TOML
"""
