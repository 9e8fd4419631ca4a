"""How the variables of the cells are saved to ``state.dill`` and restored from it."""
