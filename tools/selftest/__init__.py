"""Whether this installation does what it says: promises kept before the user's eyes."""
