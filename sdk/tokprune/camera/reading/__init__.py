"""What pictures are read from, one module each kind of source."""
