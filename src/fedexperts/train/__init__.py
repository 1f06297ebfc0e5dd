"""What a device does: it takes a `Task`, trains parts of its model on data that never leave it, and gives an `Update`."""
