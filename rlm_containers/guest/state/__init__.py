"""How the variables of a session are saved to ``state.dill`` and restored from it."""
