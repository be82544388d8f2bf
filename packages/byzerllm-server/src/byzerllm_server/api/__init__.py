"""The routes, one module per group; `OPERATIONS` of each is its part of the table."""
