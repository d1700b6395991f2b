"""Measurements. Each file beside this one is a program, `python -m bench.NAME --help`; what they share is in `rig`."""
