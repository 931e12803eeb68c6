"""What every command has: flags, parser, exit status, terminal, files."""
