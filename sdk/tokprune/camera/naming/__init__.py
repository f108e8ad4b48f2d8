"""What a source is called: its address, and what of that may be shown."""
