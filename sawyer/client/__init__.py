"""The client SDK: ask for a generation, stream it, know what it cost. `sawyer.AsyncClient` is the door."""
