"""Verifiable split inference for BentoML."""
