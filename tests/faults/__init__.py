"""Programs that stop, starve or corrupt a run on purpose, and look at what is left."""
