"""Several strategies, each trained several times on the same splits, side by side."""
