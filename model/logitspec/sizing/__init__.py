"""How many nodes of a draft tree are worth their time on this machine."""
