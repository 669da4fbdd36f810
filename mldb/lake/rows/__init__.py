"""The rows of a lake: mapped blocks, gathers, tiers."""
