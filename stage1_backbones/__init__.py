"""Stage one: sound into vectors."""
