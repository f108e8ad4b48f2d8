"""What a request will take on this device, and what that means for its budget."""
