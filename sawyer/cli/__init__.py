"""The commands: thin, they parse, call and print. The only package that touches `typer` and `rich`."""
