"""Serve a classifier and decide which version is the champion."""
