"""Everything that crosses a process boundary: facts, messages, activation bytes, subjects. Knows no bus and no key."""
