"""The home folder on disk: states, records, caches, garbage, export and import."""
