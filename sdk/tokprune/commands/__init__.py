"""One module for each verb of `tokprune`."""
