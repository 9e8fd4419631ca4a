"""Measures this project's environment against rlms's own, side by side on one engine."""
