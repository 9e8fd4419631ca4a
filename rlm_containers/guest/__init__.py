"""The program that runs in the container.

The host sends this package to containers, where it has the name ``rlm_guest``. So it uses only the
standard library of Python 3.9 and dill, and nothing of the host. :mod:`rlm_guest.wire` describes
the whole and the protocol.
"""
