"""Pictures: their style, those of traces and those of a sweep. They need matplotlib."""
