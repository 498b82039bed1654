"""Benchmarks: each module prints one JSON object, a ratio beside what it is against."""
