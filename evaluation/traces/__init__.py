"""The answers of runs on disk: written, read and compared."""
