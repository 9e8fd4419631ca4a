"""Run the code of DSPy in containers."""
