"""Coverage of the zoo: what one architecture's row is, how it is measured in a process of its own, and the tables."""
