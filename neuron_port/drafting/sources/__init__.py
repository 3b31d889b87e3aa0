"""GPU sources: loading, origin, licences, and comments, which are data."""
