"""What server and devices do in a contact."""
