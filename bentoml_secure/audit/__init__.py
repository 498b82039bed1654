"""Audits: which answered requests are recomputed, by whom, and what that is worth."""
