"""Tests against the real rlms package, with models that follow a script."""
