"""Stage two: vectors to species. Never opens an audio file, and is importable without torch."""
