"""Engines that a device makes of a bundle: what they take, where they lie, how they are built."""
