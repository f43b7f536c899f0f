"""The client SDK: ask, stream, know what it cost. `sawyer.Client` and `sawyer.AsyncClient` are the doors."""
