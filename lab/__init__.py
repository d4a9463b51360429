"""How it is run, measured, kept and shown."""
