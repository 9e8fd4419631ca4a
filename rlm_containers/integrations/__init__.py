"""Adapters to other libraries. Each needs an extra, such as ``rlm-containers[rlms]``."""
