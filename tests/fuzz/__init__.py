"""Hostile guests by the thousand: what the host reads, made by hypothesis.

:mod:`tests.unit.test_fuzz` runs a few seconds of it, ``scripts/fuzz`` as much as one wants.
"""
