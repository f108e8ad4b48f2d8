"""Pictures from cameras, as they come."""
