"""Tables of several methods from their traces: what they hold, and how they are written."""
