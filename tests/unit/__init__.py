"""Tests that need no container engine."""
