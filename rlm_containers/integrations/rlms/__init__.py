"""Run the RLMs of rlms in containers."""
