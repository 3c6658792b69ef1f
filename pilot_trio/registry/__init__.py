"""See the module list in the architecture page."""
