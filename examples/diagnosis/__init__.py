"""Diagnosis on the Wisconsin data: train, serve, be lied to, verify."""
