"""Adapters to other libraries. Each needs an extra: ``rlm-containers[rlms]``, ``[dspy]``."""
