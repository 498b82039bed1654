"""Handwritten digits, proven: training, splitting, and the proof set-up."""
