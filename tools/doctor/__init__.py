"""What is wrong with a store, who uses it, and who keeps which bytes: found, never repaired."""
