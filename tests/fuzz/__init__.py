"""Thousands of hostile guests: hypothesis generates what the host reads.

:mod:`tests.unit.test_fuzz` runs a few seconds of it, ``scripts/fuzz`` as much as you like.
"""
