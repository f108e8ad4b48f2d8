"""The page's server: stations watch cameras, clients are browsers, and the hub is between them."""
