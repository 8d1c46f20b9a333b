"""The three commands, and the experiments that need both stages."""
