"""How the default profile was chosen, and what more rows and epochs give."""
