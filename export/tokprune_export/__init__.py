"""The torch side of tokprune: from a checkpoint to a bundle."""
