"""The thaw line: freeze, cut the network there, cache what crosses it."""
